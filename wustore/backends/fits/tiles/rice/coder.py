"""Rice-coded tiles (RICE_1), guarded.

Two coders give the same results: if there is much to do, the loops of `rice.loops_numba`, which take many tiles a
call and leave other threads alone; else the one of cfitsio as packaged by imagecodecs, a tile a call. That one trusts
its input: it looks for the end of the code only once per coding block, and it scans a run of zero bits without any
limit. So tiles are decoded from a copy that ends in bytes of ones, which stop such a scan at once, and their lengths
are checked beforehand.

The coding is described in section 10.4.1 of the FITS standard 4.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops
from wustore.backends.fits.tiles.quantize import BLANK
from wustore.errors import CorruptError
from wustore.storage import buffers

__all__ = [
    "MAXIMUM_BLOCK_SIZE",
    "Encoded",
    "Fields",
    "Tiles",
    "compiled_loops",
    "decode_floats",
    "decode_rows",
    "encode_floats",
    "encode_floats_again",
    "encode_rows",
    "room_for",
    "size_limits",
]

#: Largest number of pixels per coding block that is taken seriously (writers use 16 or 32).
MAXIMUM_BLOCK_SIZE = 65536

#: Tiles whose span in the heap is at most this many times their bytes are copied in one piece.
_SPAN_FACTOR = 4

_SELECTOR_BITS = {1: 3, 2: 4, 4: 5}

_WORTHWHILE = 1 << 23
"""Pixels that a process codes before it imports numba: about 0.1 s of work without it."""

_loops = Loops("wustore.backends.fits.tiles.rice.loops_numba", _WORTHWHILE)


def compiled_loops(n_pixels: int = 0) -> ModuleType | None:
    """Return `rice.loops_numba`, or None if so many pixels more are better coded without it.

    Parameters
    ----------
    n_pixels
        What the caller is to code; see `wustore.backends.compiling.Loops.get`.
    """
    return _loops.get(n_pixels)


def size_limits(n_pixels: int, item_size: int, block_size: int) -> tuple[int, int]:
    """Return the fewest and the most bytes that a tile of so many pixels can take.

    Parameters
    ----------
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


