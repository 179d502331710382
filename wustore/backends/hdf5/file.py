"""Opening an HDF5 file or object, its bytes, and the names of what wustore keeps at fixed places in it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore.backends.hdf5 import netcdf
from wustore.errors import OtherFormatError
from wustore.storage.files import RemoteFile, open_regular, pread, pread_into, write_all
from wustore.storage.threads import Background
from wustore.storage.url import is_remote

__all__ = [
    "CAPSULE_BOUND",
    "CAPSULE_DATA",
    "CHUNK_CHECKSUM",
    "DOCUMENT",
    "DOCUMENT_CHECKSUM",
    "METADATA_BLOCK",
    "Output",
    "RawFile",
    "has_signature",
    "open_file",
]

DOCUMENT = "wustore"
"""Root attribute with the root document."""
DOCUMENT_CHECKSUM = "wustore_sha256"
CAPSULE_DATA, CAPSULE_BOUND = "fits/data", "fits/bound"
CHUNK_CHECKSUM = "chunk_checksum"
"""Array with the fletcher32 of each chunk of the layers, a row for each image."""
METADATA_BLOCK = 1 << 18
"""Bytes of the first block read from a URL: metadata is mostly at the start, and opening takes two requests."""
_SNIFFED = 4096
"""Bytes at the start of an object in which the signature is looked for: further on, each look were a request."""
_FLUSHED_BYTES = 1 << 26
"""So many bytes are flushed while the next ones are encoded: at the end only the last ones are left."""
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def has_signature(file: IO[bytes] | io.RawIOBase, size: int) -> bool:
    """Return whether a file has HDF5's signature where the format allows it: at 0, 512, 1024, 2048 and so on."""
    place = 0
    while place < size:
        file.seek(place)
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            return True
        place = max(512, place * 2)
    return False


def open_file(path: str, remote: RemoteFile | None = None) -> h5py.File:
    """Open an HDF5 file for reading; ``remote`` is the object at a URL if it is open already."""
    if is_remote(path):
        remote = RemoteFile(path, METADATA_BLOCK) if remote is None else remote
        if not has_signature(remote.stream(), _SNIFFED):
            raise OtherFormatError("not an HDF5 file", path=remote.name, expected="the signature of HDF5")
        with netcdf.wrapped(remote.name, "superblock"):
            return h5py.File(remote.stream(), "r")
    if Path(path).is_dir():
        raise OtherFormatError("not an HDF5 file", path=path, expected="a file", found="a directory")
    with open_regular(path) as start:
        if not has_signature(start, os.fstat(start.fileno()).st_size):
            raise OtherFormatError("not an HDF5 file", path=path, expected="the signature of HDF5")
    with netcdf.wrapped(path, "superblock"):
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            # Some network file systems know no locks. A store is never changed in place, so none is needed;
            # not without need, because the same process could then not open the file with a lock.
            return h5py.File(path, "r", locking=False)


