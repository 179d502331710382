"""Shards: what is read and decoded for a plane or boxes, and how much of it is Python."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calls import calls_of, loops_of
from unbound import unbind

import wustore
from wustore.backends.memory import MemoryReader
from wustore.backends.zarr import shards
from wustore.backends.zarr.backend import ZarrBackend
from wustore.backends.zarr.filters import blocks
from wustore.backends.zarr.filters.decode import with_crc
from wustore.errors import CorruptError
from wustore.ops.copy import copy
from wustore.storage import threads
from wustore.store_view import reader_of

HERE = (slice(0, 10), slice(0, 10))


def night(seed: int = 2) -> MemoryReader:
    """Return two images of 512 x 512: noise, in multiples of 0.01, and a mask."""
    rng = np.random.default_rng(seed)
    science = (np.round(rng.normal(0, 5, (2, 512, 512)) / 0.01) * 0.01).astype("f4")
    mask = (rng.random(science.shape) < 0.01).astype("i1")
    stack = wustore.ImageStack(times=[60000.0, 60001.0], sci=list(science), var=list(25 + science**2))
    with pytest.warns(UserWarning, match="WCS"):
        reader = reader_of(wustore.WorkUnit(stack, wustore.SearchConfiguration()))
    meta = replace(reader.meta, dtypes={**reader.meta.dtypes, "mask": (mask.dtype,) * 2})
    return MemoryReader(meta, [replace(reader.image(i), mask=mask[i]) for i in range(2)])


def calls(path: Path) -> int:
    """Return the Python-level calls of reading an image when everything is imported."""
    with ZarrBackend().open(str(path), workers=1) as reader:
        for i in (0, 1):
            reader.image(i)
    with ZarrBackend().open(str(path), workers=1) as reader:
        reader.image(0)
        return calls_of(lambda: reader.image(1))


def write(path: Path, seed: int = 2, **options: object) -> Path:
    source = night(seed)
    copy(source, ZarrBackend().create(str(path), source.meta, **options))
    return path


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("profile", ["compact", "portable", "fast", "none"])
def test_python_per_plane_and_not_per_chunk(
    tmp_path: Path, profile: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that only one thread at a time can do bounds how reading scales: counted, so the same on any machine."""
    monkeypatch.setattr(blocks, "LOOPS", loops_of("backends.zarr.filters.loops_numba", compiled=compiled))
    few = calls(write(tmp_path / "few.zarr", profile=profile, chunks=[64, 64]))
    many = calls(write(tmp_path / "many.zarr", profile=profile, chunks=[32, 32]))
    own = (
        2 * 3 * 64 if profile == "fast" and not compiled else 0
    )  # imagecodecs asks for each chunk of blosc what ``out`` is
    assert few - own <= 700, "64 chunks a plane, as the default layout cuts 2048 x 2048"
    assert many - few <= (2 if own else 0) * 3 * (256 - 64) + 60, "calls for each block of chunks, not for each chunk"


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("chunks", [[512, 512], [128, 512], [100, 90], [64, 64]])
def test_every_cut_gives_the_same_image(tmp_path: Path, chunks: list[int], workers: int) -> None:
    path = write(tmp_path / "x.zarr", chunks=chunks)
    with ZarrBackend().open(str(path), workers=workers) as reader:
        image = reader.image(1)
        assert image.science.tobytes() == night().image(1).science.tobytes()
        box = reader.read("science", (slice(0, 2), slice(95, 307), slice(0, 512)))
        assert box[1].tobytes() == image.science[95:307].tobytes()


def test_chunks_in_any_order(tmp_path: Path) -> None:
    """Other programs may store the chunks of a shard in another order, and leave gaps."""
    path = write(tmp_path / "x.zarr", chunks=[100, 128])
    expected = night().image(1)
    for layer in ("science", "mask"):
        file = path / layer / "c.1.0.0"
        whole, size = file.read_bytes(), 16 * 24 + 4
        index = np.frombuffer(whole[-size:-4], "<u8").reshape(24, 2).copy()
        body = b""
        for k in (23, 22, *range(5, 9), 0, 4, *range(9, 22), 1, 2, 3):
            start, length = index[k].tolist()
            index[k, 0] = len(body)
            body += whole[start : start + length] + b"gap" * (k == 6)
        file.write_bytes(body + with_crc(index.tobytes()))
    unbind(path)
    for workers in (1, 3):
        with ZarrBackend().open(str(path), workers=workers) as reader:
            assert reader.image(1).science.tobytes() == expected.science.tobytes()
            boxes = [(slice(1, 2), slice(90, 320), slice(5, 300)), (slice(1, 2), slice(100, 200), slice(0, 512))]
            for (_, rows, columns), found in zip(boxes, reader.read_boxes("mask", boxes), strict=True):
                assert np.array_equal(found[0], expected.mask[rows, columns])


