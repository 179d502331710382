"""Line lists of IRAF's pixel list format (PLIO_1): decoding, with every step checked, and encoding.

The encoder of cfitsio, which astropy has, writes beyond its memory if neighbouring pixels differ by more than 4095
(cfitsio's issue 136); this one gives the same words.

The instructions are described in section 10.4.3 of the FITS standard 4.0: each 16-bit word holds an operation
in its upper four bits and a number in the lower twelve.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError, UsageError

__all__ = ["decode_plio", "encode_plio", "holdable"]

_LARGEST = (1 << 24) - 1
_NUMBER = 4095
"""The largest number of an instruction."""

_ZEROS, _SET_HIGH, _ADD, _SUBTRACT, _VALUES, _ZEROS_AND_ONE = 0, 1, 2, 3, 4, 5
"""Operations: pixels without a value, the value in two words, more or less of it, and so many pixels that have it."""

_AND_ONE = 4 << 12
"""Makes a change of the value also set the next pixel."""


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


def holdable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an image as lists can hold it: 64-bit integers with 32 bits, as astropy does.

    Raises
    ------
    UsageError
        If they cannot, which astropy refuses, or quantises.
    """
    fits = array.dtype.kind in "iu" and (
        array.dtype.itemsize == 1 or array.size == 0 or (array.min() >= 0 and array.max() <= _LARGEST)
    )
    if not fits:
        found = f"{array.dtype} from {array.min()} to {array.max()}"
        raise UsageError("PLIO does not hold these pixels", expected=f"integers from 0 to {_LARGEST}", found=found)
    return array.astype(np.int32) if array.dtype == np.int64 else array


def encode_plio(pixels: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
    """Encode a line as cfitsio does, to which what is below 0 is 0; return the words of the list."""
    values, counts, zeros = _runs(np.maximum(pixels, 0).astype(np.int64))
    steps = np.diff(values, prepend=1)
    is_large = np.abs(steps) > _NUMBER
    for_value = np.where(steps == 0, 0, 1 + is_large)
    # One pixel can be set by the instruction before its own.
    by_value = (counts == 1) & (zeros == 0) & (for_value == 1)
    by_zeros = (counts == 1) & (zeros > 0)
    for_zeros = -(-zeros // _NUMBER)
    for_values = np.where(by_value | by_zeros, 0, -(-counts // _NUMBER))
    stops = np.cumsum(for_value + for_zeros + for_values)
    places = stops - for_value - for_zeros - for_values
    total = int(stops[-1]) if stops.size else 0

    words = np.empty(7 + total, np.int64)
    words[:7] = 0, 7, -100, words.size % (1 << 15), words.size >> 15, 0, 0
    body = words[7:]
    small = for_value == 1
    change = np.where(steps < 0, (_SUBTRACT << 12) - steps, (_ADD << 12) + steps) + by_value * _AND_ONE
    body[places[small]] = change[small]
    body[places[is_large]] = (_SET_HIGH << 12) + (values[is_large] & _NUMBER)
    body[places[is_large] + 1] = values[is_large] >> 12
    _fill(body, places + for_value, zeros, for_zeros, _ZEROS << 12)
    body[(places + for_value + for_zeros - 1)[by_zeros]] += (_ZEROS_AND_ONE << 12) + 1
    _fill(body, places + for_value + for_zeros, counts, for_values, _VALUES << 12)
    return words.astype(np.int16)


def _runs(pixels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return value and length of each run of equal pixels above 0, and the number of zeros before it.

    Zeros at the end come before a run of no pixels, which changes no value.
    """
    starts = np.concatenate(([0], (pixels[1:] != pixels[:-1]).nonzero()[0] + 1))[: pixels.size]
    values, counts = pixels[starts], np.diff(starts, append=pixels.size)
    is_set = values > 0
    before = np.where(is_set, 0, counts)
    zeros = np.concatenate(([0], before))[:-1][is_set]
    values, counts = values[is_set], counts[is_set]
    if before.size and before[-1]:
        last = values[-1] if values.size else 1
        values, counts, zeros = np.append(values, last), np.append(counts, 0), np.append(zeros, before[-1])
    return values, counts, zeros


def _fill(
    body: NDArray[np.int64],
    places: NDArray[np.int64],
    pixels: NDArray[np.int64],
    n_words: NDArray[np.int64],
    operation: int,
) -> None:
    """Write instructions for pixels, as many words each as are given: all but the last one for 4095 of them."""
    firsts = np.cumsum(n_words) - n_words
    within = np.arange(int(n_words.sum())) - np.repeat(firsts, n_words)
    left = np.repeat(pixels, n_words) - _NUMBER * within
    body[np.repeat(places, n_words) + within] = operation + np.minimum(left, _NUMBER)
