"""Codecs of a chunk: what is encoded is decoded, and the metadata say how."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.backends.zarr.codecs import Chain, Hints, parse_chain, with_crc
from wustore.backends.zarr.decode import decode_chunk

SHAPE = (12, 10)
CHAINS = [
    Chain(np.dtype("f4"), "pcodec", {"level": 6}),
    Chain(np.dtype("f8"), "pcodec", {"level": 6}),
    Chain(np.dtype("f4"), "zstd", {"level": 3, "checksum": False}),
    Chain(np.dtype("i1"), "zstd", {"level": 9, "checksum": False}),
    Chain(
        np.dtype("i4"), "blosc", {"typesize": 4, "cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    ),
    Chain(np.dtype("u2"), "raw"),
]
chains = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain.method}-{chain.dtype}")


def values(chain: Chain, seed: int = 1, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 30, shape).astype(chain.dtype)


def encoded(chain: Chain, chunk: np.ndarray) -> bytes:
    return with_crc(chain.compressor(Hints())(chunk))


@chains
def test_round_trip(chain: Chain) -> None:
    chunk = values(chain)
    found = decode_chunk(chain, encoded(chain, chunk), SHAPE)
    assert (found.dtype, found.tobytes()) == (chain.dtype, chunk.tobytes())
    assert found.flags.writeable
    assert parse_chain(chain.to_json(), chain.dtype) == chain
