"""Appending to Zarr: keys of neighbouring generations, and stores whose chunk keys have slashes."""

from __future__ import annotations

from pathlib import Path

import pytest
from zarr.storage import MemoryStore

from wustore.backends.base import Reader
from wustore.backends.zarr.append import append_images, finish_append
from wustore.backends.zarr.backend import ZarrBackend
from wustore.backends.zarr.encoder import Structure
from wustore.backends.zarr.reader import ZarrReader
from wustore.backends.zarr.writer import Options, StoreTarget, ZarrWriter
from wustore.errors import UsageError
from wustore.ops.copy import copy
from wustore.storage.zarr_store import DirectoryKeys, StoreKeys
from wustore.testing import assert_same, sample


def append(path: object, *sources: Reader) -> int:
    return append_images(path, sources, lambda count: {"action": "append", "images": count})


def store(path: Path, source: Reader) -> Path:
    copy(source, ZarrBackend().create(str(path), source.meta))
    return path


def small_keys(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.glob("time/c*") if file.is_file()} | {
        file.relative_to(path).as_posix() for file in path.glob("time/c/*")
    }


def test_who_opened_before_reads_the_old_state(tmp_path: Path) -> None:
    """The small arrays change their keys, shards keep theirs: a reader without the packed copy finds what it knows."""
    path, source = store(tmp_path / "a.zarr", sample("simple")), sample("simple")
    before = {file: file.read_bytes() for file in path.glob("science/c*")}
    with ZarrBackend().open(str(path)) as old:
        assert append(str(path), source) == 3
        assert small_keys(path) == {"time/c.0", "time/c/0"}
        assert old._small("time").tolist() == source.meta.times.tolist()
        assert_same(source, old)
    assert {file: file.read_bytes() for file in before} == before
    append(str(path), source)  # back to the first keys, which nobody reads any more
    with ZarrBackend().open(str(path)) as reader:
        assert reader.separators() == (".", ".")
        assert reader._small("time").tolist() == reader.meta.times.tolist() == [*source.meta.times] * 3


def test_stores_with_slashes(tmp_path: Path) -> None:
    """Copied from Icechunk, say: layers go on with slashes, and both states of the small arrays stay."""
    source, held = sample("simple"), MemoryStore()
    structure = Structure(source.meta, profile="compact", layout="images", separators=("/", "/"))
    copy(source, ZarrWriter(StoreTarget(StoreKeys(held), keep=False, overwrite=False), structure, None, Options()))
    keys = DirectoryKeys(tmp_path / "a.zarr")
    for key in StoreKeys(held).list(""):
        keys.set(key, StoreKeys(held).get(key))
    append(str(tmp_path / "a.zarr"), source)
    with ZarrBackend().open(str(tmp_path / "a.zarr")) as reader:
        assert reader.separators() == ("/", ".")
        assert [reader.image(i).science.tobytes() for i in (0, 5)] == [
            source.image(i).science.tobytes() for i in (0, 2)
        ]
        assert not list(reader.audit())
        assert not list(reader.foreign())
    assert (tmp_path / "a.zarr" / "science" / "c" / "5" / "0" / "0").is_file()
    assert small_keys(tmp_path / "a.zarr") == {"time/c.0", "time/c/0"}


def test_what_does_not_fit(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", sample("simple"))
    with pytest.raises(UsageError, match="Convert both"):
        append(str(path), sample("chunked"))  # larger images need other shards
    with ZarrBackend().open(str(path)) as reader:
        assert_same(sample("simple"), reader)


def test_metadata_that_a_killed_append_left(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", sample("simple"))
    old = (path / "science" / "zarr.json").read_bytes()
    append(str(path), sample("simple"))
    new = (path / "science" / "zarr.json").read_bytes()
    assert finish_append(str(path)) == []
    (path / "science" / "zarr.json").write_bytes(old)
    assert finish_append(str(path), dry_run=True) == ["science/zarr.json"]
    assert (path / "science" / "zarr.json").read_bytes() == old
    assert finish_append(str(path)) == ["science/zarr.json"]
    assert (path / "science" / "zarr.json").read_bytes() == new
    with ZarrReader(DirectoryKeys(path), str(path), "zarr") as reader:
        assert not reader.outdated()
