"""Deflate streams of shuffled values: valid for every inflater, not larger than libdeflate's, the same bytes always."""

from __future__ import annotations

import heapq
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.backends.compiling import Loops
from wustore.backends.hdf5.filters import deflate_encoder
from wustore.backends.hdf5.filters.pipeline import Pipeline

RNG = np.random.default_rng(8)
N = 70_001
"""Values: planes are larger than one stored block, than the samples, and odd."""


def code_table(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return deflate_encoder.code_table(counts, np.argsort(counts, kind="stable"))


def planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values.reshape(-1, 1).view(np.uint8).T)


def quantised(n: int = N) -> NDArray[np.float32]:
    return (np.round(RNG.normal(0, 5, n) / 0.01) * 0.01).astype("f4")


CASES = {
    "quantised pixels": planes(quantised()),
    "noise of all bits": planes(RNG.normal(0, 5, N).astype("f4")),
    "float64": planes(RNG.normal(0, 5, N)),
    "counts": planes(RNG.poisson(1000, N).astype("i2")),
    "noise, then repeated strings": np.stack([RNG.integers(0, 200, N, "u1"), np.resize(np.arange(250, dtype="u1"), N)]),
    "repeated strings, then noise": np.stack([np.resize(np.arange(250, dtype="u1"), N), RNG.integers(0, 200, N, "u1")]),
    "one value": np.full((4, N), 7, np.uint8),
    "two values": np.stack([RNG.integers(0, 2, N, "u1"), np.zeros(N, "u1")]),
    "few values": planes(quantised(35)),
    "one plane": RNG.integers(0, 100, (1, 3000), "u1"),
}


