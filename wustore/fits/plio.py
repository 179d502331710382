"""Line lists of IRAF's pixel list format (PLIO_1): decoding, with every step checked.

The instructions are described in section 10.4.3 of the FITS standard 4.0: each 16-bit word holds an operation
in its upper four bits and a number in the lower twelve.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError

__all__ = ["decode_plio", "minimum_words"]

_LONGEST_RUN = 4095


def minimum_words(n_pixels: int) -> int:
    """Return the fewest words that a line list of so many pixels can have."""
    return 7 + -(-n_pixels // _LONGEST_RUN) if n_pixels else 0


def decode_plio(data: NDArray[np.int16], n_pixels: int, name: int) -> NDArray[np.int32]:
    """Decode one line list.

    Parameters
    ----------
    data
        The words of the list.
    n_pixels
        Pixels to decode; what the list does not cover is 0.
    name
        Number of the tile, for the error message.

    Raises
    ------
    CorruptError
        The list is shorter than it says.
    """
    pixels = np.zeros(n_pixels, np.int32)
    words: list[int] = data.tolist()
    if len(words) < 3:
        raise _short(name, 3, len(words))
    if words[2] > 0:
        length, first = words[2], 3
    else:
        if len(words) < 5:
            raise _short(name, 5, len(words))
        length, first = (words[4] << 15) + words[3], words[1]
    if length > len(words) or first < 0:
        raise _short(name, length, len(words))
    position, value = 0, 1
    i = first
    while i < length and position < n_pixels:
        word = words[i]
        operation, number = (word >> 12 if word >= 0 else -(-word // 4096)), word & 4095
        i += 1
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
            value = (words[i] << 12) + number
            i += 1
        elif operation in (2, 3, 6, 7):
            value += number if operation in (2, 6) else -number
            if operation in (6, 7):
                pixels[position] = _wrap(value)
                position += 1
        value = _wrap(value)
    return pixels


def _wrap(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def _short(name: int, expected: int, found: int) -> CorruptError:
    return CorruptError(
        "the pixel list is shorter than it says", where=f"tile {name}", expected=f"{expected} words", found=found
    )
