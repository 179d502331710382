"""Chunks encoded several at a time have the bytes of each by itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.backends.compiling import Loops, addresses_of
from wustore.backends.zarr.codecs import Chain, Hints
from wustore.backends.zarr.filters import blocks, encode
from wustore.backends.zarr.filters.decode import with_crc

ZSTD = {"level": 9, "checksum": False}
BLOSC = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 0}
CHAINS = [
    *[Chain(np.dtype(name), "pcodec", {"level": 6}) for name in ("f4", "f8", "i2", "u8")],
    *[Chain(np.dtype(name), "zstd", ZSTD) for name in ("f4", "i1")],
    *[Chain(np.dtype(name), "blosc", {"typesize": int(name[1]), **BLOSC}) for name in ("f4", "u1")],
    Chain(np.dtype("f4"), "blosc", {"typesize": 4, "cname": "lz4", "clevel": 5, "shuffle": "shuffle", "blocksize": 0}),
    *[Chain(np.dtype(name), "raw") for name in ("f4", "u1")],
]
chains = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain.method}-{chain.dtype}")
LOOPS = "wustore.backends.zarr.filters.loops_numba"


@pytest.fixture(autouse=True)
def _loops(monkeypatch: pytest.MonkeyPatch) -> None:
    loops = Loops(LOOPS, 0)
    if loops.get(1) is None:
        pytest.skip("there is no numba for this Python")
    monkeypatch.setattr(blocks, "LOOPS", loops)


@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks were encoded by a call for each, of each block for which that was done."""
    found: list[int] = []
    each = encode.encode_each

    def count(compress: object, chunks: NDArray) -> encode.EncodedBlock:
        found.append(len(chunks))
        return each(compress, chunks)

    monkeypatch.setattr("wustore.backends.zarr.codecs.encode_each", count)
    return found


def values(chain: Chain, n: int, size: int) -> NDArray:
    return np.random.default_rng(n).normal(60, 9, (n, size)).round(2).astype(chain.dtype)


def check(chain: Chain, chunks: NDArray, hints: Hints | None = None) -> None:
    compress = chain.compressor(hints or Hints())
    expected = [with_crc(bytes(compress(chunk))) for chunk in chunks]
    found = chain.encode_block(chunks, hints or Hints())
    assert b"".join(found.pieces) == b"".join(expected)
    assert found.lengths.tolist() == [len(chunk) for chunk in expected]
    assert found.sums.astype("<u4").tobytes() == b"".join(chunk[-4:] for chunk in expected)


@chains
@pytest.mark.parametrize(("n", "size"), [(2, 256), (7, 300), (3, 5000)])
def test_one_call_for_all(chain: Chain, n: int, size: int, single: list[int]) -> None:
    check(chain, values(chain, n, size))
    check(chain, np.zeros((n, size), chain.dtype))
    assert not single


@chains
def test_one_chunk_is_encoded_by_itself(chain: Chain, single: list[int]) -> None:
    check(chain, values(chain, 1, 300))
    assert single == [1]


@pytest.mark.parametrize(
    "hints",
    [Hints("multiples", 0.01), Hints("classic", order=1, level=5), Hints("auto", order=2)],
    ids=lambda h: h.mode,
)
def test_hints(hints: Hints, single: list[int]) -> None:
    check(CHAINS[0], values(CHAINS[0], 4, 4096), hints)
    assert not single


@pytest.mark.parametrize("chain", CHAINS[4:], ids=lambda chain: f"{chain.method}-{chain.dtype}")
def test_machines_of_the_other_byte_order(chain: Chain) -> None:
    other = Chain(chain.dtype.newbyteorder(">"), chain.method, chain.settings)
    chunks = values(chain, 3, 300)
    found = other.encode_block(chunks.astype(other.dtype), Hints())
    assert b"".join(found.pieces) == b"".join(chain.encode_block(chunks, Hints()).pieces)


@pytest.mark.parametrize("size", [1, 255, (1 << 18) + 1])
def test_sizes_that_pcodec_cannot_be_asked_for(size: int, single: list[int]) -> None:
    """What has more values than a chunk of pcodec's own becomes several; few values give bytes that are not rare."""
    check(CHAINS[0], values(CHAINS[0], 2, size))
    assert single == [2]


@pytest.mark.parametrize("spoiled", ["begins twice", "does not end", "other dtype", "other size"])
def test_where_chunks_begin_is_not_guessed(spoiled: str, single: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The four bytes that chunks begin with may be found inside of one."""
    start = encode._head(np.dtype("f4"), 300).tobytes()[-4:]
    compress = Chain._compress

    def spoil(*arguments: object) -> bytes:
        file = compress(*arguments)
        assert file.count(start) == 3
        first = file.index(start)
        return {
            "begins twice": file[:-20] + start + file[-16:],
            "does not end": file[:-1] + b"\1",
            "other dtype": file[:5] + bytes([file[5] ^ 1]) + file[6:],
            "other size": file[:first] + bytes([start[0], 1, 1, 1]) + file[first + 4 :],
        }[spoiled]

    monkeypatch.setattr(Chain, "_compress", spoil)
    check(CHAINS[0], values(CHAINS[0], 3, 300))
    assert single == [3]


@pytest.mark.parametrize("missing", ["crc32c", "zstd", "blosc"])
def test_without_the_functions_of_c(missing: str, monkeypatch: pytest.MonkeyPatch, single: list[int]) -> None:
    """They may be linked in another way."""
    import ctypes

    load = ctypes.CDLL
    absent = {"crc32c": "_crc32c.", "zstd": "numcodecs/zstd.", "blosc": "numcodecs/blosc."}[missing]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object() if absent in name.replace("\\", "/") else load(name))
    addresses_of.cache_clear()
    try:
        for chain in CHAINS:
            check(chain, values(chain, 2, 300))
    finally:
        addresses_of.cache_clear()
    assert len(single) == (len(CHAINS) if missing == "crc32c" else sum(c.method == missing for c in CHAINS))
