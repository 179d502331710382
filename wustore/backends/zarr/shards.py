"""Shards: one layer of one image, cut into inner chunks, with an index at the end.

Format: codec ``sharding_indexed`` of Zarr v3 (ZEP 2): the chunks one behind the other, then for every
chunk in C order its offset and length (uint64, little-endian; both 2^64 - 1 for a missing chunk), then
the CRC-32C of that index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.zarr.codecs import Chain, DamagedChunk, Hints, parse_chain, scratch, strip_crc, with_crc
from wustore.errors import CorruptError
from wustore.storage.threads import in_threads
from wustore.storage.zarr_store import Keys

__all__ = ["Box", "ShardGrid", "ShardedLayer", "encode_shard", "parse_grid"]

_MISSING = 2**64 - 1
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_CACHED_INDICES = 4096
"""Indices kept per layer: about 1 KiB each for a 2048 x 2048 image."""


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

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (y, x) of a shard."""
        return self.chunk[0] * self.counts[0], self.chunk[1] * self.counts[1]

    @property
    def n_chunks(self) -> int:
        """The number of inner chunks."""
        return self.counts[0] * self.counts[1]

    @property
    def index_size(self) -> int:
        """Length of the index with its checksum [byte]."""
        return 16 * self.n_chunks + 4

    def codec(self) -> dict[str, Any]:
        """Return the sharding codec as it stands in ``codecs``."""
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
    """Return the grid of a layer's array metadata, or None where it is not cut the way that is known here."""
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


