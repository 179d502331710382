"""The inner loops of reading and writing chunks, compiled by numba: a block a call, without the interpreter lock.

Chunks end in their CRC-32C, so that the checksum over all of a chunk is always the same number.
"""

from __future__ import annotations

import numpy as np
from numba import intp, uint8, uint32, uint64
from numpy.typing import NDArray

from wustore.backends.bytes_numba import LINE, call, copy, fence, first_word, move, stream
from wustore.backends.compiling import compiled
from wustore.model.checksum import RESIDUE

__all__ = ["join", "pack_blosc", "pack_raw", "pack_zstd", "place", "split", "unpack"]

_SOUND = uint32(RESIDUE)


@compiled(entry=True)
def join(
    functions: NDArray[np.intp],
    handle: int,
    offset: int,
    stored: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    size: int,
    out: NDArray[np.uint8],
) -> bool:
    """Check files of pcodec and make one of them: the first header, the chunks of all, and the zero at the end.

    Parameters
    ----------
    functions
        Addresses of C's functions: see `wustore.backends.zarr.filters.blocks`.
    handle, offset
        Descriptor of a file, and where to read ``stored`` from; a negative one if that has been read.
    stored, bounds
        Bytes, and where in them the chunks are, each with its checksum. Shape (chunks, 2).
    size
        Number of values of a chunk.
    out
        Memory for the file.

    Returns
    -------
    bool
        False if anything is not as it should be.
    """
    if not _is_read(functions, handle, offset, stored):
        return False
    first, at = bounds[0, 0], 0
    head = 0
    for k in range(bounds.shape[0]):
        start, stop = bounds[k, 0], bounds[k, 1]
        if not _is_sound(functions, stored, start, stop):
            return False
        if k == 0:
            head = _pcodec_header(stored[start:stop], size)
        # Header, dtype and number of values: those of the first one; a zero and the checksum behind the chunk.
        if head == 0 or stop - start < head + 9 or stored[stop - 5] != 0:
            return False
        for x in range(head + 4):
            if stored[start + x] != stored[first + x]:
                return False
        start += 0 if k == 0 else head
        count = stop - 5 - start
        if at + count >= out.size:
            return False
        move(out.ctypes.data + at, stored.ctypes.data + start, count)
        at += count
    out[at] = 0
    return True


@compiled(entry=True)
def unpack(
    functions: NDArray[np.intp],
    is_zstd: bool,
    handle: int,
    offset: int,
    stored: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    nbytes: int,
    out: NDArray[np.uint8],
) -> int:
    """Check and decode chunks of zstd or Blosc; return how many were as they should be: the first that is not ends it.

    Parameters
    ----------
    functions, handle, offset, stored, bounds
        As for `join`.
    is_zstd
        Whether they are frames of zstd.
    nbytes
        Length of a decoded chunk.
    out
        Memory for all of them.
    """
    if not _is_read(functions, handle, offset, stored):
        return 0
    decoder = call(functions[1], ()) if is_zstd else 0
    if is_zstd and not decoder:
        return 0
    done = 0
    while done < bounds.shape[0]:
        start, stop = bounds[done, 0], bounds[done, 1]
        if not _is_sound(functions, stored, start, stop):
            break
        chunk, room = stored[start : stop - 4], out[done * nbytes : (done + 1) * nbytes]
        source, target = chunk.ctypes.data, room.ctypes.data
        if is_zstd:
            if _zstd_size(chunk) != room.size:
                break
            if call(functions[2], (decoder, target, room.size, source, chunk.size)) != room.size:
                break
        else:
            # Blosc trusts the sizes that are written in a chunk.
            if chunk.size < 16 or first_word(chunk[12:]) != chunk.size or first_word(chunk[4:]) != room.size:
                break
            if call(functions[4], (source, target, room.size, intp(1))) & 0xFFFFFFFF != room.size:
                break
        done += 1
    if is_zstd:
        call(functions[3], (decoder,))
    return done


@compiled()
def _is_read(functions: NDArray[np.intp], handle: int, offset: int, stored: NDArray[np.uint8]) -> bool:
    """Read bytes from a file, unless the descriptor is negative; return whether all are there."""
    return handle < 0 or call(functions[5], (handle, stored.ctypes.data, stored.size, offset)) == stored.size


