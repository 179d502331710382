"""Writing a file: chunks encoded in threads, stored in the order of the images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore import jsonio
from wustore.atomic import Staging
from wustore.errors import FormatError, IncompleteError, UsageError
from wustore.hdf5io import filters as h5filters
from wustore.hdf5io import netcdf
from wustore.hdf5io.chunks import Job, run, split_axis
from wustore.hdf5io.document import document_spec
from wustore.hdf5io.file import CAPSULE_BOUND, CAPSULE_DATA, DOCUMENT, DOCUMENT_CHECKSUM
from wustore.hdf5io.filters import Pipeline
from wustore.hdf5io.profiles import LAYOUTS, declared, pipeline_for
from wustore.layout import (
    CONVENTIONS,
    ArraySpec,
    LayerSpec,
    arrays_of,
    cast_plane,
    checksum_array,
    document_of,
    layers_of,
    plane_checksum,
)
from wustore.model import LAYERS, Capsule, Image, Meta
from wustore.packing import pack
from wustore.protocol import Writer

__all__ = ["Hdf5Writer"]

_CAPSULE_CHUNK = 1 << 18
_CAPSULE_LEVEL = 6
_EARLY_IN_MEMORY = 1 << 26
"""Bytes of encoded images kept in memory that were written before their turn; more go to an unnamed file."""
_SPOOLED_IN_MEMORY = 1 << 23
"""Bytes of capsule kept in memory while writing; more goes to an unnamed file beside the target."""

_Chunk = tuple[tuple[int, ...], int, bytes]
"""Corner of a chunk, mask of the filters left out, stored bytes."""


class Hdf5Writer(Writer):
    """An HDF5 store being written beside its target.

    The same images give the same bytes, whatever the number of threads and the order of writing: chunks go
    into the file in the order of the images, and what is written early waits.
    """

    def __init__(
        self,
        staging: Staging,
        meta: Meta,
        capsule: Capsule | None,
        *,
        profile: str,
        layout: str,
        chunks: tuple[int, int] | None,
        workers: int,
    ) -> None:
        self._staging = staging
        self._meta = meta
        self._capsule = capsule
        self._workers = workers
        self._lock = threading.Lock()
        self._written = np.zeros(meta.n_images, bool)
        self._sums = np.zeros((meta.n_images, len(LAYERS)), np.uint32)
        self._pieces: _Pieces | None = None
        self._early = _Early(staging.target.parent)
        self._next = 0
        self._file: h5py.File | None = None
        self._layers: list[_LayerWriter] = []
        document = document_of(meta)
        document["storage"] = {"profile": profile, "layout": layout if chunks is None else list(chunks)}
        if capsule is not None:
            document["capsule"] = jsonio.encode(dict(capsule.document))
        text = json.dumps(document, allow_nan=False)
        specs = arrays_of(meta)
        specs.append(pack([document_spec(text), *specs]))
        try:
            if capsule is not None:
                self._pieces = _Pieces(meta.n_images, staging.target.parent)
            self._file = netcdf.create_file(str(staging.path))
            netcdf.set_text(self._file, "Conventions", CONVENTIONS)
            # Variable-length, because a text inside the object header is limited to 64 kB; the checksum
            # beside it is inside, where HDF5 protects it.
            self._file.attrs.create(DOCUMENT, text, dtype=h5py.string_dtype("ascii"))
            netcdf.set_text(self._file, DOCUMENT_CHECKSUM, hashlib.sha256(text.encode()).hexdigest())
            for spec in layers_of(meta):
                self._layers.append(_LayerWriter(self._file, spec, profile, chunks or LAYOUTS[layout]))
            netcdf.add_group(self._file, "constituents")  # there even where the table has no columns
            for array in specs:
                netcdf.add_array(self._file, array)
        except BaseException:
            self.abort()
            raise
        self._dims = {layer.spec.name: tuple(layer.spec.dims) for layer in self._layers}
        self._dims |= {array.name: array.dims for array in specs}

    def write(self, i: int, image: Image) -> None:
        """Write image ``i``; see `wustore.protocol.Writer.write`."""
        self._check(i, image)
        encoded: list[list[_Chunk]] = []
        jobs: list[Job] = []
        for layer in self._layers:
            more, chunks = layer.encode(i, image.layer(layer.spec.name))
            jobs += more
            encoded.append(chunks)
        for k, name in enumerate(LAYERS):
            jobs.append(lambda k=k, name=name: self._note_sum(i, k, image.layer(name)))  # type: ignore[misc]
        run(jobs, self._workers)
        with self._lock:
            if self._file is None:
                raise UsageError("the writer has ended", path=self._staging.target)
            if self._pieces is not None:
                self._pieces.add(i, image.capsule or b"")
            self._early.add(i, encoded)
            while self._next in self._early:
                for layer, chunks in zip(self._layers, self._early.pop(self._next), strict=True):
                    layer.store(chunks)
                self._next += 1
            self._written[i] = True

    def _note_sum(self, i: int, k: int, plane: NDArray[Any] | None) -> None:
        self._sums[i, k] = plane_checksum(plane)

    def _check(self, i: int, image: Image) -> None:
        if not 0 <= i < self._meta.n_images:
            raise UsageError(
                "no such image", path=self._staging.target, expected=f"0 … {self._meta.n_images - 1}", found=i
            )
        with self._lock:
            if self._written[i]:
                raise UsageError("an image was written twice", path=self._staging.target, where=f"image {i}")
        for name in LAYERS:
            plane, dtype = image.layer(name), self._meta.dtypes[name][i]
            expected = None if dtype is None else (self._meta.shape_of(name, i), dtype)
            found = None if plane is None else (plane.shape, plane.dtype)
            if expected != found:
                raise FormatError(
                    "an image does not have the shape and dtype that the metadata says",
                    path=self._staging.target,
                    where=f"image {i}, {name}",
                    expected=expected,
                    found=found,
                )

    def commit(self) -> None:
        """Finish the file and let it appear; see `wustore.protocol.Writer.commit`."""
        if self._file is None:
            raise UsageError("the writer has ended", path=self._staging.target)
        if not self._written.all():
            raise IncompleteError(
                "not every image was written",
                path=self._staging.target,
                expected=f"{self._meta.n_images} images",
                found=int(self._written.sum()),
            )
        sums = checksum_array(self._sums)
        netcdf.add_array(self._file, sums)
        self._dims[sums.name] = sums.dims
        if self._capsule is not None and self._pieces is not None:
            self._store_capsule(self._file, self._capsule.head, self._pieces)
        netcdf.attach_dimensions(self._file, self._dims)
        self._file.close()
        self._file = None
        self._staging.commit()
        self._end()

    def _store_capsule(self, file: h5py.File, head: bytes, pieces: _Pieces) -> None:
        lengths = np.array([0, len(head), *pieces.lengths], np.int64)
        bound = ArraySpec(
            CAPSULE_BOUND,
            np.cumsum(lengths),
            ("fits_bound",),
            {"long_name": "part k of data is data[bound[k]:bound[k + 1]]: the head, then one part an image"},
        )
        netcdf.add_array(file, bound)
        total = int(lengths.sum())
        step = min(total, _CAPSULE_CHUNK)
        numbers = (h5filters.DEFLATE, h5filters.FLETCHER32)
        pipeline = Pipeline(numbers, np.dtype("u1"), (step,), level=_CAPSULE_LEVEL)
        keywords = {"chunks": (step,), **declared(pipeline)} if total else {}
        data = file.create_dataset(CAPSULE_DATA, (total,), "u1", track_times=False, **keywords)
        netcdf.set_attributes(data, {"long_name": "what gives back the identical FITS files"})
        self._dims |= {CAPSULE_BOUND: bound.dims, CAPSULE_DATA: ("fits_byte",)}
        for start, block in pieces.blocks(head, step):
            whole = np.zeros(step, np.uint8)
            whole[: len(block)] = np.frombuffer(block, np.uint8)
            skipped, stored = pipeline.encode(whole)
            data.id.write_direct_chunk((start,), stored, skipped)

    def abort(self) -> None:
        """Drop everything written."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError, RuntimeError):  # a full disk: what is not flushed is removed next
                file.close()
        self._staging.abort()
        self._end()

    def _end(self) -> None:
        self._layers = []
        self._early.close()
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None


