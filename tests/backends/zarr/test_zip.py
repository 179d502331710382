"""A zip file of a store: which bytes it has, and that each of them is checked."""

from __future__ import annotations

import random
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from wustore.backends.registry import backend_for_writing, open_reader
from wustore.errors import WuStoreError
from wustore.ops.copy import copy
from wustore.ops.verify import problems
from wustore.storage.zip import ZipKeys, audit_zip, pack_directory
from wustore.testing import sample


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    source = sample("simple")
    path = tmp_path / "night.zarr.zip"
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta))
    return path


def test_members_are_stored_sorted_and_without_a_clock(tmp_path: Path) -> None:
    for name in ("b", "a/x", ".journal/y"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3000)
    pack_directory(tmp_path / "in", tmp_path / "out.zip", without=".journal/")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        infos = archive.infolist()
        assert [info.filename for info in infos] == ["a/x", "b"]
        assert {(info.date_time, info.compress_type) for info in infos} == {((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)}
        assert archive.testzip() is None


def outside(path: Path) -> list[int]:
    """The places of all bytes that are no member's value."""
    inside: set[int] = set()
    with closing(ZipKeys(path)) as keys, zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            start = info.header_offset + 30 + len(info.filename)
            inside.update(range(start, start + info.file_size))
        assert [*audit_zip(keys)] == []
    return [k for k in range(path.stat().st_size) if k not in inside]


def test_every_byte_outside_of_the_values_is_checked(packed: Path) -> None:
    whole = packed.read_bytes()
    places = outside(packed)
    rng = random.Random(5)
    chosen = [*rng.sample(places, 150), *places[-22:]]
    for at in chosen:
        packed.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            with closing(ZipKeys(packed)) as keys:
                found = [*audit_zip(keys)]
        except WuStoreError as error:
            found = [("", str(error))]
        assert found, at


def test_bytes_behind_the_end(packed: Path) -> None:
    packed.write_bytes(packed.read_bytes() + b"x")
    with closing(ZipKeys(packed)) as keys:
        assert [*audit_zip(keys)]


def test_a_file_that_another_tool_packed(packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zarr.zip"
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with open_reader(other) as reader:
        assert [*problems(reader)] == []
    with zipfile.ZipFile(other) as archive:
        info = archive.getinfo("zarr.json")
    whole = other.read_bytes()
    at = info.header_offset + 14  # its CRC-32
    other.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(WuStoreError):
        open_reader(other)
