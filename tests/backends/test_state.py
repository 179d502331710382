"""A reader belongs to one state of its store: afterwards it gives that state, or says that the store was replaced."""

from __future__ import annotations

import pickle
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import wustore
from wustore.backends.base import Reader
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, StoreReplacedError
from wustore.ops.copy import copy
from wustore.stamps.layer import Layer
from wustore.stamps.view import View
from wustore.testing import sample

NAMES = ["a.zarr", "a.h5", "a.zarr.zip", "a.fits", "ram:state", "memory://state.zarr"]


def stack(value: float) -> MemoryReader:
    """Return a WorkUnit that differs from another one in its pixels only."""
    source = sample("simple")
    images = [source.image(i) for i in range(source.meta.n_images)]
    planes = [replace(image, science=np.full_like(image.science, value)) for image in images]
    return MemoryReader(source.meta, planes)


def save(reader: Reader, path: str, *, overwrite: bool = False) -> None:
    copy(reader, backend_for_writing(path).create(path, reader.meta, overwrite=overwrite))


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the place of a store whose science pixels are 1."""
    name: str = request.param
    if name.startswith("memory:"):
        pytest.importorskip("fsspec")
    path = name if ":" in name else str(tmp_path / name)
    save(stack(1), path, overwrite=True)
    return path


def science(reader: Reader) -> float:
    return float(reader.image(1, ("science",)).science[0, 0])


def test_replaced_while_it_is_open(path: str, tmp_path: Path) -> None:
    with wustore.open_reader(path) as reader:
        reader.check_state()
        state = reader.state()
        save(stack(2), path, overwrite=True)
        with pytest.raises(StoreReplacedError):
            reader.check_state()
        if "://" not in path:  # at a URL the pixels of a chunk do not say which store they are of
            with suppress(StoreReplacedError):
                assert science(reader) == 1
        with pytest.raises(StoreReplacedError):
            save(reader, str(tmp_path / "copy.zarr"))
        assert not (tmp_path / "copy.zarr").exists()
        with wustore.open_reader(path) as now:
            assert science(now) == 2
            assert now.state() != state


def test_replaced_while_it_is_pickled(path: str) -> None:
    with wustore.open_reader(path) as reader:
        texts = [pickle.dumps(reader), pickle.dumps(View(reader, [0, 1])), pickle.dumps(Layer(reader, "science"))]
        again = pickle.loads(texts[0])
        assert again.state() == reader.state()
        assert Layer(again, "science").token() == Layer(reader, "science").token()
        again.close()
    save(stack(2), path, overwrite=True)
    for text in texts:
        with pytest.raises(StoreReplacedError):
            pickle.loads(text)


@pytest.mark.parametrize("name", ["a.zarr", "a.h5", "a.zarr.zip"])
def test_a_copy_is_the_same_state(tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        save(stack(1), str(tmp_path / folder / name))
    with wustore.open_reader(tmp_path / "one" / name) as a, wustore.open_reader(tmp_path / "two" / name) as b:
        assert a.state() == b.state()


def test_an_append_is_another_state(tmp_path: Path) -> None:
    path = str(tmp_path / "a.zarr")
    save(stack(1), path)
    save(stack(2), str(tmp_path / "more.zarr"))
    with wustore.open_reader(path) as reader:
        wustore.append(path, tmp_path / "more.zarr")
        assert science(reader) == 1
        with pytest.raises(StoreReplacedError):
            reader.check_state()


def test_damage_is_not_called_a_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    save(stack(1), str(path))
    with wustore.open_reader(path) as reader:
        shard = next(path.glob("science/c.1.*"))
        shard.write_bytes(bytes(len(shard.read_bytes())))
        with pytest.raises(CorruptError):
            science(reader)


def test_a_removed_store_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    save(stack(1), str(path))
    reader = wustore.open_reader(path)
    path.rename(tmp_path / "b.zarr")
    assert science(reader) == 1  # the directory is held
    with pytest.raises(StoreReplacedError):
        reader.check_state()
    reader.close()