class _LayerWriter:
    """The dataset of one layer, whose chunks are encoded outside the library."""

    def __init__(self, file: h5py.File, spec: LayerSpec, profile: str, chunks: tuple[int, int] | int) -> None:
        self.spec = spec
        height, width = (max(size, 1) for size in spec.shape[1:])
        if isinstance(chunks, int):
            sides = split_axis(height, chunks), split_axis(width, chunks)
        else:
            sides = min(chunks[0], height), min(chunks[1], width)
        self._chunks = (1, *sides)
        dtype = netcdf.stored_layer_dtype(spec.dtype)
        self._pipeline = pipeline_for(profile, spec.name, dtype, self._chunks)
        self._fill: tuple[int, bytes] | None = None
        keywords: dict[str, Any] = {}
        if spec.shape[1] and spec.shape[2]:
            keywords = {"chunks": self._chunks, **declared(self._pipeline)}
        self._dataset = file.create_dataset(
            spec.name, spec.shape, dtype, fillvalue=spec.fill, track_times=False, **keywords
        )
        netcdf.set_attributes(self._dataset, spec.attributes)

    def encode(self, i: int, plane: NDArray[Any] | None) -> tuple[list[Job], list[_Chunk]]:
        """Return the jobs that encode image ``i``, and the list (place, filters left out, bytes) they fill."""
        _, height, width = self.spec.shape
        _, dy, dx = self._chunks
        corners = [(y, x) for y in range(0, height, dy) for x in range(0, width, dx)]
        chunks: list[_Chunk] = [((i, y, x), 0, b"") for y, x in corners]

        def job(k: int, y: int, x: int) -> None:
            chunks[k] = ((i, y, x), *self._encoded(plane, y, x))

        return [lambda k=k, y=y, x=x: job(k, y, x) for k, (y, x) in enumerate(corners)], chunks  # type: ignore[misc]

    def _encoded(self, plane: NDArray[Any] | None, y: int, x: int) -> tuple[int, bytes]:
        _, dy, dx = self._chunks
        part = None if plane is None else plane[y : y + dy, x : x + dx]
        if part is None or not part.size:
            if self._fill is None:
                self._fill = self._pipeline.encode(np.full((dy, dx), self.spec.fill, self._pipeline.dtype))
            return self._fill
        part = cast_plane(part, self.spec.dtype)
        if part.shape != (dy, dx):
            whole = np.full((dy, dx), self.spec.fill, self.spec.dtype)
            whole[: part.shape[0], : part.shape[1]] = part
            part = whole
        return self._pipeline.encode(part)

    def store(self, chunks: list[_Chunk]) -> None:
        """Write encoded chunks; the caller holds the lock."""
        for place, skipped, data in chunks:
            self._dataset.id.write_direct_chunk(place, data, skipped)


