"""Rice-coded tiles (RICE_1), guarded.

The coder is the one of cfitsio as packaged by imagecodecs. It trusts its input: it looks for the end of the
code only once per coding block, and it scans a run of zero bits without any limit. So tiles are decoded from a
copy that ends in bytes of ones, which stop such a scan at once, and their lengths are checked beforehand.

The coding is described in section 10.4.1 of the FITS standard 4.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError

__all__ = ["MAXIMUM_BLOCK_SIZE", "decode_rows", "encode_into", "encode_rows", "room_for", "size_limits"]

#: Largest number of pixels per coding block that is taken seriously (writers use 16 or 32).
MAXIMUM_BLOCK_SIZE = 65536

#: Tiles whose span in the heap is at most this many times their bytes are copied in one piece.
_SPAN_FACTOR = 4

_SELECTOR_BITS = {1: 3, 2: 4, 4: 5}


def size_limits(n_pixels: int, item_size: int, block_size: int) -> tuple[int, int]:
    """Return the fewest and the most bytes that a tile of so many pixels can take.

    Parameters
    ----------
    n_pixels
        Pixels of the tile.
    item_size
        Bytes per pixel: 1, 2 or 4.
    block_size
        Pixels per coding block.
    """
    n_blocks = -(-n_pixels // block_size)
    selector = _SELECTOR_BITS[item_size]
    fewest = item_size + -(-n_blocks * selector // 8)
    # A split block costs at most (sum of quotients <= 2.5 n + 1) + n (1 + split bits), which exceeds the plain
    # size of the pixels by less than 4 bits a pixel and 4 a block, whatever the split.
    most = item_size + n_pixels * item_size + (n_pixels * 4 + n_blocks * (selector + 4)) // 8 + 8
    return fewest, most


def decode_rows(
    heap: NDArray[np.uint8],
    starts: Sequence[int],
    ends: Sequence[int],
    rows: Sequence[NDArray[np.integer]] | NDArray[np.integer],
    block_size: int,
    names: Sequence[int],
) -> None:
    """Decode one tile into each of `rows`.

    Parameters
    ----------
    heap
        The bytes that hold the tiles.
    starts, ends
        The span of each tile in `heap`, already checked against its size and against `size_limits`.
    rows
        One C-contiguous 1-D array of 1, 2 or 4-byte integers per tile.
    block_size
        Pixels per coding block.
    names
        Number of each tile, for the error message.

    Raises
    ------
    CorruptError
        A tile ends before its last pixel.
    """
    if not len(starts):
        return
    # Within one coding block the decoder may run past the end by its raw pixels and the bits of the last one.
    padding = 8 + 4 * min(block_size, max(row.size for row in rows))
    low, high = min(starts), max(ends)
    used = sum(ends) - sum(starts)
    decode: Any = imagecodecs.rcomp_decode  # its stub leaves out memoryview
    if high - low <= _SPAN_FACTOR * used:
        scratch = np.empty(high - low + padding, np.uint8)
        scratch[: high - low] = heap[low:high]
        scratch[high - low :] = 255
        view = scratch.data
        spans = [view[start - low : end - low] for start, end in zip(starts, ends, strict=True)]
    else:
        tail = np.full(padding, 255, np.uint8)
        spans = [
            np.concatenate((heap[start:end], tail)).data[: end - start] for start, end in zip(starts, ends, strict=True)
        ]
    for span, row, name in zip(spans, rows, names, strict=True):
        try:
            decode(span, nblock=block_size, out=row)
        except Exception as error:
            raise CorruptError(
                "the Rice-coded tile does not decode",
                where=f"tile {name}",
                expected=f"{row.size} pixels in {len(span)} bytes",
                found=str(error),
            ) from error


def room_for(n_pixels: int, item_size: int, block_size: int) -> int:
    """Return the bytes to give the coder for a tile: it does not check the room in its output.

    The room that imagecodecs gives by itself is too small for blocks of fewer than 12 pixels.
    """
    return size_limits(n_pixels, item_size, block_size)[1] + 64


def encode_into(rows: NDArray[np.integer], block_size: int, out: memoryview) -> list[int]:
    """Encode every row of a 2-D array of 1, 2 or 4-byte signed integers as one tile; return their sizes.

    Parameters
    ----------
    rows
        The pixels.
    block_size
        Pixels per coding block.
    out
        Gets the tiles, one after another. It must have `room_for` each.
    """
    encode: Any = imagecodecs.rcomp_encode
    sizes: list[int] = []
    end = 0
    for row in rows:
        size = len(encode(row, nblock=block_size, out=out[end:]))
        sizes.append(size)
        end += size
    return sizes


def encode_rows(rows: NDArray[np.integer], block_size: int) -> list[bytes]:
    """Encode every row of a 2-D array of 1, 2 or 4-byte signed integers as one tile."""
    scratch = memoryview(bytearray(room_for(rows.shape[1], rows.dtype.itemsize, block_size)))
    encode: Any = imagecodecs.rcomp_encode
    return [bytes(encode(row, nblock=block_size, out=scratch)) for row in rows]
