"""Chunks decoded several at a time, by compiled loops and by Python; what is no chunk is refused with its place."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory import traced
from numcodecs import Zstd
from numpy.typing import NDArray
from pcodec import standalone

from wustore.backends.compiling import Loops, addresses_of
from wustore.backends.zarr.codecs import Chain, Hints
from wustore.backends.zarr.filters import blocks, decode
from wustore.backends.zarr.filters.decode import DamagedChunk, with_crc, zstd_size
from wustore.storage.files import room

SHAPE = (12, 10)
SIZE = 120
ZSTD = {"level": 3, "checksum": False}
BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
CHAINS = [
    *[Chain(np.dtype(name), "pcodec", {"level": 6}) for name in ("f4", "f8", "i2", "u8")],
    *[Chain(np.dtype(name), "zstd", ZSTD) for name in ("f4", "i1")],
    *[Chain(np.dtype(name), "blosc", {"typesize": int(name[1]), **BLOSC}) for name in ("f4", "u1")],
    *[Chain(np.dtype(name), "raw") for name in ("f4", "u2", "u1")],
]
chains = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain.method}-{chain.dtype}")
one_for_each_method = pytest.mark.parametrize("chain", CHAINS[::4], ids=lambda chain: chain.method)


def values(chain: Chain, seed: int = 1, shape: tuple[int, int] = SHAPE) -> NDArray:
    return np.random.default_rng(seed).normal(60, 9, shape).astype(chain.dtype)


def encoded(chain: Chain, chunk: NDArray, hints: Hints | None = None) -> bytes:
    return with_crc(chain.compressor(hints or Hints())(chunk.reshape(-1)))


def block(chunks: list[bytes]) -> tuple[memoryview, list[tuple[int, int]]]:
    """Return chunks as they lie in a shard, and where each is."""
    stops = list(itertools.accumulate(map(len, chunks)))
    return memoryview(b"".join(chunks)), [(b - len(c), b) for b, c in zip(stops, chunks, strict=True)]


LOOPS = "wustore.backends.zarr.filters.loops_numba"


@pytest.fixture
def _python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LOOPS", Loops(LOOPS, 1 << 60))


@pytest.fixture(params=["python", "compiled"], autouse=True)
def _loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        request.getfixturevalue("_python")
        return
    loops = Loops(LOOPS, 0)
    if loops.get(1) is None:
        pytest.skip("there is no numba for this Python")
    monkeypatch.setattr(blocks, "LOOPS", loops)
    monkeypatch.setattr(decode, "BLOCK", 1)


class TestLoops:
    """That compiled loops do it, which no value shows."""

    @pytest.fixture
    def done(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """Whether the loops did it, for each block."""
        found: list[bool] = []
        is_done = decode._is_done
        monkeypatch.setattr(decode, "_is_done", lambda *block: (found.append(is_done(*block)), found[-1])[1])
        return found

    @pytest.mark.parametrize("chain", CHAINS[:8], ids=lambda chain: f"{chain.method}-{chain.dtype}")
    def test_blocks(self, chain: Chain, done: list[bool], request: pytest.FixtureRequest) -> None:
        chunks = [values(chain, seed) for seed in range(5)]
        stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
        assert np.array_equal(chain.decode_block(stored, bounds, SIZE), np.stack(chunks).reshape(5, SIZE))
        assert np.array_equal(chain.decode_block(stored, bounds[1:], SIZE), np.stack(chunks[1:]).reshape(4, SIZE))
        assert done == ["compiled" in request.node.name] * 2

    @pytest.mark.parametrize("missing", ["crc32c", "zstd", "blosc"])
    def test_without_the_functions_of_c(self, missing: str, monkeypatch: pytest.MonkeyPatch, done: list[bool]) -> None:
        """They may be linked in another way."""
        import ctypes

        load = ctypes.CDLL
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object() if f"_{missing}." in name else load(name))
        addresses_of.cache_clear()
        try:
            for chain in CHAINS[:8]:
                chunk = values(chain)
                found = chain.decode_block(*block([encoded(chain, chunk)] * 4), SIZE)
                assert np.array_equal(found, np.stack([chunk.reshape(-1)] * 4))
        finally:
            addresses_of.cache_clear()
        assert done == [False] * 8

    def test_bytes_of_a_thread(self) -> None:
        """Each thread writes its own, as long as they are large enough."""
        made, memory = blocks._STREAM.of(1000)
        memory[:1000] = 7
        assert made[:1000] == b"\7" * 1000
        assert blocks._STREAM.of(10)[0] is made
        assert len(blocks._STREAM.of(len(made) + 1)[0]) == len(made) + 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(blocks._STREAM.of, 10).result()[0] is not blocks._STREAM.of(10)[0]

    @pytest.mark.parametrize("chain", CHAINS[:8], ids=lambda chain: f"{chain.method}-{chain.dtype}")
    def test_blocks_of_a_file(self, chain: Chain, done: list[bool], tmp_path: Path) -> None:
        """The loops read the bytes; what is missing at the end of the file is found by Python."""
        chunks = [values(chain, seed) for seed in range(5)]
        stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
        path = tmp_path / "shard"
        path.write_bytes(b"before" + stored)
        handle = os.open(path, os.O_RDONLY)
        try:
            arguments = (chain.method, chain.dtype)
            found = decode.decode_block(*arguments, room(len(stored)), bounds, SIZE, None, (handle, 6))
            assert np.array_equal(found, np.stack(chunks).reshape(5, SIZE))
            with pytest.raises(DamagedChunk) as caught:
                decode.decode_block(*arguments, room(len(stored)), bounds, SIZE, None, (handle, 7))
            assert caught.value.number == 0
            assert done[1:] == [False]
            os.truncate(path, 6 + bounds[3][1] - 5)
            with pytest.raises(DamagedChunk) as caught:
                decode.decode_block(*arguments, room(len(stored)), bounds, SIZE, None, (handle, 6))
            assert caught.value.number == 3
        finally:
            os.close(handle)

    @pytest.mark.parametrize("chain", CHAINS[:6], ids=lambda chain: f"{chain.method}-{chain.dtype}")
    def test_headers_that_the_loops_refuse(self, chain: Chain, done: list[bool]) -> None:
        """Whatever byte of a header differs from that of the other chunks, the block is not decoded as one stream."""
        chunks = [values(chain, seed) for seed in range(4)]
        bodies = [encoded(chain, chunk)[:-4] for chunk in chunks]
        for place in range(5 if chain.method == "zstd" else 17):
            changed = bytearray(bodies[1])
            changed[place] ^= 1
            del done[:]
            stored, bounds = block([with_crc(bytes(body)) for body in (bodies[0], changed, *bodies[2:])])
            refused = None
            try:
                found = chain.decode_block(stored, bounds, SIZE)
            except DamagedChunk as error:
                refused = error.number
            assert refused in {None, 1}
            if refused is None:
                assert np.array_equal(found[[0, 2, 3]], np.stack(chunks).reshape(4, SIZE)[[0, 2, 3]])
            if chain.method == "pcodec":
                assert done == [False]


@chains
@pytest.mark.parametrize("n", [1, 2, 7])
def test_several_chunks(chain: Chain, n: int) -> None:
    chunks = [values(chain, seed) for seed in range(n)]
    stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
    expected = np.stack(chunks).reshape(n, SIZE)
    assert np.array_equal(chain.decode_block(stored, bounds, SIZE), expected)
    assert np.array_equal(chain.decode_block(bytes(stored), bounds, SIZE), expected)
    out = np.zeros(n * SIZE, chain.dtype)
    assert np.array_equal(chain.decode_block(stored, bounds, SIZE, out), expected)
    assert np.array_equal(out.reshape(n, SIZE), expected)


@pytest.mark.parametrize("chain", CHAINS[4:], ids=lambda chain: f"{chain.method}-{chain.dtype}")
def test_machines_of_the_other_byte_order(chain: Chain) -> None:
    """What is stored is little-endian, whatever the dtype of the values is."""
    other = replace(chain, dtype=chain.dtype.newbyteorder(">"))
    chunks = [values(chain, seed) for seed in range(3)]
    stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
    assert encoded(other, chunks[0].astype(other.dtype)) == stored[slice(*bounds[0])]
    out = np.zeros(3 * SIZE, other.dtype)
    for found in (other.decode_block(stored, bounds, SIZE, out), other.decode_block(stored, bounds, SIZE)):
        assert np.array_equal(found, np.stack(chunks).reshape(3, SIZE))
    assert np.array_equal(out, np.concatenate(chunks).ravel())


def test_memory_for_values_is_used_if_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "scratch", None)
    for chain in CHAINS:
        out = np.zeros(SIZE, chain.dtype)
        chain.decode_block(encoded(chain, values(chain)), block([encoded(chain, values(chain))])[1], SIZE, out)
        assert np.array_equal(out, values(chain).ravel())


@pytest.mark.usefixtures("_python")
class TestStreams:
    """Chunks that are decoded together, and those that cannot be."""

    @pytest.fixture
    def streams(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Numbers of values of the streams that were decoded."""
        import imagecodecs

        counted: list[int] = []
        pco, zstd = standalone.simple_decompress_into, imagecodecs.zstd_decode
        monkeypatch.setattr(
            standalone, "simple_decompress_into", lambda raw, out: (counted.append(out.size), pco(raw, out))[1]
        )
        monkeypatch.setattr(
            imagecodecs, "zstd_decode", lambda raw, out: (counted.append(out.size), zstd(raw, out=out))[1]
        )
        return counted

    def decoded(self, chain: Chain, stored: list[bytes], shape: tuple[int, int] = SHAPE) -> NDArray:
        return chain.decode_block(*block(stored), shape[0] * shape[1]).reshape(-1, shape[1]).copy()

    @pytest.mark.parametrize("chain", CHAINS[:6], ids=lambda chain: f"{chain.method}-{chain.dtype}")
    @pytest.mark.parametrize("shape", [SHAPE, (1, 1), (16, 16), (31, 33)])
    def test_one_call(self, chain: Chain, streams: list[int], shape: tuple[int, int]) -> None:
        """Also of chunks that have more and less than the batches in which pcodec works, 256 values."""
        chunks = [values(chain, seed, shape) for seed in range(5)]
        chunks[2][...] = chunks[2][0, 0]
        found = self.decoded(chain, [encoded(chain, chunk) for chunk in chunks], shape)
        assert np.array_equal(found, np.vstack(chunks))
        assert streams == [5 * shape[0] * shape[1] * (chain.dtype.itemsize if chain.method == "zstd" else 1)]

    def test_every_way_to_encode(self, streams: list[int]) -> None:
        """What was found out about the chunks of a plane may differ, and pcodec may choose for each of them."""
        chain = CHAINS[0]
        hints = [Hints(), Hints("classic"), Hints("multiples", 0.01), Hints(order=2), Hints(level=1)]
        chunks = [(np.rint(values(chain, seed) * 100) / 100).astype("f4") for seed in range(5)]
        stored = [encoded(chain, chunk, hint) for chunk, hint in zip(chunks, hints, strict=True)]
        assert np.array_equal(self.decoded(chain, stored), np.vstack(chunks))
        assert streams == [600]

    def test_another_header_of_pcodec(self, streams: list[int]) -> None:
        """A header may say another number of values, or nothing of the dtype: such chunks are decoded one by one."""
        chain = CHAINS[0]
        chunks = [values(chain, seed) for seed in range(3)]
        stored = [encoded(chain, chunk) for chunk in chunks]
        assert stored[1][:8] == b"pco!\3\0\x06\x1e", "120 values: 7 - 1 in six bits, then 120"
        stored[1] = with_crc(b"pco!\3\0\0" + stored[1][8:-4])
        assert np.array_equal(self.decoded(chain, stored), np.vstack(chunks))
        assert streams == [120] * 3

    def test_chunks_of_pcodec_that_are_several_of_its_own(self, streams: list[int]) -> None:
        """It cuts above 2^18 values."""
        chain, shape = CHAINS[0], (513, 512)
        chunks = [values(chain, seed, shape) for seed in range(2)]
        found = self.decoded(chain, [encoded(chain, chunk) for chunk in chunks], shape)
        assert np.array_equal(found, np.vstack(chunks))
        assert streams == [513 * 512] * 2

    def test_frames_of_zstd_with_other_headers(self, streams: list[int]) -> None:
        chain = CHAINS[4]
        chunks = [values(chain, seed) for seed in range(3)]
        stored = [encoded(chain, chunk) for chunk in chunks]
        stored[1] = with_crc(Zstd(3, checksum=True).encode(chunks[1]))
        assert np.array_equal(self.decoded(chain, stored), np.vstack(chunks))
        assert streams == [480] * 3


