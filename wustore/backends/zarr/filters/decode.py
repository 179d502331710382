"""Stored chunks to values: their checksums, and the codecs pcodec, zstd, Blosc and none.

A block of chunks is decoded by compiled loops if that is worth it (`wustore.backends.zarr.filters.blocks`), and by
Python if not, or if they find anything wrong: Python finds out in which chunk.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.zarr.filters import blocks
from wustore.backends.zarr.filters.blocks import Bounds, Source
from wustore.errors import MissingDependencyError
from wustore.model.checksum import RESIDUE, crc32c, large_crc32c
from wustore.model.sizes import check_size
from wustore.storage.files import fill_from

__all__ = [
    "BLOCK",
    "Bytes",
    "DamagedChunk",
    "Source",
    "check_crc",
    "decode_block",
    "most_of_zstd",
    "pcodec_header",
    "scratch",
    "strip_crc",
    "unpacked_zstd",
    "with_crc",
    "zstd_size",
]


Bytes = bytes | memoryview


class DamagedChunk(ValueError):  # noqa: N818 - internal: becomes a CorruptError once the place is known
    """Bytes of a chunk that fail their checksum or do not decode.

    Parameters
    ----------
    text
        What is wrong.
    number
        Which of several chunks it is.
    """

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


def with_crc(body: bytes) -> bytes:
    """Return ``body`` followed by its checksum, as codec ``crc32c`` stores it."""
    return body + crc32c(body).to_bytes(4, "little")


def check_crc(raw: bytes) -> None:
    """Compare the checksum at the end of ``raw`` with the bytes before, without copying them."""
    if len(raw) < 4 or crc32c(raw) != RESIDUE:
        raise DamagedChunk("the checksum (crc32c) does not match")


def strip_crc(raw: bytes) -> bytes:
    """Return the bytes before the checksum after comparing it."""
    check_crc(raw)
    return raw[:-4]


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[tuple[np.dtype[Any], str], NDArray[Any]] = {}


_SCRATCH = _Scratch()


def scratch(dtype: np.dtype[Any], size: int, purpose: str = "values") -> NDArray[Any]:
    """Return memory of this thread for so many values: valid until the next call with this dtype and purpose."""
    arrays, key = _SCRATCH.arrays, (dtype, purpose)
    if key not in arrays or arrays[key].size < size:
        arrays[key] = np.empty(size, dtype)
    return arrays[key][:size]


BLOCK = 4
"""Chunks of a block that are worth a call of compiled loops."""


_ERRORS = (RuntimeError, ValueError, TypeError)
"""What codecs raise for bytes that are not theirs."""


def _check_crcs(stored: Bytes, bounds: Bounds, length: int) -> None:
    """Compare the checksums of chunks: all at once if each has this length, which is 0 if the lengths differ."""
    data: Any = np.frombuffer(stored, np.uint8)
    n, start, end = len(bounds), bounds[0][0], bounds[-1][1]
    if length and end - start == n * length and large_crc32c(data[start:end]) == _residue(n, length):
        return
    for number, found in enumerate(map(crc32c, [data[start:stop] for start, stop in bounds])):
        if found != RESIDUE:
            raise DamagedChunk("the checksum (crc32c) does not match", number)


@lru_cache
def _residue(n: int, length: int) -> int:
    """Return the CRC-32C of ``n`` chunks of that length with their checksums, which depends on nothing else in them."""
    return large_crc32c(np.frombuffer(with_crc(bytes(length - 4)) * n, np.uint8))


def _begin_alike(stored: Bytes, bounds: Bounds, length: int) -> bool:
    heads = b"".join([stored[start : start + length] for start, _ in bounds])
    return heads == heads[:length] * len(bounds)


def _wrong_size(number: int) -> DamagedChunk:
    return DamagedChunk("the chunk holds a different number of values", number)


def _undecodable(number: int, error: Exception) -> DamagedChunk:
    return DamagedChunk(f"the chunk does not decode: {error}", number)


def _raw(stored: Bytes, bounds: Bounds, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values where they are: chunks of one length are a regular distance apart."""
    distance = size * dtype.itemsize + 4
    for number, (start, stop) in enumerate(bounds):
        if stop - start != distance:
            raise _wrong_size(number)
    return np.ndarray((len(bounds), size), dtype, stored, bounds[0][0], (distance, dtype.itemsize))


# --- pcodec -------------------------------------------------------------------------------------------------
#
# A file of pcodec is a header, the file's own chunks and a zero. So the files of several chunks of ours are one file
# without the headers and zeros between them, if every chunk has the header of the first, its number of values, and a
# zero at its end. All checksums are compared before: only chunks that were made to run into each other, with checksums
# made for them, would decode together to what they are not one by one.


def _is_decoded(joined: bytes, flat: NDArray[Any]) -> bool:
    """Decode a stream; return whether it fills the memory: if not, one of its chunks is damaged."""
    from pcodec.standalone import simple_decompress_into as decompress

    try:
        progress = decompress(joined, flat)
    except _ERRORS:
        return False
    return bool(progress.finished and progress.n_processed == flat.size)


