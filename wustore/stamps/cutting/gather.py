"""Windows of pixels that were read, put together by numpy, or by compiled loops if there are many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops
from wustore.model.kbmod_rules import hide_pixels, is_masked

__all__ = ["AT_A_TIME", "Block", "Gather", "Pixels", "as_index", "get_ready", "takes_blocks"]

AT_A_TIME = 1024
"""Windows that are gathered at a time: 2 MB of 21 x 21 float32 pixels, which stay in the cache."""

_LOOPS = Loops("wustore.stamps.cutting.loops_numba", 1 << 17)
"""Windows that numpy needs half a second for, on one core."""

_COMPILED = frozenset(map(np.dtype, ("i1", "f4", "f8")))
"""The dtypes of stamps that loops are compiled for: each takes a second, once for an installation."""

Placed = tuple[NDArray[Any], NDArray[np.int64], int]
"""Where windows are: an array of shape (n, times, side, side), their places on its first axis, and the first time."""


def get_ready(n_windows: int) -> None:
    """Import the compiled loops if cutting so many windows is worth it."""
    _LOOPS.get(amount=n_windows)


def takes_blocks(dtype: np.dtype[Any]) -> bool:
    """Return whether pixels of this dtype may be in more than one block without being put together."""
    return _LOOPS.module is not None and dtype in _COMPILED


@dataclass(frozen=True, eq=False)
class Pixels:
    """What was read of a layer.

    Attributes
    ----------
    blocks
        Shape (images, rows of blocks, blocks of a row, y, x), contiguous; the blocks are chunks, or it is a single one.
    images
        Indices of the images, ascending.
    origin
        Row and column of an image at which the blocks begin.
    """

    blocks: NDArray[Any]
    images: NDArray[np.int64]
    origin: tuple[int, int]

    def planes(self) -> NDArray[Any]:
        """Return the pixels as shape (images, y, x); a copy if there is more than one block."""
        n_images, rows, columns, height, width = self.blocks.shape
        return self.blocks.swapaxes(2, 3).reshape(n_images, rows * height, columns * width)


@dataclass(frozen=True, eq=False)
class Block:
    """Pixels of some images, and windows of them.

    Attributes
    ----------
    side
        Of a window [pixel].
    members
        Numbers of the windows. Shape (m,).
    y, x
        First row and column of each window, also outside of the image. Shape (m, time).
    images
        Index of the image at each time. Shape (time,).
    shapes
        Of these images (y, x). Shape (time, 2).
    layers
        What was read, by layer.
    """

    side: int
    members: NDArray[np.int64]
    y: NDArray[np.int64]
    x: NDArray[np.int64]
    images: NDArray[np.int64]
    shapes: NDArray[np.int64]
    layers: dict[str, Pixels]

    def gathers(self, start: int = 0, stop: int | None = None) -> Iterator[Gather]:
        """Yield some of the windows (by default all), `AT_A_TIME` at a time."""
        step = max(AT_A_TIME // len(self.images), 1)
        for k in range(len(self.members))[start:stop:step]:
            yield Gather(self, slice(k, k + step if stop is None else min(k + step, stop)))


class Gather:
    """Some windows of a block, at all of its times.

    Parameters
    ----------
    block
        Their pixels.
    chosen
        Which of its windows.

    Attributes
    ----------
    members
        Numbers of the windows. Shape (m,).
    n_times
        The length of the time axis.
    """

    def __init__(self, block: Block, chosen: slice) -> None:
        self.members, self.n_times = block.members[chosen], len(block.images)
        self._block, self._side = block, block.side
        self._y, self._x = y, x = block.y[chosen], block.x[chosen]
        height, width = np.ascontiguousarray(block.shapes.T)  # the loops are compiled for one kind of memory
        self._height, self._width = height, width
        self._whole = (y >= 0) & (x >= 0) & (y + self._side <= height) & (x + self._side <= width)
        self._all_whole = bool(self._whole.all())

    def cut(self, layer: str, fill: float, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return windows of a layer.

        Parameters
        ----------
        fill
            Value of pixels outside of the image, and of a layer that the store does not have.

        Returns
        -------
        ndarray
            Shape (m, time, side, side).
        """
        out = np.empty((*self._y.shape, self._side, self._side), dtype)
        self.cut_into(out, np.arange(len(out)), 0, layer, fill)
        return out

    def cut_into(
        self,
        out: NDArray[Any],
        rows: NDArray[np.int64],
        first: int,
        layer: str,
        fill: float,
        mask: Placed | None = None,
        no_data: float | None = None,
    ) -> None:
        """Put windows of a layer into an array.

        Parameters
        ----------
        out
            Shape (n, times, side, side), contiguous.
        rows
            The place of each window on the first axis of ``out``, ascending. Shape (m,).
        first
            The place of their first time on the second axis.
        fill
            As for `cut`.
        mask, no_data
            Where the same windows of the mask layer are, and the value of pixels without data: what they mask is set to
            NaN.
        """
        pixels = self._block.layers.get(layer)
        if pixels is not None and (loops := self._loops(pixels.blocks, out, mask)) is not None:
            flags = (np.empty((0, 0, 0, 0), np.int8), rows, 0) if mask is None else mask
            loops.cut(
                pixels.blocks,
                pixels.origin,
                np.searchsorted(pixels.images, self._block.images),
                self._y,
                self._x,
                self._height,
                self._width,
                out.dtype.type(fill),
                *flags,
                np.array([] if no_data is None else [no_data], out.dtype),
                out,
                rows,
                first,
            )
            return
        found = self._gathered(layer, fill, out.dtype)
        if mask is not None or no_data is not None:
            hide_pixels(found, None if mask is None else is_masked(_taken(self.n_times, *mask)), no_data)
        out[as_index(rows), first : first + found.shape[1]] = found

    @staticmethod
    def _loops(blocks: NDArray[Any], out: NDArray[Any], mask: Placed | None) -> Any:
        """Return compiled loops if they are there, and made for these dtypes."""
        known = blocks.dtype == out.dtype and out.dtype in _COMPILED and (mask is None or mask[0].dtype == np.int8)
        return _LOOPS.module if known else None

    def _gathered(self, layer: str, fill: float, dtype: np.dtype[Any]) -> NDArray[Any]:
        side = self._side
        pixels = self._block.layers.get(layer)
        if pixels is None:
            return np.full((*self._y.shape, side, side), fill, dtype)
        array = pixels.planes()
        image = np.broadcast_to(np.searchsorted(pixels.images, self._block.images), self._y.shape)
        y, x = self._y - pixels.origin[0], self._x - pixels.origin[1]
        if self._all_whole:
            return np.asarray(_views(array, side)[image, y, x], dtype)
        out = np.full((*y.shape, side, side), fill, dtype)
        whole, part = self._whole, ~self._whole
        if whole.any():
            out[whole] = _views(array, side)[image[whole], y[whole], x[whole]]
        rows = (y[part][:, None] + np.arange(side)).clip(0, array.shape[1] - 1)[:, :, None]
        columns = (x[part][:, None] + np.arange(side)).clip(0, array.shape[2] - 1)[:, None, :]
        out[part] = np.where(self.inside()[part], array[image[part][:, None, None], rows, columns], out[part])
        return out

    def mark_inside(self, out: NDArray[np.bool_], rows: NDArray[np.int64], first: int) -> None:
        """Put into an array what `inside` returns; parameters as of `cut_into`."""
        out[as_index(rows), first : first + self.n_times] = True if self._all_whole else self.inside()

    def inside(self) -> NDArray[np.bool_]:
        """Return where the windows are within their images, shape (m, time, side, side)."""
        if self._all_whole:
            return np.ones((*self._y.shape, self._side, self._side), bool)
        offsets = np.arange(self._side)
        rows, columns = self._y[:, :, None] + offsets, self._x[:, :, None] + offsets
        in_rows = (rows >= 0) & (rows < self._height[:, None])
        in_columns = (columns >= 0) & (columns < self._width[:, None])
        inside: NDArray[np.bool_] = in_rows[:, :, :, None] & in_columns[:, :, None, :]
        return inside


def as_index(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return numbers that ascend, as a slice if they are consecutive: numpy then needs no copy."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _taken(n_times: int, stamps: NDArray[Any], rows: NDArray[np.int64], first: int) -> NDArray[Any]:
    """Return stamps that are in an array."""
    return stamps[as_index(rows), first : first + n_times]


def _views(array: NDArray[Any], side: int) -> NDArray[Any]:
    """Return all windows of a contiguous array (image, y, x), without a copy: shape (image, y, x, side, side)."""
    depth, height, width = array.shape
    shape = depth, height - side + 1, width - side + 1, side, side
    # What numpy's sliding_window_view gives; that makes 40 calls for it.
    return np.ndarray(shape, array.dtype, array, 0, (*array.strides, *array.strides[1:]))
