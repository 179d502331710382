"""Writing a file: chunks encoded in threads, stored in the order of the images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from wustore.backends.base import Writer
from wustore.backends.hdf5 import netcdf
from wustore.backends.hdf5.document import document_spec
from wustore.backends.hdf5.encoder import EncodedImage, Encoder, LayerEncoder
from wustore.backends.hdf5.file import CAPSULE_BOUND, CAPSULE_DATA, CHUNK_CHECKSUM, DOCUMENT, DOCUMENT_CHECKSUM, Output
from wustore.backends.hdf5.filters.pipeline import DEFLATE, FLETCHER32, Pipeline
from wustore.backends.hdf5.integrity import digest_of
from wustore.backends.hdf5.presets import declared
from wustore.errors import IncompleteError, UsageError
from wustore.format import tagged_json
from wustore.format.arrays import ArraySpec, checksum_array
from wustore.format.document import CONVENTIONS, arrays_of, document_of
from wustore.format.packed import pack
from wustore.model.meta import LAYERS, Capsule, Image
from wustore.storage.staging import Staging
from wustore.storage.threads import in_threads, worker_count

__all__ = ["Hdf5Writer"]

_CAPSULE_CHUNK = 1 << 18
_CAPSULE_LEVEL = 6
_EARLY_IN_MEMORY = 1 << 26
"""Bytes of encoded images kept in memory for two workers that were written before their turn; more go to a file."""
_SPOOLED_IN_MEMORY = 1 << 23
"""Bytes of capsule kept in memory while writing; more goes to an unnamed file in the target's directory."""


