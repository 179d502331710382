"""Local files: opening regular ones only (a pipe makes a reader wait, a device may act), reading, making durable."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading

from wustore.errors import FormatError, OtherFormatError, StoreNotFoundError

__all__ = ["check_regular", "open_handle", "open_regular", "pread", "pread_into", "sync"]

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""O_NONBLOCK: what becomes a pipe between the look and the opening does not block either."""


def check_regular(path: str | os.PathLike[str], folder: int | None = None) -> None:
    """Refuse what is neither a regular file nor a directory; links are followed.

    Parameters
    ----------
    folder
        Descriptor of the directory from which a relative path goes on, instead of the current one.

    Raises
    ------
    FormatError
        If it is a named pipe, a device or a socket.
    FileNotFoundError
    """
    mode = os.stat(path, dir_fd=folder).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        found = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
        raise FormatError("not a regular file", path=path, found=found)


def open_handle(path: str | os.PathLike[str], folder: int | None = None) -> int:
    """Return a descriptor of a regular file, or of a directory, open for reading."""
    check_regular(path, folder)
    return os.open(path, _FLAGS, dir_fd=folder)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Return a regular file open for reading.

    Raises
    ------
    StoreNotFoundError
    OtherFormatError
        If it is a directory.
    FormatError
        If it is a named pipe, a device or a socket.
    OSError
    """
    try:
        handle = open_handle(path)
    except FileNotFoundError as error:
        raise StoreNotFoundError("there is no file at this path", path=path, hint="Check the name.") from error
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        os.close(handle)
        raise OtherFormatError("a directory, not a file", path=path)
    return io.BufferedReader(io.FileIO(handle))


_LOCK = threading.Lock()


class _Memory(threading.local):
    def __init__(self) -> None:
        self.bytes = bytearray()


_MEMORY = _Memory()


def _seek_and_read(handle: int, length: int, offset: int) -> bytes:
    """Do `os.pread` without it (Windows): the position of the file is shared, so one thread at a time."""
    with _LOCK:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, length)


_once = getattr(os, "pread", _seek_and_read)
_into = getattr(os, "preadv", lambda handle, buffers, offset: -1)


def pread(handle: int, length: int, offset: int) -> bytes:
    """Return ``length`` bytes at ``offset``, fewer only at the end of the file.

    The system may give fewer at a time: Linux at most 2 GiB, network file systems and interrupted calls whatever
    they have.
    """
    data: bytes = _once(handle, length, offset)
    if len(data) >= length or not data:
        return data
    parts, have = [data], len(data)
    while have < length:
        data = _once(handle, length - have, offset + have)
        if not data:
            break
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def pread_into(handle: int, length: int, offset: int) -> memoryview:
    """Return what `pread` does, in memory of this thread that is used again: valid until its next call."""
    if length > len(_MEMORY.bytes):
        _MEMORY.bytes = bytearray(length)
    view = memoryview(_MEMORY.bytes)[:length]
    if _into(handle, [view], offset) != length:
        data = pread(handle, length, offset)
        view = view[: len(data)]
        view[:] = data
    return view


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file, or the entries of a directory, durable."""
    posix = os.name == "posix"
    if not posix and os.path.isdir(path):  # noqa: PTH112
        return  # Windows cannot open a directory
    handle = os.open(path, os.O_RDONLY if posix else os.O_RDWR)  # Windows syncs what may be written only
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (FUSE, network) refuse to sync a directory; there is nothing more to do then.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)
