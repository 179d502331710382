"""CRC-32C (RFC 3720): of stored bytes, and of the values of a plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

__all__ = ["crc32c", "plane_checksum"]

crc32c: Callable[[bytes], int] = google_crc32c.value
"""Return the CRC-32C (RFC 3720) of some bytes, with the interpreter lock released."""


def plane_checksum(plane: NDArray[Any] | None) -> int:
    """Return the CRC-32C of a plane's values: true shape, source dtype, little-endian, C order; 0 for None.

    Stored for every image and layer in the array ``checksum`` (uint32, (time, layer)), so that a change
    or a loss can be found and named without the source. CRC-32C as in RFC 3720.
    """
    if plane is None:
        return 0
    little = np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<"), copy=False)
    return int(google_crc32c.value(little.reshape(-1).view(np.uint8)))
