"""Which parts of which chunks make up boxes, and where their values go in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "Places", "Wanted", "bounds_of", "order_of", "parts_of", "places_in"]

Box = tuple[slice, ...]
"""One plain slice for each axis."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the values of boxes go in memory, counted in values.

    Attributes
    ----------
    first
        The first value of each box.
    plane, row
        From one plane of a box to the next, and from one row to the next.
    """

    first: NDArray[np.int64]
    plane: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Wanted:
    """Boxes of a layer.

    Attributes
    ----------
    layer
        One of `wustore.model.meta.LAYERS`.
    bounds
        (start, stop) of each box along (time, y, x): shape (n, 3, 2).
    target
        Where the values go, as `places_in` gives it; None for new memory, one box after the other.
    """

    layer: str
    bounds: NDArray[np.int64]
    target: tuple[NDArray[Any], Places] | None = None

    def cut(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the boxes, whose values lie one box after the other."""
        shapes = self.bounds[:, :, 1] - self.bounds[:, :, 0]
        ends = shapes.prod(axis=1).cumsum().tolist()
        return [
            values[start:end].reshape(shape)
            for start, end, shape in zip([0, *ends], ends, shapes.tolist(), strict=False)
        ]


def places_in(arrays: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> tuple[NDArray[Any], Places] | None:
    """Return the memory that arrays with three axes share, with one axis, and their places in it.

    None if values have another dtype, if those of a row are not adjacent, or if the arrays do not share memory.
    """
    size = dtype.itemsize
    owners = {id(array if array.base is None else array.base) for array in arrays}
    filled = [array for array in arrays if array.size]
    if len(owners) != 1 or not filled or any(array.dtype != dtype for array in arrays):
        return None
    strides = np.array([array.strides for array in arrays], np.int64)
    if (strides < 0).any() or (strides[:, 2] != size).any() or (strides % size).any():
        return None
    strides //= size
    addresses = [array.__array_interface__["data"][0] for array in arrays]
    low, first = min(zip(addresses, arrays, strict=True), key=lambda pair: pair[0])
    if any((address - low) % size for address in addresses):
        return None
    places = np.array([(address - low) // size for address in addresses], np.int64)
    shapes = np.array([array.shape for array in arrays], np.int64)
    last = ((shapes - 1) * strides).sum(axis=1) + places
    span = int(last[shapes.all(axis=1)].max()) + 1
    memory = np.lib.stride_tricks.as_strided(first, (span,), (size,))
    return memory, Places(places, strides[:, 0], strides[:, 1])


def parts_of(
    bounds: NDArray[np.int64], chunk: tuple[int, ...], grid: tuple[int, ...], places: Places | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the parts of chunks that make up boxes, and the chunks.

    Parameters
    ----------
    bounds
        (start, stop) of each box along three axes: shape (n, 3, 2).
    chunk, grid
        Shape of a chunk, and number of chunks along each axis.
    places
        Where the values go, by default one box after the other in C order.

    Returns
    -------
    parts
        One row for each part: which chunk; its first value in the chunk, and in memory; its shape (three values); and
        the values from one plane and from one row of its box to the next in memory.
    chunks
        The numbers of the chunks in C order, ascending; ``parts`` counts in this list.
    """
    start, stop = bounds[:, :, 0], bounds[:, :, 1]
    shape = stop - start
    volume = shape[:, 0] * shape[:, 1] * shape[:, 2]
    first = start // chunk
    cells = (-(-stop // chunk) - first) * (volume > 0)[:, None]
    counts = cells[:, 0] * cells[:, 1] * cells[:, 2]
    box = np.arange(len(bounds)).repeat(counts)
    ends = counts.cumsum()
    within = np.arange(box.size) - (ends - counts).repeat(counts)
    cells, start = cells[box], start[box]
    place = np.empty((box.size, 3), np.int64)
    place[:, 0] = within // (cells[:, 1] * cells[:, 2])
    place[:, 1] = within // cells[:, 2] % cells[:, 1]
    place[:, 2] = within % cells[:, 2]
    place += first[box]
    corner = place * chunk
    low = np.maximum(start, corner)
    size = np.minimum(stop[box], corner + chunk) - low
    inside, target = low - corner, low - start
    if places is None:
        places = Places(volume.cumsum() - volume, shape[:, 1] * shape[:, 2], shape[:, 2])
    base, plane, row = places.first[box], places.plane[box], places.row[box]
    numbers = (place[:, 0] * grid[1] + place[:, 1]) * grid[2] + place[:, 2]
    order = order_of(numbers)
    numbers = numbers[order]
    is_new = np.ones(numbers.size, bool)
    np.not_equal(numbers[1:], numbers[:-1], out=is_new[1:])
    parts: NDArray[np.int64] = np.empty((box.size, 8), np.int64)
    parts[order, 0] = is_new.cumsum() - 1
    parts[:, 1] = (inside[:, 0] * chunk[1] + inside[:, 1]) * chunk[2] + inside[:, 2]
    parts[:, 2] = base + target[:, 0] * plane + target[:, 1] * row + target[:, 2]
    parts[:, 3:6] = size
    parts[:, 6], parts[:, 7] = plane, row
    return parts, numbers[is_new]


def order_of(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the stable order of numbers. Sorting gives up the interpreter lock: numbers in order are not sorted."""
    if (numbers[1:] >= numbers[:-1]).all():
        return np.arange(numbers.size)
    return numbers.argsort(kind="stable")


def bounds_of(boxes: Sequence[Box]) -> NDArray[np.int64]:
    """Return (start, stop) of each slice of each box: shape (n, axes, 2)."""
    bounds: NDArray[np.int64] = np.array([[(part.start, part.stop) for part in box] for box in boxes], np.int64)
    return bounds
