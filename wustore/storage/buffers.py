"""Memory for planes, laid out so that the system can give it in large pages; pieces of bytes on their way to a file."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Spool", "empty", "release"]

_PAGE = 1 << 21
"""A large page of Linux on x86-64 and most ARM machines."""

_SPOOLED_IN_MEMORY = 1 << 23
"""Bytes of a spool that need no file."""

_KEPT = 1 << 29
"""Bytes of memory that are kept for the next arrays: 13 images of 2048 x 2048 pixels with their masks."""

_SPARE: dict[int, NDArray[np.uint8]] = {}
"""Memory that no array uses, the oldest first."""


def empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return an uninitialised C-contiguous array; a large one is in memory that an earlier one has left, if possible.

    The system clears memory before it gives it, which takes as long as half of the decoding. An array of numpy's begins
    somewhere in a large page, and so its first and its last part (a quarter of a plane of 16 MB) come in small pages:
    512 times as many faults. Giving 200 MB in such planes takes the system 30 ms, in aligned ones 21.

    Parameters
    ----------
    shape, dtype
        Of the array.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size < 2 * _PAGE:
        return np.empty(shape, kind)
    return np.ndarray(shape, kind, np.asarray(_Lease(_spare(size))))


class _Lease:
    """Memory of an array and its views: when the last of them is gone, it is kept for another array."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        # Called at any time, also while another thread is here: each step by itself is atomic.
        if _SPARE is None or sys.is_finalizing():
            return
        _let_go(self._memory)  # before another thread can find it
        _SPARE[id(self._memory)] = self._memory
        if (excess := sum(map(len, _SPARE.values())) - _KEPT) > 0:
            for key, memory in list(_SPARE.items()):
                if excess > 0:
                    _SPARE.pop(key, None)
                    excess -= len(memory)


def _spare(size: int) -> NDArray[np.uint8]:
    """Return memory of at least this size that begins where a large page does."""
    for key, memory in list(_SPARE.items()):
        if size <= len(memory) <= size + size // 4 and _SPARE.pop(key, None) is not None:
            return memory
    memory = np.empty(size + _PAGE, np.uint8)
    start = -memory.ctypes.data % _PAGE
    return memory[start : start + size]


def _let_go(memory: NDArray[np.uint8]) -> None:
    """Let the system take the pages when it needs some; until it does they are there, and what is written to stays."""
    _advise("MADV_FREE", memory, len(memory) // mmap.PAGESIZE * mmap.PAGESIZE)


class Spool:
    """Pieces of bytes by number: in memory as long as they are few, then in an unnamed file.

    Parameters
    ----------
    directory
        Where the file goes, that of the system by default.
    """

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()

    def add(self, i: int, piece: bytes) -> None:
        """Keep a piece; the last one of a number counts."""
        with self._lock:
            if self._file is None:
                self._file = tempfile.SpooledTemporaryFile(_SPOOLED_IN_MEMORY, dir=self._directory)  # noqa: SIM115
            self._file.seek(self._end)
            self._file.write(piece)
            self._places[i] = self._end, len(piece)
            self._end += len(piece)

    def size(self, i: int) -> int:
        """Return the length of a piece, 0 if there is none."""
        return self._places.get(i, (0, 0))[1]

    def get(self, i: int) -> bytes:
        """Return a piece, empty if there is none."""
        with self._lock:
            start, size = self._places.get(i, (0, 0))
            if self._file is None or not size:
                return b""
            self._file.seek(start)
            return self._file.read(size)

    def close(self) -> None:
        """Forget all pieces."""
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


_AROUND = 1 << 16
"""Bytes that Linux maps around a page that is touched (``fault_around_bytes``)."""


def release(data: object, start: int = 0, stop: int | None = None) -> None:
    """Give back the memory of mapped bytes that are not needed again soon; they are read anew where they are.

    The pages of a mapped file count as this process's memory as long as nobody needs them, so that a conversion
    would seem to hold the whole file.
    """
    if not isinstance(data, mmap.mmap):
        return
    stop = len(data) if stop is None else min(stop + _AROUND, len(data))
    first = max(start - _AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > first:
        _advise("MADV_DONTNEED", np.frombuffer(data, np.uint8, 1, first), stop - first)


def _advise(name: str, memory: NDArray[np.uint8], size: int) -> None:
    """Tell the system what will become of pages, the first of which begins where the array does, if it knows that."""
    advice = getattr(mmap, name, None)
    if advice is not None and size:
        _madvise()(memory.__array_interface__["data"][0], size, advice)


@cache
def _madvise() -> Any:
    """Return the system's call without the interpreter lock, which `mmap.madvise` keeps for all its milliseconds."""
    call = ctypes.CDLL(None).madvise
    call.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return call
