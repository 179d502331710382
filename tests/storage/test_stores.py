"""What users give as a path: one function tells the kinds of places apart."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, ZipStore

import wustore
from wustore import verify
from wustore.backends.registry import backend_named
from wustore.errors import StoreExistsError, StoreReplacedError, UsageError
from wustore.ops import edit
from wustore.ops.copy import copy
from wustore.storage import files, zarr_store
from wustore.storage.files import pread
from wustore.storage.locks import CLAIM
from wustore.storage.stores import address_of, name_of, open_keys, writable_keys
from wustore.storage.zarr_store import DirectoryKeys
from wustore.storage.zip import pack_directory
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


def local_store(tmp_path: Path) -> Any:
    return LocalStore(tmp_path / "night.zarr")


def zip_store(tmp_path: Path) -> Any:
    return ZipStore(tmp_path / "night.zarr.zip", mode="w")


def memory_store(tmp_path: Path) -> Any:
    return MemoryStore()


def fsspec_store(tmp_path: Path) -> Any:
    pytest.importorskip("fsspec", reason="FsspecStore needs fsspec")
    return FsspecStore.from_url(f"memory://{tmp_path.name}/night.zarr")  # one memory for the whole process


def object_store(tmp_path: Path) -> Any:
    return ObjectStore(pytest.importorskip("obstore.store", reason="ObjectStore needs obstore").MemoryStore())


@pytest.mark.parametrize("make", [local_store, zip_store, memory_store, fsspec_store, object_store])
def test_every_store_of_zarr_python(make: Any, tmp_path: Path) -> None:
    """Each is saved to, opened, replaced, appended to, repacked and dropped from, and is whole after each step."""
    store, source = make(tmp_path), sample("chunked")
    wustore.save(work_unit_from(source, lazy=True), store)
    with wustore.open_reader(store) as reader:
        assert_same(source, reader)
    with pytest.raises(StoreExistsError):
        wustore.save(unit(), store)
    wustore.save(unit(), store, overwrite=True)
    with wustore.open_reader(store) as reader:
        assert_same(sample("simple"), reader)
    edit.repack(store, layout="cutouts")
    if make is zip_store:
        with pytest.raises(UsageError, match="append"):
            edit.append(store, store, duplicates=True)
    else:
        assert edit.append(store, store, duplicates=True) == 3
        edit.repack(store, layout="images")
    edit.drop(store, ["mask"])
    with wustore.open_reader(store) as reader:
        images = [i % 3 for i in range(reader.meta.n_images)]
        assert images == [0, 1, 2] * (1 if make is zip_store else 2)
        assert not reader.meta.has_layer("mask")
        for i, k in enumerate(images):
            assert reader.image(i).science.tobytes() == sample("simple").image(k).science.tobytes()
    assert verify(store) == []


def test_an_open_zip_store_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "night.zarr.zip"
    with ZipStore(path, mode="w") as store:
        store._sync_open()
        with pytest.raises(UsageError, match="is open"):
            wustore.save(unit(), store)


@pytest.mark.parametrize("make", [memory_store, fsspec_store, object_store])
def test_what_is_replaced_is_whole_until_the_new_store_is(make: Any, tmp_path: Path) -> None:
    store = make(tmp_path)
    source = sample("chunked")
    backend = backend_named("zarr")
    for _ in range(3):  # chunk keys go to and fro
        wustore.save(unit(), store, overwrite=True)
        before = set(writable_keys(store).list(""))
        with wustore.open_reader(store) as old:
            writer = backend.create(store, source.meta, overwrite=True)
            writer.write(0, source.image(0))
            with pytest.raises(UsageError, match="another process"):
                backend.create(store, source.meta, overwrite=True)
            with wustore.open_reader(store) as reader:
                assert_same(sample("simple"), reader)
            writer.abort()
            assert set(writable_keys(store).list("")) == before
            copy(source, backend.create(store, source.meta, overwrite=True))
            with pytest.raises(StoreReplacedError):
                old.image(1)
        with wustore.open_reader(store) as reader:
            assert_same(source, reader)
            assert list(reader.foreign()) == []
        after = set(writable_keys(store).list(""))
        assert len({key for key in after if key.startswith("science/c")}) == source.meta.n_images


def test_one_of_two_that_replace_a_store_wins() -> None:
    """Whoever sees that the root is another one now does not write over it."""
    store, source = MemoryStore(), sample("chunked")
    wustore.save(unit(), store)
    writer = backend_named("zarr").create(store, source.meta, overwrite=True)
    for i, image in source.images():
        writer.write(i, image)
    keys = writable_keys(store)
    keys.delete(CLAIM)  # as a writer of before the claims does, who looks at nothing
    wustore.save(unit(), store, overwrite=True)
    with pytest.raises(UsageError, match="taken over"):
        writer.commit()
    writer.abort()
    with wustore.open_reader(store) as reader:
        assert_same(sample("simple"), reader)
    assert keys.get(CLAIM) is None


GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'


@pytest.mark.parametrize("root", ["url", "directory"])
def test_what_is_somebody_elses_is_not_overwritten(root: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="URLs need the extra cloud")
    if root == "url":
        place, base = f"memory://{tmp_path.name}", f"/{tmp_path.name}"  # one memory for the whole process
        write = fsspec.filesystem("memory").pipe_file
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


AT_THE_END = """
import time
from zarr.storage import MemoryStore
from wustore.storage.zarr_store import StoreKeys

