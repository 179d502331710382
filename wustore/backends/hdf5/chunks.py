"""Boxes of a chunked HDF5 dataset, read around the library: known offsets, pread, decoding in threads.

h5py serves one thread at a time, so it gives only the places of the chunks. Their bytes are read and decoded here, many
chunks a job, with a constant number of Python calls for a job and at most three for each further chunk.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore.backends.hdf5.file import RawFile
from wustore.backends.hdf5.filters.pipeline import (
    DamagedChunkError,
    Pipeline,
    Scratch,
    filters_of,
    pipeline_of,
)
from wustore.backends.hdf5.integrity import Binding
from wustore.backends.hdf5.netcdf import wrapped
from wustore.backends.hdf5.parts import Places, order_of, parts_of
from wustore.errors import CorruptError
from wustore.storage.url_requests import coalesce

__all__ = ["ChunkReader", "Job", "Plan"]

Job = Callable[[], None]
Place = tuple[int, ...]
"""Number of a chunk along each axis."""

_JOB_BYTES = 1 << 20, 1 << 22
"""Decoded bytes of a job: at the least (2 ms of work, of which planning and handing over take a tenth) and at most."""
_JOBS_PER_THREAD = 2
"""Into how many jobs the part of each of several threads is cut, so that chunks of unequal cost even out."""
_STORED_COSTS = 4
"""A stored byte takes as long as so many decoded ones of noise, and one of those as so many that repeat others."""
_GAP = 1 << 15
"""Bytes between two chunks that are read with them rather than by a second call."""
_FEW = 16
"""The whole chunk index is read (1 us a chunk) unless fewer than one in this many has been wanted (9 us each).

