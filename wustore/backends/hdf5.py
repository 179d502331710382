"""HDF5: one file that any HDF5 or netCDF-4 tool opens, read in parallel around the library's lock.

Layout and rules: docs/spec.md. The names of groups and arrays are those of the Zarr stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore import jsonio
from wustore.atomic import Staging
from wustore.errors import (
    CorruptError,
    FormatError,
    IncompleteError,
    MissingDependencyError,
    StoreNotFoundError,
    UsageError,
)
from wustore.hdf5io import filters as h5filters
from wustore.hdf5io import netcdf
from wustore.hdf5io.chunks import ChunkReader, Job, RawFile, Work, run, split_axis
from wustore.hdf5io.filters import Pipeline
from wustore.layout import (
    CONVENTIONS,
    ArraySpec,
    LayerSpec,
    arrays_of,
    cast_plane,
    checksum_array,
    document_of,
    layers_of,
    meta_from,
    plane_checksum,
)
from wustore.model import LAYERS, Capsule, Image, Meta
from wustore.protocol import Backend, Index, Reader, Writer
from wustore.transfer import default_workers

__all__ = ["LAYOUTS", "PROFILES", "Hdf5Backend", "Hdf5Reader"]

PROFILES = ("portable", "compact", "fast", "none")
"""``portable`` (the default), ``compact`` and ``none`` use filters that are built into HDF5; ``fast`` uses the
Blosc plug-in. Measured on a 2048 x 2048 science plane that KBMOD's FITS had quantised, one core (bytes a
pixel, encode and decode MB/s): portable 2.59, 146, 490; compact 2.60, 43, 510; fast 3.62, 1250, 2900."""

_LEVELS: dict[str, dict[str, int]] = {
    # libdeflate's level 1 makes noise smaller than any higher level, at twice their speed; the smooth
    # variance and the mask are smaller at 6 (0.022 instead of 0.081 bytes a pixel) and encode faster.
    "portable": {"science": 1, "variance": 6, "mask": 6, "psf": 6},
    "compact": {"science": 9, "variance": 9, "mask": 9, "psf": 9},
    "fast": dict.fromkeys(LAYERS, 5),
    "none": dict.fromkeys(LAYERS, 0),
}

LAYOUTS = {"images": 256, "balanced": 128, "cutouts": 64}
"""Side of a chunk [pixel] by the name of the layout."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DOCUMENT = "wustore"
_DOCUMENT_CHECKSUM = "wustore_sha256"
_CAPSULE_DATA, _CAPSULE_BOUND = "fits/data", "fits/bound"
_CAPSULE_CHUNK = 1 << 18
_CAPSULE_LEVEL = 6
_EARLY_IN_MEMORY = 1 << 26
"""Bytes of encoded images kept in memory that were written before their turn; more go to an unnamed file."""
_SPOOLED_IN_MEMORY = 1 << 23
"""Bytes of capsule kept in memory while writing; more goes to an unnamed file beside the target."""


_Chunk = tuple[tuple[int, ...], int, bytes]
"""Corner of a chunk, mask of the filters left out, stored bytes."""