class _Early:
    """Encoded images that wait for the ones before them: some in memory, the rest in an unnamed file."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._images: dict[int, list[list[_Chunk]] | int] = {}
        self._held = 0
        self._file: IO[bytes] | None = None

    def __contains__(self, i: int) -> bool:
        return i in self._images

    def add(self, i: int, image: list[list[_Chunk]]) -> None:
        size = _size(image)
        if self._held + size <= _EARLY_IN_MEMORY or not self._images:
            self._held += size
            self._images[i] = image
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by close()
        start = self._file.seek(0, os.SEEK_END)
        pickle.dump(image, self._file, protocol=5)
        self._images[i] = start

    def pop(self, i: int) -> list[list[_Chunk]]:
        held = self._images.pop(i)
        if isinstance(held, list):
            self._held -= _size(held)
            return held
        assert self._file is not None
        self._file.seek(held)
        image: list[list[_Chunk]] = pickle.load(self._file)  # our own bytes, from a file without a name
        return image

    def close(self) -> None:
        self._images = {}
        if self._file is not None:
            self._file.close()
            self._file = None


def _size(image: list[list[_Chunk]]) -> int:
    return sum(len(data) for layer in image for _, _, data in layer)


class _Pieces:
    """Capsule pieces on their way into the file: they may come in any order and be large."""

    def __init__(self, n_images: int, directory: Path) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOLED_IN_MEMORY, dir=str(directory))  # noqa: SIM115
        self._offsets = [0] * n_images
        self.lengths = [0] * n_images
        self._end = 0

    def add(self, i: int, piece: bytes) -> None:
        self._file.seek(self._end)
        self._file.write(piece)
        self._offsets[i], self.lengths[i] = self._end, len(piece)
        self._end += len(piece)

    def blocks(self, head: bytes, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield (start, bytes) of the concatenation of ``head`` and all pieces, ``size`` bytes at a time."""
        held, start = bytearray(head), 0
        for offset, length in zip(self._offsets, self.lengths, strict=True):
            taken = 0
            while taken < length:
                self._file.seek(offset + taken)
                more = self._file.read(min(size, length - taken))
                held += more
                taken += len(more)
                while len(held) >= size:
                    yield start, bytes(held[:size])
                    del held[:size]
                    start += size
        while held:
            yield start, bytes(held[:size])
            del held[:size]
            start += size

    def close(self) -> None:
        self._file.close()