def _decode_pcodec(stored: Bytes, bounds: Bounds, size: int, flat: NDArray[Any]) -> None:
    from pcodec.standalone import simple_decompress_into as decompress

    joined = _join_pcodec(stored, bounds, size) if bounds[1:] else None
    if joined is not None and _is_decoded(joined, flat):
        return
    for number, (start, stop) in enumerate(bounds):
        part = flat[number * size : (number + 1) * size]
        try:
            # It ends where its own end mark says, so the checksum after it does not matter.
            progress = decompress(bytes(stored[start:stop]), part)
        except _ERRORS as error:
            if "Compatibility error" in str(error):  # its checksum is right: nothing is damaged
                raise MissingDependencyError(
                    "the store was written with a newer pcodec than the one that is installed",
                    found=error,
                    hint="pip install --upgrade pcodec",
                ) from error
            raise _undecodable(number, error) from error
        if progress.n_processed != size or not progress.finished:
            raise _wrong_size(number)


_PCODEC_HEAD = 21
"""The longest header, with what the chunk after it begins with: its dtype and the number of its values."""


def _join_pcodec(stored: Bytes, bounds: Bounds, size: int) -> bytes | None:
    """Return one file with the values of several, or None if they do not begin and end alike."""
    start, n = bounds[0][0], len(bounds)
    length = pcodec_header(bytes(stored[start : start + _PCODEC_HEAD]), size)
    if not length:
        return None
    head = bytes(stored[start : start + length + 4])
    heads = b"".join([stored[start : start + length + 4] for start, _ in bounds])
    zeros = b"".join([stored[stop - 5 : stop - 4] for _, stop in bounds])
    if heads != head * n or zeros != bytes(n):
        return None
    return b"".join([head[:length], *[stored[start + length : stop - 5] for start, stop in bounds], b"\0"])


def pcodec_header(head: bytes, size: int) -> int:
    """Return the length of a header; 0 if it is none that is known, or the chunk after it has not ``size`` values.

    Magic bytes, version of the file, dtype, the number of values (six bits: how many bits it has, then these), and
    version of the chunks, in two bytes from 4 on.
    """
    if len(head) < _PCODEC_HEAD or head[:5] != b"pco!\3":
        return 0
    length = 6 + (6 + (head[6] & 63) + 1 + 7) // 8
    length += 2 if head[length] >= 4 else 1
    return length if int.from_bytes(head[length + 1 : length + 4], "little") == size - 1 else 0


# --- zstd and Blosc -----------------------------------------------------------------------------------------
#
# With the functions of imagecodecs: those of numcodecs make five to fifteen Python-level calls more for each chunk.


def _decode_zstd(stored: Bytes, bounds: Bounds, size: int, flat: NDArray[np.uint8]) -> None:
    """Decode frames of zstd: one after the other they are a stream, and each must hold what it states."""
    import imagecodecs

    decode: Callable[..., Any] = imagecodecs.zstd_decode
    start, n = bounds[0][0], len(bounds)
    length, stated = _zstd_stated(bytes(stored[start : start + _ZSTD_HEAD]))
    if n > 1 and stated == size and _begin_alike(stored, bounds, length):
        joined = b"".join([stored[start : stop - 4] for start, stop in bounds])
        try:
            if decode(joined, out=flat).size == flat.size:
                return
        except _ERRORS:
            pass  # one of them: which, is found below
    for number, (start, stop) in enumerate(bounds):
        body = stored[start : stop - 4]
        if _zstd_stated(bytes(body[:_ZSTD_HEAD]))[1] != size:
            raise _wrong_size(number)
        try:
            found = decode(body, out=flat[number * size : (number + 1) * size])
        except _ERRORS as error:
            raise _undecodable(number, error) from error
        if found.size != size:
            raise _wrong_size(number)


def _decode_blosc(stored: Bytes, bounds: Bounds, size: int, flat: NDArray[np.uint8]) -> None:
    """Decode chunks one by one: a stream of blosc has one chunk."""
    import imagecodecs

    decode: Callable[..., Any] = partial(imagecodecs.blosc_decode, numthreads=1)
    # A header has the lengths of the content, of blocks, and of all: blosc reads to there, wherever the chunk ends.
    heads = b"".join([stored[start + 4 : start + 16] for start, _ in bounds])
    n = len(heads) // 12
    stated = np.frombuffer(heads, "<u4", 3 * n).reshape(n, 3)[:, ::2].tolist()
    for number, (start, stop) in enumerate(bounds):
        if number >= n or stated[number] != [size, stop - start - 4]:
            raise _wrong_size(number)
        try:
            found = decode(stored[start : stop - 4], out=flat[number * size : (number + 1) * size])
        except _ERRORS as error:
            raise _undecodable(number, error) from error
        if found.size != size:
            raise _wrong_size(number)


_ZSTD_HEAD = 14
"""The longest header of a frame of zstd, to the end of the size that it states."""