def encode_shard(plane: NDArray[Any], grid: ShardGrid, fill: float, hints: Hints, workers: int) -> bytes:
    """Return the bytes of a shard; they do not depend on ``workers``.

    Parameters
    ----------
    plane
        Shape (y, x), not larger than the shard; the rest is ``fill``.
    grid
        How to cut it.
    fill
        Value of the padding.
    hints
        For pcodec.
    workers
        Threads that encode.
    """
    height, width = grid.chunk

    def encode(place: tuple[int, int]) -> tuple[bytes, bytes]:
        y, x = place[0] * height, place[1] * width
        part = plane[y : y + height, x : x + width]
        if part.shape != grid.chunk:
            whole = np.full(grid.chunk, fill, grid.chain.dtype)
            whole[: part.shape[0], : part.shape[1]] = part
            part = whole
        return grid.chain.encode(np.ascontiguousarray(part), hints)

    chunks = in_threads(encode, list(np.ndindex(grid.counts)), workers)
    lengths = np.array([len(body) + len(checksum) for body, checksum in chunks], dtype=np.uint64)
    index = np.empty((len(chunks), 2), dtype="<u8")
    index[:, 0] = np.cumsum(lengths) - lengths
    index[:, 1] = lengths
    return b"".join([*itertools.chain.from_iterable(chunks), with_crc(index.tobytes())])


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
    chunks_read, shards_opened
        Counters, exact: every inner chunk that was fetched and decoded, every shard that was asked for.
    """

    keys: Keys
    name: str
    grid: ShardGrid
    separator: str
    chunks_read: int = 0
    shards_opened: int = 0
    _indices: dict[int, NDArray[np.uint64]] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def key(self, i: int) -> str:
        """Return the key of the shard of image ``i``."""
        return self.separator.join((f"{self.name}/c", str(i), "0", "0"))

    def _corrupt(self, i: int, what: str, place: tuple[int, int] | None = None, **more: Any) -> CorruptError:
        where = f"array {self.name}, image {i}"
        if place is not None:
            where += f", chunk ({place[0]}, {place[1]})"
        return CorruptError(
            what, path=self.keys.name, where=where, hint="Restore the store from a copy, or convert again.", **more
        )

    def _missing(self, i: int) -> CorruptError:
        return self._corrupt(i, "a shard is missing", expected=self.key(i))

    def index(self, i: int, tail: bytes | None = None) -> NDArray[np.uint64]:
        """Return offset and length of every inner chunk, shape (y, x, 2), from the end of the shard.

        Raises
        ------
        CorruptError
        """
        known = self._indices.get(i)
        if known is not None:
            return known
        size = self.grid.index_size
        if tail is None:
            tail = self.keys.get_tail(self.key(i), size)
            if tail is None:
                raise self._missing(i)
        if len(tail) < size:
            raise self._corrupt(i, "a shard is truncated", expected=f"at least {size} bytes", found=len(tail))
        try:
            body = strip_crc(tail)
        except DamagedChunk as error:
            raise self._corrupt(i, "the index of a shard is damaged", found=error) from error
        index = np.frombuffer(body, dtype="<u8").reshape(*self.grid.counts, 2).astype(np.uint64, copy=False)
        with self._lock:
            if len(self._indices) >= _CACHED_INDICES:
                self._indices.clear()
            self._indices[i] = index
        return index

    def fill(self, i: int, boxes: Sequence[Box], workers: int = 1) -> None:
        """Fill boxes of image ``i``: every inner chunk they touch is read and decoded once.

        Raises
        ------
        CorruptError
        """
        wanted = self._chunks_of(boxes)
        if not wanted:
            return
        places = list(wanted)
        raw: list[bytes]
        # At a URL a whole shard is one request; from a disk its chunks are better read one by one, each into memory
        # that the one before has warmed.
        if len(places) == self.grid.n_chunks and self.keys.by_url:
            shard = self.keys.get(self.key(i))
            if shard is None:
                raise self._missing(i)
            index = self.index(i, shard[-self.grid.index_size :])
            ranges = self._ranges(i, index, places)
            raw = [shard[start : start + length] for start, length in ranges]
        else:
            index = self.index(i)
            ranges = self._ranges(i, index, places)
            fetched = self.keys.get_ranges(self.key(i), ranges)
            if fetched is None:
                raise self._missing(i)
            raw = fetched
        with self._lock:
            self.shards_opened += 1
            self.chunks_read += len(places)

        def decode(k: int) -> None:
            if len(raw[k]) != ranges[k][1]:
                raise self._corrupt(
                    i, "a shard is truncated", places[k], expected=f"{ranges[k][1]} bytes", found=len(raw[k])
                )
            try:
                self._decode(raw[k], places[k], [boxes[b] for b in wanted[places[k]]])
            except DamagedChunk as error:
                raise self._corrupt(i, "a chunk is damaged", places[k], found=error) from error

        in_threads(decode, range(len(places)), workers)

    def _ranges(self, i: int, index: NDArray[np.uint64], places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        ranges = []
        for place in places:
            start, length = (int(value) for value in index[place])
            if start == _MISSING and length == _MISSING:
                raise self._corrupt(i, "a chunk is missing in its shard", place)
            if start + length >= 1 << 62:
                raise self._corrupt(
                    i, "the index of a shard is damaged", place, found=f"offset {start}, length {length}"
                )
            ranges.append((start, length))
        return ranges

    def _chunks_of(self, boxes: Sequence[Box]) -> dict[tuple[int, int], list[int]]:
        """Return the places of the chunks that boxes touch, each with the numbers of those boxes."""
        height, width = self.grid.chunk
        wanted: dict[tuple[int, int], list[int]] = {}
        for k, box in enumerate(boxes):
            if box.rows[0] >= box.rows[1] or box.columns[0] >= box.columns[1]:
                continue
            for row in range(box.rows[0] // height, -(-box.rows[1] // height)):
                for column in range(box.columns[0] // width, -(-box.columns[1] // width)):
                    wanted.setdefault((row, column), []).append(k)
        return wanted

    def _decode(self, raw: bytes, place: tuple[int, int], boxes: Sequence[Box]) -> None:
        height, width = self.grid.chunk
        y, x = place[0] * height, place[1] * width
        if len(boxes) == 1:
            box = boxes[0]
            top, left = y - box.rows[0], x - box.columns[0]
            if top >= 0 and left >= 0 and y + height <= box.rows[1] and x + width <= box.columns[1]:
                target = box.out[top : top + height, left : left + width]
                if self.grid.chain.can_fill(target):
                    self.grid.chain.decode(raw, target)
                    return
        chunk = scratch(self.grid.chain.dtype, self.grid.chunk)
        self.grid.chain.decode(raw, chunk)
        for box in boxes:
            top, bottom = max(y, box.rows[0]), min(y + height, box.rows[1])
            left, right = max(x, box.columns[0]), min(x + width, box.columns[1])
            box.out[top - box.rows[0] : bottom - box.rows[0], left - box.columns[0] : right - box.columns[0]] = chunk[
                top - y : bottom - y, left - x : right - x
            ]
