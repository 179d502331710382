"""A Zarr store as one zip file, its members stored as they are, so that ranges of them can be read."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, cast

from wustore.errors import CorruptError, FormatError, StoreNotFoundError, located
from wustore.model.sizes import check_size
from wustore.storage.files import CLOSED, Descriptor, open_handle, pread
from wustore.storage.zarr_store import Keys, OpenValue

__all__ = ["ZipKeys", "audit_zip", "pack_directory"]

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Local file header of a zip member (PKWARE APPNOTE 4.3.7)."""

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_BEHIND = 1, 8
"""Bits of a member's flags; with the second one its sizes and checksum stand behind the data only."""

_ZIP64 = 0xFFFFFFFF


class _Member(NamedTuple):
    """What the directory of the file says of a member."""

    at: int
    packed: int
    size: int
    crc: int
    flags: int
    method: int
    raw_name: bytes


class ZipKeys(Keys):
    """Members of a zip file, read by range if they are stored uncompressed.

    Raises
    ------
    CorruptError
        If its directory is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            handle = open_handle(self.name)
        except FileNotFoundError as error:
            raise StoreNotFoundError("there is nothing at this path", path=self.name, hint="Check the name.") from error
        self._file = Descriptor(handle)
        self._members = self._read_directory()
        self._starts: dict[str, int] = {}
        self.in_files = all(
            member.method == _STORED and not member.flags & _ENCRYPTED and member.size == member.packed
            for member in self._members.values()
        )

    def open(self, key: str) -> OpenValue | None:
        """Return the value to be read in parts; see `Keys.open`."""
        size = self.size(key)
        file = self._file
        return None if size is None else OpenValue(file.number, self._start(key), size, file)

    def _read_directory(self) -> dict[str, _Member]:
        import zipfile

        status = os.fstat(self._file.number)
        try:
            with open(self._file.number, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, ValueError, ArithmeticError, LookupError, EOFError, NotImplementedError) as error:
            raise CorruptError("the zip file cannot be read", path=self.name, found=error) from error
        except struct.error as error:
            raise CorruptError("the zip file cannot be read", path=self.name, found=error) from error
        members: dict[str, _Member] = {}
        for info in infos:
            name, raw = info.filename, _raw_name(info.orig_filename, info.flag_bits)
            if name != info.orig_filename or not name or name in members:
                self._damaged("a name in the directory of the zip file cannot be", info.orig_filename)
            end = info.header_offset + _LOCAL_HEADER.size + len(raw) + info.compress_size
            if not 0 <= info.header_offset <= end <= status.st_size or info.file_size < 0:
                self._damaged("a member of the zip file is not where it should be", name)
            if not name.endswith("/"):
                members[name] = _Member(
                    info.header_offset,
                    info.compress_size,
                    info.file_size,
                    info.CRC,
                    info.flag_bits,
                    info.compress_type,
                    raw,
                )
        return members

    def _damaged(self, what: str, key: str) -> NoReturn:
        raise CorruptError(what, path=self.name, where=repr(key)[1:-1][:100])

    def _start(self, key: str) -> int:
        """Return where the data of a member begin; its own header must say the same as the directory."""
        start = self._starts.get(key)
        if start is not None:
            return start
        member = self._members[key]
        length = _LOCAL_HEADER.size + len(member.raw_name)
        file = self._file
        header = pread(file.number, length, member.at)
        if len(header) < length:
            self._damaged("a member of the zip file is not where it should be", key)
        magic, _, flags, method, _, _, crc, packed, size, name_length, extra = _LOCAL_HEADER.unpack_from(header)
        here = (magic, flags, method, name_length, header[_LOCAL_HEADER.size :])
        sizes = (crc, packed, size) if not flags & _SIZES_BEHIND else (member.crc, member.packed, member.size)
        if here != (b"PK\3\4", member.flags, member.method, len(member.raw_name), member.raw_name) or not (
            sizes == (member.crc, member.packed, member.size) or _ZIP64 in sizes[1:]
        ):
            self._damaged("a member of the zip file is not what its directory says", key)
        start = member.at + length + int(extra)
        self._starts[key] = start
        return start

    def _unpacked(self, key: str) -> bytes | None:
        """Return the value of a member that was compressed (by another tool), None if it is stored."""
        member = self._members[key]
        if member.flags & _ENCRYPTED or member.method not in {_STORED, _DEFLATED}:
            raise FormatError(
                "a member of the zip file is encrypted, or packed unlike deflate", path=self.name, where=key
            )
        if member.method == _STORED:
            if member.size != member.packed:
                self._damaged("a member of the zip file has two sizes", key)
            return None
        with located(self.name, key):
            check_size(member.size, member.packed)
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        file = self._file
        try:
            value = engine.decompress(pread(file.number, member.packed, self._start(key)), member.size + 1)
        except zlib.error as error:
            raise CorruptError("a member of the zip file cannot be read", path=self.name, where=key) from error
        if not engine.eof or len(value) != member.size or zlib.crc32(value) != member.crc:
            self._damaged("a member of the zip file is damaged", key)
        return value

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        ranges = self.get_ranges(key, [(0, self.size(key) or 0)])
        return None if ranges is None else ranges[0]

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        size = self.size(key) or 0
        ranges = self.get_ranges(key, [(max(size - length, 0), min(length, size))])
        return None if ranges is None else ranges[0]

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        size = self.size(key)
        if size is None:
            return None
        unpacked = self._unpacked(key)
        if unpacked is not None:
            return [unpacked[start : start + length] for start, length in ranges]
        base, file = self._start(key), self._file
        return [pread(file.number, max(min(length, size - start), 0), base + start) for start, length in ranges]

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`."""
        member = self._members.get(key)
        return None if member is None else member.size

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""
        return (key for key in self._members if key.startswith(prefix))

    def set(self, key: str, value: bytes) -> None:
        """Write the value; see `Keys.set`."""
        raise NotImplementedError("zip files are written whole")

    def delete(self, key: str) -> None:
        """Remove the key; see `Keys.delete`."""
        raise NotImplementedError("zip files are written whole")

    def is_same(self) -> bool | None:
        """Return whether the path still leads to the file that is open; see `Keys.is_same`."""
        file = self._file
        try:
            return os.path.samestat(os.stat(self.name), os.fstat(file.number))  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return False

    def close(self) -> None:
        """Release files; see `Keys.close`."""
        self._file = CLOSED