def zstd_size(frame: Bytes) -> int:
    """Return the size of the content that a zstd frame states, before memory is taken for it.

    Raises
    ------
    DamagedChunk
        If it states none.
    """
    head = bytes(frame[:_ZSTD_HEAD])
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        raise DamagedChunk("not a zstd frame")
    _, size = _zstd_stated(head)
    if size < 0:
        raise DamagedChunk("a zstd frame that does not state its size")
    return size


def unpacked_zstd(frame: Bytes) -> bytes:
    """Return the content of a zstd frame by itself, no larger than its bytes justify.

    Raises
    ------
    CorruptError, DamagedChunk
    """
    from numcodecs import Zstd

    check_size(zstd_size(frame), len(frame))
    try:
        return bytes(Zstd().decode(frame))
    except RuntimeError as error:
        raise DamagedChunk(f"a zstd frame does not decode: {error}") from error


_ZSTD_BLOCK = 1 << 17
"""Most bytes that a block of zstd holds (RFC 8878, 3.1.1.2.4)."""


def most_of_zstd(stream: bytes) -> int:
    """Return how many bytes a stream of zstd frames holds at most, by what frames and blocks state.

    A frame need not state its size, and streams of other programs do not. Then its blocks are counted. A stream that is
    none is followed as far as it goes: its decoder says what is wrong.
    """
    most = place = 0
    while len(stream) >= place + 8:
        magic, length = struct.unpack_from("<2I", stream, place)
        if magic >> 4 == 0x184D2A5:  # a frame to be skipped
            place += 8 + length
            continue
        if magic != 0xFD2FB528:
            break
        start, stated = _zstd_stated(stream[place : place + _ZSTD_HEAD])
        checksum = 4 * (stream[place + 4] >> 2 & 1)
        place += start
        content = is_last = 0
        while not is_last and len(stream) >= place + 3:
            head = int.from_bytes(stream[place : place + 3], "little")
            is_last, kind, length = head & 1, head >> 1 & 3, head >> 3
            content += min(length, _ZSTD_BLOCK) if kind < 2 else _ZSTD_BLOCK
            place += 4 if kind == 1 else 3 + length  # one byte, that is repeated
        place += checksum
        most += stated if stated >= 0 else content
    return most


def _zstd_stated(head: bytes) -> tuple[int, int]:
    """Return where the size ends that a frame states, and the size, -1 if it states none (RFC 8878, 3.1.1.1)."""
    if len(head) < 6:
        return 0, -1
    flags = head[4]
    single = flags >> 5 & 1
    start, length = 6 - single + (0, 1, 2, 4)[flags & 3], (single, 2, 4, 8)[flags >> 6]
    size = int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)
    return start + length, size if length else -1


# --- a block ------------------------------------------------------------------------------------------------


def decode_block(
    method: str,
    dtype: np.dtype[Any],
    stored: Bytes,
    bounds: Bounds,
    size: int,
    out: NDArray[Any] | None,
    source: Source | None = None,
) -> NDArray[Any]:
    """Decode chunks that lie next to each other; see `wustore.backends.zarr.codecs.Chain.decode_block`.

    Parameters
    ----------
    source
        Where to read ``stored`` from, which then is what `wustore.storage.files.room` gave.
    """
    n = len(bounds)
    if method == "raw":
        if source is not None:
            stored = fill_from(source[0], memoryview(stored), source[1])
        _check_crcs(stored, bounds, size * dtype.itemsize + 4)
        values = _raw(stored, bounds, size, dtype.newbyteorder("<"))
        if out is None:
            return values
        out.reshape(n, size)[...] = values
        return out.reshape(n, size)
    flat = scratch(dtype, n * size) if out is None else out
    if n < BLOCK or not _is_done(method, stored, bounds, size, flat, source):
        if source is not None:
            stored = fill_from(source[0], memoryview(stored), source[1])
        _check_crcs(stored, bounds, 0)
        if method == "pcodec":
            _decode_pcodec(stored, bounds, size, flat)
        else:
            unpack = _decode_zstd if method == "zstd" else _decode_blosc
            unpack(stored, bounds, size * flat.itemsize, flat.view(np.uint8))
    values = flat.reshape(n, size)
    if method == "pcodec":
        return values
    little = dtype.newbyteorder("<")
    if out is None or little == dtype:
        return values.view(little)
    values[...] = values.view(little)
    return values


def _is_done(method: str, stored: Bytes, bounds: Bounds, size: int, flat: NDArray[Any], source: Source | None) -> bool:
    """Read, check and decode a block by compiled loops; return whether all is as it should be."""
    # Imported after 8 MB if numba is there, so that the first image pays for it, and after 4 GB if not: with few
    # threads they save a tenth of the time, and more is not known here. `blocks.prepare` knows.
    if blocks.LOOPS.get(flat.nbytes * 4 if "numba" in sys.modules else flat.nbytes // 4) is None:
        return False
    if method == "pcodec":
        joined = blocks.joined(stored, bounds, size, source)
        return joined is not None and _is_decoded(joined, flat)
    nbytes = size * flat.itemsize
    return blocks.unpacked(method == "zstd", stored, bounds, nbytes, flat.view(np.uint8), source)
