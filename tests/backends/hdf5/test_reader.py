"""An open HDF5 file: what a small read pays, one state, and what the document says against what is stored."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from wustore.backends.hdf5 import netcdf
from wustore.backends.hdf5 import reader as reader_module
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.hdf5.file import CHUNK_CHECKSUM
from wustore.backends.hdf5.reader import Hdf5Reader
from wustore.errors import CorruptError, FormatError, StoreReplacedError
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.testing import sample, with_capsule

BOX = (slice(0, 1), slice(100, 105), slice(70, 72))


def save(path: Path, name: str) -> str:
    source = with_capsule(sample(name))
    copy(source, Hdf5Backend().create(str(path), source.meta, capsule=source.capsule()))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return save(tmp_path / "a.h5", "chunked")


def test_a_small_read_opens_each_dataset_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening looks up the packed arrays only; the first box adds the layers and the checksums of their chunks."""
    opened: list[str] = []
    dataset_at = netcdf.dataset_at

    def counted(file: h5py.File, name: str, path: str) -> h5py.Dataset:
        opened.append(name)
        return dataset_at(file, name, path)

    monkeypatch.setattr(netcdf, "dataset_at", counted)
    with Hdf5Reader(path) as reader:
        assert len(opened) == 1
        for layer in ("science", "variance", "mask", "science"):
            reader.read(layer, BOX)
        assert sorted(opened[1:]) == sorted([*LAYERS, CHUNK_CHECKSUM])
        assert reader.chunks_read == 4


def test_values_go_into_arrays_of_another_dtype_and_order(path: str) -> None:
    with Hdf5Reader(path) as reader:
        expected = reader.read("science", BOX)
        assert expected.shape == (1, 5, 2)
        out = np.zeros(expected.shape[::-1]).T
        assert reader.read("science", BOX, out) is out
        assert np.array_equal(out, expected, equal_nan=True)


def test_layers_that_no_image_has(path: str) -> None:
    with Hdf5Reader(path) as reader, pytest.raises(FormatError, match="no image has this layer"):
        reader.read("weight", BOX)


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_another_file_in_its_place(path: str, change: str) -> None:
    with Hdf5Reader(path) as reader:
        reader.check_state()
        copied = pickle.dumps(reader)
        Path(path).unlink()
        if change == "replaced":
            save(Path(path), "simple")
        with pytest.raises(StoreReplacedError):
            reader.check_state()
    with pytest.raises((StoreReplacedError, FileNotFoundError)):
        pickle.loads(copied)


def test_a_copy_has_the_same_state(path: str, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "b.h5")
    with Hdf5Reader(path) as one, Hdf5Reader(str(tmp_path / "b.h5")) as two:
        assert one.state() == two.state()


def test_a_file_that_ends_within_its_digest(path: str) -> None:
    os.truncate(path, Path(path).stat().st_size - 1)
    with pytest.raises(CorruptError, match="truncated"):
        Hdf5Reader(path)


def test_what_is_said_of_layers(path: str) -> None:
    with Hdf5Reader(path) as reader:
        facts = reader.describe()
        assert (facts["profile"], facts["layout"], facts["capsule"]) == ("portable", "images", True)
        assert facts["layers"]["science"]["filters"] == ["shuffle", "gzip", "fletcher32"]
        assert facts["layers"]["mask"]["filters"] == ["gzip", "fletcher32"]
        with h5py.File(path) as file:
            stored = {layer: file[layer].id.get_storage_size() for layer in LAYERS}
        assert {layer: of["bytes"] for layer, of in facts["layers"].items()} == stored


def test_loops_are_imported_before_many_images_are_read(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(reader_module, "prepare", asked.append)
    with Hdf5Backend().open(path) as reader:
        sizes = [np.prod(reader.meta.layer_shape(name)[1:]) * reader.meta.layer_dtype(name).itemsize for name in LAYERS]
        assert len(list(reader.images())) == reader.meta.n_images
        assert asked == [reader.meta.n_images * sum(sizes)]
