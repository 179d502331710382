"""Windows of images: pixels as by slicing, each chunk read once, parts that fit into the memory given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import meta_of

from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing, open_reader
from wustore.model.meta import Image
from wustore.ops.copy import copy
from wustore.stamps.cutting.shared_chunks import Windows
from wustore.storage import threads
from wustore.testing import sample

RADIUS, SIDE = 6, 13
RNG = np.random.default_rng(2)
N = 40
Y, X = (RNG.integers(-9, size + 9, (N, 3)) for size in (600, 530))
IMAGES = np.arange(3)
NO_PSF = {"psf": (None, None)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = sample("chunked")
    path = tmp_path_factory.mktemp("windows") / "night.zarr"
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta, layout="cutouts"))
    return path


def by_slicing() -> np.ndarray:
    """Return all windows of the science layer, -1 outside of the images. Shape (n, time, side, side)."""
    reader = sample("chunked")
    found = np.full((N, 3, SIDE, SIDE), -1, np.float32)
    for k in range(3):
        padded = np.pad(reader.image(k).science, 30, constant_values=-1)
        for n in range(N):
            top, left = Y[n, k] - RADIUS + 30, X[n, k] - RADIUS + 30
            found[n, k] = padded[top : top + SIDE, left : left + SIDE]
    return found


@pytest.mark.usefixtures("cutting")
@pytest.mark.parametrize("max_memory", [1 << 30, 1 << 17])
def test_pixels(path: Path, max_memory: int) -> None:
    expected = by_slicing()
    seen = np.zeros((N, 3), int)
    with open_reader(path) as reader:
        windows = Windows(reader, ("science",), IMAGES, Y, X, RADIUS, max_memory, 1)
        assert (len(windows.parts) == 3) is (max_memory == 1 << 30)
        for part in windows.parts:
            times = slice(part.times.start, part.times.stop)
            for gather in windows.load(part).gathers():
                found = gather.cut("science", -1, np.dtype(np.float32))
                assert found.tobytes() == np.ascontiguousarray(expected[gather.members, times]).tobytes()
                inside = gather.inside()
                assert (found[~inside] == -1).all()
                seen[gather.members, times] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("cores", [1, 5])
def test_the_reader_of_a_single_part_decides_on_threads(
    path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    one, all_in_one = np.full((1, 3), 30), 1 << 20
    with open_reader(path) as reader:
        windows = Windows(reader, ("science",), IMAGES, one, one, 2, 1 << 30, all_in_one)
        assert (len(windows.parts), windows.workers) == (1, cores)
        windows = Windows(reader, ("science",), IMAGES, Y, X, RADIUS, 1 << 30, 1)
        assert (len(windows.parts), windows.workers) == (3, 1), "so few pixels"


def test_each_chunk_is_read_once(path: Path) -> None:
    with open_reader(path) as reader:
        _, height, width = reader.chunks("science")
        windows = Windows(reader, ("science",), IMAGES, Y, X, RADIUS, 1 << 30, 1)
        for part in windows.parts:
            boxes = [box for cover in part.covers for box in cover.boxes]
            cells = [
                (i, row, column)
                for times, rows, columns in boxes
                for i in range(times.start, times.stop)
                for row in range(rows.start // height, -(-rows.stop // height))
                for column in range(columns.start // width, -(-columns.stop // width))
            ]
            assert len(cells) == len(set(cells)) > 0


def test_windows_outside_read_nothing(path: Path) -> None:
    with open_reader(path) as reader:
        far = np.full((2, 3), -100)
        windows = Windows(reader, ("science", "mask"), IMAGES, far, far, RADIUS, 1 << 30, 1)
        assert all(not part.covers for part in windows.parts)
        (gather,) = windows.load(windows.parts[0]).gathers()
        assert (gather.cut("science", 7, np.dtype(np.float32)) == 7).all()
        assert not gather.inside().any()


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("zarr", "f4"), ("zarr.zip", "f4"), ("h5", "f4"), ("fits", "f4"), ("zarr", "f8"), ("zarr", "i2")],
)
def test_chunk_by_chunk(tmp_path: Path, suffix: str, dtype: str, cutting: str) -> None:
    """Whole chunks are decoded where they stay, if there are loops that cut windows out of them."""
    rng = np.random.default_rng(5)
    planes = rng.uniform(-900, 900, (2, 300, 250)).astype(dtype)
    flags = (rng.random(planes.shape) < 0.1).astype(np.int8) - (rng.random(planes.shape) < 0.1).astype(np.int8)
    images = [Image(science=planes[k], variance=planes[k], mask=flags[k]) for k in range(2)]
    dtypes = {"science": dtype, "variance": dtype, "mask": "i1"}
    meta = replace(meta_of(images), dtypes={layer: (np.dtype(kind),) * 2 for layer, kind in dtypes.items()} | NO_PSF)
    source = MemoryReader(meta, images)
    path = tmp_path / f"night.{suffix}"
    chunks = {"chunks": (64, 64)} if suffix != "fits" else {}
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta, **chunks))
    n = 200
    y, x = (rng.integers(-9, size + 9, (n, 2)) for size in (300, 250))
    with open_reader(path) as reader:
        windows = Windows(reader, ("science", "mask"), np.arange(2), y, x, RADIUS, 1 << 30, 1)
        for part in windows.parts:
            block = windows.load(part)
            whole = {layer: pixels.blocks.shape[1:3] for layer, pixels in block.layers.items()}
            compiled = cutting == "compiled" and "zarr" in suffix
            assert whole["mask"] == ((5, 4) if compiled else (1, 1))
            assert whole["science"] == ((5, 4) if compiled and dtype != "i2" else (1, 1))
            for gather in block.gathers():
                k = part.times.start
                found, mask = (
                    gather.cut(layer, 0, np.dtype(kind)) for layer, kind in (("science", dtype), ("mask", "i1"))
                )
                for got, layer in ((found, planes[k]), (mask, flags[k])):
                    padded = np.pad(layer, 30)
                    for stamp, member in zip(got[:, 0], gather.members, strict=True):
                        top, left = y[member, k] - RADIUS + 30, x[member, k] - RADIUS + 30
                        assert stamp.tobytes() == padded[top : top + SIDE, left : left + SIDE].tobytes()
    if "zarr" in suffix:
        with open_reader(path) as reader:
            few = Windows(reader, ("science",), np.arange(2), y[:1] * 0 + 80, x[:1] * 0 + 80, RADIUS, 1 << 30, 1)
            (pixels,) = few.load(few.parts[0]).layers.values()
            assert pixels.blocks.shape[1:] == (1, 1, SIDE, SIDE), "not the rest of the chunk"