class Hdf5Writer(Writer):
    """An HDF5 store being written, in a staging file next to its target.

    The same images give the same bytes, whatever the number of threads and the order of writing: chunks go
    into the file in the order of the images, and what is written early waits.

    Parameters
    ----------
    encoder
        Of the same metadata.
    capsule
        FITS reconstruction data, if they are kept.
    """

    def __init__(self, staging: Staging, encoder: Encoder, capsule: Capsule | None) -> None:
        meta = encoder.meta
        self._staging = staging
        self._encoder = encoder
        self._meta = meta
        self._capsule = capsule
        self.keeps_capsule = capsule is not None
        self._lock = threading.Lock()
        self._written = np.zeros(meta.n_images, bool)
        self._sums = np.zeros((meta.n_images, len(LAYERS)), np.uint32)
        n_chunks = sum(len(layer.corners) for layer in encoder.layers)
        self._chunk_sums = np.zeros((meta.n_images, n_chunks), np.uint32)
        self._pieces: _Pieces | None = None
        self._early = _Early(staging.target.parent, encoder)
        self._next = 0
        self._is_begun = False
        self._has_ended = False
        self._beginning = threading.Lock()
        self._file: h5py.File | None = None
        self._output: Output | None = None
        self._datasets: list[h5py.Dataset] = []
        self._dims: dict[str, tuple[str, ...]] = {}
        try:
            if capsule is not None:
                self._pieces = _Pieces(meta.n_images, staging.target.parent)
            self._output = Output(staging.path)
            staging.protect()
            if capsule is None or isinstance(capsule.document, dict):
                self._begin()
        except BaseException:
            self.abort()
            raise

    def _begin(self) -> None:
        """Create the file, and write what comes before the images: with it what is known of the FITS files.

        These are hashed for that, one after the other by one thread; the others encode images meanwhile, which wait.
        """
        assert self._output is not None
        encoder, meta, capsule = self._encoder, self._meta, self._capsule
        document = document_of(meta)
        layout = encoder.layout if encoder.chunks is None else list(encoder.chunks)
        document["storage"] = {"profile": encoder.profile, "layout": layout}
        if capsule is not None:
            document["capsule"] = tagged_json.encode(dict(capsule.document))
        text = json.dumps(document, allow_nan=False)
        specs = arrays_of(meta)
        specs.append(pack([document_spec(text), *specs]))
        self._file = netcdf.create_file(self._output)
        netcdf.set_text(self._file, "Conventions", CONVENTIONS)
        # Variable-length, because a text inside the object header is limited to 64 kB; the checksum
        # is inside, where HDF5 protects it.
        self._file.attrs.create(DOCUMENT, text, dtype=h5py.string_dtype("ascii"))
        netcdf.set_text(self._file, DOCUMENT_CHECKSUM, hashlib.sha256(text.encode()).hexdigest())
        self._datasets += [_create_layer(self._file, layer) for layer in encoder.layers]
        netcdf.add_group(self._file, "constituents")  # there even if the table has no columns
        for array in specs:
            netcdf.add_array(self._file, array)
        self._check_output()
        self._dims |= {layer.spec.name: tuple(layer.spec.dims) for layer in encoder.layers}
        self._dims |= {array.name: array.dims for array in specs}
        self._is_begun = True

    def write(self, i: int, image: Image, capsule: bytes | None = None) -> None:
        """Write image ``i``; see `wustore.backends.base.Writer.write`."""
        self.store(i, self._encoder.make(i, image, capsule))

    def place(self, i: int, piece: bytes) -> None:
        """Write image ``i`` as it was encoded; see `wustore.backends.base.Writer.place`."""
        self._encoder.check_index(i)
        self.store(i, self._encoder.parse(piece))

    def store(self, i: int, image: EncodedImage) -> None:
        """Write an encoded image."""
        with self._lock:
            if self._has_ended:
                raise UsageError("the writer has ended", path=self._staging.target)
            if self._written[i]:
                raise UsageError("an image was written twice", path=self._staging.target, where=f"image {i}")
            self._sums[i] = image.checksums
            if self._pieces is not None:
                self._pieces.add(i, image.capsule)
            self._early.add(i, image)
            self._written[i] = True
        if not self._is_begun:
            if not self._beginning.acquire(blocking=False):
                return  # another thread begins; then it writes what has come until then
            try:
                if not self._is_begun:
                    self._begin()
            finally:
                self._beginning.release()
        self._write_ready()

    def _write_ready(self) -> None:
        """Write the images whose turn has come."""
        output = self._output
        assert output is not None
        runs: list[_Run] = []
        with self._lock:
            while self._next in self._early:
                self._place_chunks(self._next, self._early.pop(self._next), runs)
                self._next += 1
        in_threads(lambda run: output.write_at(run.start, run.pieces), runs, self._encoder.workers)
        output.check()

    def _place_chunks(self, i: int, image: EncodedImage, runs: list[_Run]) -> None:
        """Let HDF5 find places for the chunks of an image; what goes there is written by whoever has the runs."""
        assert self._output is not None
        for dataset, layer, chunks in zip(self._datasets, self._encoder.layers, image.layers, strict=True):
            for (y, x), (skipped, data) in zip(layer.corners, chunks, strict=True):
                write = partial(dataset.id.write_direct_chunk, (i, y, x), data, skipped)
                place = self._output.place(data, write)
                if place is None:
                    continue
                if not runs or runs[-1].stop != place:
                    runs.append(_Run(place, place, []))
                runs[-1].stop += len(data)
                runs[-1].pieces.append(data)
        last = b"".join(data[-4:] for chunks in image.layers for _, data in chunks)
        self._chunk_sums[i] = np.frombuffer(last, "<u4")
        self._check_output()

    def _check_output(self) -> None:
        if self._output is not None:
            self._output.check()

    def commit(self) -> None:
        """Finish the file and let it appear; see `wustore.backends.base.Writer.commit`."""
        if self._has_ended:
            raise UsageError("the writer has ended", path=self._staging.target)
        if not self._written.all():
            raise IncompleteError(
                "not every image was written",
                path=self._staging.target,
                expected=f"{self._meta.n_images} images",
                found=int(self._written.sum()),
            )
        if not self._is_begun:
            self._begin()
        assert self._file is not None
        chunk_sums = ArraySpec(
            CHUNK_CHECKSUM, self._chunk_sums, ("time", "chunk"), {"long_name": "fletcher32 of each chunk of the layers"}
        )
        for sums in (checksum_array(self._sums), chunk_sums):
            netcdf.add_array(self._file, sums, compress=sums is not chunk_sums)
            self._dims[sums.name] = sums.dims
        if self._capsule is not None and self._pieces is not None:
            self._store_capsule(self._file, self._capsule.head, self._pieces)
        netcdf.attach_dimensions(self._file, self._dims)
        file, self._file = self._file, None
        file.close()
        self._check_output()
        output = self._output
        if output is not None:
            output.append(digest_of(output.read_at, output.seek(0, os.SEEK_END)))
            self._close_output()
            output.check()
        self._staging.commit()
        self._end()

    def _close_output(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            output.close()

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
        numbers = (DEFLATE, FLETCHER32)
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
            with contextlib.suppress(OSError, RuntimeError):
                file.close()
        self._close_output()
        self._staging.abort()
        self._end()

    def _end(self) -> None:
        self._has_ended = True
        self._datasets = []
        self._early.close()
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None


def _create_layer(file: h5py.File, layer: LayerEncoder) -> h5py.Dataset:
    """Make the dataset of a layer, whose chunks are encoded outside the library."""
    spec, keywords = layer.spec, {}
    if spec.shape[1] and spec.shape[2]:
        keywords = {"chunks": layer.chunks, **declared(layer.pipeline)}
    dtype = netcdf.stored_layer_dtype(spec.dtype)
    dataset = file.create_dataset(spec.name, spec.shape, dtype, fillvalue=spec.fill, track_times=False, **keywords)
    netcdf.set_attributes(dataset, spec.attributes)
    return dataset


@dataclass
class _Run:
    """Chunks that lie one after the other in the file: first and last place, and their bytes."""

    start: int
    stop: int
    pieces: list[bytes | memoryview]


class _Early:
    """Encoded images that wait for the ones before them: some in memory, the rest in an unnamed file."""

    def __init__(self, directory: Path, encoder: Encoder) -> None:
        self._directory = str(directory)
        self._encoder = encoder
        self._images: dict[int, EncodedImage | tuple[int, int]] = {}
        self._held = 0
        self._most = _EARLY_IN_MEMORY * max(1, worker_count(encoder.workers) // 2)
        self._file: IO[bytes] | None = None

    def __contains__(self, i: int) -> bool:
        return i in self._images

    def add(self, i: int, image: EncodedImage) -> None:
        if self._held + image.size <= self._most or not self._images:
            self._held += image.size
            self._images[i] = image
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by close()
        piece = self._encoder.pack(image)
        self._images[i] = self._file.seek(0, os.SEEK_END), len(piece)
        self._file.write(piece)

    def pop(self, i: int) -> EncodedImage:
        held = self._images.pop(i)
        if isinstance(held, EncodedImage):
            self._held -= held.size
            return held
        assert self._file is not None
        start, size = held
        self._file.seek(start)
        return self._encoder.parse(self._file.read(size))

    def close(self) -> None:
        self._images = {}
        if self._file is not None:
            self._file.close()
            self._file = None


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
