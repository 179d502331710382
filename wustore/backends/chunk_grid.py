"""How a layer is cut into chunks, and which chunks boxes touch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError

__all__ = ["Grid", "Index", "chunk_sides", "chunks_touched", "regular_grid", "split_axis"]

Index = tuple[slice, slice, slice]
"""Three plain slices (time, y, x) with integer bounds inside the array and step 1."""

_WITHOUT_CHUNKS = 64
"""Side of a cell [pixel] of a layer that can be read pixel by pixel: what is read beyond a window costs little."""


@dataclass(frozen=True, eq=False)
class Grid:
    """How a layer is cut into chunks, the smallest units that can be read.

    Attributes
    ----------
    slabs
        The number of the row of chunks on the time axis that holds each image. Shape (n_images,).
    rows, columns
        Edges of the chunks on the y and the x axis, from 0 up to the size of the axis.
    """

    slabs: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def key(self) -> tuple[bytes, ...]:
        """What two grids have in common that are the same."""
        return self.slabs.tobytes(), self.rows.tobytes(), self.columns.tobytes()

    def cells(
        self, top: NDArray[np.int64], bottom: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], ...]:
        """Return the first row of cells that boxes touch, the one after the last, and the same of the columns.

        Parameters
        ----------
        top, bottom, left, right
            Bounds of each box [pixel], within the grid.
        """
        edges = ((self.rows, top), (self.rows, bottom - 1), (self.columns, left), (self.columns, right - 1))
        first_row, last_row, first_column, last_column = (
            axis.searchsorted(positions, side="right") for axis, positions in edges
        )
        return first_row - 1, last_row, first_column - 1, last_column

    def cover(
        self, top: NDArray[np.int64], bottom: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
    ) -> tuple[tuple[int, int, int, int], list[tuple[slice, slice]]]:
        """Return the cells that boxes touch.

        Parameters
        ----------
        top, bottom, left, right
            Bounds of each box [pixel], none of them empty, all within the grid. Shape (n,), at least one.

        Returns
        -------
        hull
            Top, bottom, left and right of all boxes together [pixel].
        rectangles
            Rows and columns [pixel] of disjoint rectangles of cells, cut at the hull: a few boxes are a small part of a
            cell, and to hand out the rest takes longer than to decode it.
        """
        r0, r1, c0, c1 = self.cells(top, bottom, left, right)
        first_row, last_row, first_column, last_column = r0.min(), r1.max(), c0.min(), c1.max()
        rows, columns = self.rows[first_row : last_row + 1].copy(), self.columns[first_column : last_column + 1].copy()
        rows[0], rows[-1], columns[0], columns[-1] = top.min(), bottom.max(), left.min(), right.max()
        hull = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
        needed = None
        if len(rows) * len(columns) > 4:  # more than one cell
            # Each box adds 1 in its cells: as differences that are set at its four corners and summed up at the end.
            stride = len(columns)
            r0, r1, c0, c1 = (r0 - first_row) * stride, (r1 - first_row) * stride, c0 - first_column, c1 - first_column
            steps = np.zeros(len(rows) * stride, np.int64)
            for sign, corner in ((1, r0 + c0), (1, r1 + c1), (-1, r0 + c1), (-1, r1 + c0)):
                steps += sign * np.bincount(corner, minlength=len(steps))
            needed = steps.reshape(-1, stride).cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
        if needed is None or needed.all():
            return hull, [(slice(*hull[:2]), slice(*hull[2:]))]
        return hull, list(Grid(self.slabs, rows, columns).rectangles(needed))

    def rectangles(self, needed: NDArray[np.bool_]) -> Iterator[tuple[slice, slice]]:
        """Cover the true cells of the grid with disjoint rectangles, and yield their rows and columns [pixel]."""
        changes = np.flatnonzero((needed[1:] != needed[:-1]).any(axis=1)) + 1
        open_runs: dict[tuple[int, int], int] = {}  # (left, right) -> the row in which it began
        for row in [0, *changes.tolist(), len(needed)]:  # the rows between two of these are all the same
            runs = _runs(needed[row]) if row < len(needed) else set()
            for run in [run for run in open_runs if run not in runs]:
                top = open_runs.pop(run)
                yield (
                    slice(int(self.rows[top]), int(self.rows[row])),
                    slice(int(self.columns[run[0]]), int(self.columns[run[1]])),
                )
            for run in runs:
                open_runs.setdefault(run, row)


def regular_grid(shape: tuple[int, int, int], chunks: tuple[int, int, int]) -> Grid:
    """Return the grid of a layer whose chunks all have one shape, but for those at its end.

    Parameters
    ----------
    shape
        Of the layer (time, y, x).
    chunks
        Of a chunk; (1, 1, 1) is a layer without chunks, which gets cells of a handy size.
    """
    depth, height, width = (1, _WITHOUT_CHUNKS, _WITHOUT_CHUNKS) if chunks == (1, 1, 1) else chunks
    rows, columns = (
        np.append(np.arange(0, size, step), size) for size, step in zip(shape[1:], (height, width), strict=True)
    )
    return Grid(np.arange(shape[0]) // depth, rows, columns)


def chunks_touched(boxes: Sequence[Index], chunk: tuple[int, int, int]) -> int:
    """Return how many chunks of a shape (time, y, x) boxes touch; one that two of them touch counts twice."""
    return sum(
        math.prod(-(-part.stop // side) - part.start // side for part, side in zip(box, chunk, strict=True))
        for box in boxes
    )


def _runs(row: NDArray[np.bool_]) -> set[tuple[int, int]]:
    """Return (start, stop) of the runs of true cells."""
    edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return {(start, stop) for start, stop in edges.tolist()}


def chunk_sides(chunks: Any) -> tuple[int, int] | None:
    """Return the sides (y, x) [pixel] of a chunk that was asked for, None if the layout decides.

    Parameters
    ----------
    chunks
        (y, x), or (1, y, x), or None.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if chunks is None:
        return None
    sides = tuple(chunks) if isinstance(chunks, Sequence) and not isinstance(chunks, str) else ()
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sides)
    if not whole or len(sides) not in {2, 3} or (len(sides) == 3 and sides[0] != 1):
        raise UsageError("not a chunk shape", where="chunks", expected="(y, x) or (1, y, x)", found=chunks)
    return sides[-2], sides[-1]


def split_axis(size: int, side: int) -> tuple[int, int]:
    """Return (length, count) of equal chunks of about ``side`` that cover ``size`` with the least padding."""
    count = max(1, round(size / side))
    return max(1, -(-size // count)), count
