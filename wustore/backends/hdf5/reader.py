"""Reading a file: metadata through the library, pixels around it."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from operator import call
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Index, Reader
from wustore.backends.hdf5 import netcdf
from wustore.backends.hdf5.chunks import ChunkReader, Plan
from wustore.backends.hdf5.document import DOCUMENT_ARRAY, check_copies, check_text, parse_document, read_document
from wustore.backends.hdf5.file import (
    CAPSULE_BOUND,
    CAPSULE_DATA,
    CHUNK_CHECKSUM,
    DOCUMENT,
    DOCUMENT_CHECKSUM,
    METADATA_BLOCK,
    RawFile,
    open_file,
)
from wustore.backends.hdf5.filters.pipeline import BLOSC, DEFLATE, FLETCHER32, SHUFFLE, prepare
from wustore.backends.hdf5.integrity import Binding, changed_blocks, is_cut
from wustore.backends.hdf5.parts import Wanted, bounds_of, places_in
from wustore.backends.hdf5.presets import need_plugins
from wustore.backends.state import content_state, one_state, reopen, replaced
from wustore.errors import (
    CorruptError,
    FormatError,
    MissingDependencyError,
    OtherFormatError,
    StoreNotFoundError,
    UsageError,
    located,
)
from wustore.format import tagged_json
from wustore.format.document import arrays_of, meta_from
from wustore.format.packed import PACKED, unpack
from wustore.format.planes import LayerSpec, layers_of
from wustore.model.casting import cast_plane
from wustore.model.checksum import plane_checksum
from wustore.model.meta import LAYERS, Capsule, Image, Meta
from wustore.storage.buffers import empty
from wustore.storage.files import RemoteFile
from wustore.storage.threads import in_threads, worker_count
from wustore.storage.url import is_remote

__all__ = ["Hdf5Reader"]


class Hdf5Reader(Reader):
    """An open HDF5 store.

    Parameters
    ----------
    path
        The file, or the URL of an object.
    workers
        Threads that decode chunks; see `wustore.storage.threads.worker_count`.

    Attributes
    ----------
    chunks_read
        How many chunks were asked for so far, all layers.
    """

    format = "hdf5"

    def __init__(self, path: str, *, workers: int | None = None) -> None:
        self._workers = workers
        self._address = path
        remote = RemoteFile(path, METADATA_BLOCK) if is_remote(path) else None
        self.path = path if remote is None else remote.name
        self._file: h5py.File | None = open_file(path, remote)
        self._raw = RawFile(self._file, remote)
        self._opened = _identity(self._file, self._raw) if remote is None else remote.state
        self._lock = threading.Lock()
        self._readers: dict[str, ChunkReader] = {}
        self._datasets: dict[str, h5py.Dataset] = {}
        self._chunk_sums: dict[str, NDArray[np.uint32] | None] | None = None
        self._capsule: tuple[NDArray[Any], ChunkReader] | None = None
        try:
            if self._raw and remote is None and is_cut(self._raw):  # at a URL this would be one more request
                raise CorruptError("the file is truncated", path=self.path, where="digest of the file")
            self._packed: dict[str, NDArray[Any]] = {}
            self._document = self._read_metadata()
            self._meta = meta_from(self._document, self._array, path=self.path)
            self._specs = {spec.name: spec for spec in layers_of(self._meta)}
        except BaseException:
            self.close()
            raise

    def _open(self) -> h5py.File:
        if self._file is None:
            raise UsageError("the store has been closed", path=self.path)
        return self._file

    def _read_metadata(self) -> dict[str, Any]:
        """Return the root document, and keep the small arrays that are packed with it.

        Text of variable length lies in a part of the file that HDF5 does not protect, and a flipped bit there can
        keep the library busy for ever. So the copies that other programs read are not touched where the packed
        ones, which a checksum covers, are there, and without these another process reads them first.
        """
        file = self._open()
        with netcdf.wrapped(self.path, "root attributes"):
            if not h5py.h5a.exists(file.id, DOCUMENT.encode(), obj_name=b"/"):
                raise OtherFormatError(
                    "an HDF5 file, but not a wustore store", path=self.path, expected=f"root attribute {DOCUMENT!r}"
                )
        if not self._has(PACKED):
            check_text(self._address)
            return read_document(file, self.path)
        with located(self.path):
            dataset = netcdf.dataset_at(file, PACKED, self.path)
            packed = netcdf.values_of(dataset, self._raw.size, self.path, PACKED)
            self._packed = unpack(packed, int(dataset.id.get_storage_size()))
        text = self._packed.pop(DOCUMENT_ARRAY, None)
        if text is None or text.shape != (1,):
            raise CorruptError("the packed metadata hold no document", path=self.path, where=PACKED)
        return parse_document(str(text[0]), self.path)

    def _has(self, name: str) -> bool:
        """Return whether the root group has a link of this name."""
        with netcdf.wrapped(self.path, name):
            return bool(self._open().id.links.exists(name.encode()))

    def _array(self, name: str) -> NDArray[Any]:
        packed = self._packed.get(name)
        return netcdf.read_array(self._open(), name, self.path) if packed is None else packed

    @property
    def meta(self) -> Meta:
        """Everything but pixels, PSF values and the FITS reconstruction data; read when the store was opened."""
        return self._meta

    @property
    def chunks_read(self) -> int:
        """How many chunks were asked for so far."""
        return sum(reader.chunks_read for reader in self._readers.values())

    def _chunks(self, layer: str) -> ChunkReader:
        """Return the chunks of a layer, whose dataset is opened at the first touch."""
        self._open()
        with self._lock:
            if layer not in self._readers:
                spec = self._specs.get(layer)
                if spec is None:
                    raise FormatError("no image has this layer", path=self.path, where=layer)
                with netcdf.wrapped(self.path, layer):
                    self._readers[layer] = self._checked(self._dataset(layer), spec)
            return self._readers[layer]

    def _dataset(self, layer: str) -> h5py.Dataset:
        """Return the dataset of a layer; a small read pays for each that is opened."""
        if layer not in self._datasets:
            self._datasets[layer] = netcdf.dataset_at(self._open(), layer, self.path)
        return self._datasets[layer]

    def _checked(self, dataset: h5py.Dataset, spec: LayerSpec) -> ChunkReader:
        dtype = dataset.dtype.newbyteorder("=")
        if dataset.shape != spec.shape or dtype != netcdf.stored_layer_dtype(spec.dtype).newbyteorder("="):
            raise CorruptError(
                "a layer does not have the shape and dtype that the document says",
                path=self.path,
                where=spec.name,
                expected=(spec.shape, spec.dtype),
                found=(dataset.shape, dataset.dtype),
            )
        reader = ChunkReader(dataset, self._raw, self.path, self._binding(spec.name))
        if not reader.decodes:
            self._need_filters(reader.filters, spec.name)
        return reader

    def _binding(self, layer: str) -> Binding | None:
        """Return what binds the chunks of a layer to their places; None for a file that does not have it."""
        if self._chunk_sums is None:
            if not self._has(CHUNK_CHECKSUM):
                return None
            sums = netcdf.read_array(self._open(), CHUNK_CHECKSUM, self.path)
            counts = [_chunks_of_image(self._dataset(name)) for name in self._specs]
            known = sums.dtype == np.uint32 and sums.shape == (self._meta.n_images, sum(counts))
            parts = np.split(sums, np.cumsum(counts)[:-1], axis=1) if known else [None] * len(counts)
            self._chunk_sums = dict(zip(self._specs, parts, strict=True))
        sums_of_layer = self._chunk_sums[layer]
        checksums = None if sums_of_layer is None else sums_of_layer.reshape(-1)
        reader = weakref.proxy(self)  # in a cycle of references the files would stay open until garbage is collected
        return Binding(checksums, lambda i: reader._is_as_recorded(layer, i))

    def _is_as_recorded(self, layer: str, i: int) -> bool:
        """Return whether a plane as a whole has the recorded checksum, wherever its chunks come from."""
        dtype = self._meta.dtypes[layer][i]
        if dtype is None:
            return False
        reader = self._readers[layer].unbound()
        height, width = self._meta.shape_of(layer, i)
        plan = reader.plan(np.array([[(i, i + 1), (0, height), (0, width)]]))
        plane = empty([height * width], self._meta.layer_dtype(layer))
        in_threads(call, reader.jobs(plan, plane), 1)
        found = plane_checksum(cast_plane(plane.reshape(height, width), dtype))
        return found == int(self.checksums()[i, LAYERS.index(layer)])

    def _need_filters(self, numbers: Sequence[int], layer: str) -> None:
        if all(map(h5py.h5z.filter_avail, numbers)):
            return
        need_plugins()
        missing = [number for number in numbers if not h5py.h5z.filter_avail(number)]
        if missing:
            raise MissingDependencyError(
                "no plug-in has the HDF5 filters of this layer", path=self.path, where=layer, found=missing
            )

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box; see `wustore.backends.base.Reader.read`."""
        return self.read_boxes(layer, [index], None if out is None else [out])[0]

    @one_state
    def read_boxes(
        self, layer: str, boxes: Sequence[Index], out: Sequence[NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        """Read several boxes, every chunk once; see `wustore.backends.base.Reader.read_boxes`."""
        if not boxes:
            return []
        if out is None:
            wanted = Wanted(layer, bounds_of(boxes))
            return wanted.cut(self._fill([wanted])[0])
        self.read_layers([(layer, boxes, out)])
        return list(out)

    @one_state
    def read_layers(self, wanted: Sequence[tuple[str, Sequence[Index], Sequence[NDArray[Any]]]]) -> None:
        """Read boxes of several layers into arrays; see `wustore.backends.base.Reader.read_layers`."""
        arrays = [out for _, boxes, out in wanted if boxes]
        requests = [
            Wanted(layer, bounds_of(boxes), places_in(out, self._meta.layer_dtype(layer)))
            for layer, boxes, out in wanted
            if boxes
        ]
        for out, request, values in zip(arrays, requests, self._fill(requests), strict=True):
            if request.target is None:
                for array, data in zip(out, request.cut(values), strict=True):
                    array[...] = data

    def _fill(self, wanted: Sequence[Wanted]) -> list[NDArray[Any]]:
        """Return the values of boxes of layers, for each layer in one array."""
        plans: list[Plan] = []
        outs: list[NDArray[Any]] = []
        for want in wanted:
            reader = self._chunks(want.layer)
            low, high = want.bounds[:, :, 0], want.bounds[:, :, 1]
            if ((low < 0) | (low > high) | (high > reader.shape)).any():
                raise UsageError(
                    "a box outside the layer",
                    path=self.path,
                    where=want.layer,
                    expected=reader.shape,
                    found=want.bounds.tolist(),
                )
            # Before memory is taken: what is not there needs none.
            plans.append(reader.plan(want.bounds, None if want.target is None else want.target[1]))
            if want.target is None:
                size = int((high - low).prod(axis=1).sum())
                outs.append(empty([size], self._meta.layer_dtype(want.layer)))
            else:
                outs.append(want.target[0])
        # In one of several threads that read an image each only a part of the workers is left for its chunks.
        workers = worker_count(self._workers, work=sum(plan.work for plan in plans))
        jobs = [job for plan, out in zip(plans, outs, strict=True) for job in plan.reader.jobs(plan, out, workers)]
        in_threads(call, jobs, workers)
        return outs

    @one_state
    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read one image; see `wustore.backends.base.Reader.image`."""
        if not 0 <= i < self._meta.n_images:
            raise UsageError("no such image", path=self.path, expected=f"0 … {self._meta.n_images - 1}", found=i)
        present = [layer for layer in LAYERS if layer in layers and self._meta.dtypes[layer][i] is not None]
        shapes = [self._meta.shape_of(layer, i) for layer in present]
        wanted = [
            Wanted(layer, np.array([[(i, i + 1), (0, height), (0, width)]]))
            for layer, (height, width) in zip(present, shapes, strict=True)
        ]
        planes = {}
        for layer, shape, plane in zip(present, shapes, self._fill(wanted), strict=True):
            dtype = self._meta.dtypes[layer][i]
            assert dtype is not None
            planes[layer] = cast_plane(plane.reshape(shape), dtype)
        return Image.of(planes)

    def images_at_once(self, n_images: int) -> int | None:
        """Return the number that was asked for when the file was opened; what so many images need is imported.

        At a URL it is that of the requests for one image.
        """
        prepare(n_images * sum(math.prod(spec.shape[1:]) * spec.dtype.itemsize for spec in self._specs.values()))
        return None if is_remote(self._address) else self._workers

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the shape of a chunk of a layer."""
        times, height, width = self._chunks(layer).chunks
        return times, height, width

    def filters(self, layer: str) -> tuple[int, ...]:
        """Return the HDF5 numbers of a layer's filters, in the order of encoding."""
        return self._chunks(layer).filters

    def stored_chunks(self, layer: str, i: int, corners: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
        """Return chunks of image ``i`` as they are stored: mask of the filters left out, and bytes.

        Parameters
        ----------
        corners
            First (y, x) of each chunk.

        Raises
        ------
        CorruptError
            If one is missing. Damage inside of a chunk is not looked for.
        """
        reader = self._chunks(layer)
        return [reader.stored((i, y, x)) for y, x in corners]

    def _has_capsule(self) -> bool:
        return self._document.get("capsule") is not None

    def _capsule_parts(self) -> tuple[NDArray[Any], ChunkReader]:
        file = self._open()
        with self._lock:
            if self._capsule is None:
                bound = self._array(CAPSULE_BOUND)
                whole = bound.shape == (self._meta.n_images + 2,) and bound.dtype.kind in "iu"
                if not whole or bound[0] != 0 or np.any(bound[1:] < bound[:-1]):  # a difference may have no sign
                    raise CorruptError("the bounds of the capsule are wrong", path=self.path, where=CAPSULE_BOUND)
                with netcdf.wrapped(self.path, CAPSULE_DATA):
                    data = netcdf.dataset_at(file, CAPSULE_DATA, self.path)
                    if data.shape != (bound[-1],) or data.dtype != np.uint8:
                        raise CorruptError(
                            "the capsule has the wrong length",
                            path=self.path,
                            where=CAPSULE_DATA,
                            expected=f"{int(bound[-1])} bytes",
                            found=f"{data.shape} {data.dtype}",
                        )
                    self._capsule = bound, ChunkReader(data, self._raw, self.path)
            return self._capsule

    def _piece(self, k: int) -> bytes:
        """Return part ``k`` of the capsule: 0 is the head, then one for each image."""
        bound, data = self._capsule_parts()
        start, stop = int(bound[k]), int(bound[k + 1])
        piece = np.empty(stop - start, np.uint8)
        if start < stop:
            in_threads(call, data.jobs(data.plan(np.array([[(start, stop)]])), piece), self._workers)
        return piece.tobytes()

    @one_state
    def image_capsule(self, i: int, image: Image | None = None) -> bytes | None:
        """Return an image's part of the FITS reconstruction data."""
        return self._piece(i + 1) if self._has_capsule() else None

    @one_state
    def capsule(self) -> Capsule | None:
        """Return the FITS reconstruction data, or None."""
        if not self._has_capsule():
            return None
        document = tagged_json.decode(self._document["capsule"])
        if not isinstance(document, dict):
            raise CorruptError("the capsule's document is not a JSON object", path=self.path, where="capsule")
        return Capsule(document, self._piece(0))

    @one_state
    def checksums(self) -> NDArray[np.uint32]:
        """Return the stored CRC-32C of every plane, shape (n_images, 4)."""
        sums = self._array("checksum")
        expected = (self._meta.n_images, len(LAYERS))
        if sums.shape != expected or sums.dtype != np.uint32:
            raise CorruptError(
                "the checksums have the wrong shape",
                path=self.path,
                where="checksum",
                expected=expected,
                found=sums.shape,
            )
        return sums

    def document(self) -> Mapping[str, Any]:
        """Return the root document as it is stored."""
        return self._document

    def state(self) -> str:
        """Return a digest of the root document, the small arrays and the checksums of the planes."""
        if self._state is None:
            arrays = [spec.data for spec in arrays_of(self._meta)]
            self._state = content_state(self._document, arrays, self.checksums())
        return self._state

    def check_state(self) -> None:
        """Check that the path or URL still leads to the file that was opened."""
        try:
            found = RemoteFile(self._address).state if is_remote(self._address) else _facts(Path(self.path).stat())
        except (StoreNotFoundError, FileNotFoundError, NotADirectoryError) as error:
            raise replaced(self.path, "none") from error
        if found != self._opened:
            raise replaced(self.path)

    def audit(self) -> Iterator[tuple[str, str]]:
        """Yield changed parts of the file, unreadable objects, and copies that differ from what is read."""
        if self._raw:
            yield from changed_blocks(self._raw)
        found = [*netcdf.unreadable(self._open(), self.path)]
        yield from found
        if not found and self._packed and not is_remote(self._address):
            yield from check_copies(self.path)

    def foreign(self) -> Iterator[str]:
        """Yield in words what others added; see `wustore.backends.base.Reader.foreign`."""
        at_root = {DOCUMENT, DOCUMENT_CHECKSUM, "Conventions"}
        return netcdf.foreign(self._open(), self._meta, at_root, {CHUNK_CHECKSUM: {"long_name"}}, self.path)

    def describe(self) -> dict[str, Any]:
        """Return profile and layout, filters and stored sizes of the layers, and whether there is a capsule."""
        storage = self._document.get("storage")
        storage = storage if isinstance(storage, dict) else {}
        layers = {}
        for layer in self._specs:
            with netcdf.wrapped(self.path, layer):
                reader = self._chunks(layer)
                layers[layer] = {"bytes": reader.stored_bytes(), "filters": list(map(_filter_name, reader.filters))}
        return {
            "profile": storage.get("profile"),
            "layout": storage.get("layout"),
            "capsule": self._has_capsule(),
            "layers": layers,
        }

    def close(self) -> None:
        """Close the file; reading afterwards is a UsageError."""
        file, self._file = self._file, None
        self._readers, self._datasets, self._capsule = {}, {}, None
        if file is not None:
            file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (_reopen, (self._address, self._workers), self.state())


def _chunks_of_image(dataset: h5py.Dataset) -> int:
    """Return how many chunks an image has in a layer."""
    chunks = dataset.chunks or dataset.shape
    return math.prod(-(-size // step) for size, step in zip(dataset.shape[1:], chunks[1:], strict=True) if step)


def _facts(status: os.stat_result) -> tuple[Any, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _identity(file: h5py.File, raw: RawFile) -> tuple[Any, ...]:
    """Return what tells the open file from another one at the same place."""
    if raw.handle >= 0:
        return _facts(os.fstat(raw.handle))
    return _facts(os.fstat(file.id.get_vfd_handle()) if file.driver == "sec2" else Path(file.filename).stat())


def _reopen(path: str, workers: int | None) -> Hdf5Reader:
    return Hdf5Reader(path, workers=workers)


def _filter_name(number: int) -> str:
    names = {DEFLATE: "gzip", SHUFFLE: "shuffle", FLETCHER32: "fletcher32", BLOSC: "blosc"}
    return names.get(number, f"filter {number}")
