"""Blocks of chunks, checked and decoded by one call without the interpreter lock.

How reading scales over many cores is bounded by the time for which the lock is held. On 16 cores the checksums and the
copies that make one stream of several chunks, done by Python, let no more than 3.5 GB/s through; the functions of C
that imagecodecs and google_crc32c call, called by compiled loops instead, 10. Every function here may say no: then the
caller does the same with Python, and finds out which chunk is damaged.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops, addresses_of

__all__ = ["LOOPS", "Bounds", "Source", "joined", "loops", "place", "prepare", "unpacked"]

LOOPS = Loops("wustore.backends.zarr.filters.loops_numba", 1 << 30)

_LARGE = 1 << 20
"""Bytes of chunks that are copied past the cache: that of a core is about as large."""

Bounds = Sequence[tuple[int, int]]
"""Start and stop of chunks in some bytes, each with its checksum."""

Source = tuple[int, int]
"""Descriptor of a file, and a place in it."""

_READ: Source = (-1, 0)
"""Nothing is to be read."""


def prepare(nbytes: int) -> None:
    """Import the loops if so many decoded bytes are worth it: on the way all threads would wait for it."""
    LOOPS.get(ahead=nbytes)


def loops() -> ModuleType | None:
    """Return the loops if they have been imported."""
    return LOOPS.module


def joined(stored: Any, bounds: Bounds, size: int, source: Source | None = None) -> bytes | None:
    """Return files of pcodec as one, their checksums compared; None to do it otherwise.

    What comes after the end of that file is undefined. It is valid until the next call in this thread.

    Parameters
    ----------
    stored, bounds
        Bytes, and where in them the chunks are, each with its checksum.
    size
        Number of values of a chunk.
    source
        Where to read ``stored`` from, if that is only memory for them.
    """
    loops, functions = LOOPS.module, _functions()
    if loops is None or functions is None:
        return None
    stream, memory = _STREAM.of(len(stored) + 1)
    places = np.array(bounds, np.int64)
    return stream if loops.join(functions, *(source or _READ), _read_only(stored), places, size, memory) else None


def unpacked(
    is_zstd: bool, stored: Any, bounds: Bounds, nbytes: int, out: NDArray[np.uint8], source: Source | None = None
) -> bool:
    """Check and decode chunks into ``out``; return whether all were as they should be.

    Parameters
    ----------
    is_zstd
        Whether they are frames of zstd; if not, of Blosc.
    stored, bounds, source
        As for `joined`.
    nbytes
        Length of a decoded chunk.
    out
        Memory for all of them.
    """
    loops, functions = LOOPS.module, _functions()
    if loops is None or functions is None:
        return False
    places = np.array(bounds, np.int64)
    done = loops.unpack(functions, is_zstd, *(source or _READ), _read_only(stored), places, nbytes, out)
    return bool(done == len(bounds))


def place(places: NDArray[Any], chunks: NDArray[Any]) -> None:
    """Copy chunks to their places; many of them past the cache, which they would fill.

    Parameters
    ----------
    places
        Shape (rows of chunks, chunks of a row, y, x).
    chunks
        The same shape and dtype.
    """
    loops = LOOPS.module
    if loops is None or chunks.nbytes < _LARGE or not chunks.flags.c_contiguous or chunks.dtype != places.dtype:
        places[...] = chunks
        return
    row, column, line, item = places.strides
    width, address = places.shape[3] * item, places.__array_interface__["data"][0]
    if item == places.itemsize and not (address | width | row | column | line) % loops.LINE:
        source = chunks.__array_interface__["data"][0]
        loops.place(source, address, places.shape[:3], (row, column, line), width)
    else:
        places[...] = chunks


def _read_only(stored: Any) -> NDArray[np.uint8]:
    """Return bytes as an array that is read-only always: the loops are compiled for one kind."""
    return np.frombuffer(memoryview(stored).toreadonly(), np.uint8)


def _functions() -> NDArray[np.intp] | None:
    """Return the addresses of CRC-32C, of zstd's functions that make, use and free a decoder, of Blosc's, and of pread.

    None if they are not found. The libraries are those that google_crc32c and imagecodecs call.
    """
    if sys.maxsize < 1 << 32:
        return None
    return addresses_of(
        ("google_crc32c._crc32c", "crc32c_extend"),
        ("imagecodecs._zstd", "ZSTD_createDCtx"),
        ("imagecodecs._zstd", "ZSTD_decompressDCtx"),
        ("imagecodecs._zstd", "ZSTD_freeDCtx"),
        ("imagecodecs._blosc", "blosc_decompress_ctx"),
        (None, "pread"),
    )


class _Memory:
    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}


class _Stream(threading.local):
    """Bytes of this thread whose memory is written again and again.

    pcodec takes nothing but bytes, and copying into new ones holds the interpreter lock: half of the time for the copy,
    half for the memory, which the system clears, and takes back with all threads waiting. That bytes which nobody else
    has seen may be written is how extension modules make them (Python/C API, PyBytes_FromStringAndSize).
    """

    def __init__(self) -> None:
        self._made = b""
        self._memory = np.empty(0, np.uint8)

    def of(self, size: int) -> tuple[bytes, NDArray[np.uint8]]:
        """Return bytes of at least this length, and their memory."""
        if size > len(self._made):
            make, address_of = _bytes_functions()
            self._made = make(None, size)
            self._memory = np.asarray(_Memory(address_of(self._made), size))
        return self._made, self._memory


_STREAM = _Stream()


@cache
def _bytes_functions() -> tuple[Any, Any]:
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)
    address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)
    return (
        make(("PyBytes_FromStringAndSize", ctypes.pythonapi)),
        address(("PyBytes_AsString", ctypes.pythonapi)),
    )
