"""Chains of codecs: what one encodes it decodes, and its metadata names it."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.backends.zarr.codecs import Chain, Hints, parse_chain
from wustore.backends.zarr.filters.decode import with_crc

ZSTD = {"level": 3, "checksum": False}
BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}


@pytest.mark.parametrize(
    ("dtype", "method", "settings"),
    [
        *[(name, "pcodec", {"level": 6}) for name in ("f4", "f8", "i2", "u8")],
        *[(name, "zstd", ZSTD) for name in ("f4", "i1")],
        *[(name, "blosc", {"typesize": int(name[1]), **BLOSC}) for name in ("f4", "u1")],
        *[(name, "raw", {}) for name in ("f4", "u2", "u1")],
    ],
)
def test_round_trip(dtype: str, method: str, settings: dict) -> None:
    chain = Chain(np.dtype(dtype), method, settings)
    chunk = np.random.default_rng(1).normal(60, 9, (12, 10)).astype(dtype)
    found = chain.decode(with_crc(chain.compressor(Hints())(chunk.reshape(-1))), chunk.shape)
    assert (found.dtype, found.tobytes()) == (chain.dtype, chunk.tobytes())
    assert found.flags.writeable
    assert parse_chain(chain.to_json(), chain.dtype) == chain
