"""Arrays of an HDF5 file: only those whose values are in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from wustore.backends.hdf5 import netcdf
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.errors import CorruptError
from wustore.ops.copy import copy
from wustore.testing import sample, with_capsule


def soft(file: h5py.File, name: str) -> None:
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")


def another_file(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = h5py.ExternalLink("other.h5", f"/{name}")


def raw_storage(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape=shape, dtype=dtype, external=[("secret", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource("other.h5", name, shape)
    file.create_virtual_dataset(name, layout, fillvalue=3)


def never_written(file: h5py.File, name: str) -> None:
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape=shape, dtype=dtype)


def of_records(file: h5py.File, name: str) -> None:
    shape = file[name].shape
    del file[name]
    file[name] = np.zeros(shape, [("a", "f4"), ("b", "i2")])


CHANGES = (soft, another_file, raw_storage, virtual, never_written, of_records)


def read(path: str) -> None:
    with Hdf5Backend().open(path) as reader:
        reader.checksums()
        reader.image(0)
        reader.capsule()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["science", "psf", "image_shape", "checksum", "packed", "fits/data", "fits/bound"])
def test_values_that_are_not_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[h5py.File, str], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = with_capsule(sample("simple"))
    for path in ("a.h5", "other.h5"):
        copy(source, Hdf5Backend().create(path, source.meta, capsule=source.capsule()))
    Path("secret").write_bytes(os.urandom(1 << 16))
    with h5py.File("a.h5", "r+") as file:
        if name == "image_shape":
            del file["packed"]
        change(file, name)
    with pytest.raises(CorruptError, match=name):
        read("a.h5")


def test_an_array_that_claims_more_than_is_stored(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (1 << 28,), "u1", chunks=(1 << 28,), compression="gzip")[:10] = 1
        with pytest.raises(CorruptError, match="a size that cannot be"):
            netcdf.read_array(file, "a", "a.h5")
