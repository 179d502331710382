"""CRC-32C (RFC 3720): of stored bytes, and of the values of a plane."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

__all__ = ["RESIDUE", "crc32c", "crc32c_of", "large_crc32c", "plane_checksum"]

crc32c: Callable[[bytes], int] = google_crc32c.value
"""Return the CRC-32C (RFC 3720) of some bytes, with the interpreter lock held: for chunks, which take microseconds."""

RESIDUE = 0x48674BC7
"""CRC-32C of any bytes that are followed by their CRC-32C, lowest byte first."""

_LARGE = 1 << 18
"""Bytes from which on the lock is released: they take 15 µs; releasing it takes 1 µs, and 20 to get it back."""


def large_crc32c(data: NDArray[np.uint8]) -> int:
    """Return the CRC-32C of many bytes, with the interpreter lock released.

    Parameters
    ----------
    data
        Contiguous, one axis.
    """
    return _extended(0, data)


def crc32c_of(pieces: Iterable[bytes | memoryview]) -> int:
    """Return the CRC-32C of pieces that follow each other, of large ones with the interpreter lock released."""
    found = 0
    for piece in pieces:
        found = _extended(found, np.frombuffer(piece, np.uint8))
    return found


def _extended(crc: int, data: NDArray[np.uint8]) -> int:
    """Return the CRC-32C of bytes with this one, followed by ``data``."""
    extend = _extend() if data.size >= _LARGE else None
    if extend is None:
        return int(google_crc32c.extend(crc, data))
    return int(extend(crc, data.ctypes.data, data.size))


@cache
def _extend() -> Any:
    """Return the function of the C library under google_crc32c, which that calls with the lock held; None without it.

    It takes a checksum to go on with (0), an address and a length. A symbol is looked for in a module and in the
    libraries that it needs.
    """
    try:
        from google_crc32c import _crc32c

        function = ctypes.CDLL(_crc32c.__file__).crc32c_extend
    except (ImportError, OSError, AttributeError):  # written in Python, linked statically, Windows
        return None
    function.argtypes = ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t
    function.restype = ctypes.c_uint32
    return function


def plane_checksum(plane: NDArray[Any] | None) -> int:
    """Return the CRC-32C of a plane's values: true shape, source dtype, little-endian, C order; 0 for None.

    Stored for every image and layer in the array ``checksum`` (uint32, (time, layer)), so that a change
    or a loss can be found and named without the source. CRC-32C as in RFC 3720.
    """
    if plane is None:
        return 0
    little = np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<"), copy=False)
    return large_crc32c(little.reshape(-1).view(np.uint8))
