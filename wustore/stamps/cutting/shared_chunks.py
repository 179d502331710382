"""Many small windows of the images of a store: each chunk that they touch is read once, with no Python per window.

The windows that are cut together are one `Part`: those of an image, of images that share chunks, or of images in which
a few windows touch the same chunks. For a part, the chunks that its windows touch are read, as rectangles, into an
array that spans them; the windows are then cut out of this array by numpy, or by compiled loops if there are so many
that it is worth it. Parts are independent of each other, so they are read by several threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.backends.chunk_grid import Grid, Index
from wustore.model.select import consecutive_runs
from wustore.stamps.cutting.gather import Block, Pixels, get_ready, takes_blocks
from wustore.storage import buffers
from wustore.storage.threads import default_workers, worth
from wustore.storage.url import is_remote
from wustore.storage.url_requests import CONCURRENCY

__all__ = ["Part", "Windows"]

_FEW = 64
"""So many windows or fewer touch a part of an image's chunks: it is worth to look which images have this in common."""

_AROUND = 1.25
"""The pixels of whole chunks may be that many times those that are wanted: beyond, the rest of chunks is left out."""

_TOGETHER = 1 << 23
"""Bytes of a part of several images that share no chunks: beyond them, planning costs little in comparison."""


@dataclass(frozen=True, eq=False)
class _Cover:
    """What is read of layers that have the same grid.

    Attributes
    ----------
    layers
        Their names.
    images
        Indices of the images, ascending.
    top, left
        Where the array that spans the chunks begins in an image.
    shape
        Of this array (image, y, x).
    boxes, places
        Rectangles of chunks in the layer, and in the array.
    """

    layers: Sequence[str]
    images: NDArray[np.int64]
    top: int
    left: int
    shape: tuple[int, int, int]
    boxes: Sequence[Index]
    places: Sequence[Index]


@dataclass(frozen=True, eq=False)
class Part:
    """Windows that are cut together.

    Attributes
    ----------
    times
        Places on the time axis of the windows; consecutive.
    members
        Numbers of the windows (of the trajectories, say). Shape (m,).
    covers
        What is read for them; empty if all windows are outside of the images.
    """

    times: range
    members: NDArray[np.int64]
    covers: Sequence[_Cover]


