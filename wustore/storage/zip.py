"""The keys of a Zarr store in a zip file, read by range."""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

from wustore.errors import CorruptError, FormatError, StoreNotFoundError, located
from wustore.model.sizes import check_size
from wustore.storage.files import open_handle, pread
from wustore.storage.zarr_store import Keys, OpenValue

__all__ = ["ZipKeys"]

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
        # Closed when this object goes, too.
        self._close = weakref.finalize(self, os.close, handle)
        self._handle = handle
        try:
            self._members = self._read_directory()
        except BaseException:
            self._close()
            raise
        self._starts: dict[str, int] = {}
        self.in_files = all(
            member.method == _STORED and not member.flags & _ENCRYPTED and member.size == member.packed
            for member in self._members.values()
        )

    def open(self, key: str) -> OpenValue | None:
        """Return the value to be read in parts; see `Keys.open`."""
        size = self.size(key)
        return None if size is None else OpenValue(self._handle, self._start(key), size, close=False)

    def _read_directory(self) -> dict[str, _Member]:
        import zipfile

        status = os.fstat(self._handle)
        try:
            with open(self._handle, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
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
        header = pread(self._handle, length, member.at)
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
        try:
            value = engine.decompress(pread(self._handle, member.packed, self._start(key)), member.size + 1)
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
        base = self._start(key)
        return [pread(self._handle, max(min(length, size - start), 0), base + start) for start, length in ranges]

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
        try:
            return os.path.samestat(os.stat(self.name), os.fstat(self._handle))  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return False

    def close(self) -> None:
        """Release files; see `Keys.close`."""
        self._close()
        self._handle = -1


def _raw_name(name: str, flags: int) -> bytes:
    """Return the name of a member as it stands in the file (APPNOTE 4.4.4, bit 11: UTF-8, otherwise code page 437)."""
    return name.encode("utf-8" if flags & 0x800 else "cp437", "replace")
