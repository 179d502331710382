"""The loops of `wustore.backends.hdf5.filters.deflate_encoder`, compiled by numba: they hold no interpreter lock.

`pack` encodes all chunks of a plane in one call, with the functions of the libdeflate that imagecodecs brings.
"""

# What numba gives back is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numba import intp, uint32, uint64
from numpy.typing import NDArray

from wustore.backends.bytes_numba import call, copy
from wustore.backends.compiling import compiled
from wustore.backends.hdf5.filters import deflate_encoder
from wustore.backends.hdf5.filters.loops_numba import fletcher32_of

__all__ = ["blocks", "pack"]

_BLOCK_HEADER, _TURNED = deflate_encoder.BLOCK_HEADER, deflate_encoder.TURNED
_HUFFMAN, _STORED = deflate_encoder.HUFFMAN, deflate_encoder.STORED
_LARGEST_STORED, _LONGEST_CODE = deflate_encoder.LARGEST_STORED, deflate_encoder.LONGEST_CODE
_SAMPLES, _SAMPLE_BYTES = deflate_encoder.SAMPLES, deflate_encoder.SAMPLE_BYTES
_LEAST_BYTES, _CODE_BYTES = deflate_encoder.LEAST_BYTES, deflate_encoder.CODE_BYTES
_REPEATED, _STORED_FROM = deflate_encoder.REPEATED, deflate_encoder.STORED_FROM

_code_table = compiled()(deflate_encoder.code_table)