@compiled()
def _pcodec_header(chunk: NDArray[np.uint8], size: int) -> int:
    """Return the length of a file's header: see `wustore.backends.zarr.filters.decode`."""
    if chunk.size < 21 or first_word(chunk) != 0x216F6370 or chunk[4] != 3:
        return 0
    length = 6 + (6 + (intp(chunk[6]) & 63) + 1 + 7) // 8
    length += 2 if chunk[length] >= 4 else 1
    return length if first_word(chunk[length + 1 :]) & 0xFFFFFF == size - 1 else 0


@compiled()
def _zstd_size(frame: NDArray[np.uint8]) -> int:
    """Return the size that a frame states, -1 if it states none (RFC 8878, 3.1.1.1)."""
    if frame.size < 14:
        return -1
    flags = intp(frame[4])
    single, code, kind = flags >> 5 & 1, flags & 3, flags >> 6
    at = 6 - single + (4 if code == 3 else code)
    size: int = intp(frame[at])
    if kind == 0:
        return size if single else -1
    if kind == 1:
        size += 256 + intp(frame[at + 1]) * 256
    else:
        size = intp(first_word(frame[at:]))
        if kind == 3:
            size |= intp(first_word(frame[at + 4 :])) << 32
    return size


@compiled(entry=True)
def place(source: int, target: int, counts: tuple[int, int, int], strides: tuple[int, int, int], width: int) -> None:
    """Copy chunks to their places in a plane, past the cache.

    Parameters
    ----------
    source, target
        Addresses of the chunks, one behind the other, and of the place of the first one: a multiple of `LINE`.
    counts
        Of rows of chunks, of chunks in a row, of lines in a chunk.
    strides
        Distances between two of each, in the plane [byte]: multiples of `LINE`.
    width
        Length of a line of a chunk [byte]: a multiple of `LINE`.
    """
    for row in range(counts[0]):
        for column in range(counts[1]):
            first = target + row * strides[0] + column * strides[1]
            for y in range(counts[2]):
                line = first + y * strides[2]
                for x in range(0, width, LINE):
                    stream(line + x, source + x)
                source += width
    fence()


@compiled()
def _is_sound(functions: NDArray[np.intp], stored: NDArray[np.uint8], start: int, stop: int) -> bool:
    """Return whether a chunk lies in the bytes and its checksum is right."""
    if start < 0 or stop > stored.size or stop - start < 4:
        return False
    chunk = stored[start:stop]
    return bool(uint32(call(functions[0], (intp(0), chunk.ctypes.data, chunk.size))) == _SOUND)


@compiled(entry=True)
def split(
    functions: NDArray[np.intp],
    joined: NDArray[np.uint8],
    start: int,
    head: NDArray[np.uint8],
    out: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    sums: NDArray[np.uint32],
) -> int:
    """Cut a file of pcodec into files of one chunk with checksums; return their bytes, or -1 if that is ambiguous.

    Parameters
    ----------
    functions
        The address of CRC-32C.
    joined
        The file.
    start
        Where its first chunk begins.
    head
        What a file of one chunk begins with; the last four bytes are those that each chunk begins with.
    out
        Memory for the files.
    lengths, sums
        Where their lengths and checksums go.
    """
    length, last, found = head.size - 4, joined.size - 1, 0
    a, b, c, d = head[length], head[length + 1], head[length + 2], head[length + 3]
    starts = np.empty(lengths.size + 1, np.int64)
    one, two, three = uint64(1), uint64(2), uint64(3)
    step, stop = uint64(256), uint64(max(last - 3, start))
    for x in range(uint64(start), stop, step):
        low, end = uint8(255), min(x + step, stop)
        for y in range(x, end):  # without branches and in bytes alone: many at a time
            first, second = uint8(joined[y] ^ a), uint8(joined[y + one] ^ b)
            third, fourth = uint8(joined[y + two] ^ c), uint8(joined[y + three] ^ d)
            low = min(low, uint8(first | second | third | fourth))
        for y in range(x, end if low == uint8(0) else x):
            if joined[y] == a and joined[y + one] == b and joined[y + two] == c and joined[y + three] == d:
                if found == lengths.size:
                    return -1
                starts[found] = y
                found += 1
    if found != lengths.size or starts[0] != start or joined[last] != 0:
        return -1
    starts[found], at = last, 0
    for k in range(found):
        body = joined[starts[k] : starts[k + 1]]
        end = at + length + body.size + 1
        if end + 4 > out.size:
            return -1
        copy(head[:length], out[at : at + length])
        copy(body, out[at + length : end - 1])
        out[end - 1] = 0
        at = _sealed(functions, out, at, end, k, lengths, sums)
    return at


