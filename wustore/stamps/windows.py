"""Many small windows of the images of a store: each chunk that they touch is read once, with no Python per window.

The windows of an image (or of the images that share chunks) are one `Part`. For a part, the chunks that its windows
touch are read, as rectangles, into an array that spans them; the windows are then gathered from this array by numpy.
Parts are independent of each other, so they are read by several threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.backends.chunk_grid import Grid
from wustore.model.select import consecutive_runs
from wustore.storage import buffers
from wustore.storage.threads import default_workers
from wustore.storage.url import CONCURRENCY, is_remote

__all__ = ["AT_A_TIME", "Block", "Part", "Windows"]

AT_A_TIME = 1024
"""Windows that are gathered at a time: 2 MB of 21 x 21 float32 pixels, which stay in the cache."""


@dataclass(frozen=True, eq=False)
class Part:
    """Windows that are cut together.

    Attributes
    ----------
    times
        Places on the time axis of the windows; consecutive.
    members
        Numbers of the windows (of the trajectories, say). Shape (m,).
    """

    times: range
    members: NDArray[np.int64]


class Windows:
    """Square windows of some images of a store.

    Parameters
    ----------
    layers
        Layers to read; those that the store does not have are left out.
    images
        Index of the image at each place on the time axis. Shape (time,).
    y, x
        Centre of each window [pixel], also outside of the image. Shape (n, time).
    radius
        Pixels on either side of the centre.
    max_memory
        For the arrays that the chunks are read into [bytes]. One chunk can take more.

    Attributes
    ----------
    parts
        All windows, in the order of the time axis. A part is one image, or a row of images that share chunks; some
        of its windows if its pixels do not fit into ``max_memory``.
    workers
        The number of parts to read at a time.
    """

    def __init__(
        self,
        reader: Reader,
        layers: Sequence[str],
        images: NDArray[np.int64],
        y: NDArray[np.int64],
        x: NDArray[np.int64],
        radius: int,
        max_memory: int,
    ) -> None:
        self.reader = reader
        self.layers = [layer for layer in layers if reader.meta.has_layer(layer)]
        self.images, self.side = images, 2 * radius + 1
        self._y, self._x, self._radius = y, x, radius
        self._shapes = reader.meta.image_shape[images].astype(np.int64)
        self._grids = {layer: reader.grid(layer) for layer in self.layers}
        self._spare: deque[NDArray[np.uint8]] = deque()
        self._lock = Lock()
        everything = np.arange(len(y))
        wholes = [Part(times, everything) for times in self._runs()]
        sizes = [self._size(part) for part in wholes] if len(y) else []
        largest = max(sizes, default=0)
        self.parts = wholes
        if largest > max_memory:
            self.parts = [
                part
                for whole, size in zip(wholes, sizes, strict=True)
                for part in (self._split(whole, max_memory) if size > max_memory else [whole])
            ]
            largest = max_memory
        wanted = CONCURRENCY if is_remote(reader.path) else default_workers()
        self.workers = max(min(wanted, max_memory // max(largest, 1)), 1)

    def _runs(self) -> list[range]:
        """Return the runs of the time axis whose images share chunks in some layer."""
        seams = np.ones(max(len(self.images) - 1, 0), bool)
        for grid in self._grids.values():
            seams &= np.diff(grid.slabs[self.images]) != 0
        bounds = [0, *(np.flatnonzero(seams) + 1).tolist(), len(self.images)]
        return [range(a, b) for a, b in pairwise(bounds) if b > a]

    # --- sizes ---------------------------------------------------------------------------------------------

    def _bounds(self, part: Part) -> tuple[NDArray[np.int64], ...]:
        """Return top, bottom, left and right of what the windows of a part cover of their images; flat, none empty."""
        places = slice(part.times.start, part.times.stop)
        y, x = self._y[part.members, places] - self._radius, self._x[part.members, places] - self._radius
        height, width = self._shapes[places].T
        top, left = np.maximum(y, 0), np.maximum(x, 0)
        bottom, right = np.minimum(y + self.side, height), np.minimum(x + self.side, width)
        covered = (bottom > top) & (right > left)
        return top[covered], bottom[covered], left[covered], right[covered]

    def _hull(self, grid: Grid, bounds: tuple[NDArray[np.int64], ...]) -> tuple[int, int, int, int]:
        """Return the first and the last edges (top, bottom, left, right) of the chunks that hold the bounds."""
        top, bottom, left, right = bounds
        rows, columns = grid.rows, grid.columns
        return (
            int(rows[np.searchsorted(rows, top.min(), side="right") - 1]),
            int(rows[np.searchsorted(rows, bottom.max())]),
            int(columns[np.searchsorted(columns, left.min(), side="right") - 1]),
            int(columns[np.searchsorted(columns, right.max())]),
        )

    def _size(self, part: Part) -> int:
        """Return the bytes of the arrays that a part is read into."""
        bounds = self._bounds(part)
        if not bounds[0].size:
            return 0
        total = 0
        for layer, grid in self._grids.items():
            top, bottom, left, right = self._hull(grid, bounds)
            depth = len(self._images_of(grid, part))
            total += depth * (bottom - top) * (right - left) * self.reader.meta.layer_dtype(layer).itemsize
        return total

    def _split(self, part: Part, limit: int) -> Iterator[Part]:
        """Yield parts of a part: halves along the longer axis, until each fits or is within one chunk."""
        if len(part.members) < 2 or self._size(part) <= limit:
            yield part
            return
        grid = self._grids[self.layers[0]]
        first = part.times.start
        y, x = self._y[part.members, first], self._x[part.members, first]
        positions, edges = (y, grid.rows) if np.ptp(y) >= np.ptp(x) else (x, grid.columns)
        cells = np.searchsorted(edges, positions, side="right")
        below = cells < np.median(cells)
        if not below.any():
            below = cells <= np.median(cells)
        if below.all():
            yield part
            return
        for chosen in (below, ~below):
            yield from self._split(Part(part.times, part.members[chosen]), limit)

    @staticmethod
    def _slab(grid: Grid, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images from the first to the last of some that share one of their rows of chunks."""
        between = np.arange(images.min(), images.max() + 1)
        return between[np.isin(grid.slabs[between], grid.slabs[images])]

    def _images_of(self, grid: Grid, part: Part) -> NDArray[np.int64]:
        return self._slab(grid, self.images[part.times.start : part.times.stop])

    def corners(self, k: int, members: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first row and first column of windows at place ``k`` of the time axis."""
        return self._y[members, k] - self._radius, self._x[members, k] - self._radius

    def shape_at(self, k: int) -> tuple[int, int]:
        """Return the true shape (y, x) of the image at place ``k``."""
        height, width = self._shapes[k].tolist()
        return height, width

    # --- pixels --------------------------------------------------------------------------------------------

    def load(self, part: Part) -> Block:
        """Read the chunks that the windows of a part touch; safe to call from several threads.

        Raises
        ------
        CorruptError
            If the stored bytes are damaged or missing.
        """
        bounds = self._bounds(part)
        block = Block(self, part, {}, [])
        if bounds[0].size:
            for layer, grid in self._grids.items():
                block.planes[layer] = self._read(layer, grid, part, bounds, block)
        return block

    def _read(self, layer: str, grid: Grid, part: Part, bounds: tuple[NDArray[np.int64], ...], block: Block) -> _Planes:
        top, bottom, left, right = self._hull(grid, bounds)
        images = self._images_of(grid, part)
        shape = (len(images), bottom - top, right - left)
        array = self._take(shape, self.reader.meta.layer_dtype(layer), block)
        rectangles = list(grid.rectangles(grid.needed(*bounds)))
        boxes, targets = [], []
        for a, b in consecutive_runs(images):
            for rows, columns in rectangles:
                boxes.append((slice(int(images[a]), int(images[b - 1]) + 1), rows, columns))
                targets.append(
                    array[a:b, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                )
        self.reader.read_boxes(layer, boxes, targets)
        return _Planes(array, images, top, left)

    def _take(self, shape: tuple[int, int, int], dtype: np.dtype[Any], block: Block) -> NDArray[Any]:
        """Return an array in memory that an earlier block has used, if there is any: fresh memory is slow."""
        size = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            fitting = next((memory for memory in self._spare if memory.size >= size), None)
            if fitting is not None:
                # By identity: arrays compare element by element.
                self._spare = deque(memory for memory in self._spare if memory is not fitting)
            elif self._spare:
                self._spare.popleft()
        memory = buffers.empty((size,), np.uint8) if fitting is None else fitting
        block.memory.append(memory)
        return memory[:size].view(dtype).reshape(shape)

    def give_back(self, block: Block) -> None:
        """Let the memory of a block, which is not used any more, serve another one."""
        with self._lock:
            self._spare.extend(block.memory)
        block.memory.clear()
        block.planes.clear()


@dataclass(frozen=True, eq=False)
class _Planes:
    """What was read of a layer: an array (image, y, x), which images it holds, and where it begins."""

    array: NDArray[Any]
    images: NDArray[np.int64]
    top: int
    left: int


@dataclass(frozen=True, eq=False)
class Block:
    """The chunks of a part."""

    windows: Windows
    part: Part
    planes: dict[str, _Planes]
    memory: list[NDArray[np.uint8]]

    def cut(self, layer: str, k: int, members: NDArray[np.int64], fill: float, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return windows of a layer.

        Parameters
        ----------
        k
            Place on the time axis.
        members
            Numbers of the windows. Shape (m,).
        fill
            Value of pixels outside of the image, and of a layer that the store does not have.

        Returns
        -------
        ndarray
            Shape (m, side, side).
        """
        side = self.windows.side
        y, x = self.windows.corners(k, members)
        planes = self.planes.get(layer)
        if planes is None:
            return np.full((len(members), side, side), fill, dtype)
        plane = planes.array[int(np.searchsorted(planes.images, self.windows.images[k]))]
        height, width = self.windows.shape_at(k)
        whole = (y >= 0) & (x >= 0) & (y + side <= height) & (x + side <= width)
        y, x = y - planes.top, x - planes.left
        if whole.all():
            return np.asarray(sliding_window_view(plane, (side, side))[y, x], dtype)
        out = np.full((len(members), side, side), fill, dtype)
        if whole.any():
            out[whole] = sliding_window_view(plane, (side, side))[y[whole], x[whole]]
        part = np.flatnonzero(~whole)
        inside = self.inside(k, members[part])
        rows = (y[part, None] + np.arange(side)).clip(0, plane.shape[0] - 1)[:, :, None]
        columns = (x[part, None] + np.arange(side)).clip(0, plane.shape[1] - 1)[:, None, :]
        out[part] = np.where(inside, plane[rows, columns], out[part])
        return out

    def inside(self, k: int, members: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return where windows are within the image at place ``k``, shape (m, side, side)."""
        (height, width), (y, x) = self.windows.shape_at(k), self.windows.corners(k, members)
        side = self.windows.side
        if ((y >= 0) & (x >= 0) & (y + side <= height) & (x + side <= width)).all():
            return np.ones((len(members), side, side), bool)
        offsets = np.arange(side)
        rows, columns = y[:, None] + offsets, x[:, None] + offsets
        in_rows, in_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        inside: NDArray[np.bool_] = in_rows[:, :, None] & in_columns[:, None, :]
        return inside
