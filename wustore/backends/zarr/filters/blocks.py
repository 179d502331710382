"""Blocks of chunks, checked and decoded by one call without the interpreter lock.

How reading scales over many cores is bounded by the time for which the lock is held. On 16 cores the checksums and the
copies that make one stream of several chunks, done by Python, let no more than 3.5 GB/s through; the functions of C
that imagecodecs and google_crc32c call, called by compiled loops instead, 10. Every function here may say no: then the
caller does the same with Python, and finds out which chunk is damaged.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops, addresses_of

__all__ = ["Bounds", "are_there", "joined", "loops", "prepare", "unpacked"]

_LOOPS = Loops("wustore.backends.zarr.filters.loops_numba", 1 << 30)

Bounds = Sequence[tuple[int, int]]
"""Start and stop of chunks in some bytes, each with its checksum."""


def prepare(nbytes: int) -> None:
    """Import the loops if so many decoded bytes are worth it: on the way all threads would wait for it."""
    _LOOPS.get(ahead=nbytes)


def loops() -> ModuleType | None:
    """Return the loops if they have been imported."""
    return _LOOPS.module


def are_there() -> bool:
    """Return whether the loops have been imported and can be used."""
    return _LOOPS.module is not None and _functions() is not None


def joined(stored: Any, bounds: Bounds, head: int, same: int, tail: int) -> bytes | None:
    """Return the first head and all bodies of chunks as one stream, their checksums compared; None to do it otherwise.

    Parameters
    ----------
    stored, bounds
        Bytes, and where in them the chunks are, each with its checksum.
    head
        Bytes of a chunk before its body.
    same
        Bytes of a chunk, those of the head and more, that must be those of the first one.
    tail
        Bytes of a chunk behind its body, with the checksum: 4, or 5 for a zero before it, which ends the stream, too.
    """
    loops, functions = _LOOPS.module, _functions()
    if loops is None or functions is None:
        return None
    places = np.array(bounds, np.int64)
    ends = tail - 4
    size = int((places[:, 1] - places[:, 0]).sum()) - len(bounds) * (head + tail) + head
    if size < head:
        return None
    stream, memory = _new_bytes(size + ends)
    memory[size:] = 0
    found = loops.join(functions, _read_only(stored), places, head, same, tail, memory[:size])
    return stream if found == size else None


def unpacked(is_zstd: bool, stored: Any, bounds: Bounds, nbytes: int, out: NDArray[np.uint8]) -> bool:
    """Check and decode chunks into ``out``; return whether all were as they should be.

    Parameters
    ----------
    is_zstd
        Whether they are frames of zstd; if not, of Blosc.
    stored, bounds
        Bytes, and where in them the chunks are, each with its checksum.
    nbytes
        Length of a decoded chunk.
    out
        Memory for all of them.
    """
    loops, functions = _LOOPS.module, _functions()
    if loops is None or functions is None:
        return False
    done = loops.unpack(functions, is_zstd, _read_only(stored), np.array(bounds, np.int64), nbytes, out)
    return bool(done == len(bounds))


def _read_only(stored: Any) -> NDArray[np.uint8]:
    """Return bytes as an array that is read-only always: the loops are compiled for one kind."""
    return np.frombuffer(memoryview(stored).toreadonly(), np.uint8)


def _functions() -> NDArray[np.intp] | None:
    """Return the addresses of CRC-32C, of zstd's functions that make, use and free a decoder, and of Blosc's.

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
    )


class _Memory:
    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}


def _new_bytes(size: int) -> tuple[bytes, NDArray[np.uint8]]:
    """Return new bytes and their memory, which may be written as long as nobody else has seen them.

    That is how extension modules make bytes (Python/C API, PyBytes_FromStringAndSize and PyBytes_AsString). pcodec
    takes nothing but bytes, and each other way to make them copies with the lock held.
    """
    make, address_of = _bytes_functions()
    made: bytes = make(None, size)
    return made, np.asarray(_Memory(address_of(made), size))


@cache
def _bytes_functions() -> tuple[Any, Any]:
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)
    address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)
    return (
        make(("PyBytes_FromStringAndSize", ctypes.pythonapi)),
        address(("PyBytes_AsString", ctypes.pythonapi)),
    )
