"""The filters of HDF5 chunks: ours against the library's, many chunks a call, with the compiled loops and without."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.backends.compiling import Loops
from wustore.backends.hdf5.filters import pipeline as h5filters
from wustore.backends.hdf5.filters.pipeline import (
    BLOSC,
    DEFLATE,
    FLETCHER32,
    SHUFFLE,
    DamagedChunkError,
    Decoded,
    Pipeline,
)
from wustore.backends.hdf5.parts import parts_of
from wustore.model.compare import same_bits


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def _loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = Loops("wustore.backends.hdf5.filters.loops_numba", 0 if request.param else 1 << 60)
    if request.param and loops.get(1) is None:
        pytest.skip("there is no numba for this Python")
    monkeypatch.setattr(h5filters, "_LOOPS", loops)


def joined(chunks: list[tuple[int, bytes]], gap: bytes = b"") -> tuple[NDArray[Any], ...]:
    """Return the bytes of stored chunks with ``gap`` before each, where each lies, and their masks."""
    raw = np.array(bytearray(b"".join(gap + data for _, data in chunks)), np.uint8)
    sizes = np.array([len(data) for _, data in chunks], np.int64)
    return raw, np.cumsum(sizes + len(gap)) - sizes, sizes, np.array([skipped for skipped, _ in chunks], np.uint32)


def decode(pipeline: Pipeline, chunks: list[tuple[int, bytes]], gap: bytes = b"") -> Decoded:
    return pipeline.decode(*joined(chunks, gap))


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 4, 718, 720, 722, 65536, 100_001])
def test_fletcher32_is_the_library_s(tmp_path: Any, n_bytes: int) -> None:
    """The library checks what we write, and we what the library writes."""
    values = np.frombuffer(np.random.default_rng(1).bytes(n_bytes), np.uint8)
    for data in (values, np.full(n_bytes, 255, np.uint8), np.zeros(n_bytes, np.uint8)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            ours = file.create_dataset("a", (n_bytes,), "u1", chunks=(n_bytes,), fletcher32=True)
            pipeline = Pipeline((FLETCHER32,), np.dtype("u1"), (n_bytes,))
            skipped, stored = pipeline.encode(data)
            ours.id.write_direct_chunk((0,), stored, skipped)
            theirs = file.create_dataset("b", data=data, chunks=(n_bytes,), fletcher32=True)
            file.flush()
            assert theirs.id.read_direct_chunk((0,))[1] == stored
        with h5py.File(tmp_path / "a.h5") as file:
            assert np.array_equal(file["a"][()], data)


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize(
    "filters",
    [
        (),
        (FLETCHER32,),
        (DEFLATE,),
        (SHUFFLE, DEFLATE, FLETCHER32),
        (BLOSC, FLETCHER32),
        (SHUFFLE, FLETCHER32),
        (DEFLATE, FLETCHER32),
    ],
)
def test_decoded_is_what_was_encoded(filters: tuple[int, ...], dtype: str) -> None:
    """Boxes over several chunks, one of which is noise that deflate is left out of."""
    rng = np.random.default_rng(2)
    values: NDArray[Any] = rng.integers(0, 256, (2, 21, 20), dtype="u1").astype(dtype)
    values[0, :7, :5] = rng.integers(0, 256, (7, 5 * values.itemsize), dtype="u1").view(dtype)
    values[1] = 0
    pipeline = Pipeline(filters, values.dtype, (1, 7, 5))
    boxes = np.array([[(0, 2), (0, 21), (0, 20)], [(0, 1), (3, 12), (4, 6)], [(1, 1), (0, 0), (0, 3)]])
    parts, chunks = parts_of(boxes, (1, 7, 5), (2, 3, 4))
    assert chunks.tolist() == list(range(24))
    stored = [
        pipeline.encode(values[z : z + 1, y : y + 7, x : x + 5])
        for z in (0, 1)
        for y in (0, 7, 14)
        for x in range(0, 20, 5)
    ]
    out = np.empty(values.size + 18, f"u{values.itemsize}")

    def check() -> None:
        assert same_bits(out[: values.size].view(dtype).reshape(values.shape), values)
        assert same_bits(out[values.size :].view(dtype).reshape(9, 2), np.ascontiguousarray(values[0, 3:12, 4:6]))

    decode(pipeline, stored, b"gap").place(parts, out)
    check()
    out[:] = 0
    in_order = parts[parts[:, 0].argsort(kind="stable")]
    if pipeline.unpack(-1, *joined(stored, b"gap"), None, in_order, out):
        check()
    else:
        assert h5filters._LOOPS.module is None


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("filters", [(FLETCHER32,), (SHUFFLE, DEFLATE, FLETCHER32), (DEFLATE,), (BLOSC, FLETCHER32)])
def test_bytes_that_are_no_chunk(filters: tuple[int, ...]) -> None:
    good = Pipeline(filters, np.dtype("<f4"), (4, 4)).encode(np.ones((4, 4), "f4"))
    whole = Pipeline(filters, np.dtype("<f4"), (4, 5)).encode(np.ones((4, 5), "f4"))[1]
    less = Pipeline(filters, np.dtype("<f4"), (4, 3)).encode(np.ones((4, 3), "f4"))[1]
    pipeline = Pipeline(filters, np.dtype("<f4"), (4, 4))
    parts = np.array([[k, 0, 16 * k, 1, 4, 4, 16, 4] for k in range(3)])
    for stored in (b"", b"abc", b"xyz1" * 17, whole, less):
        chunks = [good, (0, stored), good]
        with pytest.raises(DamagedChunkError) as raised:
            decode(pipeline, chunks)
        assert raised.value.k == 1
        out = np.zeros(48, "u4")
        assert not pipeline.unpack(-1, *joined(chunks), None, parts, out)
        assert not out[16:].any()


@pytest.mark.usefixtures("_loops")
def test_a_chunk_of_another_place_is_not_unpacked() -> None:
    pipeline = Pipeline((SHUFFLE, DEFLATE, FLETCHER32), np.dtype("<f4"), (4, 4))
    chunks = [pipeline.encode(np.full((4, 4), k, "f4")) for k in range(3)]
    recorded = decode(pipeline, chunks).checksums
    assert recorded.tolist() == [int.from_bytes(data[-4:], "little") for _, data in chunks]
    parts = np.array([[k, 0, 16 * k, 1, 4, 4, 16, 4] for k in range(3)])
    out = np.zeros(48, "f4")
    for order in ([0, 1, 2], [0, 2, 1], [1, 1, 1]):
        assert pipeline.unpack(-1, *joined([chunks[k] for k in order]), recorded, parts, out.view("u4")) is (
            order == [0, 1, 2] and h5filters._LOOPS.module is not None
        )


@pytest.mark.usefixtures("_loops")
@pytest.mark.parametrize("filters", [(BLOSC,), (BLOSC, FLETCHER32)])
@pytest.mark.parametrize("size", [0, 16, 1 << 30])
def test_a_blosc_chunk_that_claims_another_size(filters: tuple[int, ...], size: int) -> None:
    """Blosc would read so many bytes, wherever they are."""
    pipeline = Pipeline(filters, np.dtype("<f4"), (64, 64))
    _, stored = Pipeline((BLOSC,), pipeline.dtype, pipeline.chunks).encode(np.random.default_rng(1).random((64, 64)))
    false = stored[:12] + size.to_bytes(4, "little") + stored[16:]
    if FLETCHER32 in filters:
        false = Pipeline((FLETCHER32,), np.dtype("u1"), (len(false),)).encode(np.frombuffer(false, np.uint8))[1]
    with pytest.raises(DamagedChunkError, match="size"):
        decode(pipeline, [(0, false)])
    out = np.zeros(4096, "u4")
    parts = np.array([[0, 0, 0, 1, 64, 64, 4096, 64]])
    assert not pipeline.unpack(-1, *joined([(0, false)]), None, parts, out)
    assert not out.any()


def test_what_so_few_bytes_cannot_hold() -> None:
    sizes = np.array([1, 1 << 20])
    assert Pipeline((DEFLATE,), np.dtype("u1"), (1, 1 << 14, 1 << 14)).is_plausible(sizes).tolist() == [False, True]
    assert Pipeline((BLOSC,), np.dtype("u1"), (1, 1 << 14, 1 << 14)).is_plausible(sizes).tolist() == [False, True]
    assert Pipeline((BLOSC,), np.dtype("u1"), (1, 1 << 10, 1 << 10)).is_plausible(sizes).all()


def test_without_the_functions_of_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems may not have them: chunks with deflate are left to `decode`."""
    if h5filters._LOOPS.get(1 << 40) is None:
        pytest.skip("there is no numba for this Python")
    assert h5filters._functions() is not None
    values = np.arange(16, dtype="<f4").reshape(4, 4)
    parts = np.array([[0, 0, 0, 1, 4, 4, 16, 4]])
    for filters, alone in (((SHUFFLE, DEFLATE, FLETCHER32), False), ((SHUFFLE, FLETCHER32), True), ((), True)):
        pipeline = Pipeline(filters, values.dtype, values.shape)
        stored = joined([pipeline.encode(values)])
        for found, expected in ((h5filters._functions, True), (lambda: None, alone)):
            monkeypatch.setattr(h5filters, "_functions", found)
            out = np.zeros(16, "f4")
            assert pipeline.unpack(-1, *stored, None, parts, out.view("u4")) is expected
            assert np.array_equal(out, values.ravel()) is expected
        monkeypatch.undo()
        assert not pipeline.unpack(-1, *stored, None, parts, out.view("u1")[1:61].view("u4"))  # not aligned
