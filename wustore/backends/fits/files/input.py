"""The bytes of a FITS file, plain or inside a .gz, .bz2 or .zip file.

A plain file is mapped, never copied. What is compressed as a whole is unpacked once: in memory while it is
small, else into a temporary file that disappears with its last user.
"""

from __future__ import annotations

import bz2
import io
import lzma
import mmap
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from wustore.backends.fits.hdu.scan import Buffer
from wustore.errors import CorruptError, FormatError, StoreNotFoundError
from wustore.storage.threads import read_ahead
from wustore.storage.url import LARGEST, RemoteFile, is_remote

__all__ = ["compression_of", "first_bytes", "load", "opened", "state_of"]

_IN_MEMORY = 64 << 20
"""Bytes of an unpacked file that are kept in memory; more go to a temporary file."""

_STEP = 1 << 20
_CONNECTIONS = 4
"""Requests in flight while a whole file is fetched: of 8 MiB each, so that at most 40 MiB wait."""

_MAGIC = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip"))


def compression_of(path: str) -> str | None:
    """Return how a file is compressed as a whole: ``gzip``, ``bzip2``, ``zip``, or None for a plain one."""
    with opened(path) as file:
        start = file.read(4)
    return next((name for magic, name in _MAGIC if start.startswith(magic)), None)


def opened(path: str) -> io.BufferedReader:
    """Return a file, or an object at a URL, open for reading.

    Raises
    ------
    StoreNotFoundError, FormatError
    """
    if is_remote(path):
        return io.BufferedReader(RemoteFile(path).stream())
    try:
        return Path(path).open("rb")
    except FileNotFoundError as error:
        raise StoreNotFoundError("there is no file at this path", path=path, hint="Check the name.") from error
    except IsADirectoryError as error:
        raise FormatError("a directory, not a FITS file", path=path) from error


def state_of(path: str) -> tuple[Any, ...]:
    """Return size, modification time and inode of a file, by which a change is noticed; at a URL size and version.

    Raises
    ------
    StoreNotFoundError
    """
    if is_remote(path):
        return RemoteFile(path).state
    try:
        found = Path(path).stat()
    except FileNotFoundError as error:
        raise StoreNotFoundError("there is no file at this path", path=path, hint="Check the name.") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def _gzip_steps(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the unpacked bytes of a gzip file, all its members; zero padding behind them is ignored."""
    pending = b""
    first = True
    while True:
        pending = pending or file.read(_STEP)
        if not first:
            while pending and not pending.strip(b"\0"):
                pending = file.read(_STEP)
            pending = pending.lstrip(b"\0")
        if not pending:
            return
        first = False
        engine = zlib.decompressobj(31)
        while not engine.eof:
            piece = engine.decompress(pending, _STEP)
            pending = engine.unconsumed_tail or (b"" if engine.eof else file.read(_STEP))
            if piece:
                yield piece
            elif not pending and not engine.eof:
                raise EOFError("the gzip stream ends early")
        pending = engine.unused_data


def _bzip2_steps(file: IO[bytes]) -> Iterator[bytes]:
    with bz2.BZ2File(file) as stream:
        while piece := stream.read(_STEP):
            yield piece


def _zip_steps(file: IO[bytes]) -> Iterator[bytes]:
    with zipfile.ZipFile(file) as archive:
        members = [item for item in archive.infolist() if not item.is_dir()]
        if len(members) != 1:
            raise FormatError(
                "a zip file must hold one FITS file",
                expected="1 file inside",
                found=[item.filename for item in members][:5],
            )
        with archive.open(members[0]) as stream:
            while piece := stream.read(_STEP):
                yield piece


_STEPS = {"gzip": _gzip_steps, "bzip2": _bzip2_steps, "zip": _zip_steps}


def _unpacked(path: str, kind: str) -> Iterator[bytes]:
    try:
        with opened(path) as file:
            yield from _STEPS[kind](file)
    except FormatError as error:
        error.path = path
        raise
    except (
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise _damaged(path, kind, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, kind, error) from error  # bz2 says "Invalid data stream" without an errno


def _damaged(path: str, kind: str, error: Exception) -> CorruptError:
    return CorruptError(
        f"the {kind} stream is damaged or truncated", path=path, found=error, hint="Fetch the file again."
    )


def first_bytes(path: str, count: int) -> bytes:
    """Return the first bytes of the FITS file at ``path``, unpacked where it is compressed.

    Raises
    ------
    StoreNotFoundError, CorruptError
    """
    kind = compression_of(path)
    if kind is None:
        with opened(path) as file:
            return file.read(count)
    start = b""
    for piece in _unpacked(path, kind):
        start += piece
        if len(start) >= count:
            break
    return start[:count]


def _mapped(file: IO[Any]) -> Buffer:
    if os.fstat(file.fileno()).st_size == 0:
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _pieces(url: str) -> Iterator[bytes]:
    """Yield all bytes of a file at a URL, with several requests at a time."""
    remote = RemoteFile(url)
    starts = range(0, remote.size, LARGEST)
    for _, piece in read_ahead(lambda k: remote.read(starts[k], LARGEST), range(len(starts)), _CONNECTIONS):
        yield piece


def load(path: str) -> Buffer:
    """Return all bytes of the FITS file at ``path``: mapped where it is plain, else unpacked.

    A file at a URL is fetched whole.

    Raises
    ------
    StoreNotFoundError
    FormatError
        For a directory, or a zip file with more than one file inside.
    CorruptError
        Where the compressed stream is damaged.
    """
    kind = compression_of(path)
    if kind is None and not is_remote(path):
        with opened(path) as file:
            return _mapped(file)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        for piece in _pieces(path) if kind is None else _unpacked(path, kind):
            spool.write(piece)
        spool.flush()
        if spool.tell() <= _IN_MEMORY:
            spool.seek(0)
            return bytes(spool.read())
        return _mapped(spool)
