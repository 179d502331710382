"""Loops that decode Rice-coded tiles, and turn them into floats.

`bits` holds the next bits of the code, the first one highest, `n` of them valid; `p` is the next byte of the heap.
Filling up makes 56 to 63 bits valid. It is done for four codes, which are short as a rule, and asks nothing that
depends on the data: a branch that cannot be foreseen would cost more than the load.
"""

# What numba gives back is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float64, int32, int64, uint32, uint64
from numpy.typing import NDArray

from wustore.backends.compiling import compiled, inlined
from wustore.backends.fits.tiles.rice.bits_numba import as_float, leading_zeros, word_at

__all__ = ["PADDING", "decode_floats", "decode_integers"]

PADDING = 16
"""Bytes that must follow the last tile."""
_TOGETHER = 4
"""Codes between fillings. A science plane is decoded in 9.9 ms with 1, in 8.6, 7.8 and 11 with 2, 4 and 8."""


@compiled()
def _long_code(heap: NDArray[np.uint8], limit: int, p: int, bits: int, n: int, split: int) -> tuple[int, int, int, int]:
    """Decode a code that may be longer than what is at hand; return p, bits, n and the code.

    Nothing behind ``limit`` is read: where the heap ends ``p`` stays beyond it.
    """
    quotient = uint64(0)
    zeros = min(leading_zeros(bits), n)
    while zeros == n:
        quotient += n
        if p > limit:
            return p, bits, n, uint32(0)
        bits = word_at(heap, p)
        p += uint64(7)
        n = uint64(56)
        zeros = min(leading_zeros(bits), n)
    bits = bits << zeros << uint64(1)
    n -= zeros + uint64(1)
    if p > limit:
        return p, bits, n, uint32(0)
    bits |= word_at(heap, p) >> n
    p += (uint64(63) - n) >> uint64(3)
    n |= uint64(56)
    code = uint32((zeros + quotient) << split) | uint32(bits >> uint64(1) >> (uint64(63) - split))
    return p, bits << split, n - split, code


@inlined
def _moved(last: int, code: int) -> int:
    """Return the pixel after ``last``: even codes are differences above or equal to 0, odd ones below."""
    return uint32(last + ((code >> uint32(1)) ^ (uint32(0) - (code & uint32(1)))))


@compiled()
def _decode_tile(heap: NDArray[np.uint8], start: int, end: int, block_size: int, out: NDArray[np.int32]) -> bool:
    """Decode one tile; return False if it ends too early or names a split that does not exist.

    Nothing outside of the heap is read, whatever it holds.
    """
    limit = uint64(heap.size) - uint64(8)
    n_pixels = uint64(out.size)
    p = uint64(start)
    last = uint32(word_at(heap, p) >> uint64(32))
    p += uint64(4)
    bits = uint64(0)
    n = uint64(0)
    i = uint64(0)
    while i < n_pixels:
        if p > limit:
            return False
        bits |= word_at(heap, p) >> n
        p += (uint64(63) - n) >> uint64(3)
        n |= uint64(56)
        selector = bits >> uint64(59)
        bits <<= uint64(5)
        n -= uint64(5)
        stop = min(i + uint64(block_size), n_pixels)
        if selector == uint64(0):  # all differences are 0
            for k in range(i, stop):
                out[k] = int32(last)
            i = stop
            continue
        if selector >= uint64(26):  # 32 bits each
            if selector != uint64(26):  # nothing writes these, and cfitsio and the standard read them differently
                return False
            for k in range(i, stop):
                if p > limit:
                    return False
                bits |= word_at(heap, p) >> n
                p += (uint64(63) - n) >> uint64(3)
                n |= uint64(56)
                last = _moved(last, uint32(bits >> uint64(32)))
                bits <<= uint64(32)
                n -= uint64(32)
                out[k] = int32(last)
            i = stop
            continue
        split = selector - uint64(1)
        down = uint64(63) - split
        while i + uint64(_TOGETHER) <= stop:
            if p > limit:
                return False
            bits |= word_at(heap, p) >> n
            p += (uint64(63) - n) >> uint64(3)
            n |= uint64(56)
            for k in range(_TOGETHER):
                zeros = leading_zeros(bits)
                if zeros + split >= n:
                    p, bits, n, code = _long_code(heap, limit, p, bits, n, split)
                else:
                    bits = bits << zeros << uint64(1)
                    n -= zeros + uint64(1) + split
                    code = uint32(zeros << split) | uint32(bits >> uint64(1) >> down)
                    bits <<= split
                last = _moved(last, code)
                out[i + uint64(k)] = int32(last)
            i += uint64(_TOGETHER)
        while i < stop:
            p, bits, n, code = _long_code(heap, limit, p, bits, n, split)
            last = _moved(last, code)
            out[i] = int32(last)
            i += uint64(1)
    return p - (n >> uint64(3)) <= uint64(end)