def test_threads_are_used_for_work_that_is_worth_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.zarr", chunks=[64, 64])
    used: list[int] = []
    real = shards.in_threads
    monkeypatch.setattr(shards, "in_threads", lambda *arguments: (used.append(arguments[2]), real(*arguments))[1])
    with ZarrBackend().open(str(path), workers=8) as reader:
        reader.read("science", (slice(0, 1), slice(0, 100), slice(0, 100)))
        assert used == [1], "a small box"
        monkeypatch.setattr(threads, "BYTES_PER_WORKER", 1 << 18)
        reader.read("science", (slice(0, 1), slice(0, 512), slice(0, 512)))
        assert used == [1, 4], "1 MiB of pixels"


class TestBinding:
    """A chunk of another place, image, layer or store is an error, although its own checksum is right."""

    @pytest.fixture(params=["compact", "none"])
    def store(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        return write(tmp_path / "x.zarr", profile=request.param)

    def refused(self, store: Path, layer: str, pattern: str, place: tuple[slice, slice] = HERE) -> None:
        for workers in (1, 3):
            with ZarrBackend().open(str(store), workers=workers) as reader:
                assert reader.image(0).science.shape == (512, 512), "the other image is whole"
                with pytest.raises(CorruptError, match=pattern):
                    reader.image(1)
                with pytest.raises(CorruptError, match=pattern):
                    reader.read(layer, (slice(1, 2), *place))
                with pytest.raises(CorruptError, match=pattern):
                    reader.read_boxes(layer, [(slice(1, 2), *place)])

    @pytest.mark.parametrize("layer", ["science", "variance", "mask"])
    def test_shard_of_another_image(self, store: Path, layer: str) -> None:
        shutil.copy(store / layer / "c.0.0.0", store / layer / "c.1.0.0")
        self.refused(store, layer, f"does not belong here.*array {layer}, image 1")

    def test_shard_of_another_layer(self, store: Path) -> None:
        shutil.copy(store / "science" / "c.1.0.0", store / "variance" / "c.1.0.0")
        self.refused(store, "variance", "does not belong here")

    def test_shard_of_another_store(self, store: Path, tmp_path: Path) -> None:
        other = write(tmp_path / "other.zarr", seed=3)
        shutil.copy(other / "science" / "c.1.0.0", store / "science" / "c.1.0.0")
        self.refused(store, "science", "does not belong here")

    def test_chunks_that_changed_places(self, store: Path) -> None:
        """The index is wrong and has the right checksum; or the bytes of two chunks of one length are swapped."""
        path = store / "science" / "c.1.0.0"
        whole = path.read_bytes()
        index = np.frombuffer(whole[-68:-4], "<u8").reshape(4, 2)
        if len({*index[:, 1].tolist()}) == 1:
            (a, n), b = index[0].tolist(), int(index[1, 0])
            swapped = whole[b : b + n] + whole[a : a + n] + whole[2 * n :]
            path.write_bytes(swapped)
            self.refused(store, "science", r"does not belong here.*chunk \(0, 0\)")
        path.write_bytes(whole[:-68] + with_crc(index[[1, 0, 2, 3]].tobytes()))
        self.refused(store, "science", "does not belong here")

    def test_small_arrays_of_another_store(self, store: Path, tmp_path: Path) -> None:
        other = write(tmp_path / "other.zarr", seed=3, profile="none")
        shutil.copy(other / "packed" / "c.0", store / "packed" / "c.0")
        with pytest.raises(CorruptError, match="not the one that the root document names"):
            ZarrBackend().open(str(store))

    def test_a_store_without_it_is_read(self, store: Path) -> None:
        unbind(store)
        with ZarrBackend().open(str(store)) as reader:
            assert reader.bindings() is None
            assert reader.image(1).science.tobytes() == night().image(1).science.tobytes()
        append(store, night())
        with ZarrBackend().open(str(store)) as reader:
            assert reader.bindings() is None, "it goes on as it was begun"
            assert reader.image(3).science.tobytes() == night().image(1).science.tobytes()

    def test_appended_images_are_bound(self, store: Path) -> None:
        append(store, night(seed=3))
        with ZarrBackend().open(str(store)) as reader:
            bindings = reader.bindings()
            assert bindings is not None
            assert len({*bindings[:, 0].tolist()}) == 4
            assert reader.image(3).science.tobytes() == night(seed=3).image(1).science.tobytes()
            assert reader.image(1).science.tobytes() == night().image(1).science.tobytes()
        shutil.copy(store / "science" / "c.3.0.0", store / "science" / "c.1.0.0")
        self.refused(store, "science", "does not belong here")


def append(store: Path, source: MemoryReader) -> None:
    ZarrBackend().append(str(store), [source], lambda count: {"action": "append", "images": count})
