"""Files: local ones, of which only regular ones are opened (pipes wait, devices act), and at URLs, read by ranges."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wustore.errors import FormatError, OtherFormatError, StoreNotFoundError
from wustore.storage.url import errors_of, redact
from wustore.storage.url_requests import objects_at

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "CLOSED",
    "Descriptor",
    "RemoteFile",
    "check_regular",
    "fill_from",
    "open_handle",
    "open_regular",
    "pread",
    "pread_into",
    "room",
    "sync",
    "walk",
    "write_all",
]

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


class Descriptor:
    """An open file or directory, closed when the last one who uses it lets it go.

    Who reads keeps a reference meanwhile. So closing in one thread does not make the number free, and that of another
    file, while another thread reads.

    Attributes
    ----------
    number
        Of the open file; -1 if it has been closed.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        if self.number >= 0 and os is not None:  # None when the interpreter ends: the system closes what is open
            os.close(self.number)


CLOSED = Descriptor(-1)
"""In the place of a descriptor that was given back: reading from it is an `OSError`."""


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


def room(length: int) -> memoryview:
    """Return memory of this thread for so many bytes: valid until its next call of this or of `pread_into`."""
    if length > len(_MEMORY.bytes):
        _MEMORY.bytes = bytearray(length)
    return memoryview(_MEMORY.bytes)[:length]


def fill_from(handle: int, view: memoryview, offset: int) -> memoryview:
    """Fill memory with the bytes at ``offset``; return the part that is filled, all but at the end of the file."""
    if _into(handle, [view], offset) != view.nbytes:
        data = pread(handle, view.nbytes, offset)
        view = view[: len(data)]
        view[:] = data
    return view


def pread_into(handle: int, length: int, offset: int) -> memoryview:
    """Return what `pread` does, in the memory that `room` gives."""
    if length > len(_MEMORY.bytes):  # as `room`: a call less for each block
        _MEMORY.bytes = bytearray(length)
    view = memoryview(_MEMORY.bytes)[:length]
    return view if _into(handle, [view], offset) == length else fill_from(handle, view, offset)


_MOST_PIECES = 1024
"""That ``writev`` takes at a time on Linux and macOS (``IOV_MAX``)."""


def write_all(handle: int, pieces: Sequence[bytes | memoryview], offset: int | None = None) -> None:
    """Write pieces one after the other, without joining them if the system takes all that it is given.

    Parameters
    ----------
    offset
        Where the first one goes, for systems with ``pwrite``; by default the place of the file.
    """
    for k in range(0, len(pieces), _MOST_PIECES):
        some = pieces[k : k + _MOST_PIECES]
        size, done = sum(map(len, some)), 0
        if offset is not None and hasattr(os, "pwritev"):
            done = os.pwritev(handle, some, offset)
        elif offset is None and hasattr(os, "writev"):
            done = os.writev(handle, some)
        if done < size:
            left = memoryview(b"".join(some))
            while done < size:
                part = left[done:]
                done += os.write(handle, part) if offset is None else os.pwrite(handle, part, offset + done)
        if offset is not None:
            offset += size


def walk(path: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield what `os.walk` does; an `OSError` if a directory cannot be listed, which that leaves out."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # removed meanwhile
            raise error

    return os.walk(path, onerror=refuse)


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


# --- at a URL -------------------------------------------------------------------------------------------

BLOCK = 1 << 14
"""Bytes of the first block that a `RemoteFile` reads ahead, enough for the header of an image in KBMOD's files; each
block that follows on another is twice as long."""

_LARGEST_BLOCK = 1 << 20
_CACHED = 16 << 20


class RemoteFile:
    """A file at a URL, read by byte ranges; safe to use from several threads.

    Parameters
    ----------
    block
        Bytes of the first block that is read ahead.

    Attributes
    ----------
    name
        The URL without credentials, for messages.
    size
        Length [byte].
    state
        What changes when the object is replaced: size, and what the store says of its version.
    requests, bytes_read
        Of the contents, so far, but for the first block, which is read when the object is opened.

    Raises
    ------
    StoreNotFoundError, MissingDependencyError, BackendError, UsageError, OSError
    """

    def __init__(self, url: str, block: int = BLOCK) -> None:
        self.url = url
        self.name = redact(url)
        self._objects, self._path = objects_at(url)
        self._block = block
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes_read = 0
        with errors_of(url):
            facts, first = self._objects.start(self._path, block)
        self.size = facts.size
        self.state = facts.size, facts.version
        if first:
            self._keep(0, first)

    def __len__(self) -> int:
        return self.size

    def read(self, start: int, size: int) -> bytes:
        """Return ``size`` bytes at ``start`` in one request, fewer if the object ends before."""
        stop = min(start + size, self.size)
        if stop <= start:
            return b""
        with errors_of(self.url):
            data = self._objects.get_range(self._path, start, stop, self.state[1])
        with self._lock:
            self.requests += 1
            self.bytes_read += len(data)
        return data

    def cached(self, start: int, stop: int) -> bytes:
        """Return bytes for which the object is read in blocks: metadata, small pieces near each other."""
        stop = min(stop, self.size)
        if stop - start >= _LARGEST_BLOCK:
            return self.read(start, stop - start)
        parts = []
        while start < stop:
            base, block = self._block_at(start)
            part = block[start - base : stop - base]
            if not part:
                break  # shorter than the store said
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def _block_at(self, at: int) -> tuple[int, bytes]:
        with self._lock:
            length = self._block
            for base, block in self._blocks.items():
                if base <= at < base + len(block):
                    self._blocks.move_to_end(base)
                    return base, block
                if base + len(block) == at:
                    length = min(2 * len(block), _LARGEST_BLOCK)
        # The last block is as long as the others: what was added last when the object was written is used together.
        base = at if at + length <= self.size else max(self.size - length, 0)
        data = self.read(base, length)
        self._keep(base, data)
        return base, data

    def _keep(self, base: int, data: bytes) -> None:
        with self._lock:
            self._held += len(data) - len(self._blocks.pop(base, b""))
            self._blocks[base] = data
            while self._held > _CACHED:
                self._held -= len(self._blocks.popitem(last=False)[1])

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size)
        return self.cached(start, stop)

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where ``wanted`` is found first, as `bytes.find`."""
        step, stop = 2880, min(stop, self.size)
        while start < stop:
            piece = self.cached(start, min(start + step + len(wanted) - 1, stop))
            at = piece.find(wanted)
            if at >= 0:
                return start + at
            start += step
        return -1

    def stream(self) -> io.RawIOBase:
        """Return the object as a file that is open for reading."""
        return _Stream(self)


class _Stream(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.cached(self._at, self._at + len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
