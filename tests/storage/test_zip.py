"""Zip files: members by range, a directory that is compared with the file, and bytes that are all checked."""

from __future__ import annotations

import os
import random
import struct
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from handles import HANDLES, open_below

from wustore.backends.registry import backend_for_writing, open_reader
from wustore.errors import CorruptError, FormatError, WuStoreError
from wustore.ops.copy import copy
from wustore.ops.verify import problems
from wustore.storage.zip import ZipKeys, audit_zip, pack_directory
from wustore.testing import sample

VALUES = {"zarr.json": b"{}", "science/c.0.0.0": bytes(range(200)), "empty": b""}


def pack(path: Path, method: int = zipfile.ZIP_STORED, values: dict[str, bytes] = VALUES) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in values.items():
            archive.writestr(name, value)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_values(method: int, tmp_path: Path) -> None:
    keys = ZipKeys(pack(tmp_path / "x.zip", method))
    assert {key: keys.get(key) for key in keys.list("")} == VALUES
    assert [*keys.list("science/")] == ["science/c.0.0.0"]
    assert keys.get_tail("science/c.0.0.0", 3) == bytes([197, 198, 199])
    assert keys.get_ranges("science/c.0.0.0", [(5, 2), (198, 9), (500, 3)]) == [bytes([5, 6]), bytes([198, 199]), b""]
    assert keys.get("no") is keys.get_tail("no", 3) is keys.size("no") is None
    keys.close()
    keys.close()


def directory(raw: bytes) -> int:
    """Where the entry of the second member begins in the central directory."""
    at: int = struct.unpack_from("<I", raw, raw.rfind(b"PK\5\6") + 16)[0]
    name, extra, comment = struct.unpack_from("<HHH", raw, at + 28)
    return at + 46 + name + extra + comment


def changed(path: Path, at: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    path.write_bytes(raw)


DIRECTORY = {
    "an offset behind the end": (42, b"\xff\xff\xff\x0f"),
    "another offset": (42, b"\x01\0\0\0"),
    "a name that ends early": (46 + 3, b"\0"),
    "no name": (46, b"\0"),
    "another method": (10, b"\x09\0"),
    "another size": (24, b"\x07\0\0\0"),
    "a packed size of gigabytes": (20, b"\xff\xff\xff\x7f"),
    "encrypted": (8, b"\x01\0"),
    "a name that is there already": (46, b"zarr.json\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("name", list(DIRECTORY))
def test_damaged_directory(name: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip")
    at, data = DIRECTORY[name]
    changed(path, directory(path.read_bytes()) + at, data)
    with pytest.raises((CorruptError, FormatError)):
        ZipKeys(path).get("science/c.0.0.0")


@pytest.mark.parametrize("at", [0, 8, 14, 18, 22, 26, 30])
def test_damaged_header(at: int, tmp_path: Path) -> None:
    """The member's own header says something else than the directory."""
    path = pack(tmp_path / "x.zip", values={"a": b"value"})
    changed(path, at, bytes([path.read_bytes()[at] ^ 1]))
    with pytest.raises(CorruptError):
        ZipKeys(path).get("a")


def test_member_at_the_largest_offset(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip")
    raw = bytearray(path.read_bytes())
    at = directory(raw)
    length = struct.unpack_from("<H", raw, at + 28)[0]
    extra = struct.pack("<HHQ", 1, 8, 2**63)
    struct.pack_into("<I", raw, at + 42, 0xFFFFFFFF)
    struct.pack_into("<H", raw, at + 30, len(extra))
    raw[at + 46 + length : at + 46 + length] = extra
    end = raw.rfind(b"PK\5\6")
    struct.pack_into("<I", raw, end + 12, struct.unpack_from("<I", raw, end + 12)[0] + len(extra))
    path.write_bytes(raw)
    with pytest.raises(CorruptError):
        ZipKeys(path)


def test_a_member_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", zipfile.ZIP_DEFLATED, {"a": bytes(200)})
    raw = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", raw, raw.rfind(b"PK\5\6") + 16)[0]
    for place in (22, at + 24):
        struct.pack_into("<I", raw, place, 3 << 30)
    path.write_bytes(raw)
    with pytest.raises(CorruptError, match="size"):
        ZipKeys(path).get("a")


NO_ZIP = [b"", b"PK\3\4", b"PK\5\6" + bytes(18), b"PK\5\6" + b"\xff" * 18, bytes(range(100, 200))]


@pytest.mark.parametrize("content", NO_ZIP)
def test_what_is_no_zip_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    try:
        keys = ZipKeys(tmp_path / "x.zip")
    except CorruptError:
        return
    assert [*keys.list("")] == []  # an empty archive


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.zip")
    with pytest.raises(FormatError, match="regular"):
        ZipKeys(tmp_path / "x.zip")


@pytest.mark.skipif(not HANDLES.is_dir(), reason="the system does not say which files are open")
def test_no_file_stays_open(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip")
    keys = ZipKeys(path)
    keys.get("zarr.json")
    assert open_below(tmp_path) == [str(path)]
    del keys
    assert open_below(tmp_path) == []


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
