"""The inner loops of `wustore.backends.zarr.filters.blocks`, compiled by numba: a block a call, without the lock.

Chunks end in their CRC-32C, so that the checksum over all of a chunk is always the same number.
"""

from __future__ import annotations

import numpy as np
from numba import intp, uint32
from numpy.typing import NDArray

from wustore.backends.bytes_numba import LINE, call, copy, fence, first_word, stream
from wustore.backends.compiling import compiled
from wustore.model.checksum import RESIDUE

__all__ = ["join", "place", "unpack"]

_SOUND = uint32(RESIDUE)


@compiled(entry=True)
def join(
    functions: NDArray[np.intp],
    stored: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    head: int,
    same: int,
    tail: int,
    out: NDArray[np.uint8],
) -> int:
    """Check chunks and copy the first head and all bodies; return how many bytes, or what is not so many.

    Parameters
    ----------
    functions
        Addresses of C's functions: see `wustore.backends.zarr.filters.blocks`.
    stored, bounds
        Bytes, and where in them the chunks are, shape (chunks, 2).
    head
        Bytes of a chunk before its body.
    same
        Bytes of a chunk, those of the head and more, that must be those of the first one.
    tail
        Bytes of a chunk behind its body, with the checksum; the one before the checksum must be 0.
    out
        Memory for the head and the bodies.
    """
    first, at = bounds[0, 0], 0
    for k in range(bounds.shape[0]):
        start, stop = bounds[k, 0], bounds[k, 1]
        if not _is_sound(functions, stored, start, stop) or stop - start < same + tail:
            return -1
        for x in range(same):
            if stored[start + x] != stored[first + x]:
                return -1
        if tail > 4 and stored[stop - 5] != 0:
            return -1
        start += 0 if k == 0 else head
        count = stop - tail - start
        if at + count > out.size:
            return -1
        copy(stored[start : start + count], out[at : at + count])
        at += count
    return at


@compiled(entry=True)
def unpack(
    functions: NDArray[np.intp],
    is_zstd: bool,
    stored: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    nbytes: int,
    out: NDArray[np.uint8],
) -> int:
    """Check and decode chunks of zstd or Blosc; return how many were as they should be: the first that is not ends it.

    Parameters
    ----------
    functions, stored, bounds
        As for `join`.
    is_zstd
        Whether they are frames of zstd.
    nbytes
        Length of a decoded chunk.
    out
        Memory for all of them.
    """
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
