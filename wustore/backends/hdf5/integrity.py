"""What the checksums of single objects leave open: whether a chunk is in its place, and bytes that nobody reads.

A chunk of another place is whole in itself. So its fletcher32 is compared with the one that is recorded for the place.

The checksums of HDF5 and of wustore cover what readers use. Left over are bytes between objects, text in the global
heap, and copies that only other programs read. So one CRC-32C for each block of the file follows the end that HDF5
knows, where no reader looks. HDF5 cuts it off when it changes a file; then there is none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from wustore.backends.hdf5.file import RawFile
from wustore.model.checksum import crc32c, large_crc32c
from wustore.storage.threads import in_threads

__all__ = ["Binding", "changed_blocks", "digest_of", "is_cut"]

_MAGIC = b"WUDIGEST"
_HEAD = struct.Struct("<8sQQ")
"""Magic number, length of the file before the digest, length of a block."""
_BLOCK = 1 << 20
_LARGEST_BLOCK = 1 << 26
_END_ADDRESS = struct.Struct("<8sB3x16xQ")
"""Signature, version and end of a file in a superblock of version 2 or 3 (HDF5 File Format Specification, II.A)."""

Read = Callable[[int, int], bytes | memoryview]
"""Function of offset and length that gives bytes, fewer at the end of the file."""


class Binding:
    """What binds the chunks of a layer to their places.

    Parameters
    ----------
    checksums
        The fletcher32 of each chunk in C order; None if they are not known for chunks as they are now, because another
        program has written the layer in other chunks.
    confirm
        Function that returns whether all values of an image are those that were written: it decides on chunks that
        another program has encoded again.
    """

    def __init__(self, checksums: NDArray[np.uint32] | None, confirm: Callable[[int], bool]) -> None:
        self._checksums = checksums
        self._confirm = confirm
        self._confirmed: dict[int, bool] = {}

    def expected(self, numbers: NDArray[np.int64]) -> NDArray[np.uint32] | None:
        """Return the checksums of some chunks; None if they are not known."""
        return None if self._checksums is None else self._checksums[numbers]

    def strangers(self, numbers: NDArray[np.int64], checksums: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Return which of some chunks, which have these checksums, are not those that were written there."""
        if self._checksums is None:
            return np.arange(numbers.size)
        strangers: NDArray[np.int64] = (self._checksums[numbers] != checksums).nonzero()[0]
        return strangers

    def is_confirmed(self, i: int) -> bool:
        """Return whether all values of image ``i`` are those that were written."""
        if i not in self._confirmed:
            self._confirmed[i] = self._confirm(i)
        return self._confirmed[i]


def digest_of(read: Read, size: int) -> bytes:
    """Return the digest of the first ``size`` bytes of a file, to be put behind them."""
    head = _HEAD.pack(_MAGIC, size, _BLOCK)
    sums = np.array(_checksums(read, size, _BLOCK), "<u4").tobytes()
    return head + sums + struct.pack("<I", crc32c(head + sums))


def changed_blocks(raw: RawFile) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong there) for each part of a file that is not what was written; all of it is read.

    Nothing if the file has no digest: it was written by an older version, or changed by another program since.
    """
    end = _end_address(raw)
    if end is None:
        return
    expected = _parse(raw.read(end, raw.size - end), end)
    if expected is None:
        yield "digest of the file", f"the {raw.size - end} bytes behind the end of the HDF5 file are no digest of it"
        return
    block, sums = expected
    for k, found in enumerate(_checksums(raw.read, end, block)):
        if found != sums[k]:
            place = f"bytes {k * block} to {min((k + 1) * block, end)} of the file"
            yield place, f"CRC-32C: expected {sums[k]:08x}; found {found:08x}"


def is_cut(raw: RawFile) -> bool:
    """Return whether the file ends within its digest."""
    end = _end_address(raw)
    if end is None:
        return False
    head = raw.read(end, _HEAD.size)
    if len(head) < _HEAD.size:
        return _MAGIC.startswith(head[: len(_MAGIC)])
    magic, size, block = _HEAD.unpack(head)
    return bool(magic == _MAGIC and block > 0 and raw.size < end + _HEAD.size + 4 * -(-size // block) + 4)


def _end_address(raw: RawFile) -> int | None:
    """Return where the HDF5 file ends; None if nothing follows, or the superblock is of another version."""
    start = raw.read(0, _END_ADDRESS.size)
    if len(start) < _END_ADDRESS.size:
        return None
    _, version, end = _END_ADDRESS.unpack(start)
    return end if version in {2, 3} and end < raw.size else None


def _parse(digest: bytes, size: int) -> tuple[int, list[int]] | None:
    """Return the length of a block and the checksums; None if it is no digest of a file of this size."""
    if len(digest) < _HEAD.size + 4 or crc32c(digest[:-4]) != struct.unpack("<I", digest[-4:])[0]:
        return None
    magic, length, block = _HEAD.unpack_from(digest)
    sums = np.frombuffer(digest[_HEAD.size : -4], np.uint8)
    if magic != _MAGIC or length != size or not 0 < block <= _LARGEST_BLOCK or sums.size != 4 * -(-size // block):
        return None
    return block, sums.view("<u4").tolist()


def _checksums(read: Read, size: int, block: int) -> list[int]:
    def checksum(start: int) -> int:
        return large_crc32c(np.frombuffer(read(start, min(block, size - start)), np.uint8))

    return in_threads(checksum, range(0, size, block))
