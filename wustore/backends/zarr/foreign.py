"""Layers cut or encoded in a way that `shards` does not know, read through zarr-python."""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.zarr.filters.decode import DamagedChunk, strip_crc
from wustore.errors import CorruptError, FormatError, located
from wustore.model.quiet import quiet
from wustore.model.sizes import check_size
from wustore.storage.stores import ObjectKeys
from wustore.storage.zarr_store import DirectoryKeys, Keys, StoreKeys

__all__ = ["ForeignArray"]

_RAISED = (
    *(ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, EOFError),
    *(zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error),
)
"""What zarr-python, its codecs and the zip file below raise for damaged bytes."""


def _store_of(keys: Keys) -> tuple[Any, str]:
    """Return zarr-python's Store of the keys, and the path of the group in it."""
    if isinstance(keys, ObjectKeys):
        return keys.objects.zarr_store(keys.base)
    if isinstance(keys, StoreKeys):
        return keys.store, ""
    if isinstance(keys, DirectoryKeys):
        from zarr.storage import LocalStore

        return LocalStore(keys.root, read_only=True), ""
    from zarr.storage import ZipStore

    return ZipStore(keys.name, mode="r"), ""


class ForeignArray:
    """An array read through zarr-python, with missing chunks found instead of filled.

    Parameters
    ----------
    name
        Path of the array.
    shape, dtype
        What the root says of it. The array's own document, by which it is read, must have as many axes and, if it is
        given, the same dtype. It may be longer or shorter: an append that was interrupted leaves it so.

    Raises
    ------
    CorruptError
        If the array cannot be opened, or is another one.
    FormatError
        If it has shards in which a missing chunk could not be found.
    """

    def __init__(self, keys: Keys, name: str, shape: Sequence[int], dtype: np.dtype[Any] | None = None) -> None:
        import zarr

        from wustore.backends.zarr.filters.foreign_codecs import checked_codecs

        self._keys = keys
        self._name = name
        try:
            # One thread at a time: zarr's configuration belongs to the process. Codecs outside the core are said so on
            # every open.
            with quiet(), checked_codecs():
                store, base = _store_of(keys)
                array = zarr.open_array(store, path=f"{base}/{name}".strip("/"), mode="r", zarr_format=3)
                chunks, shards = array.chunks, array.shards
        except (*_RAISED, OSError) as error:
            raise self._corrupt("an array cannot be opened", error) from error
        if any(len(axes) != len(shape) for axes in (array.shape, chunks, shards or chunks)):
            found = f"shape {array.shape}, chunks of {chunks}, shards of {shards}"
            raise self._corrupt("an array has another number of axes", found, expected=f"{len(shape)}: {tuple(shape)}")
        if min((*chunks, *(shards or ())), default=1) < 1 or np.any(np.mod(shards or chunks, chunks)):
            raise self._corrupt("an array cannot be opened", f"chunks of {chunks}, shards of {shards}")
        if dtype is not None and array.dtype.newbyteorder("=") != dtype:
            raise self._corrupt("an array has another dtype", array.dtype, expected=dtype)
        if not _is_each_shard_checked(array.metadata.codecs):  # type: ignore[union-attr]
            raise FormatError(
                "shards of a form in which a missing chunk cannot be found",
                path=keys.name,
                where=f"array {name}",
                expected="shards of chunks, with a checksummed index at the end",
            )
        self.array: Any = array
        self._shape = shape

    def _corrupt(self, what: str, found: object, where: str = "", expected: object = None) -> CorruptError:
        place = f"array {self._name}{where}"
        return CorruptError(what, path=self._keys.name, where=place, expected=expected, found=found)

    def read_small(self) -> NDArray[Any]:
        """Return all values of an array whose shape nothing but its own metadata says."""
        return self.read(tuple(slice(0, size) for size in self._shape), is_bounded=False)

    def read(self, index: tuple[slice, ...], *, is_bounded: bool = True) -> NDArray[Any]:
        """Return a box.

        Parameters
        ----------
        index
            The box.
        is_bounded
            Whether something else than the metadata of the array says how large the box may be.
        """
        stored = self._check_there(index)
        if not is_bounded:
            self._check_size(math.prod(part.stop - part.start for part in index), stored)
        try:
            data = np.asarray(self.array[index])
            if data.dtype.kind == "T":  # numpy's own text has no byte order
                return data.astype(object)
            return np.asarray(data, dtype=data.dtype.newbyteorder("="), order="C")
        except _RAISED as error:
            raise self._corrupt("an array cannot be read", error) from error

    def _check_there(self, index: tuple[slice, ...]) -> int:
        """Raise if a chunk that the box touches is missing: zarr-python would give fill values.

        Returns
        -------
        int
            The stored bytes of these chunks.
        """
        outer = self.array.shards or self.array.chunks
        if any(part.start >= part.stop for part in index):
            return 0
        if any(part.stop > size for part, size in zip(index, self.array.shape, strict=True)):
            found = f"an array of {self.array.shape}"
            raise self._corrupt("an array ends before what is read", found, expected=[part.stop for part in index])
        is_larger = any(n > size for n, size in zip(outer, self.array.shape, strict=True))
        spans = [range(part.start // n, -(-part.stop // n)) for part, n in zip(index, outer, strict=True)]
        stored = 0
        for place in _places(spans):
            key = f"{self._name}/{self.array.metadata.encode_chunk_key(place)}"
            length = self._keys.size(key)
            if length is None:
                raise self._corrupt("a chunk is missing", "none", f", chunk {place}")
            if is_larger:  # all of it is decoded
                self._check_size(math.prod(outer), length)
            if self.array.shards is not None:
                self._check_shard(key, place, index)
            stored += length
        return stored

    def _check_size(self, values: int, stored: int) -> None:
        with located(self._keys.name, f"array {self._name}"):
            check_size(values * getattr(self.array.dtype, "itemsize", 1), stored)

    def _check_shard(self, key: str, place: tuple[int, ...], index: tuple[slice, ...]) -> None:
        counts = tuple(s // c for s, c in zip(self.array.shards, self.array.chunks, strict=True))
        size = 16 * int(np.prod(counts)) + 4
        tail = self._keys.get_tail(key, size)
        try:
            if tail is None or len(tail) < size:
                raise DamagedChunk("the shard is truncated")
            entries = np.frombuffer(strip_crc(tail), dtype="<u8").reshape(*counts, 2)
        except DamagedChunk as error:
            raise self._corrupt("the index of a shard is damaged", error, f", shard {place}") from error
        inside = []
        for part, k, chunk, shard in zip(index, place, self.array.chunks, self.array.shards, strict=True):
            first = max(part.start - k * shard, 0) // chunk
            last = -(-min(part.stop - k * shard, shard) // chunk)
            inside.append(slice(first, last))
        missing = (entries[tuple(inside)] == np.uint64(2**64 - 1)).all(axis=-1)
        if missing.any():
            raise self._corrupt("a chunk is missing in its shard", f"{int(missing.sum())} missing", f", shard {place}")


def _is_sharding(codec: Any) -> bool:
    return hasattr(codec, "index_codecs")


def _is_each_shard_checked(codecs: Sequence[Any]) -> bool:
    """Return whether there are no shards, or only those of which `ForeignArray` reads the index."""
    if not any(map(_is_sharding, codecs)):
        return True
    codec = codecs[0]
    if len(codecs) > 1 or any(map(_is_sharding, codec.codecs)):  # behind another codec, or shards in shards
        return False
    names = [type(one).__name__ for one in codec.index_codecs]
    location = getattr(codec.index_location, "value", codec.index_location)  # an enumeration up to zarr 3.3
    return names == ["BytesCodec", "Crc32cCodec"] and location == "end"


def _places(spans: Sequence[range]) -> Iterator[tuple[int, ...]]:
    """Yield the places of chunks in C order, one at a time: metadata may claim more than there is memory for."""
    if not spans:
        yield ()
        return
    for first in spans[0]:
        for rest in _places(spans[1:]):
            yield first, *rest
