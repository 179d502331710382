"""Loops that make Rice-coded tiles, and quantise floats on the way.

The choice of the split follows cfitsio's ``fits_rcomp``, that of the zero point its ``fits_quantize_float``.
"""

# What numba gives back is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float64, int32, int64, uint32, uint64
from numpy.typing import NDArray

from wustore.backends.compiling import compiled, inlined
from wustore.backends.fits.tiles.rice.bits_numba import leading_zeros, put_word

__all__ = ["encode_floats", "encode_floats_again", "encode_integers"]

_LARGEST = 2147483647.0
_RESERVED = 10.0
_SMALLEST = -2147483648

_PLAIN = 26
"""The selector of a block whose differences have 32 bits each."""

_MOST = 56
"""Bits that can be written at a time, with less than 8 before them."""

_LONG = 64
"""The longest run of zeros that is told from longer ones where codes are joined: four of them are above `_MOST`."""


# A row is encoded in steps, most of which the compiler makes vector instructions of: the codes of the differences, the
# selectors of the blocks, the bits of each pixel, of two and of four. What is left takes one store for four pixels.


@compiled()
def _working_space(n_pixels: int, block_size: int) -> Any:
    """Return what a row is encoded in.

    Codes; selectors of the blocks; bits of a pixel and how many; the same of two pixels; and of four.
    """
    return (
        np.empty(n_pixels, np.uint32),
        np.empty((n_pixels - 1) // block_size + 1, np.uint64),
        np.empty(n_pixels, np.uint32),
        np.empty(n_pixels, np.uint32),
        np.empty(n_pixels // 2, np.uint64),
        np.empty(n_pixels // 2, np.uint32),
        np.empty(n_pixels // 4, np.uint64),
        np.empty(n_pixels // 4, np.uint32),
    )


@compiled()
def _code(row: NDArray[np.int32], block_size: int, codes: NDArray[np.uint32], selectors: NDArray[np.uint64]) -> None:
    """Turn pixels into the codes of their differences, and choose a selector for each block: 0, or the split and 1."""
    n_pixels, size = uint64(row.size), uint64(block_size)
    codes[uint64(0)] = uint32(0)
    for k in range(uint64(1), n_pixels):
        difference = int32(uint32(row[k]) - uint32(row[k - uint64(1)]))
        codes[k] = uint32((difference << int32(1)) ^ (difference >> int32(31)))
    for block in range(uint64(selectors.size)):
        first = block * size
        total = uint64(0)
        for k in range(first, min(first + size, n_pixels)):
            total += uint64(codes[k])
        selectors[block] = total
    for block in range(uint64(selectors.size)):
        total, count = selectors[block], min(size, n_pixels - block * size)
        mean = (float64(total) - float64(count >> uint64(1)) - 1.0) / float64(count)
        half = uint64(mean) >> uint64(1) if mean > 0 else uint64(0)
        selectors[block] = min(uint64(65) - leading_zeros(half), uint64(_PLAIN)) if total > uint64(0) else uint64(0)


@compiled()
def _join(block_size: int, space: Any) -> None:
    """Join the bits of four pixels each, where they are few enough; sizes tell."""
    codes, selectors, ones, one_sizes, twos, two_sizes, fours, four_sizes = space
    n_pixels, size = uint64(codes.size), uint64(block_size)
    for block in range(uint64(selectors.size)):
        first = block * size
        split = uint32((selectors[block] - uint64(1)) & uint64(31))
        one, low, more = uint32(1) << split, (uint32(1) << split) - uint32(1), split + uint32(1)
        for k in range(first, min(first + size, n_pixels)):
            code = codes[k]
            ones[k] = uint32(one | (code & low))
            one_sizes[k] = uint32(min(uint32(code >> split), uint32(_LONG)) + more)
    for k in range(uint64(twos.size)):
        after = one_sizes[uint64(2) * k + uint64(1)]
        two_sizes[k] = uint32(one_sizes[uint64(2) * k] + after)
        twos[k] = uint64(ones[uint64(2) * k]) << uint64(after) | uint64(ones[uint64(2) * k + uint64(1)])
    for k in range(uint64(fours.size)):
        after = two_sizes[uint64(2) * k + uint64(1)]
        four_sizes[k] = uint32(two_sizes[uint64(2) * k] + after)
        fours[k] = twos[uint64(2) * k] << uint64(after) | twos[uint64(2) * k + uint64(1)]


# `bits` holds what is not written yet, the first bit highest, `n` of them valid. Writing stores 8 bytes and moves on
# by the whole ones among them, which leaves less than 8 bits.


@inlined
def _written(out: NDArray[np.uint8], p: int, bits: int, n: int) -> tuple[int, int, int]:
    """Write what there is; return p, bits and n for what is left."""
    put_word(out, p, bits)
    return p + (n >> uint64(3)), bits << (n & uint64(56)), n & uint64(7)


@inlined
def _written_with_code(
    out: NDArray[np.uint8], p: int, bits: int, n: int, code: int, split: int
) -> tuple[int, int, int]:
    """Write what there is if there is no room for a code more; return p, bits and n with it."""
    length = (code >> split) + uint64(1) + split
    if n + length > uint64(63):
        p, bits, n = _written(out, p, bits, n)
        while n + length > uint64(63):  # zeros of a long quotient, 32 at a time
            put_word(out, p, bits)
            p += uint64(4)
            bits <<= uint64(32)
            length -= uint64(32)
    one = uint64(1) << split
    return p, bits | (one | (code & (one - uint64(1)))) << (uint64(64) - n - length), n + length


@compiled()
def _encode_tile(row: NDArray[np.int32], block_size: int, out: NDArray[np.uint8], p: int, space: Any) -> int:
    """Encode one tile from ``out[p]`` on; return where it ends. ``space`` is what `_working_space` gave."""
    codes, selectors, _, _, _, _, fours, four_sizes = space
    _code(row, block_size, codes, selectors)
    _join(block_size, space)
    n_pixels, size = uint64(row.size), uint64(block_size)
    bits = uint64(uint32(row[uint64(0)])) << uint64(32)
    n = uint64(32)
    for block in range(uint64(selectors.size)):
        k, selector = block * size, selectors[block]
        stop = min(k + size, n_pixels)
        p, bits, n = _written(out, p, bits, n)
        bits |= selector << (uint64(59) - n)
        n += uint64(5)
        if selector == uint64(0):  # all differences are 0
            continue
        if selector == uint64(_PLAIN):
            for j in range(k, stop):
                p, bits, n = _written(out, p, bits, n)
                bits |= (uint64(codes[j]) << uint64(32)) >> n
                n += uint64(32)
            continue
        split = selector - uint64(1)
        while k % uint64(4) == uint64(0) and k + uint64(4) <= stop:
            length = uint64(four_sizes[k >> uint64(2)])
            if length <= uint64(_MOST):
                p, bits, n = _written(out, p, bits, n)
                bits |= fours[k >> uint64(2)] << (uint64(64) - n - length)
                n += length
            else:
                for j in range(k, k + uint64(4)):
                    p, bits, n = _written_with_code(out, p, bits, n, uint64(codes[j]), split)
            k += uint64(4)
        for j in range(k, stop):
            p, bits, n = _written_with_code(out, p, bits, n, uint64(codes[j]), split)
    p, bits, n = _written(out, p, bits, n)
    put_word(out, p, bits)
    return p + ((n + uint64(7)) >> uint64(3))


@compiled(entry=True)
def encode_integers(rows: NDArray[np.int32], block_size: int, out: NDArray[np.uint8], sizes: NDArray[np.int64]) -> int:
    """Encode each row as a tile.

    Parameters
    ----------
    rows
        Shape (tile, pixel).
    block_size
        Pixels per coding block. Up to 64 the bytes are cfitsio's; above, cfitsio writes differences of 2**30 and
        more so that nothing decodes them if they are rare, and these loops so that they decode.
    out
        Gets the tiles one after another; it has `rice.coder.room_for` each.
    sizes
        Gets the bytes of each.

    Returns
    -------
    int
        The bytes of all of them.
    """
    space = _working_space(rows.shape[1], block_size)
    p = uint64(0)
    for k in range(rows.shape[0]):
        end = _encode_tile(rows[k], block_size, out, p, space)
        sizes[k] = end - p
        p = end
    return int64(p)


# --- floats --------------------------------------------------------------------------------------------


@compiled()
def _extremes(bits: NDArray[np.signedinteger[Any]], infinity: int, found: NDArray[np.signedinteger[Any]]) -> None:
    """Find the bits of the smallest and of the largest value that is not NaN; 0 if there is none.

    The compiler makes vector instructions of comparisons of integers, which are put in the order of the floats: the
    bits of positive ones, and those of negative ones with all but the sign turned over.
    """
    sign = bits.itemsize * 8 - 1
    kind = bits.dtype.type
    most = kind(~(kind(-1) << sign))
    low, high = most, kind(~most)
    for i in range(uint64(bits.size)):
        value = bits[i]
        key = kind(value ^ (kind(value >> sign) & most))
        is_nan = kind(value & most) > infinity
        low = min(low, most if is_nan else key)
        high = max(high, kind(~most) if is_nan else key)
    if low > high:
        low = high = kind(0)
    found[0] = low ^ (kind(low >> sign) & most)
    found[1] = high ^ (kind(high >> sign) & most)


@inlined
def _as_integer(value: float) -> int:
    """Truncate; as in C on x86-64, what is out of range and NaN become -2**31."""
    return int32(value) if -2147483649.0 < value < 2147483648.0 else int32(_SMALLEST)


_DOUBT = 2.0**-18
"""More than rounding can move a level in units of the step, below 2**31: six times half of its last digit, 2**-22."""


@compiled()
def _is_rounded(values: NDArray[np.floating[Any]], origin: float, step: float, row: NDArray[np.int32]) -> bool:
    """Round to the nearest level if that can be done by multiplying, a third of the work; return whether it can.

    It cannot where a value may lie in the middle between two levels: what is rounded there depends on the last digit
    of a division. NaN becomes -2**31.
    """
    if not 1e-300 < step < 1e300:
        return False
    inverse = 1.0 / step
    is_doubtful = False
    for i in range(uint64(values.size)):
        value = (float64(values[i]) - origin) * inverse + 0.5
        level = np.floor(value - _DOUBT)
        is_doubtful |= (level < np.floor(value + _DOUBT)) | (abs(level) > 2147483646.0)
        row[i] = _as_integer(level)
    return not is_doubtful


@compiled(entry=True)
def encode_floats(
    values: NDArray[np.floating[Any]],
    bits: NDArray[np.signedinteger[Any]],
    step: float,
    block_size: int,
    out: NDArray[np.uint8],
    sizes: NDArray[np.int64],
    zero: NDArray[np.float64],
) -> tuple[int, bool]:
    """Quantise each row without dithering and encode it as a tile.

    Parameters
    ----------
    values
        float32 or float64, shape (tile, pixel).
    bits
        The same memory as signed integers.
    step
        The distance between levels, above 0.
    zero
        Gets the zero point of each tile.

    Returns
    -------
    int
        The bytes of all tiles; -1 if one cannot be quantised, and nothing else has a meaning then.
    bool
        Whether there are NaN.
    """
    n_pixels = uint64(values.shape[1])
    row = np.empty(n_pixels, np.int32)
    space = _working_space(values.shape[1], block_size)
    extremes = np.empty(2, values.dtype)
    extremes_bits = extremes.view(bits.dtype)
    extremes[0] = np.inf
    infinity = extremes_bits[0]
    p = uint64(0)
    has_blank = False
    for k in range(values.shape[0]):
        _extremes(bits[k], infinity, extremes_bits)
        low, high = extremes[0], extremes[1]
        span = float64(high - low) / step
        if not span < _LARGEST - _RESERVED:  # wide ranges are left to `wustore.backends.fits.tiles.quantize`
            return -1, has_blank
        whole = float64(low) / step + 0.5
        if not abs(whole) < 9007199254740992.0:  # 2**53
            return -1, has_blank
        origin = float64(int64(whole)) * step
        zero[k] = origin
        if not _is_rounded(values[k], origin, step, row):
            for i in range(n_pixels):
                value = (float64(values[k, i]) - origin) / step
                row[i] = _as_integer(value + 0.5 if value >= 0 else value - 0.5)
        for i in range(n_pixels):
            has_blank |= row[i] == int32(_SMALLEST)  # nothing else is so far from the zero point
        end = _encode_tile(row, block_size, out, p, space)
        sizes[k] = end - p
        p = end
    return int64(p), has_blank


@compiled(entry=True)
def encode_floats_again(
    values: NDArray[np.floating[Any]],
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    blank: int,
    block_size: int,
    out: NDArray[np.uint8],
    sizes: NDArray[np.int64],
) -> int:
    """Recover the integers that `decode_floats` turned into values, and encode each row as a tile.

    ``scale`` and ``zero`` are ZSCALE and ZZERO of each tile; ``blank`` means NaN, -2**31 if no integer does.
    """
    n_pixels = uint64(values.shape[1])
    row = np.empty(n_pixels, np.int32)
    space = _working_space(values.shape[1], block_size)
    p = uint64(0)
    for k in range(values.shape[0]):
        step, origin = scale[k], zero[k]
        if not _is_rounded(values[k], origin, step, row):
            for i in range(n_pixels):
                row[i] = _as_integer(np.rint((float64(values[k, i]) - origin) / step))
        if blank != _SMALLEST:
            for i in range(n_pixels):
                row[i] = int32(blank) if np.isnan(values[k, i]) else row[i]
        end = _encode_tile(row, block_size, out, p, space)
        sizes[k] = end - p
        p = end
    return int64(p)
