"""The inner loops of Rice-coded tiles, compiled by numba: many rows a call, without the interpreter lock.

They do what `tiles.rice` and `tiles.quantize` do by other means, for the most common tiles: 4-byte
integers, and floats quantised without dithering. Results are equal bit for bit. `tiles.rice` decides when
this module is imported, because compiling has to pay.

The coding is described in section 10.4.1 of the FITS standard 4.0. The choice of the split follows cfitsio's
``fits_rcomp``, that of the zero point its ``fits_quantize_float``. Measured on a 2048 x 2048 science plane written
with KBMOD's defaults, one thread: the Rice code is decoded in 8 ms and made in 11 ms, where cfitsio's coder, called a
row at a time, takes 28 and 39.
"""

# What numba gives back is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import float64, int32, int64, uint8, uint32, uint64
from numba.extending import intrinsic
from numpy.typing import NDArray

from wustore.backends.compiling import compiled, inlined

__all__ = ["PADDING", "decode_floats", "decode_integers", "encode_floats", "encode_floats_again", "encode_integers"]

PADDING = 16
"""Bytes that must follow the last tile that is decoded, and room that the encoder needs behind its last tile."""

_LARGEST = 2147483647.0
_RESERVED = 10.0
_SMALLEST = -2147483648


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(context: Any, value: Any) -> Any:
    """Count the zero bits above the highest one; 64 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return numba.uint64(numba.uint64), generate


# Indices are unsigned throughout: with numba's care for negative ones LLVM would not see one 8-byte load or store.


@inlined
def _word(heap: NDArray[np.uint8], p: int) -> int:
    """Return the 8 bytes from ``p`` on, the first one highest."""
    return (
        (uint64(heap[p]) << uint64(56))
        | (uint64(heap[p + uint64(1)]) << uint64(48))
        | (uint64(heap[p + uint64(2)]) << uint64(40))
        | (uint64(heap[p + uint64(3)]) << uint64(32))
        | (uint64(heap[p + uint64(4)]) << uint64(24))
        | (uint64(heap[p + uint64(5)]) << uint64(16))
        | (uint64(heap[p + uint64(6)]) << uint64(8))
        | uint64(heap[p + uint64(7)])
    )


@inlined
def _put(out: NDArray[np.uint8], p: int, word: int) -> None:
    """Write 8 bytes at ``p``, the highest one first."""
    out[p] = uint8(word >> uint64(56))
    out[p + uint64(1)] = uint8(word >> uint64(48))
    out[p + uint64(2)] = uint8(word >> uint64(40))
    out[p + uint64(3)] = uint8(word >> uint64(32))
    out[p + uint64(4)] = uint8(word >> uint64(24))
    out[p + uint64(5)] = uint8(word >> uint64(16))
    out[p + uint64(6)] = uint8(word >> uint64(8))
    out[p + uint64(7)] = uint8(word)


# --- decoding ------------------------------------------------------------------------------------------
#
# `bits` holds the next bits of the code, the first one highest, `n` of them valid; `p` is the next byte of the heap.
# Filling up makes 56 to 63 bits valid. It is done for four codes, which are short as a rule, and asks nothing that
# depends on the data: a branch that cannot be foreseen would cost more than the load.

_TOGETHER = 4
"""Codes between fillings. A science plane is decoded in 9.9 ms with 1, in 8.6, 7.8 and 11 with 2, 4 and 8."""


@compiled()
def _long_code(heap: NDArray[np.uint8], limit: int, p: int, bits: int, n: int, split: int) -> tuple[int, int, int, int]:
    """Decode a code that may be longer than what is at hand; return p, bits, n and the code.

    Nothing behind ``limit`` is read: where the heap ends ``p`` stays beyond it.
    """
    quotient = uint64(0)
    zeros = min(_leading_zeros(bits), n)
    while zeros == n:
        quotient += n
        if p > limit:
            return p, bits, n, uint32(0)
        bits = _word(heap, p)
        p += uint64(7)
        n = uint64(56)
        zeros = min(_leading_zeros(bits), n)
    bits = bits << zeros << uint64(1)
    n -= zeros + uint64(1)
    if p > limit:
        return p, bits, n, uint32(0)
    bits |= _word(heap, p) >> n
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
    last = uint32(_word(heap, p) >> uint64(32))
    p += uint64(4)
    bits = uint64(0)
    n = uint64(0)
    i = uint64(0)
    while i < n_pixels:
        if p > limit:
            return False
        bits |= _word(heap, p) >> n
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
                bits |= _word(heap, p) >> n
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
            bits |= _word(heap, p) >> n
            p += (uint64(63) - n) >> uint64(3)
            n |= uint64(56)
            for k in range(_TOGETHER):
                zeros = _leading_zeros(bits)
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


@intrinsic  # type: ignore[untyped-decorator]
def _as_float(context: Any, value: Any) -> Any:
    """Return the float64 that has these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return numba.float64(numba.uint64), generate


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
    the tiles; where things are says `tiles.rice.Fields`. Tiles have ``fewest`` to ``most`` bytes, at least 4. ``blank``
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
        descriptor = _word(table, at + uint64(data_at))
        size, start = int64(int32(descriptor >> uint64(32))), int64(int32(uint32(descriptor)))
        step, origin = _as_float(_word(table, at + uint64(scale_at))), _as_float(_word(table, at + uint64(zero_at)))
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


# --- encoding ------------------------------------------------------------------------------------------
#
# `bits` holds what is not written yet, the first bit highest, `n` of them valid. Writing stores 8 bytes and moves on
# by the whole ones among them, which leaves less than 8 bits.


