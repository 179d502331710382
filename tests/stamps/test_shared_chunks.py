"""Windows of images: pixels as by slicing, each chunk read once, parts that fit into the memory given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wustore.backends.registry import backend_for_writing, open_reader
from wustore.ops.copy import copy
from wustore.stamps.shared_chunks import Windows
from wustore.testing import sample

RADIUS, SIDE = 6, 13
RNG = np.random.default_rng(2)
N = 40
Y, X = (RNG.integers(-9, size + 9, (N, 3)) for size in (600, 530))
IMAGES = np.arange(3)


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
