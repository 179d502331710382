"""Members of a zip file by range; what its directory says is held against the file before it is believed."""

from __future__ import annotations

import gc
import os
import struct
import zipfile
from pathlib import Path

import pytest

from wustore.errors import CorruptError, FormatError
from wustore.storage.zip import ZipKeys

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


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc/self/fd")
def test_no_file_stays_open(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip")
    gc.collect()
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(10):
        keys = ZipKeys(path)
        keys.get("zarr.json")
        del keys
    assert len([*Path("/proc/self/fd").iterdir()]) == before
