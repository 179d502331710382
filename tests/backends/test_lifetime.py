"""What was opened is let go with its last reference: no cycle keeps files open until garbage is collected."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wustore
from wustore.backends.registry import backend_for_writing
from wustore.ops.copy import copy
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
def uncollected() -> Iterator[None]:
    """Collect garbage, then none until the test ends."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


PACKAGES = {"wustore", "h5py", "zarr", "astropy"}
"""What the classes of a store's objects are of. Others come and go with threads, of which a busy machine has more."""


def alive() -> Counter[str]:
    """Return how many objects there are of each class of these packages."""
    kinds = Counter(map(type, gc.get_objects()))
    names = {kind: f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    return Counter({names[kind]: n for kind, n in kinds.items() if names[kind].partition(".")[0] in PACKAGES})


@pytest.mark.parametrize("use", [load, touch, cut, read_everything, save])
def test_using_a_store_again_and_again_leaves_no_objects(
    path: str, use: Callable[[str], None], uncollected: None
) -> None:
    for _ in range(3):
        use(path)
    gc.collect()
    before = alive()
    for _ in range(10):
        use(path)
    assert {name: n for name, n in (alive() - before).items() if n >= 10} == {}


def test_a_reader_goes_with_its_last_reference(path: str, uncollected: None) -> None:
    reader = wustore.open_reader(path)
    reader.image(0)
    for layer in ("science", "psf"):
        reader.grid(layer)
    watched = weakref.ref(reader)
    del reader
    assert watched() is None
