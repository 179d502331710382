"""What users give as a path: one function tells the kinds of places apart."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, ZipStore

import wustore
from wustore.errors import StoreExistsError, UsageError
from wustore.ops import edit
from wustore.storage.stores import address_of, name_of
from wustore.testing import assert_same, sample
from wustore.work_unit import work_unit_from


def unit():
    return work_unit_from(sample("simple"), lazy=True)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("night.zarr", "night.zarr"),
        (b"night.zarr", "night.zarr"),
        (Path("night.zarr"), "night.zarr"),
        ("s3://bucket/night.zarr", "s3://bucket/night.zarr"),
        ("ram:x", "ram:x"),
        ("file:///a/b%20c.zarr", "/a/b c.zarr"),
        ("FILE://localhost/a?b#c.zarr", "/a?b#c.zarr"),
        ("local:///a", "/a"),
    ],
)
def test_paths(given: object, address: str) -> None:
    assert address_of(given) == address


@pytest.mark.parametrize("given", [None, 5, {}, object()])
def test_what_is_no_path(given: object) -> None:
    with pytest.raises(UsageError, match="no path"):
        address_of(given)


def test_a_file_url_of_a_server() -> None:
    with pytest.raises(UsageError, match="server"):
        address_of("file://host/a")


def test_names_have_no_secrets() -> None:
    assert name_of("http://user:word@host/a?token=1") == "http://host/a"


def test_local_stores_are_their_paths(tmp_path: Path) -> None:
    path = tmp_path / "night.zarr"
    wustore.save(unit(), LocalStore(path))
    assert address_of(LocalStore(path)) == str(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # codecs outside the core
        assert address_of(zarr.open_group(path, mode="r")) == str(path)
    with wustore.open_reader(path) as reader:
        assert_same(reader, sample("simple"))
    assert edit.append(LocalStore(path), path, duplicates=True) == 3
    edit.repack(LocalStore(path), layout="cutouts")
    edit.drop(LocalStore(path), ["mask"])
    with pytest.raises(UsageError, match="reading"):
        wustore.save(unit(), LocalStore(path, read_only=True), overwrite=True)


def test_zip_stores_are_read_and_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "night.zarr.zip"
    wustore.save(unit(), path)
    with wustore.open_reader(ZipStore(path, mode="r")) as reader:
        assert_same(reader, sample("simple"))
    with pytest.raises(UsageError, match=r"\.zarr\.zip"):
        wustore.save(unit(), ZipStore(tmp_path / "new.zarr.zip", mode="w"))
    assert zipfile.is_zipfile(path)


def test_stores_in_memory() -> None:
    store = MemoryStore()
    wustore.save(unit(), store)
    with wustore.open_reader(store) as reader:
        assert_same(reader, sample("simple"))
    with pytest.raises(StoreExistsError):
        wustore.save(unit(), store)
    wustore.save(unit(), store, overwrite=True)
    assert edit.append(store, store, duplicates=True) == 3
    with wustore.open_reader(store) as reader:
        assert reader.meta.n_images == 6
    for change in (lambda: edit.repack(store, layout="cutouts"), lambda: edit.drop(store, ["mask"])):
        with pytest.raises(UsageError, match="another place"):
            change()


def test_object_stores(tmp_path: Path) -> None:
    obstore = pytest.importorskip("obstore.store", reason="ObjectStore needs obstore")
    from zarr.storage import ObjectStore

    store = ObjectStore(obstore.MemoryStore())
    wustore.save(unit(), store)
    assert edit.append(store, store, duplicates=True) == 3
    with wustore.open_reader(store) as reader:
        assert reader.meta.n_images == 6


GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'


@pytest.mark.parametrize("root", ["url", "directory"])
def test_what_is_somebody_elses_is_not_overwritten(root: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="URLs need the extra cloud")
    if root == "url":
        place = "memory://overwritten"
        write = fsspec.filesystem("memory").pipe_file
        base = "/overwritten"
    else:
        place = base = str(tmp_path)

        def write(name: str, data: bytes) -> None:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(data)

    write(f"{base}/survey.zarr/zarr.json", GROUP)
    with pytest.raises(StoreExistsError, match="no wustore store"):
        wustore.save(unit(), f"{place}/survey.zarr", overwrite=True)
    wustore.save(unit(), f"{place}/night.zarr")
    write(f"{base}/night.zarr/raw/1.fits", b"x")
    with pytest.raises(StoreExistsError, match="raw"):
        wustore.save(unit(), f"{place}/night.zarr", overwrite=True)
    if root == "url":  # a directory is only replaced if its root document can be read
        wustore.save(unit(), f"{place}/again.zarr")
        write(f"{base}/again.zarr/zarr.json", b"{")
        wustore.save(unit(), f"{place}/again.zarr", overwrite=True)
        with wustore.open_reader(f"{place}/again.zarr") as reader:
            assert_same(reader, sample("simple"))
