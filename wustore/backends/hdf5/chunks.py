"""Boxes of a chunked HDF5 dataset, read around the library: known offsets, pread, decoding in threads.

h5py serves one thread at a time, so it gives only the places of the chunks; bytes are read and decoded here.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore.backends.hdf5.filters import DamagedChunkError, Pipeline, Target, filters_of, pipeline_of
from wustore.backends.hdf5.netcdf import wrapped
from wustore.errors import CorruptError, UsageError
from wustore.storage.threads import default_workers
from wustore.storage.url import RemoteFile, coalesce

__all__ = ["ChunkReader", "Job", "RawFile", "Work", "run", "split_axis", "thread_count"]

_BATCHES_PER_THREAD = 4
"""Batches of chunks handed to each thread: enough to even out chunks of unequal cost, few enough that
handing over (30 us a batch) stays below 2 % of decoding a 256 x 256 chunk (0.6 ms)."""

Job = Callable[[], None]
Box = tuple[slice, ...]
"""One plain slice for each axis."""
Place = tuple[int, ...]
"""Number of a chunk along each axis."""


class Work:
    """Jobs in progress in up to ``workers`` threads."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._jobs: Sequence[Job] = ()
        self._futures: list[Future[None]] = []
        if workers <= 1 or len(jobs) <= 1:
            self._jobs = jobs  # in the thread that waits
            return
        size = -(-len(jobs) // (workers * _BATCHES_PER_THREAD))
        pool = _pool(os.getpid(), workers)
        self._futures = [pool.submit(_finish, jobs[k : k + size]) for k in range(0, len(jobs), size)]

    def wait(self) -> None:
        """Return when all jobs have ended; raise the first error."""
        _finish(self._jobs)
        wait(self._futures)
        for future in self._futures:
            future.result()

    def cancel(self) -> None:
        """Drop what has not begun, without waiting for the rest."""
        for future in self._futures:
            future.cancel()


def _finish(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job()


def run(jobs: Sequence[Job], workers: int) -> None:
    """Run jobs in up to ``workers`` threads; the first error is raised when all have ended."""
    Work(jobs, workers).wait()


@cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Return the threads shared by all files of this process (a forked child needs its own)."""
    return ThreadPoolExecutor(workers, thread_name_prefix=f"wustore-hdf5-{process}")


def thread_count(value: int | None) -> int:
    """Return how many threads are meant: the number of processors where nothing is said.

    Raises
    ------
    UsageError
    """
    if value is None:
        return default_workers()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError("not a number of threads", where="workers", expected="an integer above 0", found=value)
    return value


def split_axis(size: int, target: int) -> int:
    """Return the chunk length that cuts an axis into equal parts of about ``target``."""
    parts = max(1, round(size / target))
    return max(1, -(-size // parts))


class RawFile:
    """The bytes of an open HDF5 file, readable from any thread until nobody needs them.

    It opens the file once more, so that work in progress when the HDF5 file is closed cannot read from
    another file that got the same handle, and does not prolong HDF5's lock. False where the library must
    do the reading: on systems without ``pread``, for other file drivers and behind a user block.
    """

    def __init__(self, file: h5py.File, remote: RemoteFile | None = None) -> None:
        self._handle = -1
        self._remote = None if file.userblock_size else remote
        if remote is not None:
            return
        if not hasattr(os, "pread") or file.driver != "sec2" or file.userblock_size:
            return
        self._handle = os.open(file.filename, os.O_RDONLY)
        if not os.path.sameopenfile(self._handle, file.id.get_vfd_handle()):
            os.close(self._handle)  # replaced since the library opened it
            self._handle = -1

    def __bool__(self) -> bool:
        return self._handle >= 0 or self._remote is not None

    @property
    def is_remote(self) -> bool:
        """Whether a read is a request, so that chunks that lie side by side are better read at once."""
        return self._remote is not None

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at ``offset``, fewer where the file ends before."""
        if self._remote is not None:
            return self._remote.read(offset, size)
        return os.pread(self._handle, size, offset)


class ChunkReader:
    """The chunks of one dataset of an open file.

    Parameters
    ----------
    dataset
        Open h5py dataset with at least one axis; axis 0 counts images where there are three.
    raw
        The bytes of its file.
    path
        For messages.

    Attributes
    ----------
    shape, chunks
        Of the dataset; a dataset that is not chunked (rewritten by another tool) counts one chunk an image.
    chunks_read
        How many chunks have been asked for so far.
    """

    def __init__(self, dataset: h5py.Dataset, raw: RawFile, path: str) -> None:
        self.name = dataset.name.lstrip("/")
        self.path = path
        self.shape: tuple[int, ...] = dataset.shape
        self.chunks: tuple[int, ...] = dataset.chunks or (1, *dataset.shape[1:])
        self.chunks_read = 0
        self._dataset = dataset
        self._raw = raw
        self._lock = threading.Lock()
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

    def stored_bytes(self) -> int:
        """Return the bytes that the layer takes in the file."""
        return int(self._dataset.id.get_storage_size())

    def stored(self, corner: Place) -> tuple[int, bytes]:
        """Return the mask of the filters left out, and the stored bytes, of the chunk that begins at ``corner``.

        Raises
        ------
        CorruptError
            Where it is missing.
        """
        where = f"{self.name}, chunk at {corner}"
        with self._lock, wrapped(self.path, where):
            if self._dataset.id.get_chunk_info_by_coord(corner).byte_offset is None:
                raise CorruptError("a chunk is missing", path=self.path, where=where)
            skipped, data = self._dataset.id.read_direct_chunk(corner)
            return int(skipped), bytes(data)

    def jobs(self, boxes: Sequence[Box], outs: Sequence[NDArray[Any]]) -> list[Job]:
        """Return the work of filling ``outs`` with ``boxes``: one job for each chunk that any of them touches.

        Parameters
        ----------
        boxes
            Slices within `shape`, step 1.
        outs
            C-contiguous arrays of the boxes' shapes and the dataset's dtype, native.

        Raises
        ------
        CorruptError
            Where a chunk is missing.
        """
        wanted: dict[Place, list[tuple[int, Box, Box]]] = {}
        for k, box in enumerate(boxes):
            for place, source, destination in _parts(box, self.chunks):
                wanted.setdefault(place, []).append((k, source, destination))
        places = sorted(wanted)
        table = self._chunk_table(places)
        if table is not None:
            for place in places:
                if not table.sizes[place]:
                    raise CorruptError("a chunk is missing", path=self.path, where=self._where(place))
        with self._lock:
            self.chunks_read += len(places)
        views = [out.view(np.uint8).reshape(*out.shape, out.dtype.itemsize) for out in outs]
        targets = {place: [(views[k][inside], source) for k, source, inside in wanted[place]] for place in places}
        if table is not None and self._pipeline is not None and self._raw.is_remote:
            return self._requests(table, targets)
        return [partial(self._fill, place, table, targets[place]) for place in places]

    def _requests(self, table: _Table, targets: dict[Place, list[Target]]) -> list[Job]:
        """Return one job for each request: chunks that lie side by side come together."""
        spans = {place: (int(table.offsets[place]), int(table.sizes[place])) for place in targets}
        order = sorted(targets, key=lambda place: spans[place])
        jobs: list[Job] = []
        k = 0
        for start, stop in coalesce([(offset, offset + size) for offset, size in spans.values()]):
            inside = []
            while k < len(order) and spans[order[k]][0] < stop:
                inside.append(order[k])
                k += 1
            jobs.append(partial(self._fill_together, start, stop, table, {place: targets[place] for place in inside}))
        return jobs

    def _fill_together(self, start: int, stop: int, table: _Table, targets: dict[Place, list[Target]]) -> None:
        data = memoryview(self._raw.read(start, stop - start))
        for place, wanted in targets.items():
            offset = int(table.offsets[place]) - start
            self._decode(place, bytes(data[offset : offset + int(table.sizes[place])]), table, wanted)

    def _chunk_table(self, places: Sequence[Place]) -> _Table | None:
        """Return where these chunks, at least, lie; None for a dataset without chunks."""
        with self._lock:
            if self._dataset.chunks is None:
                return None
            with wrapped(self.path, self.name):
                if self._table is None:
                    self._table = _empty_table(self._dataset)
                table = self._table
                unknown = [place for place in places if not table.known[place]]
                if len(unknown) * _FEW > table.known.size:
                    _read_all(self._dataset, table)
                else:
                    for place in unknown:
                        _read_one(self._dataset, table, place)
            return table

    def _where(self, place: Place) -> str:
        corner = [k * step for k, step in zip(place, self.chunks, strict=True)]
        if len(corner) == 3:
            return f"{self.name}, image {corner[0]}, chunk at (y, x) = ({corner[1]}, {corner[2]})"
        return f"{self.name}, chunk at {tuple(corner)}"

    def _fill(self, place: Place, table: _Table | None, targets: list[Target]) -> None:
        if self._pipeline is None or table is None:
            self._fill_with_library(place, targets)
            return
        self._decode(place, self._raw.read(int(table.offsets[place]), int(table.sizes[place])), table, targets)

    def _decode(self, place: Place, stored: bytes, table: _Table, targets: list[Target]) -> None:
        assert self._pipeline is not None
        size = int(table.sizes[place])
        try:
            if len(stored) != size:
                raise DamagedChunkError(f"{len(stored)} of {size} bytes in the file")
            self._pipeline.decode(stored, int(table.skipped[place]), targets)
        except DamagedChunkError as error:
            raise CorruptError(
                "a chunk is damaged", path=self.path, where=self._where(place), found=str(error)
            ) from error

    def _fill_with_library(self, place: Place, targets: list[Target]) -> None:
        box = tuple(slice(k * step, (k + 1) * step) for k, step in zip(place, self.chunks, strict=True))
        with wrapped(self.path, self._where(place)):
            values = np.ascontiguousarray(self._dataset[box])
            values = values.astype(values.dtype.newbyteorder("="), copy=False)
        data = values.view(np.uint8).reshape(*values.shape, values.dtype.itemsize)
        for destination, part in targets:
            destination[...] = data[part]


@dataclass(frozen=True)
class _Table:
    """Where the chunks of a dataset lie: one entry for each place of the grid, size 0 where there is none."""

    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint32]
    skipped: NDArray[np.uint32]
    known: NDArray[np.bool_]

    def note(self, place: Place, chunk: Any) -> None:
        """Enter what the library says of a chunk."""
        self.known[place] = True
        if chunk.byte_offset is not None:
            self.offsets[place] = chunk.byte_offset
            self.sizes[place] = chunk.size
            self.skipped[place] = chunk.filter_mask


_FEW = 8
"""The whole chunk index is read (1.1 us a chunk) unless fewer than one chunk in this many is wanted (9 us each)."""


def _empty_table(dataset: h5py.Dataset) -> _Table:
    grid = tuple(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True))
    expected, limit = math.prod(grid), dataset.file.id.get_filesize()
    if expected > limit:
        # A false shape must not decide how much memory the table takes; every chunk has some bytes.
        raise CorruptError(
            "chunks are missing",
            where=dataset.name.lstrip("/"),
            expected=f"{expected} chunks",
            found=f"{dataset.id.get_num_chunks()} chunks in a file of {limit} bytes",
        )
    return _Table(np.zeros(grid, np.uint64), np.zeros(grid, np.uint32), np.zeros(grid, np.uint32), np.zeros(grid, bool))


