"""The filter pipeline of HDF5 chunks, run outside the HDF5 library, many chunks a call, so that threads share the work.

h5py serialises everything under one lock; the codecs here do not. What they write is what the library
would accept, and what the library writes they read: the HDF5 filters shuffle (2), deflate (1) and
fletcher32 (3), and Blosc (32001) as the registered plug-in stores it (one Blosc 1 frame).

References: HDF5 File Format Specification 3.0, section IV.A.2.l (filter pipeline message); RFC 1950 (zlib).
"""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import h5py
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops, addresses_of
from wustore.backends.hdf5.filters import deflate_encoder

__all__ = [
    "BLOSC",
    "DEFLATE",
    "FLETCHER32",
    "SHUFFLE",
    "DamagedChunkError",
    "Decoded",
    "Pipeline",
    "Scratch",
    "blosc_options",
    "filters_of",
    "pipeline_of",
    "prepare",
]

DEFLATE, SHUFFLE, FLETCHER32, BLOSC = 1, 2, 3, 32001

_KNOWN = (
    (),
    (FLETCHER32,),
    (DEFLATE,),
    (SHUFFLE, DEFLATE),
    (DEFLATE, FLETCHER32),
    (SHUFFLE, FLETCHER32),
    (SHUFFLE, DEFLATE, FLETCHER32),
    (BLOSC,),
    (BLOSC, FLETCHER32),
)
"""Pipelines that are decoded here; any other one is left to the HDF5 library."""

_BLOSC_COMPRESSORS = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_CHECKSUM_BYTES = 4
_LARGEST_VALUE = 8

_LARGEST_RATIO = 1040
"""Deflate makes data at most this many times smaller (RFC 1951: 258 bytes in two bits)."""
_UNSUSPICIOUS = 1 << 26
"""Bytes that a chunk of another codec may claim to hold, however few are stored."""
_LOOPS = Loops("wustore.backends.hdf5.filters.loops_numba", 1 << 30)
"""The unit is bytes of decoded values. The loops save 0.3 s in a gigabyte, which is what importing numba takes."""


_NONE = np.empty(0, np.uint32)


class DamagedChunkError(Exception):
    """The stored bytes of a chunk are not what was written.

    Attributes
    ----------
    k
        Which of the chunks.
    """

    def __init__(self, k: int, text: str) -> None:
        super().__init__(text)
        self.k = k


