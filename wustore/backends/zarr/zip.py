"""A store as one zip file, its members stored as they are so that ranges of them can be read."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from wustore.storage.files import pread
from wustore.storage.zip import ZipKeys

__all__ = ["audit_zip", "pack_directory"]

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