Who wants more is most likely about to want all of them.
"""
_LEAST_BYTES = 8
"""Bytes that each chunk takes in a file, its entry in the index included, at the least."""


class ChunkReader:
    """The chunks of one dataset of an open file.

    Parameters
    ----------
    dataset
        Open h5py dataset with one to three axes; axis 0 counts images if there are three.
    raw
        The bytes of its file.
    binding
        What binds the chunks to their places; None if nothing is known of them.

    Attributes
    ----------
    shape, chunks
        Of the dataset; a dataset that is not chunked (rewritten by another tool) counts one chunk an image.
    chunks_read
        How many chunks have been asked for so far.
    chunk_bytes
        Decoded bytes of a chunk.
    """

    def __init__(self, dataset: h5py.Dataset, raw: RawFile, path: str, binding: Binding | None = None) -> None:
        self.name = dataset.name.lstrip("/")
        self.path = path
        self.shape: tuple[int, ...] = dataset.shape
        chunks = dataset.chunks
        self._is_chunked = chunks is not None
        self.chunks: tuple[int, ...] = chunks or (1, *self.shape[1:])
        self.chunks_read = 0
        self.chunk_bytes = math.prod(self.chunks) * dataset.dtype.itemsize
        self._dataset = dataset
        self._raw = raw
        self._binding = binding
        self._lock = threading.Lock()
        self._grid = tuple(-(-size // step) for size, step in zip(self.shape, self.chunks, strict=True))
        self._table: _Table | None = None
        self._pipeline: Pipeline | None = pipeline_of(dataset) if raw else None

    @property
    def decodes(self) -> bool:
        """Whether chunks are decoded here rather than in the HDF5 library."""
        return self._pipeline is not None

    @property
    def filters(self) -> tuple[int, ...]:
        """HDF5 numbers of the filters, in the order of encoding."""
        return filters_of(self._dataset)

    def unbound(self) -> ChunkReader:
        """Return a reader of the same chunks that does not ask whether they are in their places."""
        other = copy.copy(self)
        other._binding = None
        return other

    def stored_bytes(self) -> int:
        """Return the bytes that the layer takes in the file."""
        return int(self._dataset.id.get_storage_size())

    def stored(self, corner: Place) -> tuple[int, bytes]:
        """Return the mask of the filters left out, and the stored bytes, of the chunk that begins at ``corner``.

        Raises
        ------
        CorruptError
            If it is missing.
        """
        where = f"{self.name}, chunk at {corner}"
        with self._lock, wrapped(self.path, where):
            if self._dataset.id.get_chunk_info_by_coord(corner).byte_offset is None:
                raise CorruptError("a chunk is missing", path=self.path, where=where)
            skipped, data = self._dataset.id.read_direct_chunk(corner)
            return int(skipped), bytes(data)

    def plan(self, bounds: NDArray[np.int64], places: Places | None = None) -> Plan:
        """Return which chunks are needed for boxes, after making sure that they are there.

        Parameters
        ----------
        bounds
            (start, stop) of each box along each axis of the dataset, within its shape: shape (n, axes, 2).
        places
            Where the values go, by default one box after the other in C order.

        Raises
        ------
        CorruptError
            If a chunk is missing, or cannot hold what it should.
        """
        missing = 3 - len(self.shape)
        if missing:  # as if there were axes of length 1 before
            extra = np.broadcast_to(np.array([0, 1]), (len(bounds), missing, 2))
            bounds = np.concatenate([extra, bounds], axis=1)
        ones = (1,) * missing
        parts, numbers = parts_of(bounds, ones + self.chunks, ones + self._grid, places)
        table = self._chunk_table(numbers)
        if table is not None:
            self._check(table, numbers)
        self.chunks_read += numbers.size
        return Plan(self, table, numbers, parts)

    def _check(self, table: _Table, numbers: NDArray[np.int64]) -> None:
        sizes = table.sizes[numbers]
        absent = (sizes == 0).nonzero()[0]
        if absent.size:
            raise CorruptError("a chunk is missing", path=self.path, where=self._where(numbers[absent[0]]))
        if self._pipeline is not None:
            small = (~self._pipeline.is_plausible(sizes)).nonzero()[0]
            if small.size:
                raise CorruptError(
                    "a chunk is damaged",
                    path=self.path,
                    where=self._where(numbers[small[0]]),
                    expected=f"{self._pipeline.nbytes} bytes of values",
                    found=f"{int(sizes[small[0]])} stored bytes, which cannot hold them",
                )

    def _chunk_table(self, numbers: NDArray[np.int64]) -> _Table | None:
        """Return where these chunks, at least, lie; None for a dataset without chunks."""
        if not self._is_chunked or (self._table is not None and self._table.is_whole):
            return self._table
        with self._lock, wrapped(self.path, self.name):
            if self._table is None:
                self._table = _Table(self._dataset, self.chunks, self._grid, self._raw.size)
            self._table.load(numbers)
            return self._table

    def _where(self, number: Any) -> str:
        place = np.unravel_index(int(number), self._grid)
        corner = [int(k) * step for k, step in zip(place, self.chunks, strict=True)]
        if len(corner) == 3:
            return f"{self.name}, image {corner[0]}, chunk at (y, x) = ({corner[1]}, {corner[2]})"
        return f"{self.name}, chunk at {tuple(corner)}"

    # --- filling ------------------------------------------------------------------------------------------

    def jobs(self, plan: Plan, out: NDArray[Any], workers: int = 1) -> list[Job]:
        """Return the work of filling ``out``: some chunks a job.

        Parameters
        ----------
        plan
            What `plan` gave.
        out
            The memory for which the plan was made: one axis, the dataset's dtype, native.
        """
        values = out.view(f"u{out.dtype.itemsize}") if self._pipeline is not None else out
        table, numbers = plan.table, plan.numbers
        if table is None or self._pipeline is None:
            return [
                partial(self._fill_with_library, number, plan.of(np.array([k])), values)
                for k, number in enumerate(numbers.tolist())
            ]
        order = order_of(table.offsets[numbers])
        numbers = numbers[order]
        bounds = self._batches(table.offsets[numbers], table.sizes[numbers], workers)
        return [
            partial(self._fill, table, numbers[low:high], plan.of(order[low:high]), values)
            for low, high in pairwise(bounds)
        ]

    def _batches(self, offsets: NDArray[np.int64], sizes: NDArray[np.int64], workers: int) -> list[int]:
        """Return where each job begins in a list of chunks, and where the last one ends."""
        assert self._pipeline is not None
        if not self._raw.is_remote:
            least, most = _JOB_BYTES
            nbytes = max(self._pipeline.nbytes, 1)
            parts = workers * _JOBS_PER_THREAD if workers > 1 else 1
            step = min(max(offsets.size * nbytes // parts, least), most) // nbytes
            count = -(-offsets.size // max(step, 1))
            return [offsets.size * k // count for k in range(count)] + [offsets.size] if count else [0]
        # One job for each request: chunks that lie side by side come together.
        ranges = coalesce(list(zip(offsets.tolist(), (offsets + sizes).tolist(), strict=True)))
        return [*np.searchsorted(offsets, [start for start, _ in ranges]).tolist(), offsets.size]

    def _fill(self, table: _Table, numbers: NDArray[np.int64], parts: NDArray[np.int64], out: NDArray[Any]) -> None:
        try:
            self._decode(table, numbers, parts, out)
        except DamagedChunkError as error:
            raise CorruptError(
                "a chunk is damaged", path=self.path, where=self._where(numbers[error.k]), found=str(error)
            ) from error

    def _decode(self, table: _Table, numbers: NDArray[np.int64], parts: NDArray[np.int64], out: NDArray[Any]) -> None:
        assert self._pipeline is not None
        offsets, sizes, skipped = table.offsets[numbers], table.sizes[numbers], table.skipped[numbers]
        recorded = None if self._binding is None else self._binding.expected(numbers)
        handle = self._raw.handle
        raw, starts = self._read(offsets, sizes) if handle < 0 else (self._room(offsets, sizes), offsets)
        is_bound = self._binding is None or recorded is not None
        if is_bound and self._pipeline.unpack(handle, raw, starts, sizes, skipped, recorded, parts, out):
            return
        if handle >= 0:
            raw, starts = self._read(offsets, sizes)
        decoded = self._pipeline.decode(raw, starts, sizes, skipped)
        if self._binding is not None:
            strangers = self._binding.strangers(numbers, decoded.checksums)
            if strangers.size:
                self._check_places(numbers[strangers])  # it uses this thread's memory
                decoded = self._pipeline.decode(*self._read(offsets, sizes), sizes, skipped)
        decoded.place(parts, out)

    def _check_places(self, strangers: NDArray[np.int64]) -> None:
        """Refuse chunks that are not those that were written there, unless their plane as a whole is."""
        assert self._binding is not None
        step = self.chunks[0]
        for number in strangers.tolist():
            first = number // math.prod(self._grid[1:]) * step
            if not all(map(self._binding.is_confirmed, range(first, min(first + step, self.shape[0])))):
                raise CorruptError(
                    "a chunk does not belong here: it is that of another place, image, layer or store",
                    path=self.path,
                    where=self._where(number),
                )

    def _read(
        self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the bytes of chunks that are sorted by offset, and where each begins in them."""
        ends = self._ends(offsets, sizes)
        # Chunks that overlap, which only a damaged index says, may end before the one ahead of them does.
        ends = np.maximum.accumulate(ends)
        gap = math.inf if self._raw.is_remote else _GAP
        breaks = (offsets[1:] - ends[:-1] > gap).nonzero()[0].tolist()
        lengths = [
            (int(offsets[first]), int(ends[last] - offsets[first]))
            for first, last in zip([0, *(k + 1 for k in breaks)], [*breaks, offsets.size - 1], strict=True)
        ]
        memory = _RAW.of(sum(length for _, length in lengths))
        starts, begin = offsets.copy(), 0
        for (offset, length), first in zip(lengths, [0, *(k + 1 for k in breaks)], strict=True):
            if self._raw.read_into(memory[begin : begin + length], offset) != length:
                raise DamagedChunkError(first, "the file has become shorter since it was opened")
            starts[first:] = offsets[first:] - offset + begin
            begin += length
        return memory, starts

    def _ends(self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where chunks end, after making sure that this is within the file."""
        ends = offsets + sizes
        outside = (ends > self._raw.size).nonzero()[0]
        if outside.size:
            k = int(outside[0])
            found = max(self._raw.size - int(offsets[k]), 0)
            raise DamagedChunkError(k, f"{found} of {int(sizes[k])} bytes in the file")
        return ends

    def _room(self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return memory for the largest of some chunks."""
        self._ends(offsets, sizes)  # a false size must not decide how much
        return _RAW.of(int(sizes.max()))

    def _fill_with_library(self, number: int, parts: NDArray[np.int64], out: NDArray[Any]) -> None:
        if self._binding is not None:
            self._check_places(np.array([number]))
        place = np.unravel_index(number, self._grid)
        box = tuple(slice(int(k) * step, (int(k) + 1) * step) for k, step in zip(place, self.chunks, strict=True))
        with wrapped(self.path, self._where(number)):
            values = np.asarray(self._dataset[box])
            values = values.astype(values.dtype.newbyteorder("="), copy=False)
        chunk = np.empty((1,) * (3 - values.ndim) + self.chunks, values.dtype)
        chunk[tuple(slice(size) for size in (1,) * (3 - values.ndim) + values.shape)] = values
        item, (_, height, width) = chunk.itemsize, chunk.shape
        for _, source, target, nz, ny, nx, plane, row in parts.tolist():
            strides = (height * width * item, width * item, item)
            data = np.ndarray((nz, ny, nx), chunk.dtype, chunk.data, source * item, strides)
            np.ndarray((nz, ny, nx), out.dtype, out.data, target * item, (plane * item, row * item, item))[...] = data


_RAW = Scratch()


class _Table:
    """Where the chunks of a dataset lie: one entry for each place of the grid, size 0 for a chunk that is not there."""

    def __init__(self, dataset: h5py.Dataset, chunks: Place, grid: Place, limit: int) -> None:
        expected = math.prod(grid)
        if expected * _LEAST_BYTES > limit:
            # A false shape must not decide how much memory the table takes.
            raise CorruptError(
                "chunks are missing",
                where=dataset.name.lstrip("/"),
                expected=f"{expected} chunks",
                found=f"{dataset.id.get_num_chunks()} chunks in a file of {limit} bytes",
            )
        self.offsets = np.zeros(expected, np.int64)
        self.sizes = np.zeros(expected, np.int64)
        self.skipped = np.zeros(expected, np.uint32)
        self.is_whole = False
        self._known = np.zeros(expected, bool)
        self._asked = 0
        self._dataset = dataset
        self._chunks = chunks
        self._grid = grid

    def load(self, numbers: NDArray[np.int64]) -> None:
        """Make sure that the entries of these chunks are there."""
        unknown = numbers[~self._known[numbers]]
        found: list[Any] = []
        self._asked += unknown.size
        if self._asked * _FEW > self._known.size:
            self._dataset.id.chunk_iter(found.append)
            unknown = np.arange(self._known.size)
        else:
            places = np.stack(np.unravel_index(unknown, self._grid), axis=-1) * self._chunks
            found = list(map(self._dataset.id.get_chunk_info_by_coord, map(tuple, places.tolist())))
        self._note([chunk for chunk in found if chunk.byte_offset is not None])
        self._known[unknown] = True
        self.is_whole = unknown.size == self._known.size

    def _note(self, found: Sequence[Any]) -> None:
        if not found:
            return
        corners = np.array([chunk.chunk_offset for chunk in found], np.uint64)
        places = corners // np.array(self._chunks, np.uint64)
        inside = (places < np.array(self._grid, np.uint64)).all(axis=1)
        offsets = np.array([chunk.byte_offset for chunk in found], np.uint64)
        if not inside.all() or (offsets > np.uint64(1 << 62)).any():
            raise CorruptError("the index of chunks is damaged", where=self._dataset.name.lstrip("/"))
        numbers = np.ravel_multi_index(tuple(places.astype(np.int64).T), self._grid)
        self.offsets[numbers] = offsets.astype(np.int64)
        self.sizes[numbers] = [chunk.size for chunk in found]
        self.skipped[numbers] = [chunk.filter_mask for chunk in found]


class Plan:
    """The chunks that boxes need, and which parts of them go where.

    Attributes
    ----------
    table
        Where the chunks lie; None for a dataset without chunks.
    numbers
        The chunks, in ascending order.
    parts
        As `parts_of` makes them.
    """

    def __init__(
        self, reader: ChunkReader, table: _Table | None, numbers: NDArray[np.int64], parts: NDArray[np.int64]
    ) -> None:
        self.reader = reader
        self.table = table
        self.numbers = numbers
        self.parts = parts
        self._ends: NDArray[np.int64] | None = None

    @property
    def work(self) -> int:
        """Decoded bytes of the chunks, fewer if they are stored in so few that decoding takes less time."""
        decoded: int = self.reader.chunk_bytes * self.numbers.size
        if self.table is None:
            return decoded
        return min(decoded, _STORED_COSTS * int(self.table.sizes[self.numbers].sum()) + decoded // _STORED_COSTS)

    def of(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the parts of some of the chunks, which count from 0 in the order of ``chosen``."""
        if self._ends is None:
            self.parts = self.parts[order_of(self.parts[:, 0])]
            self._ends = np.zeros(self.numbers.size + 1, np.int64)
            np.bincount(self.parts[:, 0], minlength=self.numbers.size).cumsum(out=self._ends[1:])
        starts = self._ends[chosen]
        counts = self._ends[chosen + 1] - starts
        ends = counts.cumsum()
        parts: NDArray[np.int64] = self.parts[(starts - ends + counts).repeat(counts) + np.arange(ends[-1])]
        parts[:, 0] = np.arange(chosen.size).repeat(counts)
        return parts