@pytest.mark.parametrize("name", CASES)
def test_streams(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what zlib and libdeflate read, at most the codes of blocks larger than libdeflate's; loops or none."""
    data = CASES[name]
    monkeypatch.setattr(deflate_encoder, "_LOOPS", Loops("no module", 1 << 60))
    stored = deflate_encoder.encode(data, 1)
    assert zlib.decompress(stored) == data.tobytes()
    assert imagecodecs.deflate_decode(stored, raw=False) == data.tobytes()
    assert len(stored) <= len(imagecodecs.deflate_encode(data.reshape(-1), level=1, raw=False)) + 140 * len(data)
    compiled = Loops("wustore.backends.hdf5.filters.deflate_numba", 0)
    if compiled.get(1) is None:
        pytest.skip("there is no numba for this Python")
    monkeypatch.setattr(deflate_encoder, "_LOOPS", compiled)
    assert deflate_encoder.encode(data, 1) == stored


def test_noise_is_not_searched_for_strings() -> None:
    """Pixels take less than libdeflate makes of them; the plane that hardly shrinks is stored, byte for byte."""
    data = CASES["quantised pixels"]
    stored = deflate_encoder.encode(data, 1)
    assert len(stored) < 0.99 * len(imagecodecs.deflate_encode(data.reshape(-1), level=1, raw=False))
    assert [plane.tobytes()[:65535] in stored for plane in data] == [False, False, True, False]


def test_planes_with_repeated_strings_are_left_to_libdeflate() -> None:
    for name in ("repeated strings, then noise", "one value"):
        data = CASES[name]
        assert deflate_encoder.encode(data, 6) == imagecodecs.deflate_encode(data.reshape(-1), level=6, raw=False)
    noise, strings = CASES["noise, then repeated strings"]
    stored = deflate_encoder.encode(np.stack([noise, strings]), 6)
    assert stored[:-4].endswith(imagecodecs.deflate_encode(strings, level=6, raw=True))


@pytest.mark.parametrize("size", [2, 3, 30, 257])
def test_codes_are_complete_and_short(size: int) -> None:
    """Every string of bits means something, though counts like Fibonacci's ask for codes of ``size`` - 1 bits."""
    counts = np.ones((1, 257), np.int64)
    counts[0, size:] = 0
    for k in range(2, min(size, 60)):
        counts[0, k] = counts[0, k - 1] + counts[0, k - 2]
    table = code_table(counts)[0]
    codes, lengths = table[:size] >> 4, table[:size] & 15
    assert lengths.min() >= 1
    assert lengths.max() <= deflate_encoder.LONGEST_CODE
    assert (0.5**lengths).sum() == 1
    assert not table[size:].any()
    texts = [f"{code:012b}"[::-1][:length] for code, length in zip(codes.tolist(), lengths.tolist(), strict=True)]
    assert not any(a != b and b.startswith(a) for a in texts for b in texts)


def test_codes_are_the_shortest() -> None:
    """What all occurrences take is the sum of all nodes of Huffman's tree."""
    counts = np.random.default_rng(8).integers(20, 200, (3, 257))
    table = code_table(counts)
    for row, codes in zip(counts, table, strict=True):
        heap = row.tolist()
        heapq.heapify(heap)
        total = 0
        while len(heap) > 1:
            node = heapq.heappop(heap) + heapq.heappop(heap)
            total += node
            heapq.heappush(heap, node)
        assert (row * (codes & 15)).sum() == total


# --- all chunks of a plane in one call ------------------------------------------------------------------


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Loops("wustore.backends.hdf5.filters.deflate_numba", 0)
    if compiled.get(1) is None:
        pytest.skip("there is no numba for this Python")
    if deflate_encoder.functions() is None:
        pytest.skip("libdeflate cannot be reached here")
    monkeypatch.setattr(deflate_encoder, "_LOOPS", compiled)


def pixels(kind: str, shape: tuple[int, int]) -> NDArray[Any]:
    rng = np.random.default_rng(11)
    noise = rng.normal(0, 5, shape)
    if kind == "quantised":
        return (np.round(noise / 0.01) * 0.01).astype("f4")
    if kind == "flags":
        return np.where(rng.random(shape) < 0.3, 1 << rng.integers(0, 16, shape), 0).astype("i4")
    if kind == "mixed":  # in some chunks noise, in others one value
        return np.where(np.arange(shape[1]) < shape[1] // 2, noise, 1).astype("f8")
    return noise.astype(kind) if kind != "u1" else rng.integers(0, 256, shape).astype("u1")


@pytest.mark.parametrize("filters", [(2, 1, 3), (1, 3), (2, 1), (1,)])
@pytest.mark.parametrize("kind", ["quantised", "f4", "f8", "f2", "i4", "u1", "i1", "flags", "mixed"])
def test_chunks_of_a_plane_are_what_each_is_by_itself(
    kind: str, filters: tuple[int, ...], loops: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = (60, 200)
    plane = pixels(kind, (130, 610))
    corners = np.array([(0, 0), (0, 200), (70, 400), (60, 410), (1, 3)])
    for level in (1, 6):
        pipeline = Pipeline(filters, plane.dtype, (1, *sides), level=level)
        found = pipeline.encode_all(plane, corners)
        with monkeypatch.context() as patch:
            patch.setattr(deflate_encoder, "_LOOPS", Loops("no module", 1 << 60))
            expected = pipeline.encode_all(plane, corners)
            alone = [pipeline.encode(plane[y : y + 60, x : x + 200]) for y, x in corners.tolist()]
        assert [(mask, bytes(data)) for mask, data in found] == expected == alone
        assert all(isinstance(data, memoryview) for _, data in found)


@pytest.mark.parametrize("side", [1, 3, 31, 33, 100, 101, 150])
def test_small_chunks(side: int, loops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bytes than a code is worth, than a sample has, than deflate saves."""
    plane = pixels("quantised", (side, side))
    pipeline = Pipeline((2, 1, 3), plane.dtype, (1, side, side))
    mask, data = pipeline.encode(plane)
    monkeypatch.setattr(deflate_encoder, "_LOOPS", Loops("no module", 1 << 60))
    assert (mask, bytes(data)) == pipeline.encode(plane)


@pytest.mark.parametrize("n", [1, 5, 8, 127, 128, 129, 136, 239, 240, 249, 254, 255, 256])
def test_bits_are_added_up_as_numpy_does(n: int, loops: None) -> None:
    """Whether a plane is noise may not depend on rounding: the sums are equal bit for bit."""
    from wustore.backends.hdf5.filters import deflate_numba

    rng = np.random.default_rng(n)
    for _ in range(20):
        counts = rng.integers(1, 80, n)
        sample = np.repeat(np.arange(n, dtype=np.uint8), counts)
        terms = deflate_encoder.code_terms(sample.size)
        expected = counts * np.maximum(np.log2(sample.size / counts), 1)
        assert deflate_numba._bits(sample, terms) == (float(expected.sum()), n)


def test_without_libdeflate(loops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = pixels("quantised", (60, 200))
    pipeline = Pipeline((2, 1, 3), plane.dtype, (1, 60, 200))
    mask, data = pipeline.encode(plane)
    monkeypatch.setattr(deflate_encoder, "functions", lambda: None)
    assert pipeline.encode(plane) == (mask, bytes(data))
