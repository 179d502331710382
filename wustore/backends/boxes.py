"""Many boxes of a layer at once: each chunk is read and decoded once, however many boxes share it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wustore.model.meta import Meta
from wustore.storage.threads import read_ahead

__all__ = ["READ_BYTES", "BoxSource", "Index", "read_boxes"]

Index = tuple[slice, slice, slice]
"""Three plain slices (time, y, x) with integer bounds inside the array and step 1."""


class BoxSource(Protocol):
    """What is needed of a reader: its metadata, its chunks, and one box at a time."""

    @property
    def meta(self) -> Meta:
        """Everything but pixels."""

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the shape (time, y, x) of the smallest unit that can be read of a layer."""

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box of the padded array of a layer."""


READ_BYTES = 64 << 20
"""Largest single read in bytes (or one chunk, where that is larger): four 2048 x 2048 float32 planes. Reads of
this size ran at the speed of a full load, while ``workers`` + 2 of them stay well below the size of a stack."""


@dataclass(frozen=True)
class _Read:
    """One request: a box that holds whole shares of some of the boxes asked for, and which these are."""

    index: Index
    members: NDArray[np.int64]


def read_boxes(
    reader: BoxSource, layer: str, boxes: Sequence[Index], *, read_bytes: int = READ_BYTES, workers: int | None = None
) -> list[NDArray[Any]]:
    """Read many boxes of a layer, each chunk that they touch once and no other.

    The chunks needed are covered with rectangles, and each rectangle is one `Reader.read`, shrunk to the
    hull of what is asked of it.

    Parameters
    ----------
    reader
        An open store.
    layer
        One of `wustore.model.meta.LAYERS`.
    boxes
        Slices (time, y, x) within ``reader.meta.layer_shape(layer)``, step 1; they may overlap.
    read_bytes
        Size of the largest single read [bytes]; one chunk may be larger.
    workers
        Threads that read, the number of processors by default.

    Returns
    -------
    list of ndarray
        One array for each box, in order, as `Reader.read` gives it. Beside them the memory of ``workers`` + 2
        reads is needed.

    Raises
    ------
    CorruptError
        Where the stored bytes are damaged or missing.
    """
    dtype = reader.meta.layer_dtype(layer)
    out = [np.empty([part.stop - part.start for part in box], dtype) for box in boxes]
    filled = [k for k, array in enumerate(out) if array.size]
    if len(filled) == 1 or math.prod(reader.chunks(layer)) == 1:  # nothing can be shared
        for k in filled:
            reader.read(layer, boxes[k], out[k])
        return out
    bounds = np.array([[(part.start, part.stop) for part in boxes[k]] for k in filled], np.int64).reshape(-1, 3, 2)
    reads = list(_plan(bounds, reader.chunks(layer), max(read_bytes // dtype.itemsize, 1)))

    def fetch(n: int) -> NDArray[Any]:
        return reader.read(layer, reads[n].index)

    for n, block in read_ahead(fetch, range(len(reads)), workers):
        corner = [part.start for part in reads[n].index]
        high = [part.stop for part in reads[n].index]
        for m in reads[n].members.tolist():
            target, source = [], []
            for axis, (start, stop) in enumerate(bounds[m].tolist()):
                a, b = max(start, corner[axis]), min(stop, high[axis])
                target.append(slice(a - start, b - start))
                source.append(slice(a - corner[axis], b - corner[axis]))
            out[filled[m]][tuple(target)] = block[tuple(source)]
    return out


def _plan(bounds: NDArray[np.int64], chunk: tuple[int, int, int], limit: int) -> Iterator[_Read]:
    """Yield reads that touch exactly the chunks that the boxes touch, each once, of at most ``limit`` values."""
    first = bounds[:, :, 0] // np.array(chunk)
    last = (bounds[:, :, 1] - 1) // np.array(chunk)
    for slab in range(int(first[:, 0].min(initial=0)), int(last[:, 0].max(initial=-1)) + 1):
        members = np.flatnonzero((first[:, 0] <= slab) & (slab <= last[:, 0]))
        if not members.size:
            continue
        low, high = first[members, 1:], last[members, 1:] + 1
        origin = low.min(axis=0)
        needed = np.zeros(high.max(axis=0) - origin, bool)
        for (top, left), (bottom, right) in zip((low - origin).tolist(), (high - origin).tolist(), strict=True):
            needed[top:bottom, left:right] = True
        times = bounds[members, 0].clip(slab * chunk[0], (slab + 1) * chunk[0])
        depth = int(times[:, 1].max() - times[:, 0].min())
        for top, bottom, left, right in _rectangles(needed, max(limit // (depth * chunk[1] * chunk[2]), 1)):
            corner, end = origin + np.array((top, left)), origin + np.array((bottom, right))
            inside = ((low < end) & (high > corner)).all(axis=1)
            yield _hull(bounds, members[inside], slab, corner, end, chunk)


def _hull(
    bounds: NDArray[np.int64],
    members: NDArray[np.int64],
    slab: int,
    corner: NDArray[np.int64],
    end: NDArray[np.int64],
    chunk: tuple[int, int, int],
) -> _Read:
    """Return the hull of what the members ask of the chunks from ``corner`` up to ``end`` of a time slab."""
    cells = np.array([(slab, slab + 1), (corner[0], end[0]), (corner[1], end[1])]) * np.array(chunk)[:, None]
    shares = bounds[members].clip(cells[:, :1], cells[:, 1:])
    start, stop = shares[:, :, 0].min(axis=0).tolist(), shares[:, :, 1].max(axis=0).tolist()
    index = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    return _Read(index, members)


def _rectangles(needed: NDArray[np.bool_], limit: int) -> Iterator[tuple[int, int, int, int]]:
    """Cover the true cells of a grid with disjoint rectangles (top, bottom, left, right) of at most ``limit`` cells."""
    changes = np.flatnonzero((needed[1:] != needed[:-1]).any(axis=1)) + 1
    open_runs: dict[tuple[int, int], int] = {}  # (left, right) -> the row in which it began
    for row in [0, *changes.tolist(), len(needed)]:  # the rows between two of these are all the same
        runs = set(_runs(needed[row], limit)) if row < len(needed) else set()
        for run in [run for run in open_runs if run not in runs]:
            height = max(limit // (run[1] - run[0]), 1)
            for top in range(open_runs.pop(run), row, height):
                yield top, min(top + height, row), *run
        for run in runs:
            open_runs.setdefault(run, row)


def _runs(row: NDArray[np.bool_], limit: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the runs of true cells, long ones in pieces of ``limit`` cells."""
    edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    for start, stop in edges.tolist():
        for piece in range(start, stop, limit):
            yield piece, min(piece + limit, stop)
