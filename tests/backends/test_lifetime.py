"""What was opened is let go with its last reference: no cycle keeps files open until garbage is collected."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wustore
from wustore.backends.registry import backend_for_writing
from wustore.ops.copy import copy
from wustore.storage import threads
from wustore.testing import sample


def load(path: str) -> None:
    work_unit = wustore.open(path)
    work_unit.load_images()
    assert not work_unit.lazy


def touch(path: str) -> None:
    stack: Any = wustore.open(path).im_stack
    np.asarray(stack.sci[1])
    stack.get_single_image(0)


def cut(path: str) -> None:
    work_unit = wustore.open(path)
    work_unit.stamps(3.0, 4.0, 2)
    work_unit.trajectory_stamps({"x": [3], "y": [4], "vx": [0.0], "vy": [0.0]}, radius=2)


def read_everything(path: str) -> None:
    with wustore.open_reader(path) as reader:
        for i, image in reader.images():
            reader.image_capsule(i, image)
        reader.capsule()
        reader.state()
        reader.describe()


def save(path: str) -> None:
    wustore.save(wustore.open(path), Path(path).parent / "copy.h5", overwrite=True)


@pytest.fixture(params=["a.zarr", "a.h5", "a.zarr.zip", "a.fits"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the place of a small store."""
    path = str(tmp_path / request.param)
    source = sample("simple")
    copy(source, backend_for_writing(path).create(path, source.meta))
    return path


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collect garbage, then none until the test ends. One thread helps: each has objects of its own, which stay."""
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(threads, "_pool", lambda process: pool)
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            gc.enable()


@pytest.mark.parametrize("use", [load, touch, cut, read_everything, save])
def test_using_a_store_again_and_again_leaves_no_objects(
    path: str, use: Callable[[str], None], uncollected: None
) -> None:
    for _ in range(3):
        use(path)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(10):
        use(path)
    assert len(gc.get_objects()) - before < 50, "a store has hundreds"


def test_a_reader_goes_with_its_last_reference(path: str, uncollected: None) -> None:
    reader = wustore.open_reader(path)
    reader.image(0)
    for layer in ("science", "psf"):
        reader.grid(layer)
    watched = weakref.ref(reader)
    del reader
    assert watched() is None