@compiled()
def _encode_tile(
    row: NDArray[np.int32], block_size: int, out: NDArray[np.uint8], p: int, codes: NDArray[np.uint32]
) -> int:
    """Encode one tile from ``out[p]`` on; return where it ends. ``codes`` is working space for a row."""
    n_pixels = uint64(row.size)
    codes[uint64(0)] = uint32(0)
    for k in range(uint64(1), n_pixels):
        difference = int32(uint32(row[k]) - uint32(row[k - uint64(1)]))
        codes[k] = uint32((difference << int32(1)) ^ (difference >> int32(31)))
    bits = uint64(uint32(row[uint64(0)])) << uint64(32)
    n = uint64(32)
    i = uint64(0)
    while i < n_pixels:
        stop = min(i + uint64(block_size), n_pixels)
        count = int64(stop - i)
        total = uint64(0)
        for k in range(i, stop):
            total += uint64(codes[k])
        mean = (float64(total) - (count // 2) - 1) / count
        half = uint64(mean) >> uint64(1) if mean > 0 else uint64(0)
        split = uint64(64) - _leading_zeros(half)
        _put(out, p, bits)
        p += n >> uint64(3)
        bits <<= n & uint64(56)
        n &= uint64(7)
        if split >= uint64(25):
            bits |= uint64(26) << (uint64(59) - n)
            n += uint64(5)
            for k in range(i, stop):
                _put(out, p, bits)
                p += n >> uint64(3)
                bits <<= n & uint64(56)
                n &= uint64(7)
                bits |= (uint64(codes[k]) << uint64(32)) >> n
                n += uint64(32)
        elif total == uint64(0):
            n += uint64(5)
        else:
            bits |= (split + uint64(1)) << (uint64(59) - n)
            n += uint64(5)
            one = uint64(1) << split
            for k in range(i, stop):
                code = uint64(codes[k])
                length = (code >> split) + uint64(1) + split
                if n + length > uint64(63):
                    _put(out, p, bits)
                    p += n >> uint64(3)
                    bits <<= n & uint64(56)
                    n &= uint64(7)
                    while n + length > uint64(63):  # zeros of a long quotient, 32 at a time
                        _put(out, p, bits)
                        p += uint64(4)
                        bits <<= uint64(32)
                        length -= uint64(32)
                bits |= (one | (code & (one - uint64(1)))) << (uint64(64) - n - length)
                n += length
        i = stop
    _put(out, p, bits)
    p += n >> uint64(3)
    bits <<= n & uint64(56)
    n &= uint64(7)
    _put(out, p, bits)
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
        Gets the tiles one after another; it has `wustore.backends.fits.tiles.rice.room_for` each.
    sizes
        Gets the bytes of each.

    Returns
    -------
    int
        The bytes of all of them.
    """
    codes = np.empty(rows.shape[1], np.uint32)
    p = uint64(0)
    for k in range(rows.shape[0]):
        end = _encode_tile(rows[k], block_size, out, p, codes)
        sizes[k] = end - p
        p = end
    return int64(p)


@compiled()
def _extremes(row: NDArray[np.floating[Any]]) -> tuple[Any, Any]:
    """Return the smallest and the largest value that is not NaN; 0 if there is none.

    Four of each side by side: one would wait for the comparison before.
    """
    low = np.full(4, np.inf, row.dtype)
    high = np.full(4, -np.inf, row.dtype)
    n = row.size
    for i in range(0, n - 3, 4):
        for k in range(4):
            value = row[i + k]
            low[k] = min(low[k], value)
            high[k] = max(high[k], value)
    for i in range(n - n % 4, n):
        value = row[i]
        low[0] = min(low[0], value)
        high[0] = max(high[0], value)
    for k in range(1, 4):
        low[0] = min(low[0], low[k])
        high[0] = max(high[0], high[k])
    if low[0] > high[0]:
        low[0] = high[0] = 0
    return low[0], high[0]


@inlined
def _as_integer(value: float) -> int:
    """Truncate; as in C on x86-64, what is out of range and NaN become -2**31."""
    return int32(value) if -2147483649.0 < value < 2147483648.0 else int32(_SMALLEST)


@compiled(entry=True)
def encode_floats(
    values: NDArray[np.floating[Any]],
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
    n_pixels = values.shape[1]
    row = np.empty(n_pixels, np.int32)
    codes = np.empty(n_pixels, np.uint32)
    p = uint64(0)
    has_blank = False
    for k in range(values.shape[0]):
        low, high = _extremes(values[k])
        span = float64(high - low) / step
        if not span < _LARGEST - _RESERVED:  # wide ranges are left to `wustore.backends.fits.tiles.quantize`
            return -1, has_blank
        whole = float64(low) / step + 0.5
        if not abs(whole) < 9007199254740992.0:  # 2**53
            return -1, has_blank
        origin = float64(int64(whole)) * step
        zero[k] = origin
        for i in range(n_pixels):
            value = (float64(values[k, i]) - origin) / step
            row[i] = _as_integer(value + 0.5 if value >= 0 else value - 0.5)
        for i in range(n_pixels):
            has_blank |= np.isnan(values[k, i])
        end = _encode_tile(row, block_size, out, p, codes)
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
    n_pixels = values.shape[1]
    row = np.empty(n_pixels, np.int32)
    codes = np.empty(n_pixels, np.uint32)
    p = uint64(0)
    for k in range(values.shape[0]):
        step, origin = scale[k], zero[k]
        for i in range(n_pixels):
            value = values[k, i]
            if np.isnan(value):
                row[i] = int32(blank)
            else:
                row[i] = _as_integer(np.rint((float64(value) - origin) / step))
        end = _encode_tile(row, block_size, out, p, codes)
        sizes[k] = end - p
        p = end
    return int64(p)
