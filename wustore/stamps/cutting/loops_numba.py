"""Loops of `wustore.stamps.cutting`, compiled by numba: many windows, or a plane, a call without the lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.bytes_numba import move, prefetch
from wustore.backends.compiling import compiled

__all__ = ["cut", "hide"]


@compiled(entry=True)
def cut(
    blocks: NDArray[Any],
    origin: tuple[int, int],
    images: NDArray[np.int64],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    fill: Any,
    mask: NDArray[Any],
    mask_rows: NDArray[np.int64],
    mask_first: int,
    no_data: NDArray[Any],
    out: NDArray[Any],
    rows: NDArray[np.int64],
    first: int,
) -> None:
    """Copy square windows out of images.

    Parameters
    ----------
    blocks
        Pixels, shape (images, rows of blocks, blocks of a row, y, x), contiguous.
    origin
        Row and column of an image at which the blocks begin.
    images
        Which of the images, for each time. Shape (time,).
    y, x
        First row and column of each window in its image, also outside of it. Shape (m, time).
    heights, widths
        Of the image of each time. Shape (time,).
    fill
        Value of pixels outside of the image, and of those that are hidden.
    mask, mask_rows, mask_first
        The same windows of the mask layer, as ``out``; of no window if nothing is masked.
    no_data
        Values that are hidden, too. Shape (0,) or (1,).
    out
        Where the windows go. Shape (n, times, side, side), contiguous.
    rows, first
        Of each window the place on the first axis, shape (m,), and of the first time that on the second one.
    """
    _, n_rows, n_columns, height, width = blocks.shape
    top, left = origin
    for k in range(rows.size):
        for t in range(images.size):
            stamp = out[rows[k], first + t]
            # The part of the window that is within the image, and within the blocks.
            y0, y1 = _part(y[k, t], stamp.shape[0], heights[t], top, n_rows * height)
            x0, x1 = _part(x[k, t], stamp.shape[1], widths[t], left, n_columns * width)
            if y1 - y0 < stamp.shape[0] or x1 - x0 < stamp.shape[1]:
                stamp[:] = fill
            if k + 1 < rows.size:
                _fetch(blocks, images[t], y[k + 1, t] - top, x[k + 1, t] - left, stamp.shape[0])
            if y0 < y1 and x0 < x1:
                part = stamp[y0 - y[k, t] :, x0 - x[k, t] :]
                _copy(blocks, images[t], y0 - top, x0 - left, y1 - y0, x1 - x0, part)
            if mask.size or no_data.size:
                row = mask_rows[k] if mask.size else 0
                _hide(stamp, fill, mask[row : row + 1, mask_first + t], no_data)


@compiled(entry=True)
def hide(plane: NDArray[Any], words: NDArray[np.int64], mask: NDArray[np.int8], value: Any) -> None:
    """Set pixels that are masked.

    Parameters
    ----------
    plane, mask
        Pixels and their flags, one axis.
    words
        The flags, eight at a time as far as there are so many: mostly all of them are 0.
    """
    for k in range(words.size):
        if words[k] != 0:
            for x in range(8 * k, 8 * k + 8):
                if mask[x] > 0:
                    plane[x] = value
    for x in range(8 * words.size, mask.size):
        if mask[x] > 0:
            plane[x] = value


@compiled()
def _part(start: int, side: int, size: int, first: int, count: int) -> tuple[int, int]:
    """Return the pixels of an axis that a window, the image and the blocks have in common."""
    return max(start, 0, first), min(start + side, size, first + count)


@compiled()
def _fetch(blocks: NDArray[Any], image: int, y: int, x: int, side: int) -> None:
    """Let the first and the last pixel of each row of a window come into the cache, while the one before is copied."""
    _, n_rows, n_columns, height, width = blocks.shape
    y0, y1 = max(y, 0), min(y + side, n_rows * height)
    if y0 >= y1:
        return
    for end in (x, x + side - 1):
        if 0 <= end < n_columns * width:
            column, there = divmod(end, width)
            for row in range(y0 // height, (y1 - 1) // height + 1):
                first = ((image * n_rows + row) * n_columns + column) * height
                for line in range(max(y0 - row * height, 0), min(y1 - row * height, height)):
                    prefetch(blocks.ctypes.data + ((first + line) * width + there) * blocks.itemsize)


@compiled()
def _copy(blocks: NDArray[Any], image: int, y: int, x: int, n_rows: int, n_columns: int, out: NDArray[Any]) -> None:
    """Copy a rectangle that begins at row ``y`` and column ``x`` of the blocks of an image."""
    _, _, across, height, width = blocks.shape
    item = blocks.itemsize
    row, y = divmod(y, height)
    column, x = divmod(x, width)
    block = height * width * item
    source = blocks.ctypes.data + ((image * blocks.shape[1] + row) * across + column) * block + (y * width + x) * item
    target = out.ctypes.data
    for _ in range(n_rows):
        here, there, room, left = source, target, width - x, n_columns
        while left > 0:
            count = min(left, room)
            move(there, here, count * item)
            # The same row of the next block.
            here += (count - width) * item + block
            there, left, room = there + count * item, left - count, width
        source, target, y = source + width * item, target + out.strides[0], y + 1
        if y == height:
            source, y = source + (across - 1) * block, 0


@compiled()
def _hide(stamp: NDArray[Any], fill: Any, mask: NDArray[Any], no_data: NDArray[Any]) -> None:
    """Set pixels that are masked or without data; ``mask`` has one window, or none if nothing is masked."""
    for y in range(stamp.shape[0]):
        for x in range(stamp.shape[1]):
            for value in no_data:
                if stamp[y, x] == value:
                    stamp[y, x] = fill
    for flags in mask:
        for y in range(stamp.shape[0]):
            for x in range(stamp.shape[1]):
                if flags[y, x] > 0:
                    stamp[y, x] = fill
