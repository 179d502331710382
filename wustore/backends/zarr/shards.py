"""Shards: one layer of one image, cut into inner chunks, with an index at the end.

Format: codec ``sharding_indexed`` of Zarr v3 (ZEP 2): the chunks one after the other, then for every
chunk in C order its offset and length (uint64, little-endian; both 2^64 - 1 for a missing chunk), then
the CRC-32C of that index.

Before the index are the CRC-32C of all chunks, which other readers of Zarr do not look at. The store keeps
one CRC-32C over these and that of the index for every shard (`binding_of`). So a chunk that belongs to another place,
image, layer or store is found, although its own checksum is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wustore.backends.targets import Target, targets_of
from wustore.backends.zarr.codecs import Chain, Hints, parse_chain
from wustore.backends.zarr.filters import blocks as compiled
from wustore.backends.zarr.filters.decode import BLOCK, Bytes, DamagedChunk, Source, decode_block, scratch, with_crc
from wustore.backends.zarr.filters.encode import EncodedBlock
from wustore.errors import CorruptError
from wustore.model.checksum import RESIDUE, crc32c
from wustore.storage.files import pread, pread_into, room
from wustore.storage.threads import in_threads, worth
from wustore.storage.zarr_store import Keys

__all__ = [
    "Block",
    "Box",
    "ShardGrid",
    "ShardedLayer",
    "binding_of",
    "encode_block",
    "joined_blocks",
    "parse_grid",
]

_MISSING = 2**64 - 1
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_LARGEST = 1 << 62
"""No offset or length in an index is as large."""

_BLOCK_BYTES = 1 << 22
"""Neighbouring chunks are read and decoded together up to this decoded size. An image of 2048 x 2048 takes the same
processor time with 2, 4 and 8 MiB, and gives the interpreter lock up 72, 45 and 33 times; each thread keeps the memory.
"""

_ENCODED_BYTES = 1 << 21
"""Neighbouring chunks are encoded together up to this size, which the cache of a core holds."""

_CACHED_INDICES = 4096
"""Indices kept per layer: about 1 KiB each for a 2048 x 2048 image."""


Block = tuple[range, range]
"""Rows and columns of chunks that are encoded together."""


@dataclass(frozen=True)
class ShardGrid:
    """How a shard is cut.

    Attributes
    ----------
    chunk
        Shape (y, x) of an inner chunk.
    counts
        The number of inner chunks in a shard (y, x).
    chain
        Codecs of an inner chunk.
    """

    chunk: tuple[int, int]
    counts: tuple[int, int]
    chain: Chain

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Shape (y, x) of a shard."""
        return self.chunk[0] * self.counts[0], self.chunk[1] * self.counts[1]

    @cached_property
    def n_chunks(self) -> int:
        """The number of inner chunks."""
        return self.counts[0] * self.counts[1]

    @cached_property
    def chunk_bytes(self) -> int:
        """Decoded length of an inner chunk [byte]."""
        return self.chunk[0] * self.chunk[1] * self.chain.dtype.itemsize

    @cached_property
    def block(self) -> int:
        """How many chunks are decoded at a time."""
        return max(_BLOCK_BYTES // self.chunk_bytes, 1)

    @cached_property
    def blocks(self) -> list[Block]:
        """Which chunks are encoded together, in the order in which they are stored."""
        rows, columns = self.counts
        together = max(1, _ENCODED_BYTES // self.chunk_bytes)
        high, wide = max(1, together // columns), min(together, columns)
        return [
            (range(y, min(y + high, rows)), range(x, min(x + wide, columns)))
            for y in range(0, rows, high)
            for x in range(0, columns, wide)
        ]

    @cached_property
    def table_size(self) -> int:
        """Length of the checksums of the chunks [byte]."""
        return 4 * self.n_chunks

    @cached_property
    def index_size(self) -> int:
        """Length of the index with its checksum [byte]."""
        return 16 * self.n_chunks + 4

    def codec(self) -> dict[str, Any]:
        """Return the sharding codec as it is in ``codecs``."""
        return {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [1, *self.chunk],
                "codecs": self.chain.to_json(),
                "index_codecs": _INDEX_CODECS,
                "index_location": "end",
            },
        }


def parse_grid(metadata: Mapping[str, Any], dtype: np.dtype[Any]) -> ShardGrid | None:
    """Return the grid of a layer's array metadata, or None if it is not cut the way that is known here."""
    try:
        grid, encoding = metadata["chunk_grid"], metadata["chunk_key_encoding"]
        (codec,) = metadata["codecs"]
        if grid["name"] != "regular" or encoding["name"] != "default" or codec["name"] != "sharding_indexed":
            return None
        shard = tuple(grid["configuration"]["chunk_shape"])
        inner = codec["configuration"]
        chunk = tuple(inner["chunk_shape"])
        if inner["index_codecs"] != _INDEX_CODECS or inner.get("index_location", "end") != "end":
            return None
        if metadata.get("storage_transformers"):
            return None
        chain = parse_chain(inner["codecs"], dtype)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if chain is None or len(shard) != 3 or len(chunk) != 3 or shard[0] != 1 or chunk[0] != 1:
        return None
    if not all(isinstance(size, int) and size > 0 for size in shard + chunk):
        return None
    if shard[1] % chunk[1] or shard[2] % chunk[2]:
        return None
    return ShardGrid((chunk[1], chunk[2]), (shard[1] // chunk[1], shard[2] // chunk[2]), chain)


def encode_block(plane: NDArray[Any], grid: ShardGrid, fill: float, hints: Hints, block: Block) -> EncodedBlock:
    """Encode a block of a plane.

    Parameters
    ----------
    plane
        Shape (y, x), not larger than the shard; the rest is ``fill``.
    fill
        Value of the padding.
    block
        One of `ShardGrid.blocks`.
    """
    height, width = grid.chunk
    ys, xs = block
    n, left, right = len(xs), xs.start * width, xs.stop * width
    all_chunks = scratch(grid.chain.dtype, len(ys) * n * height * width).reshape(-1, height, width)
    for k, y in enumerate(ys):
        # One copy for several chunks: each gives the interpreter lock away, and gets it back when others let it go.
        chunks, part = all_chunks[k * n : (k + 1) * n], plane[y * height : (y + 1) * height, left:right]
        rows, whole = len(part), part.shape[1] // width
        if part.shape != (height, n * width):
            chunks[...] = fill
            chunks[whole : whole + 1, :rows, : part.shape[1] % width] = part[:, whole * width :]
        chunks[:whole, :rows] = part[:, : whole * width].reshape(rows, whole, width).swapaxes(0, 1)
    return grid.chain.encode_block(all_chunks.reshape(len(all_chunks), -1), hints)


def joined_blocks(grid: ShardGrid, encoded: Sequence[EncodedBlock], *, bound: bool = True) -> list[Bytes]:
    """Return a shard in pieces that follow each other.

    Parameters
    ----------
    encoded
        All of `ShardGrid.blocks`.
    bound
        Whether the checksums of the chunks are put before the index.

    Returns
    -------
    list of Bytes
        The chunks, each with its checksum; then the checksums of all chunks, empty if not ``bound``, and the index.
    """
    index = np.empty((grid.n_chunks, 2), dtype="<u8")
    index[:, 1] = np.concatenate([block.lengths for block in encoded])
    index[:, 0] = np.cumsum(index[:, 1]) - index[:, 1]
    sums = np.concatenate([block.sums for block in encoded]).astype("<u4").tobytes() if bound else b""
    return [*itertools.chain.from_iterable(block.pieces for block in encoded), sums, with_crc(index.tobytes())]


def binding_of(shard: Sequence[Bytes]) -> int:
    """Return the CRC-32C that binds the chunks of a shard: of their checksums and that of the index."""
    return crc32c(bytes(shard[-2]) + shard[-1][-4:])


@dataclass(frozen=True, eq=False)
class Box:
    """A rectangle of one image and the array to fill.

    Attributes
    ----------
    rows, columns
        Bounds (start, stop) inside the padded layer.
    out
        Shape (rows, columns).
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    out: NDArray[Any]


_Targets = dict[int, tuple[Target, ...]]
"""Number of a chunk to what is wanted of it."""


class _Block:
    """Chunks with consecutive numbers that lie next to each other in a shard.

    Attributes
    ----------
    first
        Number of the first one, in C order of the grid.
    start, stop
        Where they are in the shard.
    bounds
        Start and stop of each in the bytes of the block.
    """

    __slots__ = ("bounds", "first", "start", "stop")

    def __init__(self, first: int, bounds: list[list[int]]) -> None:
        self.first = first
        self.start, self.stop = start, _ = bounds[0][0], bounds[-1][1]
        self.bounds = [(a - start, b - start) for a, b in bounds]


@dataclass(eq=False)
class ShardedLayer:
    """The shards of a layer, read chunk by chunk.

    Attributes
    ----------
    keys
        Where they are.
    name
        Path of the array below the root.
    grid
        How they are cut.
    separator
        Of the chunk keys.
    bindings
        What binds the chunks of each shard; None in stores that lack it.
    chunks_read, shards_opened
        Counters, exact: every inner chunk that was fetched and decoded, every shard that was asked for.
    """

    keys: Keys
    name: str
    grid: ShardGrid
    separator: str
    bindings: NDArray[np.uint32] | None = None
    chunks_read: int = 0
    shards_opened: int = 0
    _indices: dict[int, tuple[NDArray[np.int64], bytes]] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def key(self, i: int) -> str:
        """Return the key of the shard of image ``i``."""
        return f"{self.name}/c{self.separator}{i}{self.separator}0{self.separator}0"

    def _corrupt(self, i: int, what: str, number: int | None = None, **more: Any) -> CorruptError:
        where = f"array {self.name}, image {i}"
        if number is not None:
            where += f", chunk {divmod(number, self.grid.counts[1])}"
        return CorruptError(
            what, path=self.keys.name, where=where, hint="Restore the store from a copy, or convert again.", **more
        )

    def _missing(self, i: int) -> CorruptError:
        return self._corrupt(i, "a shard is missing", expected=self.key(i))

    @cached_property
    def _tail_size(self) -> int:
        """Length of what is read from the end of a shard before its chunks [byte]."""
        return self.grid.index_size + (0 if self.bindings is None else self.grid.table_size)

    def _index(self, i: int, tail: bytes) -> tuple[NDArray[np.int64], bytes]:
        """Return start and stop of every inner chunk, shape (chunks, 2), and the checksums that they must have.

        Parameters
        ----------
        tail
            The end of the shard.
        """
        size, start = self._tail_size, self._tail_size - self.grid.index_size
        if len(tail) < size:
            raise self._corrupt(i, "a shard is truncated", expected=f"at least {size} bytes", found=len(tail))
        if crc32c(tail[start:]) != RESIDUE:
            raise self._corrupt(i, "the index of a shard is damaged", found="its checksum (crc32c) does not match")
        if self.bindings is not None and crc32c(tail[:start] + tail[-4:]) != self.bindings[i]:
            raise self._corrupt(i, "a shard does not belong here: it is that of another image, layer or store")
        stored = np.frombuffer(tail, "<u8", 2 * self.grid.n_chunks, start).reshape(-1, 2)
        index = stored.astype(np.int64)  # a missing chunk has -1 twice
        if stored.max() >= _LARGEST:
            wild = (stored >= _LARGEST).any(axis=1) & (index != -1).any(axis=1)
            if wild.any():
                k = int(wild.argmax())
                offset, length = stored[k].tolist()
                raise self._corrupt(i, "the index of a shard is damaged", k, found=f"offset {offset}, length {length}")
        index[:, 1] += index[:, 0]
        if len(self._indices) >= _CACHED_INDICES:
            self._indices.clear()
        self._indices[i] = found = index, tail[:start]
        return found

    def _blocks(self, i: int, index: NDArray[np.int64], numbers: list[int], workers: int) -> list[_Block]:
        """Return the chunks in the order in which they are stored, neighbours together.

        Raises
        ------
        CorruptError
            If one is missing.
        """
        most, n = self.grid.block, len(numbers)
        ends: list[int] = []
        if n == len(index) and index[0, 0] >= 0 and (index[1:, 0] == index[:-1, 1]).all():  # as we write them
            firsts, bounds = numbers, index.tolist()
        else:
            places, in_order = index[numbers], np.array(numbers)
            order = places[:, 0].argsort(kind="stable")
            places, in_order = places[order], in_order[order]
            # A block ends where the next chunk is elsewhere or another one than the next, and when it is full.
            ends = (((places[1:, 0] != places[:-1, 1]) | (in_order[1:] != in_order[:-1] + 1)).nonzero()[0] + 1).tolist()
            firsts, bounds = in_order.tolist(), places.tolist()
        if bounds[0][0] < 0:
            raise self._corrupt(i, "a chunk is missing in its shard", firsts[0])
        if workers > 1 and most > n // (2 * workers):
            most = -(-n // (2 * workers))
        blocks: list[_Block] = []
        begin = 0
        for end in (*ends, n):
            for k in range(begin, end, most):
                blocks += [_Block(firsts[k], bounds[k : k + most if k + most < end else end])]
            begin = end
        return blocks

    def fill(self, i: int, boxes: Sequence[Box], workers: int = 1) -> None:
        """Fill boxes of image ``i``: every inner chunk they touch is read and decoded once."""
        targets = self._targets(boxes)
        if not targets:
            return
        numbers = sorted(targets)
        if workers > 1:
            workers = worth(workers, len(numbers) * self.grid.chunk_bytes)
        if self.keys.in_files:
            self._fill_from_file(i, numbers, targets, workers)
        else:
            self._fill_from_requests(i, numbers, targets, workers)
        with self._lock:
            self.shards_opened += 1
            self.chunks_read += len(numbers)

    def _fill_from_file(self, i: int, numbers: list[int], targets: _Targets, workers: int) -> None:
        shard = self.keys.open(self.key(i))
        if shard is None:
            raise self._missing(i)
        with shard:
            known = self._indices.get(i)
            if known is None:
                start = shard.size - self._tail_size if shard.size > self._tail_size else 0
                known = self._index(i, pread(shard.handle, shard.size - start, shard.start + start))
            blocks = self._blocks(i, known[0], numbers, workers)

            def fill(block: _Block) -> None:
                if block.stop > shard.size:  # wild lengths must not decide how much memory is taken
                    self._truncated(i, block, shard.size)
                size, offset = block.stop - block.start, shard.start + block.start
                if len(block.bounds) < BLOCK or compiled.LOOPS.module is None:
                    self._decode(i, block, pread_into(shard.handle, size, offset), known[1], targets)
                else:  # the compiled loops that decode it read it, too
                    self._decode(i, block, room(size), known[1], targets, (shard.handle, offset))

            in_threads(fill, blocks, workers)

    def _fill_from_requests(self, i: int, numbers: list[int], targets: _Targets, workers: int) -> None:
        key = self.key(i)
        known = self._indices.get(i)
        # A whole shard is one request.
        shard = self.keys.get(key) if len(numbers) == self.grid.n_chunks and self.keys.by_request else None
        if known is None:
            tail = self.keys.get_tail(key, self._tail_size) if shard is None else shard[-self._tail_size :]
            if tail is None:
                raise self._missing(i)
            known = self._index(i, tail)
        blocks = self._blocks(i, known[0], numbers, workers)
        if shard is not None:
            found: list[bytes] | None = [shard[block.start : block.stop] for block in blocks]
        else:
            found = self.keys.get_ranges(key, [(block.start, block.stop - block.start) for block in blocks])
        if found is None:
            raise self._missing(i)
        for block, stored in zip(blocks, found, strict=True):
            if len(stored) != block.stop - block.start:
                self._truncated(i, block, block.start + len(stored))
        work = list(zip(blocks, found, strict=True))
        in_threads(lambda item: self._decode(i, *item, known[1], targets), work, workers)

    def _truncated(self, i: int, block: _Block, size: int) -> NoReturn:
        for number, (start, stop) in enumerate(block.bounds, block.first):
            if block.start + stop > size:
                found, expected = max(size - block.start - start, 0), f"{stop - start} bytes"
                raise self._corrupt(i, "a shard is truncated", number, expected=expected, found=found)
        raise AssertionError("no chunk of the block ends behind the shard")

    def _decode(
        self,
        i: int,
        block: _Block,
        stored: bytes | memoryview,
        table: bytes,
        targets: _Targets,
        source: Source | None = None,
    ) -> None:
        """Decode the chunks of a block and put each into the arrays that want it.

        Parameters
        ----------
        stored
            Their bytes, or the memory for them if they are yet to be read from ``source``.
        table
            The checksums that they must have; empty if that is not known.

        Raises
        ------
        CorruptError
            If a chunk is damaged, or its checksum is not the one of ``table``.
        """
        first, stop = block.first, block.first + len(block.bounds)
        wanted = list(dict.fromkeys(itertools.chain.from_iterable(map(targets.__getitem__, range(first, stop)))))
        shape, chain = self.grid.chunk, self.grid.chain
        place = None if wanted[1:] else wanted[0].memory(first, stop, shape, chain.dtype)
        try:
            size = shape[0] * shape[1]
            values = decode_block(chain.method, chain.dtype, stored, block.bounds, size, place, source)
        except DamagedChunk as error:
            raise self._corrupt(i, "a chunk is damaged", first + error.number, found=error) from error
        if place is None:
            chunks = values.reshape(stop - first, *shape)
            for target in wanted:
                target.take(first, stop, chunks, compiled.place)
        if table:
            expected = table[4 * first : 4 * stop]
            found = b"".join([stored[end - 4 : end] for _, end in block.bounds])
            if found != expected:
                number = next(k for k in range(stop - first) if found[4 * k : 4 * k + 4] != expected[4 * k : 4 * k + 4])
                what = "a chunk does not belong here: it is that of another place"
                raise self._corrupt(i, what, first + number)

    def _targets(self, boxes: Sequence[Box]) -> _Targets:
        """Return for each chunk that boxes touch what of it goes where."""
        targets: _Targets = {}
        for box in boxes:
            for found in targets_of(self.grid.chunk, self.grid.counts[1], box.rows, box.columns, box.out):
                target = (found,)
                for number in range(found.first, found.stop):
                    targets[number] = targets[number] + target if number in targets else target
        return targets
