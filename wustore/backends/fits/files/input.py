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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from wustore.backends.fits.hdu.header import BLOCK
from wustore.backends.fits.hdu.scan import Buffer, is_fits
from wustore.errors import CorruptError, OtherFormatError, StoreNotFoundError
from wustore.storage.files import RemoteFile, open_regular
from wustore.storage.threads import read_ahead
from wustore.storage.url import is_remote
from wustore.storage.url_requests import LARGEST

__all__ = ["Content", "compression_of", "load", "load_remote", "open_source", "pieces", "state_of"]

_IN_MEMORY = 64 << 20
"""Bytes of an unpacked file that are kept in memory; more go to a temporary file."""

_STEP = 1 << 20
_CONNECTIONS = 4
"""Requests in flight while a whole file is fetched: of 8 MiB each, so that at most 40 MiB wait."""

_MAGIC = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip"))
_LONGEST = 4


@dataclass(frozen=True)
class Content:
    """The bytes of a file, and which file they are of.

    Attributes
    ----------
    data
        All bytes, unpacked if the file is compressed as a whole.
    compression
        How it is compressed: ``gzip``, ``bzip2``, ``zip``, or None.
    state
        Size, modification time and inode of the file; at a URL size and version.
    """

    data: Buffer
    compression: str | None
    state: tuple[Any, ...]


def compression_of(start: bytes) -> str | None:
    """Return how a file that begins with these bytes is compressed, None for a plain one."""
    return next((name for magic, name in _MAGIC if start.startswith(magic)), None)


def open_source(path: str) -> io.BufferedReader:
    """Return a file, or an object at a URL, open for reading."""
    return io.BufferedReader(RemoteFile(path).stream()) if is_remote(path) else open_regular(path)


def state_of(path: str) -> tuple[Any, ...]:
    """Return size, modification time and inode of a file, by which a change is noticed; at a URL size and version."""
    if is_remote(path):
        return RemoteFile(path).state
    try:
        found = Path(path).stat()
    except FileNotFoundError as error:
        raise StoreNotFoundError("there is no file at this path", path=path, hint="Check the name.") from error
    return _state(found)


def _state(found: os.stat_result) -> tuple[int, ...]:
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
            raise OtherFormatError(
                "a zip file must hold one FITS file",
                expected="1 file inside",
                found=[item.filename for item in members][:5],
            )
        with archive.open(members[0]) as stream:
            while piece := stream.read(_STEP):
                yield piece


_STEPS = {"gzip": _gzip_steps, "bzip2": _bzip2_steps, "zip": _zip_steps}


def _unpacked(file: IO[bytes], path: str, kind: str) -> Iterator[bytes]:
    try:
        yield from _STEPS[kind](file)
    except OtherFormatError as error:
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


def _mapped(file: IO[Any]) -> Buffer:
    if os.fstat(file.fileno()).st_size == 0:
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def pieces(remote: RemoteFile) -> Iterator[bytes]:
    """Yield all bytes of a file at a URL, with several requests at a time."""
    starts = range(0, remote.size, LARGEST)
    for _, piece in read_ahead(lambda k: remote.read(starts[k], LARGEST), range(len(starts)), _CONNECTIONS):
        yield piece


def load(path: str) -> Content:
    """Return the bytes of a local FITS file, mapped if it is plain, else unpacked; it is opened once.

    Raises
    ------
    StoreNotFoundError
    OtherFormatError
        For what is no FITS file, a directory, or a zip file with more than one file inside.
    CorruptError
        If the compressed stream is damaged.
    """
    with open_regular(path) as file:
        state = _state(os.fstat(file.fileno()))
        kind = compression_of(file.peek(_LONGEST)[:_LONGEST])
        data = _mapped(file) if kind is None else _spooled(_unpacked(file, path, kind), path)
    _check_signature(data, path)
    return Content(data, kind, state)


def load_remote(remote: RemoteFile) -> Content:
    """Return the bytes of a FITS file at a URL, fetched whole, and unpacked if it is compressed."""
    kind = compression_of(remote.cached(0, BLOCK))
    with io.BufferedReader(remote.stream()) as stream:
        data = _spooled(pieces(remote) if kind is None else _unpacked(stream, remote.name, kind), remote.name)
    return Content(data, kind, remote.state)


def _spooled(pieces: Iterator[bytes], path: str) -> Buffer:
    """Return what is unpacked or fetched in pieces: in memory while it is small, else in a file without a name."""
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        for piece in pieces:
            if spool.tell() == 0:
                _check_signature(piece, path)  # before gigabytes of something else are unpacked
            spool.write(piece)
        spool.flush()
        if spool.tell() <= _IN_MEMORY:
            spool.seek(0)
            return bytes(spool.read())
        return _mapped(spool)


def _check_signature(data: Buffer, path: str) -> None:
    start = bytes(data[:9])
    if not is_fits(start):
        raise OtherFormatError("not a FITS file", path=path, expected="SIMPLE  =", found=repr(start))
