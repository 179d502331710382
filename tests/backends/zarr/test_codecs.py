"""Codecs of a chunk: what is encoded is decoded, to any place, and bytes that are not the chunk's are refused."""

from __future__ import annotations

import numpy as np
import pytest
from numcodecs import Zstd

from wustore.backends.zarr.codecs import Chain, DamagedChunk, Hints, parse_chain, with_crc, zstd_size

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
    return with_crc(chain.compressor(Hints())(chunk.reshape(-1)))


@chains
def test_round_trip(chain: Chain) -> None:
    chunk = values(chain)
    found = chain.decode(encoded(chain, chunk), SHAPE)
    assert (found.dtype, found.tobytes()) == (chain.dtype, chunk.tobytes())
    assert found.flags.writeable
    assert parse_chain(chain.to_json(), chain.dtype) == chain


@chains
def test_several_chunks_go_where_they_are_wanted(chain: Chain) -> None:
    chunks = [values(chain, seed) for seed in range(4)]
    plane, corner, row = (np.zeros(shape, chain.dtype) for shape in ((12, 30), (3, 2), SHAPE))
    everything = (slice(None), slice(None))
    wanted = [
        [(plane, (slice(0, 12), slice(10, 20)), everything), (corner, ..., (slice(9, 12), slice(0, 2)))],
        [],  # read for its checksum only
        [(row, ..., everything)],  # without a gap: decoded right into place
        [(plane, (slice(0, 12), slice(20, 30)), everything)],
    ]
    chain.decode_into(iter([encoded(chain, chunk) for chunk in chunks]), SHAPE, wanted)
    assert np.array_equal(plane, np.hstack([0 * chunks[0], chunks[0], chunks[3]]))
    assert np.array_equal(corner, chunks[0][9:12, :2])
    assert np.array_equal(row, chunks[2])


def wrong(chain: Chain, kind: str) -> bytes:
    good = encoded(chain, values(chain))
    if kind in {"shorter", "longer"}:
        return encoded(chain, values(chain, shape=(12, 9 if kind == "shorter" else 11)))
    body = {"cut": good[: len(good) // 2], "nothing": b"", "other": b"no chunk" * 9}.get(kind)
    return bytes([good[0] ^ 1]) + good[1:] if body is None else with_crc(body)


@chains
@pytest.mark.parametrize("kind", ["flipped", "shorter", "longer", "cut", "nothing", "other"])
def test_other_bytes_are_refused_with_the_number_of_the_chunk(chain: Chain, kind: str) -> None:
    """Those with a right checksum, too: shorter and longer ones hold a different number of values."""
    stored = [encoded(chain, values(chain)), wrong(chain, kind)]
    with pytest.raises(DamagedChunk) as caught:
        chain.decode_into(stored, SHAPE, [[], []])
    assert caught.value.number == 1


@pytest.mark.parametrize("stored", [b"", b"abc", bytes(4), bytes(5)])
@chains
def test_a_few_bytes(chain: Chain, stored: bytes) -> None:
    with pytest.raises(DamagedChunk):
        chain.decode_into([stored], SHAPE, [[]])


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 1 << 20])
def test_what_a_frame_of_zstd_says_of_its_size(size: int) -> None:
    assert zstd_size(Zstd(3).encode(bytes(size)) if size else b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00") == size


def test_a_frame_that_says_nothing_of_its_size() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"
    with pytest.raises(DamagedChunk):
        zstd_size(frame)
    with pytest.raises(DamagedChunk):
        CHAINS[2].decode_into([with_crc(frame)], SHAPE, [[]])
