"""Stored chunks to values: to any place, several at a time; what is no chunk is refused with its place."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pcodec.standalone
import pytest
from numcodecs import Zstd
from numpy.typing import NDArray

from wustore.backends.zarr import decode
from wustore.backends.zarr.codecs import Chain, DamagedChunk, Hints, with_crc
from wustore.backends.zarr.decode import Target, decode_chunk, decode_into, zstd_size

SHAPE = (12, 10)
WHOLE = (slice(0, 12), slice(0, 10))
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
    return with_crc(chain.compressor(hints or Hints())(chunk))


def block(chunks: list[bytes]) -> tuple[memoryview, list[tuple[int, int]]]:
    """Return chunks as they lie in a shard, and where each is."""
    stops = list(itertools.accumulate(map(len, chunks)))
    return memoryview(b"".join(chunks)), [(b - len(c), b) for b, c in zip(stops, chunks, strict=True)]


def whole(n: int, columns: int, out: NDArray, first: int = 0) -> Target:
    return Target.of(first, n // columns, columns, out, WHOLE)


class TestPlaces:
    @chains
    @pytest.mark.parametrize("columns", [1, 2, 4, 8])
    def test_a_plane(self, chain: Chain, columns: int) -> None:
        chunks = [values(chain, seed) for seed in range(8)]
        rows = [np.hstack(chunks[k : k + columns]) for k in range(0, 8, columns)]
        plane = np.zeros((8 // columns * 12, columns * 10), chain.dtype)
        stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
        decode_into(chain, stored, bounds, SHAPE, [whole(8, columns, plane)])
        assert plane.tobytes() == np.vstack(rows).tobytes()

    @chains
    def test_part_of_the_chunks_of_a_target(self, chain: Chain) -> None:
        """The middle of a plane of 4 x 3 chunks: an end of a row, rows and a beginning of one, whole and by a view."""
        chunks = [values(chain, seed) for seed in range(12)]
        expected = np.vstack([np.hstack(chunks[k : k + 3]) for k in range(0, 12, 3)])
        plane = np.zeros((50, 33), chain.dtype)[1:49, 2:32]
        for first, stop in ((0, 2), (2, 10), (10, 11), (11, 12)):
            stored, bounds = block([encoded(chain, chunk) for chunk in chunks[first:stop]])
            decode_into(chain, stored, bounds, SHAPE, [whole(12, 3, plane)], first)
        assert np.array_equal(plane, expected)

    @chains
    def test_parts_of_chunks_for_several_targets(self, chain: Chain) -> None:
        chunks = [values(chain, seed) for seed in range(5)]
        strip, corner, last = (np.zeros(shape, chain.dtype) for shape in ((4, 30), (3, 2), SHAPE))
        targets = [
            Target.of(10, 1, 3, strip, (slice(2, 6), slice(0, 10))),
            Target.of(11, 1, 1, corner, (slice(9, 12), slice(7, 9))),
            whole(1, 1, last, 14),
        ]
        stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
        decode_into(chain, stored, bounds, SHAPE, targets, 10)
        assert np.array_equal(strip, np.hstack(chunks[:3])[2:6])
        assert np.array_equal(corner, chunks[1][9:, 7:9])
        assert np.array_equal(last, chunks[4])

    @chains
    def test_chunks_that_nobody_wants_are_checked(self, chain: Chain) -> None:
        stored, bounds = block([encoded(chain, values(chain)), with_crc(b"none")])
        with pytest.raises(DamagedChunk) as caught:
            decode_into(chain, stored, bounds, SHAPE, [])
        assert caught.value.number == 1

    @one_for_each_method
    def test_arrays_of_another_dtype(self, chain: Chain) -> None:
        chunks = [values(chain, seed) for seed in range(2)]
        stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
        out = np.zeros((24, 10), np.float64)
        decode_into(chain, stored, bounds, SHAPE, [whole(2, 1, out)])
        assert np.array_equal(out, np.vstack(chunks))

    @pytest.mark.parametrize("chain", CHAINS[:8:3], ids=lambda chain: chain.method)
    def test_chunks_under_each_other_need_no_other_memory(self, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
        chunks = [values(chain, seed, (300, 400)) for seed in range(2)]
        stored, bounds = block([encoded(chain, chunk) for chunk in chunks])
        out = np.zeros((600, 400), chain.dtype)
        monkeypatch.setattr(decode, "scratch", None)
        decode_into(chain, stored, bounds, (300, 400), [Target.of(0, 2, 1, out, (slice(0, 300), slice(0, 400)))])
        assert np.array_equal(out, np.vstack(chunks))


class TestStreams:
    """Chunks that are decoded together, and those that cannot be."""

    @pytest.fixture
    def streams(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Numbers of values of the streams that were decoded."""
        import imagecodecs

        counted: list[int] = []
        pco, zstd = pcodec.standalone.simple_decompress_into, imagecodecs.zstd_decode
        monkeypatch.setattr(
            pcodec.standalone, "simple_decompress_into", lambda raw, out: (counted.append(out.size), pco(raw, out))[1]
        )
        monkeypatch.setattr(
            imagecodecs, "zstd_decode", lambda raw, out: (counted.append(out.size), zstd(raw, out=out))[1]
        )
        return counted

    def decoded(self, chain: Chain, stored: list[bytes], shape: tuple[int, int] = SHAPE) -> NDArray:
        out = np.zeros((len(stored) * shape[0], shape[1]), chain.dtype)
        part = slice(0, shape[0]), slice(0, shape[1])
        decode_into(chain, *block(stored), shape, [Target.of(0, len(stored), 1, out, part)])
        return out

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
        both = np.zeros((shape[0], 1024), "f4")
        target = Target.of(0, 1, 2, both, (slice(0, 513), slice(0, 512)))
        decode_into(chain, *block([encoded(chain, chunk) for chunk in chunks]), shape, [target])
        assert np.array_equal(both, np.hstack(chunks))
        assert streams == [513 * 512] * 2

    def test_frames_of_zstd_with_other_headers(self, streams: list[int]) -> None:
        chain = CHAINS[4]
        chunks = [values(chain, seed) for seed in range(3)]
        stored = [encoded(chain, chunk) for chunk in chunks]
        stored[1] = with_crc(Zstd(3, checksum=True).encode(chunks[1]))
        assert np.array_equal(self.decoded(chain, stored), np.vstack(chunks))
        assert streams == [480] * 3


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
            out = np.zeros((60, 10), chain.dtype)
            with pytest.raises(DamagedChunk) as caught:
                decode_into(chain, *block(stored), SHAPE, [whole(5, 1, out)])
            assert caught.value.number == bad
        with pytest.raises(DamagedChunk):
            decode_chunk(chain, stored[bad], SHAPE)

    @chains
    def test_shorter_and_longer_chunks_do_not_make_up_for_each_other(self, chain: Chain) -> None:
        for kinds in itertools.permutations(["shorter", "longer"]):
            stored = [encoded(chain, values(chain)), *[wrong(chain, kind) for kind in kinds]]
            with pytest.raises(DamagedChunk) as caught:
                decode_into(chain, *block(stored), SHAPE, [])
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
                    decode_into(chain, *block([good[0], bytes(bad), good[2]]), SHAPE, [])
                assert caught.value.number == 1

    @chains
    def test_damage_in_two_chunks(self, chain: Chain) -> None:
        good, bad = encoded(chain, values(chain)), wrong(chain, "flipped")
        with pytest.raises(DamagedChunk) as caught:
            decode_into(chain, *block([good, bad, good, bad]), SHAPE, [])
        assert caught.value.number == 1

    @pytest.mark.parametrize("stored", [b"", b"abc", bytes(4), bytes(5)])
    @chains
    def test_a_few_bytes(self, chain: Chain, stored: bytes) -> None:
        with pytest.raises(DamagedChunk):
            decode_chunk(chain, stored, SHAPE)
        with pytest.raises(DamagedChunk) as caught:
            decode_into(chain, *block([encoded(chain, values(chain)), stored]), SHAPE, [])
        assert caught.value.number == 1

    @pytest.mark.parametrize("chain", CHAINS[4:8], ids=lambda chain: f"{chain.method}-{chain.dtype}")
    def test_a_bomb_takes_no_memory(self, chain: Chain) -> None:
        bomb = encoded(chain, np.zeros((1 << 12, 1 << 12), chain.dtype))
        tracemalloc.start()
        with pytest.raises(DamagedChunk):
            decode_into(chain, *block([encoded(chain, values(chain)), bomb]), SHAPE, [])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 21


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 1 << 20])
def test_what_a_frame_of_zstd_says_of_its_size(size: int) -> None:
    assert zstd_size(Zstd(3).encode(bytes(size)) if size else b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00") == size


def test_a_frame_that_says_nothing_of_its_size() -> None:
    frame = b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00"
    with pytest.raises(DamagedChunk):
        zstd_size(frame)
    with pytest.raises(DamagedChunk):
        decode_chunk(CHAINS[4], with_crc(frame), SHAPE)