@dataclass(frozen=True)
class Tiles:
    """Where Rice-coded tiles lie.

    Attributes
    ----------
    starts, ends
        The span of each in `heap`, already checked against its size and against `size_limits`.
    names
        Number of each, for the error message.
    block_size
        Pixels per coding block.
    """

    heap: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    names: NDArray[np.int64]
    block_size: int

    def padded(self, padding: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """Return bytes that hold them and so many more, and their spans there: the heap, where it goes on that far."""
        if int(self.ends.max()) + padding <= self.heap.size:
            return self.heap, np.stack((self.starts, self.ends))
        return self.copied(padding)

    def copied(self, padding: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """Return a copy of the part of the heap that they lie in, ones behind it, and their spans there.

        None if they lie too far apart to be copied in one piece.
        """
        low, high = int(self.starts.min()), int(self.ends.max())
        if high - low > _SPAN_FACTOR * int((self.ends - self.starts).sum()):
            return None
        scratch = np.empty(high - low + padding, np.uint8)
        scratch[: high - low] = self.heap[low:high]
        scratch[high - low :] = 255
        return scratch, np.stack((self.starts, self.ends)) - low

    def too_short(self, k: int, n_pixels: int, found: object = None) -> CorruptError:
        """Return the error for a tile that does not decode."""
        return CorruptError(
            "the Rice-coded tile does not decode",
            where=f"tile {int(self.names[k])}",
            expected=f"{n_pixels} pixels in {int(self.ends[k] - self.starts[k])} bytes",
            found=found,
        )


class Fields(NamedTuple):
    """Where the compiled loops find tiles in a table.

    Attributes
    ----------
    row_size
        Bytes of a row.
    data, scale, zero
        Where in a row the descriptor (P, of bytes), ZSCALE and ZZERO (float64) are.
    heap_start
        Where the heap begins.
    block_size
        Pixels per coding block.
    """

    row_size: int
    data: int
    scale: int
    zero: int
    heap_start: int
    block_size: int


def decode_rows(tiles: Tiles, rows: Sequence[NDArray[np.integer]] | NDArray[np.integer]) -> None:
    """Decode one tile into each of `rows`.

    Parameters
    ----------
    rows
        One C-contiguous 1-D array of 1, 2 or 4-byte integers per tile.

    Raises
    ------
    CorruptError
        A tile ends before its last pixel.
    """
    if not len(tiles.starts):
        return
    if isinstance(rows, np.ndarray) and rows.dtype == np.int32 and (loops := compiled_loops(rows.size)) is not None:
        padded = tiles.padded(loops.PADDING)
        if padded is not None:
            bad = loops.decode_integers(*padded, tiles.block_size, rows)
            if bad >= 0:
                raise tiles.too_short(bad, rows.shape[1])
            return
    # Within one coding block the decoder may run past the end by its raw pixels and the bits of the last one.
    padding = 8 + 4 * min(tiles.block_size, max(row.size for row in rows))
    copied = tiles.copied(padding)
    if copied is not None:
        view = copied[0].data
        spans = [view[start:end] for start, end in copied[1].T.tolist()]
    else:
        tail = np.full(padding, 255, np.uint8)
        spans = [
            np.concatenate((tiles.heap[start:end], tail)).data[: end - start]
            for start, end in zip(tiles.starts.tolist(), tiles.ends.tolist(), strict=True)
        ]
    decode: Any = imagecodecs.rcomp_decode  # its stub leaves out memoryview
    for k, (span, row) in enumerate(zip(spans, rows, strict=True)):
        try:
            decode(span, nblock=tiles.block_size, out=row)
        except Exception as error:
            raise tiles.too_short(k, row.size, error) from error


def _finite(scale: NDArray[np.float64], zero: NDArray[np.float64]) -> bool:
    # Which NaN others make depends on the order of the operands: see `wustore.backends.fits.tiles.quantize`.
    return bool(np.isfinite(scale).all() and np.isfinite(zero).all())


_NO_PIXEL = 1 << 32
"""No integer of a tile."""


def decode_floats(
    table: NDArray[np.uint8], fields: Fields, rows: NDArray[np.int64], blank: int | None, out: NDArray[np.floating[Any]]
) -> bool:
    """Decode tiles of floats that were quantised without dithering, if the compiled loops can; return whether.

    They cannot if one of the tiles is damaged, or is stored in another way.

    Parameters
    ----------
    table
        Main table and heap of tiles of 4-byte integers.
    fields
        Where in the table they are described.
    rows
        Their rows in the table.
    blank
        The integer that means NaN, None for none.
    out
        C-contiguous float32 or float64, shape (tile, pixel).
    """
    if (loops := compiled_loops()) is None:
        return False
    limits = size_limits(out.shape[1], 4, fields.block_size)
    return bool(loops.decode_floats(table, rows, *fields, *limits, _NO_PIXEL if blank is None else blank, out) < 0)


def room_for(n_pixels: int, item_size: int, block_size: int) -> int:
    """Return the bytes to give the coder for a tile: it does not check the room in its output.

    The room that imagecodecs gives by itself is too small for blocks of fewer than 12 pixels.
    """
    return size_limits(n_pixels, item_size, block_size)[1] + 64


def encode_rows(rows: NDArray[np.integer], block_size: int) -> list[bytes]:
    """Encode every row of a 2-D array of 1, 2 or 4-byte signed integers as one tile."""
    room = room_for(rows.shape[1], rows.dtype.itemsize, block_size)
    if rows.dtype == np.int32 and rows.size and (loops := compiled_loops(rows.size)) is not None:
        out, sizes = _output(rows, room)
        loops.encode_integers(np.ascontiguousarray(rows), block_size, out, sizes)
        ends = np.cumsum(sizes)
        return [out[end - size : end].tobytes() for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]
    scratch = memoryview(bytearray(room))
    encode: Any = imagecodecs.rcomp_encode
    return [bytes(encode(row, nblock=block_size, out=scratch)) for row in rows]


def _output(rows: NDArray[Any], room: int, start: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return what the compiled loops encode into: the bytes (memory that stays untouched is not used), and sizes."""
    return buffers.empty((start + len(rows) * room,), np.uint8), np.empty(len(rows), np.int64)


@dataclass(frozen=True)
class Encoded:
    """Tiles one after another.

    Attributes
    ----------
    tiles
        Their bytes, after as many others as were asked for.
    sizes, zero
        Bytes and ZZERO of each tile.
    has_blank
        Whether there are NaN.
    """

    tiles: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    zero: NDArray[np.float64]
    has_blank: bool


def encode_floats(values: NDArray[np.floating[Any]], step: float, block_size: int) -> Encoded | None:
    """Quantise rows without dithering and encode each as a tile, if the compiled loops can; else return None.

    Parameters
    ----------
    values
        C-contiguous float32 or float64 in native byte order, shape (tile, pixel).
    """
    # cfitsio does not quantise tiles of one pixel.
    if values.shape[1] < 2 or not step > 0 or (loops := compiled_loops()) is None:
        return None
    out, sizes = _output(values, room_for(values.shape[1], 4, block_size))
    zero = np.empty(len(values))
    bits = values.view(f"i{values.itemsize}")
    end, has_blank = loops.encode_floats(values, bits, step, block_size, out, sizes, zero)
    return None if end < 0 else Encoded(out[:end], sizes, zero, has_blank)


def encode_floats_again(
    values: NDArray[np.floating[Any]],
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    blank: int | None,
    block_size: int,
    start: int,
) -> Encoded | None:
    """Encode rows that `decode_floats` made, if the compiled loops can; else return None.

    Parameters
    ----------
    start
        Bytes to leave free before the tiles.
    """
    if not _finite(scale, zero) or (loops := compiled_loops()) is None:
        return None
    out, sizes = _output(values, room_for(values.shape[1], 4, block_size), start)
    blank = BLANK if blank is None else blank
    end = loops.encode_floats_again(values, scale, zero, blank, block_size, out[start:], sizes)
    return Encoded(out[: start + end], sizes, zero, has_blank=True)