time.sleep = lambda seconds: print("waits", seconds)
for _ in range(2):
    StoreKeys(MemoryStore())
print("ends")
"""


def test_threads_of_others_finish_before_the_program_ends() -> None:
    """They wake the caller before they are done, and are aborted, the process with them, if it ends then."""
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=True)
    assert done.stdout == "ends\nwaits 0.1\n"


@pytest.mark.parametrize("kind", ["directory", "zip"])
def test_closing_does_not_change_what_another_thread_reads(tmp_path, monkeypatch, kind):
    """The number of the descriptor that one thread closes is that of the next file that any thread opens."""
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "key").write_text(name * 5)
        pack_directory(folder, tmp_path / f"{name}.zip", without=".")
    if kind == "zip":
        keys = open_keys(str(tmp_path / "a.zip"))
        with keys.open("key") as value:
            keys.close()
            others = [open_keys(str(tmp_path / "b.zip")) for _ in range(3)]
            assert pread(value.handle, value.size, value.start) == b"aaaaa"
    else:
        keys = open_keys(str(tmp_path / "a"))
        others = []

        def meanwhile(path, folder=None):
            keys.close()
            others.extend(open_keys(str(tmp_path / "b")) for _ in range(3))
            return files.open_handle(path, folder)

        monkeypatch.setattr(zarr_store, "open_handle", meanwhile)
        assert keys.get("key") == b"aaaaa"
        monkeypatch.undo()
    with pytest.raises(OSError, match="descriptor"):
        keys.get("key")
    for other in others:
        other.close()


def test_what_cannot_be_listed_is_an_error_and_what_is_gone_is_not(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert list(DirectoryKeys(tmp_path / "a").list("none/")) == []
    true = os.scandir

    def refused(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return true(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        list(DirectoryKeys(tmp_path / "a").list(""))


@pytest.mark.parametrize("links", [True, False])
def test_a_value_is_written_if_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Also on file systems without hard links."""
    if not links:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EPERM, "no links")))
    keys = DirectoryKeys(tmp_path)
    assert keys.set_if("a/plan", b"one", None)
    assert keys.set_if("a/plan", b"one", None), "it stands there"
    assert not keys.set_if("a/plan", b"two", None)
    found = keys.versioned("a/plan")
    assert found is not None
    assert not keys.set_if("a/plan", b"two", "another version")
    assert keys.set_if("a/plan", b"two", found[1])
    assert keys.get("a/plan") == b"two"
    assert list(keys.list("")) == ["a/plan"]


def test_two_that_begin_at_the_same_time_do_not_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked before either writes."""
    monkeypatch.setattr(DirectoryKeys, "versioned", lambda self, key: None)
    assert DirectoryKeys(tmp_path).set_if("plan", b"one", None)
    assert not DirectoryKeys(tmp_path).set_if("plan", b"two", None)
    assert DirectoryKeys(tmp_path).get("plan") == b"one"