class RawFile:
    """The bytes of an open HDF5 file, readable from any thread until nobody needs them.

    It opens the file once more, so that work in progress when the HDF5 file is closed cannot read from
    another file that got the same handle, and does not prolong HDF5's lock. False if the library must
    do the reading: on systems without ``preadv``, with other file drivers and after a user block.

    Attributes
    ----------
    size
        Length of the file [byte].
    """

    def __init__(self, file: h5py.File, remote: RemoteFile | None = None) -> None:
        self._handle = -1
        has_user_block = file.userblock_size > 0
        self._remote = None if has_user_block else remote
        self.size = int(file.id.get_filesize())
        if remote is not None:
            return
        if not hasattr(os, "preadv") or file.driver != "sec2" or has_user_block:
            return
        self._handle = os.open(file.filename, os.O_RDONLY)
        if not os.path.sameopenfile(self._handle, file.id.get_vfd_handle()):
            os.close(self._handle)  # replaced since the library opened it
            self._handle = -1

    def __bool__(self) -> bool:
        return self._handle >= 0 or self._remote is not None

    @property
    def handle(self) -> int:
        """File descriptor; -1 if there is none."""
        return self._handle

    @property
    def is_remote(self) -> bool:
        """Whether a read is a request, so that chunks that lie side by side are better read at once."""
        return self._remote is not None

    def __del__(self) -> None:
        if self._handle >= 0 and os is not None:  # None when the interpreter ends: the system closes what is open
            os.close(self._handle)

    def read_into(self, memory: NDArray[np.uint8], offset: int) -> int:
        """Fill ``memory`` with the bytes from ``offset`` on; return how many there were."""
        if self._remote is not None:
            data = self._remote.read(offset, memory.size)
            memory[: len(data)] = np.frombuffer(data, np.uint8)
            return len(data)
        done = 0
        while done < memory.size:
            count = os.preadv(self._handle, [memory[done:].data], offset + done)
            if not count:
                break
            done += count
        return done

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end of the file."""
        return pread(self._handle, size, offset) if self._remote is None else self._remote.read(offset, size)


class Output(io.RawIOBase):
    """A new file that HDF5 writes and that, for HDF5, never fails.

    HDF5 crashes the process when it ends if it could not write what it has in memory. So an error of the system is
    kept, all that HDF5 writes afterwards is dropped, and `check` raises the error.

    Parameters
    ----------
    path
        Of the file; there must be nothing yet.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._error: BaseException | None = None
        self._file = path.open("x+b", buffering=0)
        self._place = 0
        self._aside: NDArray[np.uint8] | None = None
        self._found: int | None = None
        self._unflushed = 0
        self._flusher = Background("flush")

    def place(self, data: bytes | memoryview, write: Callable[[], object]) -> int | None:
        """Let HDF5 place some bytes without writing them.

        Parameters
        ----------
        data
            The bytes.
        write
            Makes HDF5 write them.

        Returns
        -------
        int or None
            Where they belong, for `write_at`; None if they were written, because HDF5 gave a copy of them.
        """
        self._aside = np.frombuffer(data, np.uint8) if hasattr(os, "pwrite") else None
        self._found = None
        try:
            write()
        finally:
            self._aside = None
        self._unflushed += len(data)
        if self._unflushed >= _FLUSHED_BYTES and not self._flusher.is_busy():  # what was placed before, by and large
            self._unflushed = 0
            self._flusher.start(os.fsync, self._file.fileno())
        return self._found

    def write_at(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Write pieces one after the other, from any thread."""
        try:
            if self._error is None:
                write_all(self._file.fileno(), pieces, offset)
        except BaseException as error:
            self._fail(error)

    def check(self) -> None:
        """Raise the error that kept something from being written, if there was one."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a place; HDF5 asks for the end in this way too."""
        if whence != os.SEEK_SET:
            offset += self._place if whence == os.SEEK_CUR else self._file.seek(0, os.SEEK_END)
        self._place = offset
        return offset

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; what was dropped reads as zeros."""
        memory = memoryview(buffer)
        memory[:] = bytes(len(memory))
        try:
            self._file.seek(self._place)
            self._file.readinto(memory)
        except BaseException as error:
            self._fail(error)
        self._place += len(memory)
        return len(memory)

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        memory = memoryview(data)
        if self._aside is not None and _are_same(np.frombuffer(memory, np.uint8), self._aside):
            self._aside, self._found = None, self._place
            self._place += len(memory)
            return len(memory)
        try:
            self._file.seek(self._place)
            done = 0
            while done < len(memory) and self._error is None:
                done += self._file.write(memory[done:])
        except BaseException as error:
            self._fail(error)
        self._place += len(memory)
        return len(memory)

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file."""
        size = self._place if size is None else size
        try:
            if self._error is None:
                self._file.truncate(size)
        except BaseException as error:
            self._fail(error)
        return size

    def append(self, data: bytes) -> None:
        """Write at the end."""
        self.seek(0, os.SEEK_END)
        self.write(data)

    def read_at(self, offset: int, size: int) -> memoryview:
        """Return ``size`` bytes from ``offset`` on, in memory of this thread: valid until its next call."""
        return pread_into(self._file.fileno(), size, offset)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error

    def close(self) -> None:
        """Close the file."""
        try:
            self._flusher.settle()
        except OSError as error:
            self._fail(error)
        self._file.close()
        super().close()


def _are_same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Return whether two arrays are the same memory."""
    return a.size == b.size and a.ctypes.data == b.ctypes.data
