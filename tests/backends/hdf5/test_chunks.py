"""Boxes of chunked datasets: which chunks, which parts of them, and how many calls that takes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import pytest
from calls import calls_of, loops_of
from numpy.typing import NDArray

from wustore.backends.hdf5 import chunks as h5chunks
from wustore.backends.hdf5.append import append_images
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.hdf5.chunks import ChunkReader
from wustore.backends.hdf5.file import RawFile
from wustore.backends.hdf5.filters import pipeline
from wustore.backends.memory import MemoryReader
from wustore.errors import CorruptError
from wustore.model.compare import same_bits
from wustore.model.meta import LAYERS, Image
from wustore.ops.copy import copy
from wustore.ops.verify import problems
from wustore.testing import sample


def save(path: Path, **options: object) -> str:
    source = sample("chunked")
    copy(source, Hdf5Backend().create(str(path), source.meta, **options))
    return str(path)


def test_opening_reads_no_chunk_and_a_box_its_own_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    fill = ChunkReader._fill
    monkeypatch.setattr(
        ChunkReader,
        "_fill",
        lambda self, table, numbers, *a: (decoded.extend(numbers), fill(self, table, numbers, *a))[1],
    )
    with Hdf5Backend().open(save(tmp_path / "a.h5", chunks=(100, 100))) as reader:
        assert reader.meta.n_images == 3
        assert not decoded
        reader.read("science", (slice(0, 3), slice(195, 205), slice(110, 120)))
        assert len(decoded) == 3 * 2
        decoded.clear()
        reader.image(1, ("science",))
        assert len(decoded) == 6 * 6
        decoded.clear()
        before = reader.chunks_read
        boxes = [(slice(0, 2), slice(y, y + 21), slice(y, y + 21)) for y in range(150, 190, 3)]
        boxes.append((slice(1, 1), slice(0, 0), slice(0, 5)))
        out = reader.read_boxes("science", boxes)
        assert len(decoded) == 2 * 4  # shared chunks once
        assert reader.chunks_read == before + 8
        for box, values in zip(boxes, out, strict=True):
            assert same_bits(values, reader.read("science", box))
        assert reader.read_boxes("science", []) == []


def calls(path: str) -> int:
    """Return how many calls from Python, in this thread, reading an image takes."""
    with Hdf5Backend().open(path, workers=1) as reader:
        for i in (0, 1):
            reader.image(i)
        return calls_of(lambda: reader.image(1))


@pytest.mark.usefixtures("loops")
def test_calls_are_few_for_an_image_and_fewer_for_a_chunk(tmp_path: Path) -> None:
    few = calls(save(tmp_path / "a.h5", chunks=(600, 530)))
    many = calls(save(tmp_path / "b.h5", chunks=(20, 53)))
    assert few < 800
    assert (many - few) / (3 * (30 * 10 - 1)) < 2.5


@pytest.mark.parametrize("limits", [(1, 1), (1 << 40, 1 << 40)], ids=["a chunk a job", "all in one"])
@pytest.mark.parametrize("gap", [0, 1 << 40])
def test_any_grouping_gives_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], gap: int
) -> None:
    monkeypatch.setattr(h5chunks, "_JOB_BYTES", limits)
    monkeypatch.setattr(h5chunks, "_GAP", gap)
    source = sample("chunked")
    with Hdf5Backend().open(save(tmp_path / "a.h5", chunks=(100, 100))) as reader:
        box = (slice(0, 3), slice(90, 450), slice(10, 400))
        assert same_bits(reader.read("science", box), source.read("science", box))
        image = reader.image(2)
        assert image.mask is not None
        assert same_bits(image.variance, source.image(2).variance)


def test_into_arrays_of_the_caller(tmp_path: Path) -> None:
    """Whatever they look like: parts of one array are filled in place, anything else by a copy."""
    source = sample("chunked")
    boxes = [(slice(0, 2), slice(95, 140), slice(3, 210)), (slice(2, 3), slice(0, 45), slice(7, 214))]
    expected = [source.read("science", box) for box in boxes]
    large = np.zeros((4, 60, 300), np.float32)
    targets = {
        "parts of one": [large[:2, 5:50, 11:218], large[3:, 5:50, 11:218]],
        "of their own": [np.zeros(data.shape, np.float32) for data in expected],
        "backwards": [np.zeros(data.shape, np.float32)[:, ::-1] for data in expected],
        "wider": [np.zeros(data.shape, np.float64) for data in expected],
    }
    with Hdf5Backend().open(save(tmp_path / "a.h5", chunks=(100, 100))) as reader:
        for name, out in targets.items():
            assert all(a is b for a, b in zip(reader.read_boxes("science", boxes, out), out, strict=True)), name
            for array, data in zip(out, expected, strict=True):
                assert np.array_equal(array, data, equal_nan=True), name
        assert np.count_nonzero(large) == sum(np.count_nonzero(data) for data in expected)


def test_threads_that_read_an_image_each_do_not_cut_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5chunks, "_JOB_BYTES", (1, 1 << 23))
    jobs: list[int] = []
    fill = ChunkReader._fill
    monkeypatch.setattr(
        ChunkReader,
        "_fill",
        lambda self, table, numbers, *a: (jobs.append(numbers.size), fill(self, table, numbers, *a)),
    )
    with Hdf5Backend().open(save(tmp_path / "a.h5", chunks=(100, 100)), workers=3) as reader:
        reader.image(0, ("science",))
        assert jobs == [6] * 6  # of three threads, two each
        jobs.clear()
        assert len(list(reader.images(layers=("science",), workers=3))) == 3
        assert jobs == [36] * 3


# --- chunks and their places ----------------------------------------------------------------------------


def put(
    path: str, layer: str, place: tuple[int, int, int], other: str, other_layer: str, source: tuple[int, int, int]
) -> None:
    """Put a stored chunk of one file into the place of one of another file, with its own checksum."""
    with h5py.File(other) as file:
        skipped, data = file[other_layer].id.read_direct_chunk(source)
    with h5py.File(path, "r+") as file:
        file[layer].id.write_direct_chunk(place, data, skipped)


@pytest.mark.parametrize(
    ("other", "layer", "source"),
    [
        ("a.h5", "science", (1, 0, 100)),
        ("a.h5", "science", (0, 100, 100)),
        ("a.h5", "variance", (1, 100, 100)),
        ("b.h5", "science", (1, 100, 100)),
    ],
    ids=["another place", "another image", "another layer", "another store"],
)
def test_a_chunk_that_does_not_belong_here(
    tmp_path: Path, other: str, layer: str, source: tuple[int, int, int]
) -> None:
    path = save(tmp_path / "a.h5", chunks=(100, 100))
    store = sample("chunked")
    images = [replace(store.image(i), science=store.image(i).science[::-1].copy()) for i in range(3)]
    turned = MemoryReader(store.meta, images)
    copy(turned, Hdf5Backend().create(str(tmp_path / "b.h5"), turned.meta, chunks=(100, 100)))
    put(path, "science", (1, 100, 100), str(tmp_path / other), layer, source)
    with Hdf5Backend().open(path) as reader:
        for box in ((1, 1), (100, 20)):
            index = (slice(1, 2), slice(box[0], box[0] + 150), slice(100, 120))
            with pytest.raises(CorruptError, match=r"belong here.*image 1, chunk at \(y, x\) = \(100, 100\)"):
                reader.read("science", index)
        assert same_bits(reader.image(0).science, store.image(0).science)
        assert [problem.where for problem in problems(reader)] == ["image 1, science"]
    with pytest.raises(CorruptError, match="belong"):
        append_images(path, [store], lambda _: {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_files_without_checksums_of_chunks(tmp_path: Path) -> None:
    """Older ones, or if they were removed."""
    path = save(tmp_path / "a.h5", chunks=(100, 100))
    with h5py.File(path, "r+") as file:
        del file["chunk_checksum"]
    put(path, "science", (1, 100, 100), path, "science", (0, 100, 100))
    with Hdf5Backend().open(path) as reader:
        assert_image(reader.image(0))
        assert [problem.where for problem in problems(reader)] == ["image 1, science"]


@pytest.mark.parametrize("chunks", [(1, 100, 100), (2, 50, 77), None], ids=["same chunks", "other chunks", "no chunks"])
def test_encoded_again_by_another_program(tmp_path: Path, chunks: tuple[int, ...] | None) -> None:
    """The values of the plane as a whole decide, then."""
    path = save(tmp_path / "a.h5", chunks=(100, 100))
    options = {} if chunks is None else {"chunks": chunks, "compression": 9, "fletcher32": True}
    with h5py.File(path, "r+") as file:
        values = file["science"][()]
        values[2, 7, 7] += 1
        del file["science"]
        file.create_dataset("science", data=values, **options)
    with Hdf5Backend().open(path, workers=3) as reader:
        for i in (0, 1):
            assert_image(reader.image(i), i)
        with pytest.raises(CorruptError, match="belong"):
            reader.read("science", (slice(2, 3), slice(500, 510), slice(0, 10)))


def assert_image(image: Image, i: int = 0) -> None:
    assert same_bits(image.science, sample("chunked").image(i).science)


# --- what other programs write, and damage in it --------------------------------------------------------

SIDES = (1, 16, 24)
"""Of the chunks of `foreign`: 3 x 3 of them make up a plane of 40 x 60 pixels, those at its ends in part."""


def foreign(path: Path, dtype: str, **options: object) -> NDArray[Any]:
    """Write a dataset as another program does, one chunk of which is noise; return its values."""
    rng = np.random.default_rng(5)
    values = (rng.normal(100, 5, (2, 40, 60)) * 8).astype(dtype)
    values[0, :16, :24] = rng.integers(0, 256, (16, 24 * values.itemsize), "u1").view(dtype)
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("science", data=values, chunks=SIDES, **options)
    return values


@pytest.fixture(params=["compiled", "python"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = loops_of("backends.hdf5.filters.loops_numba", compiled=request.param == "compiled")
    monkeypatch.setattr(pipeline, "_LOOPS", found)
    return str(request.param)


def filled(reader: ChunkReader, box: tuple[slice, ...], dtype: str, workers: int = 1) -> NDArray[Any]:
    bounds = np.array([[(part.start, part.stop) for part in box]])
    out = np.empty((bounds[0, :, 1] - bounds[0, :, 0]).tolist(), np.dtype(dtype).newbyteorder("="))
    for job in reader.jobs(reader.plan(bounds), out.reshape(-1), workers):
        job()
    return out


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i2", "|u1", ">f4"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fletcher32": True},
        {"shuffle": True},
        {"compression": 4},
        {"compression": 4, "shuffle": True},
        {"compression": 4, "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "shuffle": True},
        {"scaleoffset": 0},
    ],
    ids=lambda options: " ".join(options) or "no filters",
)
def test_pipelines_of_other_programs(tmp_path: Path, loops: str, dtype: str, options: dict[str, Any]) -> None:
    if "scaleoffset" in options and "f" in dtype:
        options = {"fletcher32": True, "shuffle": True}
    values = foreign(tmp_path / "a.h5", dtype, **options)
    with h5py.File(tmp_path / "a.h5") as file:
        reader = ChunkReader(file["science"], RawFile(file), "a.h5")
        for box in ((0, 2, 0, 40, 0, 60), (0, 1, 15, 17, 23, 25), (1, 2, 39, 40, 59, 60), (0, 2, 3, 36, 1, 59)):
            index = tuple(slice(*box[k : k + 2]) for k in (0, 2, 4))
            expected = values[index].astype(values.dtype.newbyteorder("="))
            assert same_bits(filled(reader, index, dtype), np.ascontiguousarray(expected))


@pytest.mark.parametrize("options", [{"compression": 4, "shuffle": True, "fletcher32": True}, {"fletcher32": True}])
def test_the_first_damaged_chunk_is_named(tmp_path: Path, loops: str, options: dict[str, Any]) -> None:
    """Wherever it is among those of a job, and however many follow; with the same words on either way."""
    values = foreign(tmp_path / "a.h5", "<f4", **options)
    with h5py.File(tmp_path / "a.h5") as file:
        places = [file["science"].id.get_chunk_info(k) for k in range(18)]
    places.sort(key=lambda place: place.byte_offset)
    whole = bytearray((tmp_path / "a.h5").read_bytes())
    box = (slice(0, 2), slice(0, 40), slice(0, 60))
    for k, place in enumerate(places):
        z, y, x = place.chunk_offset
        for at in (place.byte_offset + place.size // 2, place.byte_offset + place.size - 2):
            data = whole.copy()
            for later in (at, *(other.byte_offset for other in places[k + 1 :: 5])):
                data[later] ^= 0x10
            (tmp_path / "b.h5").write_bytes(data)
            with h5py.File(tmp_path / "b.h5") as file:
                reader = ChunkReader(file["science"], RawFile(file), "b.h5")
                expected = rf"damaged.*image {z}, chunk at \(y, x\) = \({y}, {x}\)"
                with pytest.raises(CorruptError, match=expected) as raised:
                    filled(reader, box, "<f4")
                assert "fletcher32 does not match" in str(raised.value)
                other = (slice(1 - z, 2 - z), slice(0, 40), slice(0, 60))
                if k == len(places) - 1:
                    assert same_bits(filled(reader, other, "<f4"), values[other])


def test_a_file_that_has_become_shorter(tmp_path: Path, loops: str) -> None:
    values = foreign(tmp_path / "a.h5", "<f4", compression=4, fletcher32=True)
    path = tmp_path / "a.h5"
    with h5py.File(path) as file:
        places = [file["science"].id.get_chunk_info(k) for k in range(18)]
        last = max(places, key=lambda place: place.byte_offset)
        reader = ChunkReader(file["science"], RawFile(file), "a.h5")
        box = (slice(0, 1), slice(0, 40), slice(0, 60))
        assert same_bits(filled(reader, box, "<f4"), values[:1])
        os.truncate(path, last.byte_offset + last.size - 1)
        z, y, x = last.chunk_offset
        index = (slice(z, z + 1), slice(y, min(y + 16, 40)), slice(x, min(x + 24, 60)))
        with pytest.raises(CorruptError, match=rf"image {z}, chunk at \(y, x\) = \({y}, {x}\).*shorter"):
            filled(reader, index, "<f4")


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("loops", ["compiled"], indirect=True)
def test_a_job_is_one_call_without_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments, **options: (calls.append(name), function(*arguments, **options))[1]

    module = pipeline._LOOPS.get()
    for owner, name in ((module, "unpack"), (module, "fletcher32"), (os, "preadv"), (imagecodecs, "deflate_decode")):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    source = sample("chunked")
    with Hdf5Backend().open(save(tmp_path / "a.h5", chunks=(50, 50)), workers=1) as reader:
        calls.clear()
        image = reader.image(1)
    assert same_bits(image.science, source.image(1).science)
    assert calls == ["unpack"] * sum(image.layer(name) is not None for name in LAYERS)


@pytest.mark.parametrize("kind", ["noise", "zeros", "not chunked"])
def test_work_is_less_for_chunks_that_are_stored_in_few_bytes(tmp_path: Path, kind: str) -> None:
    values = np.zeros((4, 64, 64), "<f4")
    if kind == "noise":
        values[...] = np.random.default_rng(3).normal(size=values.shape)
    options = {} if kind == "not chunked" else {"chunks": (1, 64, 32), "compression": 4, "shuffle": True}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("science", data=values, **options)
    with h5py.File(tmp_path / "a.h5") as file:
        reader = ChunkReader(file["science"], RawFile(file), "a.h5")
        plan = reader.plan(np.array([[(1, 4), (10, 20), (0, 33)]]))
        stored = 0 if plan.table is None else int(plan.table.sizes[plan.numbers].sum())
        decoded = 3 * 64 * 64 * 4
        assert plan.work == (decoded // 4 + 4 * stored if kind == "zeros" else decoded)