@compiled(entry=True)
def pack_raw(
    functions: NDArray[np.intp],
    chunks: NDArray[np.uint8],
    out: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    sums: NDArray[np.uint32],
) -> int:
    """Copy chunks, each with its checksum; return the bytes. Parameters as for `split`; chunks have a row each."""
    at = 0
    for k in range(chunks.shape[0]):
        end = at + chunks.shape[1]
        copy(chunks[k], out[at:end])
        at = _sealed(functions, out, at, end, k, lengths, sums)
    return at


@compiled(entry=True)
def pack_zstd(
    functions: NDArray[np.intp],
    chunks: NDArray[np.uint8],
    level: int,
    out: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    sums: NDArray[np.uint32],
) -> int:
    """Make frames of zstd, each with its checksum; return the bytes, or -1. Parameters as for `pack_raw`."""
    encoder, size, at = call(functions[1], ()), chunks.shape[1], 0
    if not encoder:
        return -1
    call(functions[2], (encoder, intp(_ZSTD_LEVEL), intp(level)))
    bound = call(functions[3], (intp(size),))
    for k in range(chunks.shape[0]):
        if at + bound + 4 > out.size:
            at = -1
            break
        made = call(functions[4], (encoder, out[at:].ctypes.data, bound, chunks[k].ctypes.data, intp(size)))
        if made <= 0 or made > bound:
            at = -1
            break
        at = _sealed(functions, out, at, at + made, k, lengths, sums)
    call(functions[5], (encoder,))
    return at


_ZSTD_LEVEL = 100
"""Number of the parameter (``ZSTD_c_compressionLevel``); all others, the checksum among them, are off."""


@compiled(entry=True)
def pack_blosc(
    functions: NDArray[np.intp],
    chunks: NDArray[np.uint8],
    name: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    out: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    sums: NDArray[np.uint32],
) -> int:
    """Make chunks of Blosc, each with its checksum; return the bytes, or -1. Parameters as for `pack_raw`.

    Parameters
    ----------
    name
        Of the codec, with a zero at its end.
    numbers
        Level, shuffle, size of a block (0: Blosc chooses), bytes of a value.
    """
    size, at = chunks.shape[1], 0
    level, shuffle, block, width = numbers
    bound = size + _BLOSC_HEADER
    for k in range(chunks.shape[0]):
        if at + bound + 4 > out.size:
            return -1
        source, target = chunks[k].ctypes.data, out[at:].ctypes.data
        made = call(
            functions[1],
            (level, shuffle, width, intp(size), source, target, intp(bound), name.ctypes.data, block, intp(1)),
        )
        made &= 0xFFFFFFFF
        if made <= 0 or made > bound:
            return -1
        at = _sealed(functions, out, at, at + made, k, lengths, sums)
    return at


_BLOSC_HEADER = 16
"""Bytes that Blosc adds at most (``BLOSC_MAX_OVERHEAD``)."""


@compiled()
def _sealed(
    functions: NDArray[np.intp],
    out: NDArray[np.uint8],
    start: int,
    end: int,
    k: int,
    lengths: NDArray[np.int64],
    sums: NDArray[np.uint32],
) -> int:
    """Put the checksum of ``out[start:end]`` behind it, note it as that of chunk ``k``, and return where it ends."""
    chunk = out[start:end]
    total = uint32(call(functions[0], (intp(0), chunk.ctypes.data, chunk.size)))
    for x in range(4):
        out[end + x] = total >> uint32(8 * x) & uint32(255)
    lengths[k], sums[k] = end + 4 - start, total
    return end + 4