@compiled(entry=True)
def pack(
    functions: NDArray[np.intp],
    level: int,
    plane: NDArray[np.uint8],
    item: int,
    corners: NDArray[np.int64],
    shape: NDArray[np.int64],
    is_shuffled: bool,
    is_summed: bool,
    terms: NDArray[np.float64],
    out: NDArray[np.uint8],
    ends: NDArray[np.int64],
    skipped: NDArray[np.bool_],
) -> bool:
    """Shuffle and deflate chunks of a plane, and add their fletcher32; return whether there was memory for it.

    Parameters
    ----------
    functions
        Addresses, as `wustore.backends.hdf5.filters.deflate_encoder.functions` returns them.
    level
        For libdeflate.
    plane
        Bytes of the plane, shape (y, x * item).
    item
        Bytes of a value.
    corners, shape
        First pixel (y, x) of each chunk, which lies within the plane; shape of a chunk.
    is_shuffled, is_summed
        Whether there are these filters.
    terms
        As `wustore.backends.hdf5.filters.deflate_encoder.code_terms` returns it.
    out, ends, skipped
        Get the chunks, one after the other, where each ends, and whether it is not deflated.
    """
    compressor = call(functions[0], (intp(level),))
    if not compressor:
        return False
    size = shape[0] * shape[1] * item
    planes = np.empty((item, size // item) if is_shuffled else (1, size), np.uint8)
    sample = np.empty(_SAMPLES * _SAMPLE_BYTES, np.uint8)
    room = np.empty(2 * sample.size + 1024, np.uint8)
    at = 0
    for k in range(corners.shape[0]):
        _split(plane, corners[k, 0], corners[k, 1] * item, shape[0], shape[1] * item, planes)
        end = _encode(functions, compressor, planes, terms, sample, room, out, at)
        skipped[k] = not at < end < at + size
        if skipped[k]:
            end = at + size
            copy(planes.reshape(-1), out[at:end])
        if is_summed:
            word = fletcher32_of(out[at:end])
            for _ in range(4):
                out[end] = word & uint32(255)
                word >>= uint32(8)
                end += 1
        ends[k] = at = end
    call(functions[5], (compressor,))
    return True


@compiled()
def _split(plane: NDArray[np.uint8], top: int, left: int, height: int, width: int, planes: NDArray[np.uint8]) -> None:
    """Put the first bytes of all values into the first plane, and so on."""
    item, columns = planes.shape[0], width // planes.shape[0]
    for b in range(item):
        target = planes[b]
        for y in range(height):
            row = plane[top + y, left : left + width]
            line = target[y * columns : (y + 1) * columns]
            if item == 1:
                copy(row, line)
            elif item == 2:
                for x in range(columns):
                    line[x] = row[2 * x + b]
            elif item == 4:
                for x in range(columns):
                    line[x] = row[4 * x + b]
            else:
                for x in range(columns):
                    line[x] = row[item * x + b]


@compiled()
def _encode(
    functions: NDArray[np.intp],
    compressor: int,
    planes: NDArray[np.uint8],
    terms: NDArray[np.float64],
    sample: NDArray[np.uint8],
    room: NDArray[np.uint8],
    out: NDArray[np.uint8],
    start: int,
) -> int:
    """Write a zlib stream from ``start`` on; return where it ends, ``start`` if it has no room."""
    kinds = _kinds(functions, compressor, planes, terms, sample, room)
    flat = planes.reshape(-1)
    at = start
    if not kinds.size:
        size = call(functions[2], (compressor, flat.ctypes.data, flat.size, out[at:].ctypes.data, out.size - at))
        return at + size
    out[at], out[at + 1] = 0x78, 0x01
    rest = flat[kinds.size * planes.shape[1] :]
    at = _blocks(out, at + 2, planes[: kinds.size], kinds, rest.size == 0)
    if rest.size:
        size = call(functions[1], (compressor, rest.ctypes.data, rest.size, out[at:].ctypes.data, out.size - at))
        if not size:
            return start
        at += size
    adler = uint32(call(functions[4], (intp(1), flat.ctypes.data, flat.size)) & 0xFFFFFFFF)
    for shift in (24, 16, 8, 0):
        out[at] = (adler >> uint32(shift)) & uint32(255)
        at += 1
    return at


@compiled()
def _kinds(
    functions: NDArray[np.intp],
    compressor: int,
    planes: NDArray[np.uint8],
    terms: NDArray[np.float64],
    sample: NDArray[np.uint8],
    room: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """Return how to encode each of the first planes, those that are noise; samples of them decide."""
    n = planes.shape[1]
    sizes = np.zeros(planes.shape[0])
    count, gain, left = 0, 0.0, 0.0
    for k in range(planes.shape[0] if n >= _LEAST_BYTES else 0):
        taken = _sampled(planes[k], sample)
        share = taken.size / n
        found, used = _bits(taken, terms)
        coded = found / 8 + share * _CODE_BYTES
        made = call(functions[1], (compressor, taken.ctypes.data, taken.size, room.ctypes.data, room.size))
        packed = (made - (1 - share) * (used / 4 + 10)) / taken.size
        sizes[k] = coded = coded / taken.size
        gain += packed - coded
        if gain > left:
            count, left = k + 1, gain
        elif packed < _REPEATED * coded:
            break
    kinds = np.full(count, _HUFFMAN, np.int64)
    for _ in range(count):
        k = int(np.argmax(sizes[:count]))
        left -= 1 - sizes[k]
        if left < 0 or sizes[k] < _STORED_FROM:
            break
        kinds[k] = _STORED
        sizes[k] = -1.0
    return kinds


@compiled()
def _sampled(plane: NDArray[np.uint8], sample: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if plane.size <= _SAMPLES * _SAMPLE_BYTES:
        return plane
    for k in range(_SAMPLES):
        start = (2 * k + 1) * plane.size // (2 * _SAMPLES) - _SAMPLE_BYTES // 2
        copy(plane[start : start + _SAMPLE_BYTES], sample[k * _SAMPLE_BYTES : (k + 1) * _SAMPLE_BYTES])
    return sample


@compiled()
def _bits(sample: NDArray[np.uint8], terms: NDArray[np.float64]) -> tuple[float, int]:
    """Return the bits that a Huffman code takes, added up in the order in which numpy does, and how many codes."""
    counts = np.zeros(256, np.int64)
    for value in sample:
        counts[value] += 1
    bits = np.empty(256)
    n = 0
    for count in counts:
        if count:
            bits[n] = terms[count]
            n += 1
    if n <= _AT_ONCE:
        return _total(bits[:n]), n
    half = n // 2 // 8 * 8
    if n - half <= _AT_ONCE:
        return _total(bits[:half]) + _total(bits[half:n]), n
    quarter = half + (n - half) // 2 // 8 * 8
    return _total(bits[:half]) + (_total(bits[half:quarter]) + _total(bits[quarter:n])), n


_AT_ONCE = 128
"""Numbers that numpy adds up without cutting them into halves."""


@compiled()
def _total(values: NDArray[np.float64]) -> float:
    n = values.size
    if n < 8:
        total = 0.0
        for value in values:
            total += value
        return total
    r = values[:8].copy()
    whole = n // 8 * 8
    for i in range(8, whole, 8):
        for k in range(8):
            r[k] += values[i + k]
    total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
    for i in range(whole, n):
        total += values[i]
    return total


# --- blocks ---------------------------------------------------------------------------------------------------


@compiled(entry=True)
def blocks(planes: NDArray[np.uint8], kinds: NDArray[np.int64], is_end: bool) -> NDArray[np.uint8]:
    """Return a deflate block for each plane, and if that is not the end, what leads to the next whole byte.

    Parameters
    ----------
    planes, kinds
        Bytes, and whether each plane is stored or coded.
    is_end
        Whether the stream ends with the last plane.
    """
    n = planes.shape[1]
    out = np.empty(planes.shape[0] * (n * _LONGEST_CODE // 8 + n // _LARGEST_STORED * 5 + 160) + 16, np.uint8)
    return out[: _blocks(out, 0, planes, kinds, is_end)]


@compiled()
def _counts(plane: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each byte occurs, and 1 for the end of the block. Shape (1, symbols)."""
    found = np.zeros((1, 257), np.int64)
    even, odd = np.zeros(256, np.uint32), np.zeros(256, np.uint32)
    for j in range(0, plane.size - 1, 2):  # two tables: equal bytes in a row would wait for each other
        even[plane[j]] += uint32(1)
        odd[plane[j + 1]] += uint32(1)
    if plane.size % 2:
        even[plane[-1]] += uint32(1)
    for value in range(256):
        found[0, value] = even[value] + odd[value]
    found[0, 256] = 1
    return found


@compiled()
def _blocks(out: NDArray[np.uint8], at: int, planes: NDArray[np.uint8], kinds: NDArray[np.int64], is_end: bool) -> int:
    """Write what `blocks` returns from ``out[at]`` on; return where it ends."""
    n = planes.shape[1]
    held, bits = 0, uint64(0)
    for k in range(planes.shape[0]):
        is_last = is_end and k == planes.shape[0] - 1
        if kinds[k] == _STORED:
            for start in range(0, n, _LARGEST_STORED):
                size = min(_LARGEST_STORED, n - start)
                bits |= uint64(is_last and start + size == n) << uint64(held)
                at = _stored(out, at, bits, held + 3, planes[k, start : start + size])
                held, bits = 0, uint64(0)
            continue
        counts = _counts(planes[k])
        order = np.argsort(counts[0], kind="mergesort").reshape(1, -1)
        table = _code_table(counts, order)[0]
        bits |= uint64(4 + is_last) << uint64(held)
        held += 3
        for j in range(_BLOCK_HEADER.shape[0]):
            bits |= uint64(_BLOCK_HEADER[j, 0]) << uint64(held)
            at, bits, held = _written(out, at, bits, held + _BLOCK_HEADER[j, 1])
        for j in range(258):
            length = table[j] & 15 if j < 257 else 1
            bits |= uint64(_TURNED[length]) << uint64(held)
            at, bits, held = _written(out, at, bits, held + 4)
        codes, lengths = (table >> 4).astype(np.uint64), (table & 15).astype(np.uint64)
        at, bits, held = _coded(out, at, bits, held, planes[k], codes, lengths)
        bits |= codes[256] << uint64(held)
        at, bits, held = _written(out, at, bits, held + int(lengths[256]))
    if not is_end:
        at = _stored(out, at, bits, held + 3, planes[0, :0])
    elif held:
        out[at] = bits
        at += 1
    return at


@compiled()
def _coded(
    out: NDArray[np.uint8],
    at: int,
    bits: int,
    held: int,
    plane: NDArray[np.uint8],
    codes: NDArray[np.uint64],
    lengths: NDArray[np.uint64],
) -> tuple[int, int, int]:
    """Write the codes of a plane's bytes; return where the next ones go, and the bits that are left."""
    room, many = uint64(held), uint64(bits)
    for j in range(plane.size):
        symbol = plane[j]
        many |= codes[symbol] << room
        room += lengths[symbol]
        if room >= uint64(32):
            out[at] = many & uint64(255)
            out[at + 1] = (many >> uint64(8)) & uint64(255)
            out[at + 2] = (many >> uint64(16)) & uint64(255)
            out[at + 3] = (many >> uint64(24)) & uint64(255)
            at += 4
            many >>= uint64(32)
            room -= uint64(32)
    return _written(out, at, many, int(room))


@compiled()
def _written(out: NDArray[np.uint8], at: int, bits: int, held: int) -> tuple[int, int, int]:
    """Write all whole bytes of some bits; return where the next ones go, and the bits that are left."""
    while held >= 8:
        out[at] = bits & uint64(255)
        bits >>= uint64(8)
        at += 1
        held -= 8
    return at, bits, held


@compiled()
def _stored(out: NDArray[np.uint8], at: int, bits: int, held: int, data: NDArray[np.uint8]) -> int:
    """Write some bits, up to the next whole byte, then the sizes and the bytes of a stored block."""
    at, bits, held = _written(out, at, bits, (held + 7) // 8 * 8)
    for size in (data.size, data.size ^ 0xFFFF):
        out[at], out[at + 1] = size & 255, size >> 8
        at += 2
    copy(data, out[at : at + data.size])
    return at + data.size