_Room = tuple[Pixels, Sequence[Index], list[NDArray[Any]]]
"""Pixels that are to be read, and the boxes and arrays to read them by."""


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
    together
        Images that share no chunks and may be in one part.

    Attributes
    ----------
    parts
        All windows, in the order of the time axis. A part has some of the windows only if its pixels do not fit into
        ``max_memory``.
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
        together: int,
    ) -> None:
        self.reader = reader
        self.dtypes = {layer: reader.meta.layer_dtype(layer) for layer in layers if reader.meta.has_layer(layer)}
        self.images, self.side = images, 2 * radius + 1
        self._y, self._x, self._radius = y, x, radius
        get_ready(y.size)
        self.shapes = reader.meta.image_shape[images].astype(np.int64)
        grids: dict[Any, tuple[Grid, list[str]]] = {}
        for layer in self.dtypes:
            grid = reader.grid(layer)
            grids.setdefault(grid.key, (grid, []))[1].append(layer)
        self._grids = list(grids.values())
        everything = np.arange(len(y))
        wholes = [self._part(times, everything) for times in self._runs(min(max_memory, _TOGETHER), together)]
        self.parts = [part for whole in wholes for part in self._split(whole, max_memory)]
        sizes = [self._size(part) for part in self.parts] or [0]
        wanted = CONCURRENCY if is_remote(reader.path) else worth(default_workers(), sum(sizes))
        # The reader of a single part shares its chunks out itself: it knows what decoding them takes.
        alone = default_workers() if len(self.parts) == 1 else 1
        self.workers = max(min(wanted, max_memory // max(*sizes, 1)), alone)

    # --- parts ---------------------------------------------------------------------------------------------

    def _runs(self, most: int, together: int) -> Iterator[range]:
        """Yield the runs of the time axis that are cut together."""
        if not len(self.images):
            return
        shared = np.zeros(len(self.images) - 1, bool)  # whether an image shares chunks with the next one
        for grid, _ in self._grids:
            shared |= np.diff(grid.slabs[self.images]) == 0
        if shared.any() or together < 2 or len(self._y) > _FEW:
            yield from _stretches(shared)
            return
        everything = np.arange(len(self._y))
        for run in _stretches(self._touch_the_same()):
            size = self._size(self._part(run[:1], everything))
            step = max(min(together, most // max(size, 1)), 1)
            yield from (run[k : k + step] for k in range(0, len(run), step))

    def _touch_the_same(self) -> NDArray[np.bool_]:
        """Return whether the windows of an image touch the same chunks as those of the next one. Shape (time - 1,)."""
        *bounds, covered = self._bounds(slice(None), slice(None))
        same = np.ones(len(self.images) - 1, bool)
        for grid, _ in self._grids:
            for cells in grid.cells(*bounds):
                cells[~covered] = -1
                same &= (cells[:, 1:] == cells[:, :-1]).all(axis=0)
        return same

    def _bounds(self, members: Any, places: slice) -> tuple[NDArray[Any], ...]:
        """Return top, bottom, left and right of what windows cover of their images, and whether that is anything."""
        y, x = self._y[members, places] - self._radius, self._x[members, places] - self._radius
        height, width = self.shapes[places].T
        top, left = np.maximum(y, 0), np.maximum(x, 0)
        bottom, right = np.minimum(y + self.side, height), np.minimum(x + self.side, width)
        return top, bottom, left, right, (bottom > top) & (right > left)

    def _part(self, times: range, members: NDArray[np.int64]) -> Part:
        *edges, covered = self._bounds(members, slice(times.start, times.stop))
        if not covered.any():
            return Part(times, members, ())
        bounds = [edge[covered] for edge in edges]
        images = self.images[times.start : times.stop]
        return Part(times, members, [self._cover(grid, layers, images, bounds) for grid, layers in self._grids])

    @staticmethod
    def _cover(grid: Grid, layers: Sequence[str], images: NDArray[np.int64], bounds: Sequence[NDArray[Any]]) -> _Cover:
        (top, bottom, left, right), rectangles = grid.cover(*bounds)
        if len(images) > 1:  # also those in between that share a row of chunks with one of them
            between = np.arange(images.min(), images.max() + 1)
            images = between[np.isin(grid.slabs[between], grid.slabs[images])]
        boxes: list[Index] = []
        places: list[Index] = []
        for a, b in consecutive_runs(images):
            for rows, columns in rectangles:
                boxes.append((slice(int(images[a]), int(images[b - 1]) + 1), rows, columns))
                in_rows = slice(rows.start - top, rows.stop - top)
                places.append((slice(a, b), in_rows, slice(columns.start - left, columns.stop - left)))
        return _Cover(layers, images, top, left, (len(images), bottom - top, right - left), boxes, places)

    def _size(self, part: Part) -> int:
        """Return the bytes of the arrays that a part is read into."""
        return sum(
            math.prod(cover.shape) * self.dtypes[layer].itemsize for cover in part.covers for layer in cover.layers
        )

    def _split(self, part: Part, limit: int) -> Iterator[Part]:
        """Yield parts of a part: halves along the longer axis, until each fits or is within one chunk."""
        if self._size(part) <= limit or len(part.members) < 2:
            yield part
            return
        grid, _ = self._grids[0]
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
            yield from self._split(self._part(part.times, part.members[chosen]), limit)

    # --- pixels --------------------------------------------------------------------------------------------

    def load(self, part: Part) -> Block:
        """Read the chunks that the windows of a part touch; safe to call from several threads.

        Raises
        ------
        CorruptError
            If the stored bytes are damaged or missing.
        """
        layers, wanted = {}, []
        for cover in part.covers:
            for layer in cover.layers:
                layers[layer], boxes, arrays = self._chunk_by_chunk(cover, layer) or self._whole(cover, layer)
                wanted.append((layer, boxes, arrays))
        self.reader.read_layers(wanted)
        places = slice(part.times.start, part.times.stop)
        return Block(
            side=self.side,
            members=part.members,
            y=self._y[part.members, places] - self._radius,
            x=self._x[part.members, places] - self._radius,
            images=self.images[places],
            shapes=self.shapes[places],
            layers=layers,
        )

    def _whole(self, cover: _Cover, layer: str) -> _Room:
        array = buffers.empty(cover.shape, self.dtypes[layer])
        pixels = Pixels(array[:, None, None], cover.images, (cover.top, cover.left))
        return pixels, cover.boxes, [array[place] for place in cover.places]

    def _chunk_by_chunk(self, cover: _Cover, layer: str) -> _Room | None:
        """Return room for pixels in which each chunk is in one piece, so that it is decoded where it stays.

        None if that cannot be done, or if it is not worth it because much of the chunks at the edges is not wanted.
        """
        if not takes_blocks(self.dtypes[layer]) or not self.reader.fills_chunks(layer):
            return None
        n_images, height, width = cover.shape
        _, *chunk = self.reader.chunks(layer)
        rows, columns = (
            _in_chunks(slice(start, start + size), side)
            for start, size, side in zip((cover.top, cover.left), (height, width), chunk, strict=True)
        )
        counts = rows.stop - rows.start, columns.stop - columns.start
        if math.prod(counts) * math.prod(chunk) > _AROUND * height * width:
            return None
        array = buffers.empty((n_images, *counts, *chunk), self.dtypes[layer])
        boxes, arrays = [], []
        for (times, *box), (place, *_) in zip(cover.boxes, cover.places, strict=True):
            in_chunks = [_in_chunks(part, side) for part, side in zip(box, chunk, strict=True)]
            pixels = [slice(part.start * side, part.stop * side) for part, side in zip(in_chunks, chunk, strict=True)]
            y, x = (
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(in_chunks, (rows, columns), strict=True)
            )
            boxes.append((times, pixels[0], pixels[1]))
            arrays.append(array[place, y, x])
        return Pixels(array, cover.images, (rows.start * chunk[0], columns.start * chunk[1])), boxes, arrays


def _stretches(joined: NDArray[np.bool_]) -> Iterator[range]:
    """Yield the runs of places that are joined, each to the next one."""
    bounds = [0, *((~joined).nonzero()[0] + 1).tolist(), len(joined) + 1]
    return itertools.starmap(range, itertools.pairwise(bounds))


def _in_chunks(pixels: slice, side: int) -> slice:
    """Return which chunks of an axis have these pixels."""
    return slice(pixels.start // side, -(-pixels.stop // side))