def _read_all(dataset: h5py.Dataset, table: _Table) -> None:
    steps = dataset.chunks

    def note(chunk: Any) -> None:
        table.note(tuple(start // step for start, step in zip(chunk.chunk_offset, steps, strict=True)), chunk)

    dataset.id.chunk_iter(note)
    table.known[...] = True


def _read_one(dataset: h5py.Dataset, table: _Table, place: Place) -> None:
    corner = tuple(k * step for k, step in zip(place, dataset.chunks, strict=True))
    table.note(place, dataset.id.get_chunk_info_by_coord(corner))


def _parts(box: Box, chunks: tuple[int, ...]) -> Iterator[tuple[Place, Box, Box]]:
    """Yield (chunk, part of the chunk, part of the box) for every chunk that a box touches."""
    axes = []
    for part, step in zip(box, chunks, strict=True):
        pieces = []
        for k in range(part.start // step, -(-part.stop // step) if part.stop > part.start else 0):
            low, high = max(part.start, k * step), min(part.stop, (k + 1) * step)
            pieces.append((k, slice(low - k * step, high - k * step), slice(low - part.start, high - part.start)))
        axes.append(pieces)
    for cell in product(*axes):
        yield tuple(k for k, _, _ in cell), tuple(s for _, s, _ in cell), tuple(d for _, _, d in cell)
