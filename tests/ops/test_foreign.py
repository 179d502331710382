"""What others put into a store survives: edits and overwrites of such a store refuse, and change nothing."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

import wustore
from wustore.errors import StoreExistsError, UsageError
from wustore.format.version import OLDER
from wustore.storage.zip import pack_directory

STORES = Path(__file__).parents[1] / "data" / "stores" / OLDER[-1]
"""Stores of an older version, which `migrate` changes as well."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::wustore.ops.edit.EditWarning"),
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
]

REASONS = "wustore did not write.*(other|note)|only local stores are edited|names that other processes can open"
"""Why edits refuse; the last two are for Store objects."""

ADDITIONS: dict[str, Callable[[Any], Any]] = {
    "array": lambda root: add_array(root, "other"),
    "array in a group of ours": lambda root: add_array(root["constituents"], "other"),
    "group": lambda root: root.create_group("notes"),
    "attribute of the root": lambda root: root.attrs.update(note="mine"),
    "attribute of an array": lambda root: root["science"].attrs.update(note="mine"),
    "attribute of a group": lambda root: root["constituents"].attrs.update(note="mine"),
}


def add_array(group: Any, name: str) -> None:
    if isinstance(group, h5py.Group):
        group.create_dataset(name, data=np.arange(3))
    else:
        group.create_array(name, data=np.arange(3))


def unpacked(folder: Path, name: str) -> Path:
    with zipfile.ZipFile(STORES / f"{name}.zip") as file:
        file.extractall(folder)
    return folder / name


class Place:
    """A store in a container, with something of others in it.

    Attributes
    ----------
    address
        What edits are given.
    content
        Function that returns all that is there.
    """

    def __init__(self, kind: str, folder: Path, add: Callable[[Any], Any]) -> None:
        made = getattr(self, f"_{kind}")(folder, add)
        self.address, self.content = made

    def _zarr(self, folder: Path, add: Callable[[Any], Any]) -> Any:
        path = unpacked(folder, "night.zarr")
        add(zarr.open_group(path, mode="r+", use_consolidated=False))
        return path, lambda: {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def _zip(self, folder: Path, add: Callable[[Any], Any]) -> Any:
        path, file = self._zarr(folder, add)[0], folder / "night.zarr.zip"
        pack_directory(path, file, without=".wustore-journal/")
        shutil.rmtree(path)
        return file, file.read_bytes

    def _hdf5(self, folder: Path, add: Callable[[Any], Any]) -> Any:
        path = unpacked(folder, "night.h5")
        with h5py.File(path, "r+") as file:
            add(file)
        return path, path.read_bytes

    def _memory(self, folder: Path, add: Callable[[Any], Any]) -> Any:
        _, content = self._zarr(folder, add)
        held = {
            file.relative_to(folder / "night.zarr").as_posix(): zarr.core.buffer.cpu.Buffer.from_bytes(value)
            for file, value in content().items()
        }
        return MemoryStore(held), lambda: {key: value.to_bytes() for key, value in held.items()}

    def _icechunk(self, folder: Path, add: Callable[[Any], Any]) -> Any:
        icechunk = pytest.importorskip("icechunk")
        repo = icechunk.Repository.create(icechunk.in_memory_storage())
        session = repo.writable_session("main")
        wustore.convert(unpacked(folder, "night.zarr"), session.store)
        session.commit("saved")
        session = repo.writable_session("main")
        add(zarr.open_group(session.store, mode="r+"))
        session.commit("added to")
        session = repo.writable_session("main")
        return session.store, lambda: session.has_uncommitted_changes


@pytest.mark.parametrize("what", ADDITIONS)
@pytest.mark.parametrize("kind", ["zarr", "zip", "hdf5", "memory", "icechunk"])
def test_edits_refuse(kind: str, what: str, tmp_path: Path) -> None:
    place = Place(kind, tmp_path, ADDITIONS[what])
    source = unpacked(tmp_path / "source", "night.zarr")
    before, path = place.content(), place.address
    edits: dict[str, Callable[[], Any]] = {
        "append": lambda: wustore.append(path, source, duplicates=True),
        "repack": lambda: wustore.repack(path, layout="cutouts"),
        "drop": lambda: wustore.drop(path, ["psf", "capsule"]),
        "save": lambda: wustore.save(wustore.open(source), path, overwrite=True),
        "convert": lambda: wustore.convert(source, path, overwrite=True),
        "resume": lambda: wustore.convert(source, path, overwrite=True, resume=True),
        "plan": lambda: wustore.plan(source, path, overwrite=True),
        "migrate": lambda: wustore.migrate(path),
        "migrate to": lambda: wustore.migrate(path, tmp_path / "new.zarr"),
    }
    if kind == "icechunk":
        del edits["migrate"], edits["migrate to"]  # no older version was written there
    for name, edit in edits.items():
        with pytest.raises((UsageError, StoreExistsError), match=REASONS):
            edit()
        assert place.content() == before, name
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("kind", ["zarr", "zip", "hdf5"])
def test_what_is_ours_is_edited(kind: str, tmp_path: Path) -> None:
    """The same stores without additions are."""
    place = Place(kind, tmp_path, lambda root: None)
    wustore.repack(place.address, layout="cutouts")
    unit = wustore.open(place.address)
    unit.load_images()
    wustore.save(unit, place.address, overwrite=True)
    assert wustore.verify(place.address) == []