class Scratch(threading.local):
    """Memory of each thread that is used again and again."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def of(self, size: int) -> NDArray[np.uint8]:
        """Return ``size`` bytes, valid until the thread asks again."""
        if self._memory.size < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size]


_SCRATCH = Scratch()


@dataclass(frozen=True)
class Decoded:
    """Decoded chunks, some with their bytes still shuffled.

    Attributes
    ----------
    data
        Bytes of all chunks.
    starts
        Where each begins.
    shuffled
        Whether the first bytes of all its values come first, then the second ones, and so on.
    checksums
        The fletcher32 that is stored with each, 0 if there is none.
    pipeline
        How they were encoded.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    shuffled: NDArray[np.bool_]
    checksums: NDArray[np.uint32]
    pipeline: Pipeline

    def place(self, parts: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy parts of the chunks to where they belong.

        Parameters
        ----------
        out
            One axis, unsigned integers of the values' size.
        """
        n, nbytes = self.starts.size, self.pipeline.nbytes
        if _LOOPS.get(n * nbytes) is not None:
            stored = -1, self.data, self.starts, np.full(n, nbytes), (~self.shuffled).astype(np.uint32)
            if _unpacked(self.pipeline, np.array([0, 0, 1, 0]), *stored, _NONE, parts, out):
                return
        size, (_, height, width) = out.itemsize, self.pipeline.shape
        step, word = self.pipeline.nbytes // size, out.dtype
        for k, source, target, nz, ny, nx, plane, row in parts.tolist():
            box, start = (nz, ny, nx), int(self.starts[k])
            strides, target_strides = (height * width, width, 1), (plane * size, row * size, size)
            if not self.shuffled[k]:
                of_values = height * width * size, width * size, size
                data = np.ndarray(box, word, self.data.data, start + source * size, of_values)
                np.ndarray(box, word, out.data, target * size, target_strides)[...] = data
                continue
            for b in range(size):  # a strided copy a byte: 3 GB/s, one copy with the axes swapped reaches 0.7
                data = np.ndarray(box, np.uint8, self.data.data, start + b * step + source, strides)
                np.ndarray(box, np.uint8, out.data, target * size + b, target_strides)[...] = data


@dataclass(frozen=True)
class Pipeline:
    """How the chunks of one dataset are encoded.

    Attributes
    ----------
    filters
        HDF5 filter numbers in the order of encoding.
    dtype
        Little-endian dtype of the values.
    chunks
        Shape of a chunk.
    level
        Compression level (writing).
    blosc
        Compressor and shuffle mode (0 none, 1 bytes, 2 bits) of the Blosc filter (writing).
    """

    filters: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    level: int = 1
    blosc: tuple[str, int] = ("lz4", 2)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of a chunk with three axes."""
        return (1,) * (3 - len(self.chunks)) + self.chunks

    def encode(self, values: NDArray[Any]) -> tuple[int, bytes | memoryview]:
        """Return (mask of filters left out, stored bytes) of a whole chunk.

        Deflate is left out of a chunk that it would make larger; the mask tells every HDF5 reader.
        """
        (chunk,) = self.encode_all(values.reshape(self.shape[1:]), np.zeros((1, 2), np.int64))
        return chunk

    def encode_all(self, plane: NDArray[Any], corners: NDArray[np.int64]) -> list[tuple[int, bytes | memoryview]]:
        """Do `encode` for chunks of a plane: without the interpreter lock if there are compiled loops for it.

        Parameters
        ----------
        corners
            First pixel (y, x) of each chunk; all of it lies within the plane.
        """
        _, height, width = self.shape
        sum_bit, deflate_bit, _, shuffle_bit = self._bits
        if deflate_bit:
            plane = np.ascontiguousarray(plane, self.dtype)
            flags = {"is_shuffled": bool(shuffle_bit), "is_summed": bool(sum_bit)}
            packed = deflate_encoder.pack(plane, (height, width), corners, self.level, **flags)
            if packed is not None:
                stored, skipped = packed
                return [(deflate_bit * left_out, data) for data, left_out in zip(stored, skipped, strict=True)]
        return [self._encode(plane[y : y + height, x : x + width]) for y, x in corners.tolist()]

    def _encode(self, values: NDArray[Any]) -> tuple[int, bytes]:
        plain = np.asarray(values, dtype=self.dtype)
        data: Any = None
        if SHUFFLE not in self.filters:
            plain = np.ascontiguousarray(plain)
            data = plain.reshape(1, -1).view(np.uint8)
        skipped = 0
        for place, number in enumerate(self.filters):
            if number == SHUFFLE:
                data = _shuffled(plain)
            elif number == DEFLATE:
                packed = deflate_encoder.encode(data, self.level)
                if len(packed) < self.nbytes:
                    data = packed
                else:
                    skipped |= 1 << place
            elif number == BLOSC:
                compressor, shuffle = self.blosc
                data = imagecodecs.blosc_encode(
                    cast(Any, plain), level=self.level, compressor=compressor, shuffle=shuffle, numthreads=1
                )
            else:
                whole = np.frombuffer(data, np.uint8)
                checksum = _fletcher32(whole, np.zeros(1, np.int64), np.array([whole.size]))
                data = b"".join([whole.data, checksum.astype("<u4").data])
        return skipped, bytes(data)

    def is_plausible(self, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether chunks of so many stored bytes can hold what they should, so that memory may be taken."""
        return (sizes.astype(np.int64) * _LARGEST_RATIO >= self.nbytes) | (
            DEFLATE not in self.filters and self.nbytes <= _UNSUSPICIOUS
        )

    def unpack(
        self,
        handle: int,
        raw: NDArray[np.uint8],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        skipped: NDArray[np.uint32],
        expected: NDArray[np.uint32] | None,
        parts: NDArray[np.int64],
        out: NDArray[Any],
    ) -> bool:
        """Decode chunks and copy parts of them to where they belong, in one call without the interpreter lock.

        Parameters
        ----------
        handle
            File from which the chunks are read, one after the other, with ``raw`` as memory for the largest; -1 if
            ``raw`` has them.
        raw, starts, sizes, skipped
            As for `decode`.
        expected
            The fletcher32 that is recorded for each chunk; None if none is.
        parts, out
            As for `Decoded.place`, the parts in ascending order of the chunks.

        Returns
        -------
        bool
            Whether that is done. If not, there are no compiled loops for it, or a chunk is not as it should be:
            `decode` says which and why.
        """
        sum_bit, deflate_bit, blosc_bit, shuffle_bit = self._bits
        bits = np.array([sum_bit, deflate_bit, shuffle_bit, blosc_bit])
        recorded = _NONE if expected is None else expected
        return _unpacked(self, bits, handle, raw, starts, sizes, skipped, recorded, parts, out)

    def decode(
        self,
        raw: NDArray[np.uint8],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        skipped: NDArray[np.uint32],
    ) -> Decoded:
        """Decode chunks.

        Parameters
        ----------
        starts, sizes
            Where the chunks lie in them.
        skipped
            For each the mask of filters left out.

        Returns
        -------
        Decoded
            Valid until this thread decodes again, or changes ``raw``.
        """
        n, nbytes = starts.size, self.nbytes
        sum_bit, deflate_bit, blosc_bit, shuffle_bit = self._bits
        stays = not deflate_bit and not blosc_bit
        out = raw if stays else _SCRATCH.of(n * nbytes)
        view, room = raw.data, out.data
        checksums = _last_words(raw, starts, sizes) if sum_bit and n else np.zeros(n, np.uint32)
        if sum_bit and n:
            summed = ~skipped & sum_bit != 0
            sizes = sizes - _CHECKSUM_BYTES * summed
            (wrong,) = ((_fletcher32(raw, starts, sizes) != checksums) & summed).nonzero()
            if wrong.size:
                k = int(wrong[0])
                raise DamagedChunkError(k, f"fletcher32 does not match the one that is stored, {checksums[k]:#010x}")
        lengths, masks = sizes.tolist(), (~skipped).tolist()
        values: Any
        k = 0
        # Few calls a chunk, and those without the interpreter lock: what is done here for each chunk under the lock
        # bounds how reading scales over cores.
        try:
            for k, start in enumerate(starts.tolist()):
                size, passed = lengths[k], masks[k]
                values = view[start : start + size]
                if passed & deflate_bit:
                    values = imagecodecs.deflate_decode(values, raw=False, out=room[k * nbytes : (k + 1) * nbytes])
                elif passed & blosc_bit:
                    if int.from_bytes(values[12:16], "little") != size:  # Blosc trusts the size that is written there
                        raise DamagedChunkError(k, f"a Blosc chunk of another size in {size} bytes")
                    values = imagecodecs.blosc_decode(values, numthreads=1, out=room[k * nbytes : (k + 1) * nbytes])
                if values.nbytes != nbytes:
                    raise DamagedChunkError(k, f"{values.nbytes} bytes instead of {nbytes}")
                if not stays and not passed & (deflate_bit | blosc_bit):
                    room[k * nbytes : (k + 1) * nbytes] = values
        except (RuntimeError, ValueError) as error:
            raise DamagedChunkError(k, str(error)) from error
        begins = starts if stays else np.arange(n, dtype=np.int64) * nbytes
        return Decoded(out, begins, ~skipped & shuffle_bit != 0, checksums, self)

    @cached_property
    def _bits(self) -> tuple[int, int, int, np.uint32]:
        """The bits of fletcher32, deflate, Blosc and shuffle in the masks of chunks, 0 for one that is not used."""
        places = {number: 1 << place for place, number in enumerate(self.filters)}
        return (
            places.get(FLETCHER32, 0),
            places.get(DEFLATE, 0),
            places.get(BLOSC, 0),
            np.uint32(places.get(SHUFFLE, 0)),
        )


def _unpacked(
    pipeline: Pipeline,
    bits: NDArray[np.int64],
    handle: int,
    raw: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    skipped: NDArray[np.uint32],
    expected: NDArray[np.uint32],
    parts: NDArray[np.int64],
    out: NDArray[Any],
) -> bool:
    """Do `Pipeline.unpack` for filters with these bits in the masks of chunks: fletcher32, deflate, shuffle, Blosc."""
    loops = _LOOPS.get()
    functions = None if loops is None else _functions()
    if loops is None or not out.flags.aligned or (functions is None and (bits[1] or bits[3] or handle >= 0)):
        return False
    functions = np.zeros(5, np.intp) if functions is None else functions
    shape, item, room = (
        np.array(pipeline.shape),
        out.itemsize,
        _SCRATCH.of(pipeline.nbytes if bits[1] or bits[3] else 0),
    )
    stored = raw, starts, sizes, skipped
    done = loops.unpack(functions, handle, *stored, bits, expected, parts, shape, item, out.view(np.uint8), room)
    return bool(done == starts.size)


def _functions() -> NDArray[np.intp] | None:
    """Return the addresses of ``pread``, of libdeflate's functions that make, use and free a decoder, and of Blosc's.

    None if they are not found. The libraries are those that imagecodecs calls.
    """
    if sys.maxsize < 1 << 32:  # where places in a file have more bits than a word
        return None
    return addresses_of(
        (None, "pread"),
        ("imagecodecs._deflate", "libdeflate_alloc_decompressor"),
        ("imagecodecs._deflate", "libdeflate_zlib_decompress"),
        ("imagecodecs._deflate", "libdeflate_free_decompressor"),
        ("imagecodecs._blosc", "blosc_decompress_ctx"),
    )


def prepare(nbytes: int) -> None:
    """Import the compiled loops if decoding so many bytes is worth it: on the way all threads would wait for it."""
    _LOOPS.get(ahead=nbytes)


def filters_of(dataset: h5py.Dataset) -> tuple[int, ...]:
    """Return the numbers of a dataset's filters, in the order of encoding."""
    properties = dataset.id.get_create_plist()
    return tuple(properties.get_filter(k)[0] for k in range(properties.get_nfilters()))


def pipeline_of(dataset: h5py.Dataset) -> Pipeline | None:
    """Return how a chunked dataset is encoded, or None if only the HDF5 library knows."""
    dtype, chunks = dataset.dtype, dataset.chunks
    if chunks is None or not dtype.isnative or dtype.kind not in "iuf" or dtype.itemsize > _LARGEST_VALUE:
        return None
    filters = filters_of(dataset)
    little = dtype.newbyteorder("<")
    if filters not in _KNOWN or little != dtype:
        return None
    return Pipeline(filters, little, chunks)


def blosc_options(pipeline: Pipeline) -> tuple[int, ...]:
    """Return the values with which a dataset declares the Blosc filter (its README, ``blosc_set_local``)."""
    compressor, shuffle = pipeline.blosc
    # Filter revision 2, Blosc format 2; then what a decoder does not need but tools show.
    code = _BLOSC_COMPRESSORS.index(compressor)
    return 2, 2, pipeline.dtype.itemsize, pipeline.nbytes, pipeline.level, shuffle, code


def _shuffled(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the first bytes of all values, then the second ones, and so on. Shape (item size, values)."""
    size = values.itemsize
    planes = np.empty((size, *values.shape), np.uint8)
    data = values[..., None].view(np.uint8)
    for k in range(size):  # a strided copy a byte is as fast as one transposed copy, and as a compiled loop
        planes[k] = data[..., k]
    return planes.reshape(size, -1)


def _fletcher32(raw: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the checksums of parts of ``raw``."""
    loops = _LOOPS.get()
    if loops is not None:
        sums: NDArray[np.uint32] = loops.fletcher32(raw, starts, sizes)
        return sums
    data, of = cast(Any, raw.data), imagecodecs.h5checksum_fletcher32
    parts = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
    return np.array([of(data[start:stop]) for start, stop in parts], np.uint32)


def _last_words(raw: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the last four bytes of each chunk as a number."""
    if np.minimum.reduce(sizes) < _CHECKSUM_BYTES:
        raise DamagedChunkError(int(sizes.argmin()), "too short to hold its checksum")
    words: NDArray[np.uint32] = raw[(starts + sizes)[:, None] + _LAST_WORD].view("<u4")[:, 0]
    return words


_LAST_WORD = np.arange(-_CHECKSUM_BYTES, 0)
