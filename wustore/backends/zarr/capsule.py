"""FITS reconstruction data (the capsule): all pieces one after the other in ``fits/data``, bounds in ``fits/bound``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.zarr.codecs import Chain
from wustore.backends.zarr.filters.decode import DamagedChunk, strip_crc, with_crc
from wustore.backends.zarr.metadata import array_metadata, chunk_key, separator_of
from wustore.errors import CorruptError
from wustore.format.arrays import ArraySpec
from wustore.storage.zarr_store import Keys

__all__ = ["BOUND", "DATA", "CapsuleBytes", "bound_spec", "data_metadata", "write_data"]

DATA = "fits/data"
BOUND = "fits/bound"
_CHUNK = (1 << 20, 1 << 24)
"""Smallest and largest chunk of the data [byte]: up to 1024 chunks grow before their number does."""
_CHAIN = Chain(np.dtype(np.uint8), "raw")


def _chunk_length(total: int) -> int:
    side = min(max(_CHUNK[0], total // 1024), _CHUNK[1])
    count = max(1, -(-total // side))
    return max(1, -(-total // count))


def bound_spec(sizes: Iterable[int]) -> ArraySpec:
    """Return the array of bounds: piece k, the head being piece 0, is data[bound[k]:bound[k + 1]]."""
    bounds = np.cumsum([0, *sizes], dtype=np.int64)
    return ArraySpec(
        BOUND, bounds, ("fits_bound",), {"long_name": "head, then image i, is data[bound[k]:bound[k + 1]]"}
    )


def data_metadata(total: int, separator: str) -> dict[str, Any]:
    """Return the metadata of the data array, ``total`` bytes long; ``separator`` is that of its chunk keys."""
    attributes = {"long_name": "what regenerates the FITS files this store was made from; opaque"}
    return array_metadata(
        (total,),
        _CHAIN.dtype,
        ("fits_byte",),
        chunk=(_chunk_length(total),),
        codecs=_CHAIN.to_json(),
        attributes=attributes,
        separator=separator,
    )


def write_data(keys: Keys, total: int, pieces: Iterator[bytes], separator: str) -> None:
    """Write the chunks of the data array from its pieces, holding one chunk and one piece at a time."""
    length = _chunk_length(total)
    pending = bytearray()
    count = 0
    for piece in pieces:
        pending += piece
        while len(pending) >= length:
            keys.set(chunk_key(DATA, (count,), separator), with_crc(bytes(pending[:length])))
            del pending[:length]
            count += 1
    if pending:
        # The last chunk is stored whole, as every reader of Zarr expects it.
        keys.set(chunk_key(DATA, (count,), separator), with_crc(bytes(pending.ljust(length, b"\0"))))


class CapsuleBytes:
    """The data array, read by range.

    Parameters
    ----------
    n_images
        As many pieces follow the head.

    Raises
    ------
    CorruptError
        If the two do not fit together.
    """

    def __init__(self, keys: Keys, metadata: Mapping[str, Any], bounds: NDArray[Any], n_images: int) -> None:
        self._keys = keys
        self._separator = separator_of(metadata)
        try:
            (total,) = metadata["shape"]
            (self._length,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            known = metadata["codecs"] == _CHAIN.to_json() and metadata["data_type"] == "uint8" and self._length > 0
        except (KeyError, TypeError, ValueError):
            known, total = False, 0
        places = bounds.tolist() if bounds.ndim == 1 and bounds.dtype.kind in "iu" else []
        ordered = all(a <= b for a, b in itertools.pairwise(places))
        if not known or len(places) != n_images + 2 or places[0] != 0 or places[-1] != total or not ordered:
            raise CorruptError(
                "the FITS reconstruction data are not stored as they have to be", path=keys.name, where="fits"
            )
        self._bounds = places
        self._last: tuple[int, bytes] = (-1, b"")

    def _chunk(self, k: int) -> bytes:
        number, body = self._last
        if number == k:
            return body
        raw = self._keys.get(chunk_key(DATA, (k,), self._separator))
        where = f"array {DATA}, chunk {k}"
        if raw is None:
            raise CorruptError("a chunk is missing", path=self._keys.name, where=where)
        try:
            body = strip_crc(raw)
            if len(body) != self._length:
                raise DamagedChunk("the chunk holds a different number of bytes")
        except DamagedChunk as error:
            raise CorruptError("a chunk is damaged", path=self._keys.name, where=where, found=error) from error
        self._last = (k, body)  # pieces are read in order, and many share a chunk
        return body

    def piece(self, k: int) -> bytes:
        """Return piece ``k``: 0 is the head, i + 1 belongs to image i."""
        start, stop = self._bounds[k], self._bounds[k + 1]
        parts = []
        while start < stop:
            number, offset = divmod(start, self._length)
            part = self._chunk(number)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return b"".join(parts)