@compiled(entry=True)
def decode_integers(heap: NDArray[np.uint8], spans: NDArray[np.int64], block_size: int, out: NDArray[np.int32]) -> int:
    """Decode tiles of 4-byte integers.

    Parameters
    ----------
    heap
        The bytes that hold the tiles; `PADDING` more follow the last one.
    spans
        First and last byte of each tile in `heap`, shape (2, tile). Tiles have at least 4 bytes.
    out
        Gets the pixels, shape (tile, pixel).

    Returns
    -------
    int
        The first tile that does not decode, -1 if there is none.
    """
    for k in range(out.shape[0]):
        if not _decode_tile(heap, spans[0, k], spans[1, k], block_size, out[k]):
            return k
    return -1


@compiled(entry=True)
def decode_floats(
    table: NDArray[np.uint8],
    rows: NDArray[np.int64],
    row_size: int,
    data_at: int,
    scale_at: int,
    zero_at: int,
    heap_start: int,
    block_size: int,
    fewest: int,
    most: int,
    blank: int,
    out: NDArray[np.floating[Any]],
) -> int:
    """Decode tiles of floats that were quantised without dithering: value = integer * ZSCALE + ZZERO.

    Descriptors and factors are read from the table here: with numpy they would take as many calls as decoding, each
    of which gives the interpreter lock up and takes it again. ``table`` is main table and heap, ``rows`` are those of
    the tiles; where things are says `rice.coder.Fields`. Tiles have ``fewest`` to ``most`` bytes, at least 4. ``blank``
    means NaN. ``out`` is float32 or float64, shape (tile, pixel).

    Returns
    -------
    int
        The first tile that does not decode, lies outside of the heap or has no finite factors; -1 if there is none.
    """
    heap = table[heap_start:]
    n_pixels = out.shape[1]
    row = np.empty(n_pixels, np.int32)
    for k in range(out.shape[0]):
        at = uint64(rows[k] * row_size)
        descriptor = word_at(table, at + uint64(data_at))
        size, start = int64(int32(descriptor >> uint64(32))), int64(int32(uint32(descriptor)))
        step, origin = as_float(word_at(table, at + uint64(scale_at))), as_float(word_at(table, at + uint64(zero_at)))
        lies_in_heap = fewest <= size <= most and 0 <= start <= heap.size - size
        if not (lies_in_heap and np.isfinite(step) and np.isfinite(origin)):
            return k
        if start + size + PADDING <= heap.size:
            decodes = _decode_tile(heap, start, start + size, block_size, row)
        else:
            padded = np.full(size + PADDING, 255, np.uint8)
            padded[:size] = heap[start : start + size]
            decodes = _decode_tile(padded, 0, size, block_size, row)
        if not decodes:
            return k
        for i in range(n_pixels):
            out[k, i] = np.nan if row[i] == blank else float64(row[i]) * step + origin
    return -1