def _raw_name(name: str, flags: int) -> bytes:
    """Return the name of a member as it is in the file (APPNOTE 4.4.4, bit 11: UTF-8, otherwise code page 437)."""
    return name.encode("utf-8" if flags & 0x800 else "cp437", "replace")


_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that zip knows: the bytes must not depend on the clock."""

_UNIX, _MODE = 3, 0o644 << 16


def pack_directory(path: Path, to: Path, *, without: str) -> None:
    """Write a zip file of the files below a directory, sorted by name.

    Parameters
    ----------
    without
        Start of the names to leave out.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file())
    named = ((file.relative_to(path).as_posix(), file) for file in files)
    with to.open("xb") as file:
        _pack(((name, file.read_bytes()) for name, file in named if not name.startswith(without)), file)


def _pack(members: Iterable[tuple[str, bytes]], file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, value in members:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX  # whatever this is written on
            info.external_attr = _MODE
            archive.writestr(info, value)


def audit_zip(keys: ZipKeys) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong) of a zip file's bytes outside of the values, and of the values' checksums.

    A file that was packed here must be, byte for byte, what packing its members again gives. Of a file that another
    tool packed, headers are held against the directory, and members against their CRC-32.
    """
    path = Path(keys.name)
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        ours = sum((info.date_time, info.create_system, info.external_attr) == (_EPOCH, _UNIX, _MODE) for info in infos)
        if 2 * ours > len(infos):
            found = _Comparison(file.fileno(), os.fstat(file.fileno()).st_size)
            _pack(((info.filename, keys.get(info.filename) or b"") for info in infos), cast("IO[bytes]", found))
            yield from (("zip file", f"byte {at} is not what was written") for at in found.differs())
            return
        for info in infos:
            try:
                with archive.open(info) as member:
                    while member.read(1 << 20):
                        pass
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
                yield info.filename, f"the member of the zip file is damaged: {error}"


class _Comparison(io.RawIOBase):
    """A file to write to that keeps nothing, but compares with a file that is there.

    Parameters
    ----------
    handle, size
        The open file, and its length [byte].
    """

    _SHORT = 1 << 12
    """Writes up to here are kept until the end: `zipfile` writes a header again when the data behind it are written."""

    def __init__(self, handle: int, size: int) -> None:
        self._handle = handle
        self._size = size
        self._at = self._end = 0
        self._short: dict[int, bytes] = {}
        self._wrong: list[int] = []

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence] + offset
        return self._at

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if len(data) <= self._SHORT:
            self._short[self._at] = bytes(data)
        else:
            self._compare(self._at, data)
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def _compare(self, at: int, data: bytes) -> None:
        there = pread(self._handle, len(data), at)
        if there != data:
            same = next((k for k, (a, b) in enumerate(zip(there, data, strict=False)) if a != b), len(there))
            self._wrong.append(at + same)

    def differs(self) -> list[int]:
        """Return the first byte that differs, if one does."""
        for at, data in self._short.items():
            self._compare(at, data)
        if self._end != self._size:
            self._wrong.append(min(self._end, self._size))
        return sorted(self._wrong)[:1]