def _is_hdf5(path: str) -> bool:
    """Return whether the file has HDF5's signature where the format allows it: at 0, 512, 1024, 2048 and so on."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            place = 0
            while place < size:
                file.seek(place)
                if file.read(len(_SIGNATURE)) == _SIGNATURE:
                    return True
                place = max(512, place * 2)
    except OSError:
        pass
    return False


def _open_file(path: str) -> h5py.File:
    if not os.path.lexists(path):
        raise StoreNotFoundError("there is nothing at this path", path=path, cure="Check the name.")
    if not Path(path).is_file() or not _is_hdf5(path):
        raise FormatError("not an HDF5 file", path=path, expected="the signature of HDF5")
    with netcdf.wrapped(path, "superblock"):
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            # Some network file systems know no locks. A store is never changed in place, so none is needed;
            # not without need, because the same process could then not open the file with a lock.
            return h5py.File(path, "r", locking=False)


class Hdf5Backend(Backend):
    """WorkUnits in HDF5 files."""

    name = "hdf5"
    suffixes = (".hdf5", ".h5", ".hdf")
    description = "one HDF5 file, readable with h5py, netCDF and xarray"

    def sniff(self, path: str) -> bool:
        """Return whether the file is HDF5 and has our root document, or is too damaged to say."""
        if not Path(path).is_file() or not _is_hdf5(path):
            return False
        try:
            with _open_file(path) as file:
                return _DOCUMENT in file.attrs
        except Exception:
            return True

    def open(self, path: str, **options: Any) -> Hdf5Reader:
        """Open a store; see `wustore.protocol.Backend.open`.

        Parameters
        ----------
        path
            The file.
        options
            ``workers``: threads that decode (the number of processors by default).
        """
        workers = options.pop("workers", None)
        _refuse(options, path, "workers")
        return Hdf5Reader(path, workers=_count(workers, "workers"))

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Hdf5Writer:
        """Start a store; see `wustore.protocol.Backend.create`.

        Parameters
        ----------
        path, meta, capsule, overwrite
            As in the protocol.
        options
            ``profile``: one of `PROFILES`. ``layout``: a key of `LAYOUTS`. ``chunks``: shape (y, x) or
            (1, y, x) of a chunk, instead of a layout. ``workers``: threads that encode.

        Raises
        ------
        StoreExistsError, UsageError, MissingDependencyError
        """
        profile = options.pop("profile", None) or "portable"
        layout = options.pop("layout", None) or "images"
        chunks = options.pop("chunks", None)
        workers = _count(options.pop("workers", None), "workers")
        _refuse(options, path, "profile, layout, chunks, workers")
        if profile not in PROFILES:
            raise UsageError("no such profile", where="hdf5", expected=", ".join(PROFILES), found=profile)
        if layout not in LAYOUTS:
            raise UsageError("no such layout", where="hdf5", expected=", ".join(LAYOUTS), found=layout)
        if profile == "fast":
            _need_plugins()
        staging = Staging(path, overwrite=overwrite)
        return Hdf5Writer(
            staging, meta, capsule, profile=profile, chunks=_chunk_sides(chunks, LAYOUTS[layout]), workers=workers
        )


def _refuse(options: Mapping[str, Any], path: str, known: str) -> None:
    if options:
        raise UsageError("unknown options", path=path, where="hdf5", expected=known, found=sorted(options))


def _count(value: Any, name: str) -> int:
    if value is None:
        return default_workers()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError("not a number of threads", where=name, expected="an integer above 0", found=value)
    return value


def _chunk_sides(chunks: Any, side: int) -> tuple[int, int] | int:
    """Return the exact (y, x) of a chunk that was asked for, or the side to aim at."""
    if chunks is None:
        return side
    sides = tuple(chunks) if isinstance(chunks, Sequence) and not isinstance(chunks, str) else ()
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sides)
    if not whole or len(sides) not in {2, 3} or (len(sides) == 3 and sides[0] != 1):
        raise UsageError("not a chunk shape", where="chunks", expected="(y, x) or (1, y, x)", found=chunks)
    return sides[-2], sides[-1]


def _need_plugins() -> None:
    try:
        import hdf5plugin
    except ImportError as error:
        raise MissingDependencyError(
            "this needs HDF5 filter plug-ins, which are not installed",
            expected="hdf5plugin",
            cure="pip install 'wustore[plugins]' brings it; or use profile='portable'.",
        ) from error
    # By force: netCDF4 points HDF5 to a Blosc built for its own copy of the library, which fails in h5py's.
    hdf5plugin.register("blosc", force=True)


# --- reading ------------------------------------------------------------------------------------------


class Hdf5Reader(Reader):
    """An open HDF5 store.

    Parameters
    ----------
    path
        The file.
    workers
        Threads that decode chunks.

    Attributes
    ----------
    chunks_read
        How many chunks were asked for so far, all layers.
    """

    format = "hdf5"

    def __init__(self, path: str, *, workers: int) -> None:
        self.path = path
        self._workers = workers
        self._file: h5py.File | None = _open_file(path)
        self._raw = RawFile(self._file)
        self._lock = threading.Lock()
        self._readers: dict[str, ChunkReader] = {}
        self._capsule: tuple[NDArray[Any], ChunkReader] | None = None
        try:
            self._document = self._read_document()
            self._meta = meta_from(self._document, self._array, path=path)
            self._specs = {spec.name: spec for spec in layers_of(self._meta)}
        except BaseException:
            self.close()
            raise

    def _open(self) -> h5py.File:
        if self._file is None:
            raise UsageError("the store has been closed", path=self.path)
        return self._file

    def _read_document(self) -> dict[str, Any]:
        file = self._open()
        with netcdf.wrapped(self.path, "root attributes"):
            if _DOCUMENT not in file.attrs:
                raise FormatError(
                    "an HDF5 file, but not a wustore store", path=self.path, expected=f"root attribute {_DOCUMENT!r}"
                )
            text, checksum = file.attrs[_DOCUMENT], file.attrs.get(_DOCUMENT_CHECKSUM)
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
        found = hashlib.sha256(data).hexdigest()
        expected = checksum.decode("ascii", "replace") if isinstance(checksum, bytes) else checksum
        if expected is not None and str(expected) != found:
            raise CorruptError(
                "the root document does not match its checksum",
                path=self.path,
                where=f"root attribute {_DOCUMENT!r}",
                expected=f"sha256 {expected}",
                found=found,
                cure=f"Remove the attribute {_DOCUMENT_CHECKSUM!r} if the document was changed on purpose.",
            )
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptError("the root document is not JSON", path=self.path, found=str(error)) from error
        if not isinstance(document, dict):
            raise CorruptError("the root document is not a JSON object", path=self.path, found=type(document).__name__)
        return document

    def _array(self, name: str) -> NDArray[Any]:
        return netcdf.read_array(self._open(), name, self.path)

    @property
    def meta(self) -> Meta:
        """Everything but pixels, PSF values and FITS leftovers; read when the store was opened."""
        return self._meta

    @property
    def chunks_read(self) -> int:
        """How many chunks were asked for so far."""
        return sum(reader.chunks_read for reader in self._readers.values())

    def _chunks(self, layer: str) -> ChunkReader:
        """Return the chunks of a layer, whose dataset is opened at the first touch."""
        file = self._open()
        with self._lock:
            if layer not in self._readers:
                spec = self._specs.get(layer)
                if spec is None:
                    raise FormatError("no image has this layer", path=self.path, where=layer)
                with netcdf.wrapped(self.path, layer):
                    self._readers[layer] = self._checked(file.get(layer), spec)
            return self._readers[layer]

    def _checked(self, dataset: Any, spec: LayerSpec) -> ChunkReader:
        if not isinstance(dataset, h5py.Dataset):
            raise CorruptError("a layer is missing", path=self.path, where=spec.name)
        dtype = dataset.dtype.newbyteorder("=")
        if dataset.shape != spec.shape or dtype != netcdf.stored_layer_dtype(spec.dtype).newbyteorder("="):
            raise CorruptError(
                "a layer does not have the shape and dtype that the document says",
                path=self.path,
                where=spec.name,
                expected=(spec.shape, spec.dtype),
                found=(dataset.shape, dataset.dtype),
            )
        reader = ChunkReader(dataset, self._raw, self.path)
        if not reader.decodes:
            self._need_filters(reader.filters, spec.name)
        return reader

    def _need_filters(self, numbers: Sequence[int], layer: str) -> None:
        if all(map(h5py.h5z.filter_avail, numbers)):
            return
        _need_plugins()
        missing = [number for number in numbers if not h5py.h5z.filter_avail(number)]
        if missing:
            raise MissingDependencyError(
                "no plug-in has the HDF5 filters of this layer", path=self.path, where=layer, found=missing
            )

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box; see `wustore.protocol.Reader.read`."""
        dtype = self._meta.layer_dtype(layer)
        direct = out if out is not None and out.flags.c_contiguous and out.dtype == dtype else None
        jobs, boxes = self._jobs(layer, [index], None if direct is None else [direct])
        run(jobs, self._workers)
        if out is None:
            return boxes[0]
        if direct is None:
            out[...] = boxes[0]
        return out

    def read_boxes(self, layer: str, boxes: Sequence[Index]) -> list[NDArray[Any]]:
        """Read many boxes; see `wustore.protocol.Reader.read_boxes`."""
        jobs, outs = self._jobs(layer, boxes)
        run(jobs, self._workers)
        return outs

    def _jobs(
        self, layer: str, boxes: Sequence[Index], outs: Sequence[NDArray[Any]] | None = None
    ) -> tuple[list[Job], list[NDArray[Any]]]:
        reader = self._chunks(layer)
        dtype = self._meta.layer_dtype(layer)
        shape = reader.shape
        for box in boxes:
            if any(not 0 <= part.start <= part.stop <= size for part, size in zip(box, shape, strict=True)):
                raise UsageError("a box outside the layer", path=self.path, where=layer, expected=shape, found=box)
        if outs is None:
            outs = [np.empty([part.stop - part.start for part in box], dtype) for box in boxes]
        return reader.jobs(boxes, outs), list(outs)

    def image(self, i: int, layers: Sequence[str] = LAYERS, *, capsule: bool = False) -> Image:
        """Read one image; see `wustore.protocol.Reader.image`."""
        pending = _PendingImage(self, i, layers, capsule=capsule)
        return pending.start(self._workers).image()

    def images(
        self,
        indices: Iterable[int] | None = None,
        layers: Sequence[str] = LAYERS,
        *,
        capsule: bool = False,
        workers: int | None = None,
    ) -> Iterator[tuple[int, Image]]:
        """Yield images in order; see `wustore.protocol.Reader.images`.

        The chunks of the next image are decoded while the caller has the last one; two images are held.
        """
        workers = _count(workers, "workers")
        ahead: deque[tuple[int, _PendingImage]] = deque()
        try:
            for i in range(self._meta.n_images) if indices is None else indices:
                ahead.append((i, _PendingImage(self, i, layers, capsule=capsule).start(workers)))
                if len(ahead) > 1:
                    ready, pending = ahead.popleft()
                    yield ready, pending.image()
            while ahead:
                ready, pending = ahead.popleft()
                yield ready, pending.image()
        finally:
            for _, pending in ahead:
                pending.cancel()

    def image_jobs(
        self, i: int, layers: Sequence[str], *, capsule: bool
    ) -> tuple[list[Job], dict[str, NDArray[Any]], NDArray[np.uint8] | None]:
        """Return the work of reading image ``i``, and the planes and capsule bytes that it fills."""
        if not 0 <= i < self._meta.n_images:
            raise UsageError("no such image", path=self.path, expected=f"0 … {self._meta.n_images - 1}", found=i)
        planes: dict[str, NDArray[Any]] = {}
        jobs: list[Job] = []
        for layer in LAYERS:
            if layer in layers and self._meta.dtypes[layer][i] is not None:
                height, width = self._meta.shape_of(layer, i)
                more, (box,) = self._jobs(layer, [(slice(i, i + 1), slice(0, height), slice(0, width))])
                planes[layer] = box[0]
                jobs += more
        if not capsule or not self._has_capsule():
            return jobs, planes, None
        more, piece = self._piece(i + 1)
        return jobs + more, planes, piece

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the shape of a chunk of a layer."""
        times, height, width = self._chunks(layer).chunks
        return times, height, width

    def _has_capsule(self) -> bool:
        return self._document.get("capsule") is not None

    def _piece(self, k: int) -> tuple[list[Job], NDArray[np.uint8]]:
        """Return the work of reading part ``k`` of the capsule (0 the head, then one an image), and its place."""
        bound, data = self._capsule_parts()
        start, stop = int(bound[k]), int(bound[k + 1])
        piece = np.empty(stop - start, np.uint8)
        return ([] if start == stop else data.jobs([(slice(start, stop),)], [piece])), piece

    def _capsule_parts(self) -> tuple[NDArray[Any], ChunkReader]:
        file = self._open()
        with self._lock:
            if self._capsule is None:
                bound = self._array(_CAPSULE_BOUND)
                if len(bound) != self._meta.n_images + 2 or bound[0] != 0 or np.any(np.diff(bound) < 0):
                    raise CorruptError(
                        "the bounds of the FITS leftovers are wrong", path=self.path, where=_CAPSULE_BOUND
                    )
                with netcdf.wrapped(self.path, _CAPSULE_DATA):
                    data = file[_CAPSULE_DATA]
                    if data.shape != (bound[-1],) or data.dtype != np.uint8:
                        raise CorruptError(
                            "the FITS leftovers have the wrong length",
                            path=self.path,
                            where=_CAPSULE_DATA,
                            expected=f"{int(bound[-1])} bytes",
                            found=f"{data.shape} {data.dtype}",
                        )
                    self._capsule = bound, ChunkReader(data, self._raw, self.path)
            return self._capsule

    def _piece_bytes(self, k: int) -> bytes:
        jobs, piece = self._piece(k)
        run(jobs, self._workers)
        return piece.tobytes()

    def capsule(self) -> Capsule | None:
        """Return the FITS leftovers, or None."""
        if not self._has_capsule():
            return None
        document = jsonio.decode(self._document["capsule"])
        if not isinstance(document, dict):
            raise CorruptError("the capsule's document is not a JSON object", path=self.path, where="capsule")
        return Capsule(document, self._piece_bytes(0), lambda i: self._piece_bytes(i + 1))

    def checksums(self) -> NDArray[np.uint32] | None:
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

    def audit(self) -> Iterator[tuple[str, str]]:
        """Yield the objects that HDF5 cannot read, dimension scales and attributes among them."""
        yield from netcdf.unreadable(self._open(), self.path)

    def describe(self) -> dict[str, Any]:
        """Return the filters and stored sizes of the layers, and whether FITS leftovers are kept."""
        layers = {}
        for layer in self._specs:
            with netcdf.wrapped(self.path, layer):
                reader = self._chunks(layer)
                layers[layer] = {"bytes": reader.stored_bytes(), "filters": list(map(_filter_name, reader.filters))}
        return {"capsule": self._has_capsule(), "layers": layers}

    def close(self) -> None:
        """Close the file; reading afterwards is a UsageError."""
        file, self._file = self._file, None
        self._readers, self._capsule = {}, None
        if file is not None:
            file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._workers)


class _PendingImage:
    """An image whose chunks are being decoded."""

    def __init__(self, reader: Hdf5Reader, i: int, layers: Sequence[str], *, capsule: bool) -> None:
        self._jobs, self._planes, self._piece = reader.image_jobs(i, layers, capsule=capsule)
        self._dtypes = {layer: reader.meta.dtypes[layer][i] for layer in LAYERS}
        self._work: Work | None = None

    def start(self, workers: int) -> Self:
        self._work = Work(self._jobs, workers)
        return self

    def cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    def image(self) -> Image:
        if self._work is not None:
            self._work.wait()
        planes = {}
        for layer, plane in self._planes.items():
            dtype = self._dtypes[layer]
            planes[layer] = plane if dtype is None else cast_plane(plane, dtype)
        empty = np.empty((0, 0), np.float32)
        return Image(
            science=planes.get("science", empty),
            variance=planes.get("variance", empty),
            mask=planes.get("mask"),
            psf=planes.get("psf"),
            capsule=None if self._piece is None else self._piece.tobytes(),
        )


def _reopen(path: str, workers: int) -> Hdf5Reader:
    return Hdf5Reader(path, workers=workers)


def _filter_name(number: int) -> str:
    names = {
        h5filters.DEFLATE: "gzip",
        h5filters.SHUFFLE: "shuffle",
        h5filters.FLETCHER32: "fletcher32",
        h5filters.BLOSC: "blosc",
    }
    return names.get(number, f"filter {number}")


# --- writing ------------------------------------------------------------------------------------------


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
        chunks: tuple[int, int] | int,
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
        if capsule is not None:
            document["capsule"] = jsonio.encode(dict(capsule.document))
        text = json.dumps(document, allow_nan=False)
        specs = arrays_of(meta)
        try:
            if capsule is not None:
                self._pieces = _Pieces(meta.n_images, staging.target.parent)
            self._file = netcdf.create_file(str(staging.path))
            netcdf.set_text(self._file, "Conventions", CONVENTIONS)
            # Variable-length, because a text inside the object header is limited to 64 kB; the checksum
            # beside it is inside, where HDF5 protects it.
            self._file.attrs.create(_DOCUMENT, text, dtype=h5py.string_dtype("ascii"))
            netcdf.set_text(self._file, _DOCUMENT_CHECKSUM, hashlib.sha256(text.encode()).hexdigest())
            for spec in layers_of(meta):
                self._layers.append(_LayerWriter(self._file, spec, profile, chunks))
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
            _CAPSULE_BOUND,
            np.cumsum(lengths),
            ("capsule_bound",),
            {"long_name": "part k of data is data[bound[k]:bound[k + 1]]: the head, then one part an image"},
        )
        netcdf.add_array(file, bound)
        total = int(lengths.sum())
        step = min(total, _CAPSULE_CHUNK)
        numbers = (h5filters.DEFLATE, h5filters.FLETCHER32)
        pipeline = Pipeline(numbers, np.dtype("u1"), (step,), level=_CAPSULE_LEVEL)
        declared = {"chunks": (step,), **_declared(pipeline)} if total else {}
        data = file.create_dataset(_CAPSULE_DATA, (total,), "u1", track_times=False, **declared)
        netcdf.set_attributes(data, {"long_name": "what gives back the identical FITS files"})
        self._dims |= {_CAPSULE_BOUND: bound.dims, _CAPSULE_DATA: ("capsule_byte",)}
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
        self._pipeline = _pipeline(profile, spec.name, dtype, self._chunks)
        self._fill: tuple[int, bytes] | None = None
        keywords: dict[str, Any] = {}
        if spec.shape[1] and spec.shape[2]:
            keywords = {"chunks": self._chunks, **_declared(self._pipeline)}
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


def _pipeline(profile: str, layer: str, dtype: np.dtype[Any], chunks: tuple[int, ...]) -> Pipeline:
    if profile == "fast":
        numbers: tuple[int, ...] = (h5filters.BLOSC, h5filters.FLETCHER32)
    elif profile == "none":
        numbers = (h5filters.FLETCHER32,)
    elif dtype.itemsize == 1:
        numbers = (h5filters.DEFLATE, h5filters.FLETCHER32)
    else:
        numbers = (h5filters.SHUFFLE, h5filters.DEFLATE, h5filters.FLETCHER32)
    return Pipeline(numbers, dtype, chunks, level=_LEVELS[profile][layer])


def _declared(pipeline: Pipeline) -> dict[str, Any]:
    """Return the arguments of ``create_dataset`` that declare a pipeline."""
    declared: dict[str, Any] = {"fletcher32": True, "shuffle": h5filters.SHUFFLE in pipeline.filters}
    if h5filters.DEFLATE in pipeline.filters:
        declared |= {"compression": "gzip", "compression_opts": pipeline.level}
    elif h5filters.BLOSC in pipeline.filters:
        declared |= {"compression": h5filters.BLOSC, "compression_opts": h5filters.blosc_options(pipeline)}
    return declared


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
