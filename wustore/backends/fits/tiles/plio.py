"""Line lists of IRAF's pixel list format (PLIO_1): decoding, with every step checked.

The instructions are described in section 10.4.3 of the FITS standard 4.0: each 16-bit word holds an operation
in its upper four bits and a number in the lower twelve.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError

__all__ = ["decode_plio"]


def decode_plio(data: NDArray[np.int16], n_pixels: int, name: int) -> NDArray[np.int32]:
    """Decode one line list.

    Parameters
    ----------
    data
        The words of the list.
    n_pixels
        Pixels to decode; what the list does not cover is 0.

    Raises
    ------
    CorruptError
        The list is shorter than it says.
    """
    pixels = np.zeros(n_pixels, np.int32)
    words: list[int] = data.tolist()
    i, length = _instructions(words, name)
    position, value = 0, 1
    while i < length and position < n_pixels:
        word = words[i]
        i += 1
        operation, number = (word >> 12 if word >= 0 else -(-word // 4096)), word & 4095
        if operation in (0, 4, 5):
            stop = position + number
            if operation == 4:
                pixels[position:stop] = value
            elif operation == 5 and number > 0 and stop <= n_pixels:
                pixels[stop - 1] = value
            position = stop
        elif operation == 1:
            if i >= len(words):
                raise _short(name, i + 1, len(words))
            value = _wrap((words[i] << 12) + number)
            i += 1
        elif operation in (2, 3, 6, 7):
            value = _wrap(value + (number if operation in (2, 6) else -number))
            if operation >= 6:
                pixels[position] = value
                position += 1
    return pixels


def _instructions(words: list[int], name: int) -> tuple[int, int]:
    """Return where the instructions begin and end: both forms of the header are known."""
    first, length = 3, words[2] if len(words) > 2 else 0
    if length <= 0:
        if len(words) < 5:
            raise _short(name, 5, len(words))
        first, length = words[1], (words[4] << 15) + words[3]
    if length > len(words) or first < 0:
        raise _short(name, length, len(words))
    return first, length


def _wrap(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def _short(name: int, expected: int, found: int) -> CorruptError:
    return CorruptError(
        "the pixel list is shorter than it says", where=f"tile {name}", expected=f"{expected} words", found=found
    )