@pytest.mark.parametrize("n", [1, 2, 7])
def test_one_checksum_for_a_block_of_plain_chunks(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = CHAINS[-2]
    stored, bounds = block([encoded(chain, values(chain, seed)) for seed in range(n)])
    chain.decode_block(stored, bounds, SIZE)  # what so many chunks have to give is computed once
    monkeypatch.setattr(decode, "crc32c", None)
    assert chain.decode_block(stored, bounds, SIZE).shape == (n, SIZE)


def wrong(chain: Chain, kind: str) -> bytes:
    """Return a chunk that is not one, most of them with the right checksum."""
    good = encoded(chain, values(chain))
    twice = good[:-4] + good[:-4]
    if kind in {"shorter", "longer"}:
        return encoded(chain, values(chain, shape=(12, 9 if kind == "shorter" else 11)))
    if kind == "inner chunk" and chain.method == "pcodec":
        twice = good[:-5] + good[good.index(b"\x04\x01") + 2 :][:-4]  # without the header between them
    if kind == "half":  # of the values, under the header of all
        half = encoded(chain, values(chain, shape=(6, 10)))
        return with_crc(good[:10] + half[10:-4])
    body = {
        "cut": good[: len(good) // 2],
        "no end": good[:-5],
        "nothing": b"",
        "other": b"no chunk" * 9,
        "twice": twice,
        "inner chunk": twice,
        "head only": good[:16],
    }.get(kind)
    return bytes([good[0] ^ 1]) + good[1:] if body is None else with_crc(body)


KINDS = ["flipped", "shorter", "longer", "cut", "no end", "nothing", "other", "inner chunk", "half", "head only"]


class TestDamage:
    @chains
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_place_of_a_bad_chunk(self, chain: Chain, kind: str) -> None:
        """At any place among others; most have a right checksum, so that only the codec finds what is wrong."""
        good = encoded(chain, values(chain))
        for bad in range(5):
            stored = [good] * 5
            stored[bad] = wrong(chain, kind)
            with pytest.raises(DamagedChunk) as caught:
                chain.decode_block(*block(stored), SIZE)
            assert caught.value.number == bad
        with pytest.raises(DamagedChunk):
            chain.decode(stored[bad], SHAPE)

    @chains
    def test_shorter_and_longer_chunks_do_not_make_up_for_each_other(self, chain: Chain) -> None:
        for kinds in itertools.permutations(["shorter", "longer"]):
            stored = [encoded(chain, values(chain)), *[wrong(chain, kind) for kind in kinds]]
            with pytest.raises(DamagedChunk) as caught:
                chain.decode_block(*block(stored), SIZE)
            assert caught.value.number == 1

    @chains
    def test_every_bit(self, chain: Chain) -> None:
        """Of the checksum, and of the bytes where a chunk begins and ends."""
        good = [encoded(chain, values(chain, seed)) for seed in range(3)]
        n = len(good[1])
        for place in (*range(16), *range(n - 8, n)):
            for bit in range(8):
                bad = bytearray(good[1])
                bad[place] ^= 1 << bit
                with pytest.raises(DamagedChunk) as caught:
                    chain.decode_block(*block([good[0], bytes(bad), good[2]]), SIZE)
                assert caught.value.number == 1

    @chains
    def test_damage_in_two_chunks(self, chain: Chain) -> None:
        good, bad = encoded(chain, values(chain)), wrong(chain, "flipped")
        with pytest.raises(DamagedChunk) as caught:
            chain.decode_block(*block([good, bad, good, bad]), SIZE)
        assert caught.value.number == 1

    @pytest.mark.parametrize("stored", [b"", b"abc", bytes(4), bytes(5)])
    @chains
    def test_a_few_bytes(self, chain: Chain, stored: bytes) -> None:
        with pytest.raises(DamagedChunk):
            chain.decode(stored, SHAPE)
        with pytest.raises(DamagedChunk) as caught:
            chain.decode_block(*block([encoded(chain, values(chain)), stored]), SIZE)
        assert caught.value.number == 1

    @pytest.mark.parametrize("chain", CHAINS[4:8], ids=lambda chain: f"{chain.method}-{chain.dtype}")
    def test_a_bomb_takes_no_memory(self, chain: Chain) -> None:
        bomb = encoded(chain, np.zeros((1 << 12, 1 << 12), chain.dtype))
        chain.decode_block(*block([encoded(chain, values(chain))] * 2), SIZE)  # loads the compiled loops
        with traced() as peak:
            with pytest.raises(DamagedChunk):
                chain.decode_block(*block([encoded(chain, values(chain)), bomb]), SIZE)
            assert peak.bytes < 1 << 21


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 1 << 20])
def test_what_a_frame_of_zstd_says_of_its_size(size: int) -> None:
    assert zstd_size(Zstd(3).encode(bytes(size)) if size else b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00") == size


def test_a_frame_that_says_nothing_of_its_size() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"
    with pytest.raises(DamagedChunk):
        zstd_size(frame)
    with pytest.raises(DamagedChunk):
        CHAINS[4].decode(with_crc(frame), SHAPE)


@pytest.mark.parametrize(
    ("shape", "chunk", "dtype", "past_the_cache"),
    [
        ((1024, 1024), (256, 256), "f4", True),
        ((2048, 1024), (64, 1024), "i1", True),
        ((1024, 1024), (512, 512), "f8", True),
        ((1000, 1024), (250, 32), "f4", True),
        ((1024, 1020), (256, 255), "f4", False),
        ((512, 256), (64, 64), "f4", False),
    ],
)
def test_place(
    shape: tuple[int, int],
    chunk: tuple[int, int],
    dtype: str,
    past_the_cache: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chunks come to their places, whole lines of the cache past it."""
    loops, asked = blocks.LOOPS.module, []
    if loops is not None:
        monkeypatch.setattr(loops, "place", lambda *a, place=loops.place: (asked.append(a), place(*a))[1])
    plane = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    rows, columns = shape[0] // chunk[0], shape[1] // chunk[1]
    chunks = np.ascontiguousarray(plane.reshape(rows, chunk[0], columns, chunk[1]).swapaxes(1, 2))
    # Memory that begins with a line of the cache; a line is left free at both ends.
    memory = np.full(plane.nbytes + 192, 77, np.uint8)
    start = -memory.ctypes.data % 64 + 64
    out = memory[start : start + plane.nbytes].view(dtype).reshape(shape)
    blocks.place(out.reshape(rows, chunk[0], columns, chunk[1]).swapaxes(1, 2), chunks)
    assert np.array_equal(out, plane)
    assert (memory[:start] == 77).all()
    assert (memory[start + plane.nbytes :] == 77).all()
    assert bool(asked) is (past_the_cache and "compiled" in request.node.name)
