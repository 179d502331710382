"""The inner loops of chunks, compiled by numba: many chunks a call, without the interpreter lock.

`wustore.backends.hdf5.filters.pipeline` has an equivalent with numpy for each of them, and decides when this module is
imported. Those that encode are in `wustore.backends.hdf5.filters.deflate_numba`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, intp, uint16, uint32, uint64
from numpy.typing import NDArray

from wustore.backends.bytes_numba import call, copy, first_word
from wustore.backends.compiling import compiled

__all__ = ["fletcher32", "fletcher32_of", "unpack"]


@compiled(entry=True)
def unpack(
    functions: NDArray[np.intp],
    handle: int,
    raw: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    skipped: NDArray[np.uint32],
    bits: NDArray[np.int64],
    expected: NDArray[np.uint32],
    parts: NDArray[np.int64],
    shape: NDArray[np.int64],
    item: int,
    out: NDArray[np.uint8],
    scratch: NDArray[np.uint8],
) -> int:
    """Decode chunks and copy parts of them to where they belong; return how many were as they should be.

    The first one that is not ends the work.

    Parameters
    ----------
    functions
        Addresses of ``pread``, of libdeflate's functions that make, use and free a decoder, and of Blosc's decoder.
    handle
        File that the chunks are read from, one after the other; -1 if they are there.
    raw
        Stored chunks, or memory for one.
    starts, sizes, skipped
        Where each lies, and which filters were left out of it.
    bits
        Those of fletcher32, deflate, shuffle and Blosc in ``skipped``, 0 for one that is not used.
    expected
        The fletcher32 that is recorded for each; empty if none is.
    parts
        In ascending order of the chunks.
    shape
        Of a chunk, three axes.
    item
        Bytes of a value.
    out, scratch
        Memory for the parts, and for one chunk.
    """
    decoder = call(functions[1], ()) if bits[1] else 0
    done = 0
    if decoder or not bits[1]:
        done = _unpack(
            functions, decoder, handle, raw, starts, sizes, skipped, bits, expected, parts, shape, item, out, scratch
        )
    if decoder:
        call(functions[3], (decoder,))
    return done


@compiled()
def _unpack(
    functions: NDArray[np.intp],
    decoder: int,
    handle: int,
    raw: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    skipped: NDArray[np.uint32],
    bits: NDArray[np.int64],
    expected: NDArray[np.uint32],
    parts: NDArray[np.int64],
    shape: NDArray[np.int64],
    item: int,
    out: NDArray[np.uint8],
    scratch: NDArray[np.uint8],
) -> int:
    nbytes = shape[0] * shape[1] * shape[2] * item
    n = 0
    for k in range(starts.size):
        start, size = starts[k], sizes[k]
        if handle >= 0:
            start = _fetched(functions[0], handle, raw, start, size)
        if start < 0 or size < 0 or start + size > raw.size:
            return k
        passed = ~int64(skipped[k])
        word = uint32(0)
        if bits[0]:
            if size < 4:
                return k
            word = first_word(raw[start + size - 4 : start + size])
            if passed & bits[0]:
                size -= 4
                if fletcher32_of(raw[start : start + size]) != word:
                    return k
        if expected.size and expected[k] != word:
            return k
        chunk = raw[start : start + size]
        if passed & (bits[1] | bits[3]):
            room = scratch[:nbytes]
            if not _expanded(functions, decoder, chunk, room):
                return k
            chunk = room
        elif size != nbytes:
            return k
        is_shuffled = item > 1 and passed & bits[2] != 0
        while n < parts.shape[0] and parts[n, 0] == k:
            _place(chunk, is_shuffled, parts[n], shape, item, out)
            n += 1
    return starts.size if n == parts.shape[0] else 0  # otherwise they were in another order


@compiled()
def _fetched(pread: int, handle: int, raw: NDArray[np.uint8], start: int, size: int) -> int:
    """Read a chunk; return where it begins in ``raw``, -1 if it cannot be read at once."""
    if not 0 <= size <= raw.size or call(pread, (handle, raw.ctypes.data, size, start)) != size:
        return -1
    return 0


@compiled()
def _expanded(functions: NDArray[np.intp], decoder: int, chunk: NDArray[np.uint8], room: NDArray[np.uint8]) -> bool:
    """Decode a chunk with libdeflate, or with Blosc if there is no decoder; return whether it fills ``room``."""
    source, target, none = chunk.ctypes.data, room.ctypes.data, intp(0)
    if decoder:  # without an address for their number, exactly so many bytes must come out
        status = call(functions[2], (decoder, source, chunk.size, target, room.size, none))
        return bool(status & 0xFFFFFFFF == 0)
    if chunk.size < 16 or first_word(chunk[12:16]) != chunk.size:  # Blosc trusts the size that is written in a chunk
        return False
    return bool(call(functions[4], (source, target, room.size, intp(1))) & 0xFFFFFFFF == room.size)


@compiled()
def _place(
    chunk: NDArray[np.uint8],
    is_shuffled: bool,
    part: NDArray[np.int64],
    shape: NDArray[np.int64],
    item: int,
    out: NDArray[np.uint8],
) -> None:
    """Copy a part of a chunk to where it belongs, and undo the shuffle filter on the way."""
    step, count = shape[0] * shape[1] * shape[2], part[5]
    for z in range(part[3]):
        for y in range(part[4]):
            low = part[1] + (z * shape[1] + y) * shape[2]
            high = part[2] + z * part[6] + y * part[7]
            if not is_shuffled:
                copy(chunk[low * item : (low + count) * item], out[high * item : (high + count) * item])
            elif item == 2:
                _join(chunk[low:], step, out.view(np.uint16)[high : high + count])
            elif item == 4:
                _join(chunk[low:], step, out.view(np.uint32)[high : high + count])
            else:
                _join(chunk[low:], step, out.view(np.uint64)[high : high + count])


@compiled()
def _join(data: NDArray[np.uint8], step: int, out: NDArray[Any]) -> None:
    """Put values together whose bytes lie ``step`` apart."""
    b, c, d = data[step:], data[2 * step :], data[3 * step :]
    if out.itemsize == 2:
        for x in range(out.size):
            out[x] = uint16(data[x]) | (uint16(b[x]) << uint16(8))
    elif out.itemsize == 4:
        for x in range(out.size):
            out[x] = uint32(data[x]) | (uint32(b[x]) << 8) | (uint32(c[x]) << 16) | (uint32(d[x]) << 24)
    else:
        e, f, g, h = data[4 * step :], data[5 * step :], data[6 * step :], data[7 * step :]
        for x in range(out.size):
            low = uint32(data[x]) | (uint32(b[x]) << 8) | (uint32(c[x]) << 16) | (uint32(d[x]) << 24)
            high = uint32(e[x]) | (uint32(f[x]) << 8) | (uint32(g[x]) << 16) | (uint32(h[x]) << 24)
            out[x] = uint64(low) | (uint64(high) << 32)


# --- fletcher32 -------------------------------------------------------------------------------------------

_WORDS = 360
"""How many words of 16 bits can be added up so that the second sum stays within 32 bits."""


@compiled(entry=True)
def fletcher32(data: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the checksums of some parts of ``data``, as HDF5's filter defines them."""
    sums = np.empty(starts.size, np.uint32)
    for k in range(starts.size):
        sums[k] = fletcher32_of(data[starts[k] : starts[k] + sizes[k]])
    return sums


@compiled()
def fletcher32_of(data: NDArray[np.uint8]) -> Any:
    """Return the checksum of some bytes, as HDF5's filter defines it."""
    first, second = uint32(0), uint32(0)
    n = data.size // 2
    for start in range(0, n, _WORDS):
        count = min(_WORDS, n - start)
        part = data[2 * start : 2 * (start + count)]
        plain, weighted = uint32(0), uint32(0)
        for j in range(count):
            word = (uint32(part[2 * j]) << uint32(8)) | uint32(part[2 * j + 1])
            plain += word
            weighted += uint32(count - j) * word
        second = _folded(uint64(second) + uint64(weighted) + uint64(count) * uint64(first))
        first = _folded(uint64(first) + uint64(plain))
    if data.size % 2:
        first = _folded(uint64(first) + (uint64(data[-1]) << uint64(8)))
        second = _folded(uint64(second) + uint64(first))
    return (second << uint32(16)) | first


@compiled()
def _folded(value: Any) -> Any:
    """Return a number of the same remainder by 65535 that has 16 bits; 0 for 0 only."""
    while value > uint64(0xFFFF):
        value = (value & uint64(0xFFFF)) + (value >> uint64(16))
    return uint32(value)
