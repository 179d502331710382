"""Where the chunks of a plane go: many chunks next to each other are one copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Target", "targets_of"]

_Slices = tuple[slice, slice]


@dataclass(eq=False, slots=True)
class Target:
    """What chunks with consecutive numbers fill.

    Attributes
    ----------
    first, stop
        Numbers of the chunks.
    places
        Where they go, in rows. Shape (rows, columns, y, x).
    part
        Rows and columns of each chunk that are wanted; of several chunks next to each other all columns.
    """

    first: int
    stop: int
    places: NDArray[Any]
    part: tuple[slice, slice]

    def memory(self, first: int, stop: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Return the places of these chunks as flat memory, or None if they have gaps or the chunks are not whole."""
        places = self.places
        whole = places.shape[2:] == shape and places.dtype == dtype and places.flags.c_contiguous
        if whole and self.first <= first and stop <= self.stop:
            return places.reshape(-1, *shape)[first - self.first : stop - self.first].reshape(-1)
        return None

    def take(
        self,
        first: int,
        stop: int,
        values: NDArray[Any],
        copy: Callable[[NDArray[Any], NDArray[Any]], None] = np.copyto,
    ) -> None:
        """Copy what is wanted of these chunks, shape (chunks, y, x).

        Parameters
        ----------
        copy
            Function of places and chunks, both of shape (rows, columns, y, x).
        """
        columns = self.places.shape[1]
        low, high = first if first > self.first else self.first, stop if stop < self.stop else self.stop
        while low < high:
            row, column = (low - self.first) // columns, (low - self.first) % columns
            rows = 0 if column else (high - low) // columns
            if rows:
                places, count = self.places[row : row + rows], rows * columns
            else:  # a row of which other chunks are elsewhere
                count = columns - column if columns - column < high - low else high - low
                places = self.places[row : row + 1, column : column + count]
            chunks = values[low - first : low - first + count]
            copy(places, chunks[:, *self.part].reshape(places.shape))
            low += count


def targets_of(
    chunk: tuple[int, int], across: int, rows: tuple[int, int], columns: tuple[int, int], out: NDArray[Any]
) -> list[Target]:
    """Return what the chunks that a box touches fill; no two have a chunk in common.

    Parameters
    ----------
    chunk
        Shape of a chunk.
    across
        How many chunks are next to each other in the plane; they are numbered in C order.
    rows, columns
        Bounds (start, stop) of the box.
    out
        The array that is the box, or the chunks of a box of whole ones: shape (rows, columns, y, x).
    """
    targets = []
    for first, n_rows, n_columns, place, part in _runs(chunk, across, rows, columns):
        if out.ndim > 2:
            y, x = (slice(s.start // side, s.stop // side) for s, side in zip(place, chunk, strict=True))
            places = out[y, x]
        else:
            filled = out[place]
            height, width = filled.shape
            places = filled.reshape(n_rows, height // n_rows, n_columns, width // n_columns).transpose(0, 2, 1, 3)
        targets += [Target(first, first + n_rows * n_columns, places, part)]
    return targets


@lru_cache(4096)
def _runs(
    chunk: tuple[int, int], across: int, rows: tuple[int, int], columns: tuple[int, int]
) -> list[tuple[int, int, int, _Slices, _Slices]]:
    """Return how a box lies in chunks of which ``across`` are next to each other.

    Returns
    -------
    list
        Of runs of chunks with consecutive numbers: the first, how many there are in y and x, which part of the box they
        fill, and which part of each fills it.
    """
    runs = []
    for row, n_rows, to_rows, from_rows in _spans(*rows, chunk[0]):
        for column, n_columns, to_columns, from_columns in _spans(*columns, chunk[1]):
            # Rows of chunks follow each other if they are whole.
            height = n_rows if n_columns == across else 1
            for k in range(0, n_rows, height):
                start, stop = to_rows.start, to_rows.stop
                if height < n_rows:
                    start, stop = start + k * chunk[0], start + (k + 1) * chunk[0]
                place = slice(start, stop), to_columns
                runs.append(((row + k) * across + column, height, n_columns, place, (from_rows, from_columns)))
    return runs


def _spans(start: int, stop: int, side: int) -> list[tuple[int, int, slice, slice]]:
    """Return how a range lies in pieces of length ``side``, whole ones together.

    Returns
    -------
    list
        First piece, how many, place in the range, place in a piece.
    """
    if stop <= start:
        return []
    low, high = -(-start // side), stop // side  # the whole pieces
    if high < low:
        return [(high, 1, slice(0, stop - start), slice(start - high * side, stop - high * side))]
    spans = []
    if start < low * side:
        spans.append((low - 1, 1, slice(0, low * side - start), slice(start - (low - 1) * side, side)))
    if low < high:
        spans.append((low, high - low, slice(low * side - start, high * side - start), slice(0, side)))
    if high * side < stop:
        spans.append((high, 1, slice(high * side - start, stop - start), slice(0, stop - high * side)))
    return spans
