"""KBMOD's FITS files: one file, or a sharded set (a primary file and ``<i>_<name>`` for each image beside it)."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError, FormatError, StoreNotFoundError, UsageError
from wustore.fits import sidecar, source
from wustore.fits.capsule import meta_digest
from wustore.fits.cards import BLOCK
from wustore.fits.checksum import wrong_sums
from wustore.fits.layouts import Layout, interpret
from wustore.fits.mapping import release
from wustore.fits.planes import Plane
from wustore.fits.scan import Buffer, ScannedFile, Sliceable, is_fits, scan
from wustore.layout import fill_value
from wustore.model import LAYERS, Capsule, Image, Meta
from wustore.pieces import PieceWriter
from wustore.protocol import Backend, Index, Reader, Writer
from wustore.remote import CONCURRENCY, RemoteFile, is_remote, merged, refuse_writing, shown
from wustore.workers import read_ahead

__all__ = ["FitsBackend", "FitsFile", "FitsReader", "ShardedFitsBackend"]

_OPEN_FILES = 64
"""Files of a sharded set whose bytes are kept at hand at a time; a process may open about 1000."""

_CONNECTIONS = 8
"""Images of a box at a URL that are read at a time; more of them are no faster (tests/benchmarks/remote.py)."""

_EMPTY = np.empty((0, 0), dtype=np.float32)


class _Cache:
    """The bytes of the files last used. An evicted mapping closes with its last user."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Buffer] = OrderedDict()
        self._closed = False

    def get(self, path: str) -> Buffer:
        with self._lock:
            if self._closed:
                raise UsageError("the reader is closed", path=path)
            data = self._entries.get(path)
            if data is None:
                data = source.load(path)
                self._entries[path] = data
                if len(self._entries) > self._limit:
                    self._entries.popitem(last=False)
            else:
                self._entries.move_to_end(path)
            return data

    def close(self) -> None:
        with self._lock:
            self._entries.clear()
            self._closed = True


class FitsFile:
    """One file of a WorkUnit: its path, its bytes (unpacked where it is compressed) and its HDUs.

    Parameters
    ----------
    path
        The file.
    cache
        Where the bytes of the reader's files are kept.

    Attributes
    ----------
    path
        As given.
    scan
        The HDUs.
    state
        Size, time and inode of the file when it was opened.
    """

    def __init__(self, path: str, cache: _Cache) -> None:
        self.path = path
        self._cache = cache
        self._remote = _remote(path)
        self._is_fetched = False
        self.state = source.state_of(path) if self._remote is None else self._remote.state
        self.scan: ScannedFile = scan(cache.get(path) if self._remote is None else self._remote, shown(path))

    @property
    def data(self) -> Buffer:
        """All bytes of the file.

        Raises
        ------
        CorruptError
            Where the file was changed since it was opened: what the scan found does not hold any more.
        """
        # What was fetched from a URL does not change; of a compressed file the capsule reads the original once more.
        asked = self._is_fetched and self._remote is not None
        if not asked and source.state_of(self.path) != self.state:
            raise CorruptError("the file was changed after it was opened", path=shown(self.path), cure="Open it again.")
        self._is_fetched = True  # from here on what is at hand is used
        return self._cache.get(self.path)

    @property
    def parts(self) -> Sliceable:
        """The file as bytes of which only what is taken is read; at a URL in blocks."""
        return self.data if self._remote is None or self._is_fetched else self._remote

    @property
    def is_remote(self) -> bool:
        """Whether the file is read by ranges."""
        return self._remote is not None

    def read(
        self, plane: Plane, rows: slice | None = None, columns: slice | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Decode a plane of this file or a window of it; see `wustore.fits.planes.Plane.read`."""
        if self._remote is None or self._is_fetched:
            return plane.read(self.data, rows, columns, out)
        return plane.read_ranges(self._fetch, rows, columns, out)

    def _fetch(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges, near ones in one request, several requests at a time."""
        assert self._remote is not None
        remote = self._remote
        requests = merged(ranges)
        if not requests:
            return [b""] * len(ranges)
        pieces = read_ahead(
            lambda k: remote.read(requests[k][0], requests[k][1] - requests[k][0]),
            range(len(requests)),
            min(len(requests), CONCURRENCY),
        )
        found = [memoryview(piece) for _, piece in pieces]
        starts = [start for start, _ in requests]
        parts = []
        for start, stop in ranges:
            k = max(bisect_right(starts, start) - 1, 0)
            parts.append(bytes(found[k][start - starts[k] : stop - starts[k]]) if stop > start else b"")
        return parts

    def __iter__(self) -> Iterator[Any]:
        """Yield path, bytes and scan, so that a file can be taken apart like a tuple."""
        yield from (self.path, self.data, self.scan)


def _remote(path: str) -> RemoteFile | None:
    """Return the file at a URL, None for a local one and for one that has to be unpacked as a whole."""
    if not is_remote(path):
        return None
    remote = RemoteFile(path)
    return remote if is_fits(remote.cached(0, BLOCK)) else None


def _exists(path: str) -> bool:
    if not is_remote(path):
        return Path(path).is_file()
    try:
        RemoteFile(path)
    except StoreNotFoundError:
        return False
    return True


def _shard_path(primary: str, i: int) -> str:
    directory, name = os.path.split(primary)  # of a URL too
    if is_remote(primary):
        return f"{directory}/{i}_{name}"
    return str(Path(directory) / f"{i}_{name}") if directory else f"{i}_{name}"


def _image(planes: Mapping[str, NDArray[Any]]) -> Image:
    return Image(
        science=planes.get("science", _EMPTY),
        variance=planes.get("variance", _EMPTY),
        mask=planes.get("mask"),
        psf=planes.get("psf"),
    )


class FitsReader(Reader):
    """A reader of a FITS file or of a sharded set.

    Parameters
    ----------
    path
        The file; of a sharded set the primary one.
    form
        ``fits`` or ``sharded-fits``.

    Attributes
    ----------
    files
        The files: of a sharded set the primary one, then the shards in order.
    layout
        What their HDUs mean.
    pixels_decoded
        How many pixels were decoded so far.
    """

    def __init__(self, path: str, form: str) -> None:
        self.format = form
        self._address = path
        self.path = shown(path)
        self._lock = threading.Lock()
        self._cache = _Cache(_OPEN_FILES)
        self.pixels_decoded = 0
        self.files: list[FitsFile] = [FitsFile(path, self._cache)]
        if form == "sharded-fits":
            self.files += self._shards()
        elif self._is_primary_of_set():
            raise FormatError(
                "the primary file of a sharded set: the images are in files beside it",
                path=path,
                cure="Open it as sharded-fits.",
            )
        self.layout: Layout = interpret(
            [file.scan for file in self.files], lambda number: self.files[number].parts, form
        )
        self._meta = self._exact_meta()

    def _exact_meta(self) -> Meta:
        """Return the metadata of our own HDU where there is one that belongs to this content, else the layout's."""
        plain = self.layout.meta
        hdu = self.files[0].scan.get(sidecar.NAME)
        if hdu is None or hdu.kind != "IMAGE":
            return plain
        data = bytes(self.files[0].parts[hdu.data_start : hdu.data_start + hdu.data_length])
        exact, digest = sidecar.read_wustore_hdu(data, path=self.path)
        # Another digest: the file was edited by something that does not know the HDU.
        fits_here = digest == meta_digest(plain) and np.array_equal(exact.image_shape, plain.image_shape)
        return exact if fits_here else plain

    def _is_primary_of_set(self) -> bool:
        scanned = self.files[0].scan
        return scanned.get("SCI_0") is None and _has_shards(self._address, scanned)

    def _shards(self) -> list[FitsFile]:
        count = self.files[0].scan.hdus[0].header.get("NUMIMG")
        shards: list[FitsFile] = []
        for i in range(count if type(count) is int else 0):
            path = _shard_path(self._address, i)
            if not _exists(path):
                raise CorruptError(
                    "a shard is missing",
                    path=shown(path),
                    expected=f"{count} shards, 0_{Path(self.path).name} … (NUMIMG = {count})",
                    found=f"no shard {i}",
                    cure="Put the file back, beside the primary file.",
                )
            shards.append(FitsFile(path, self._cache))
        return shards

    @property
    def meta(self) -> Meta:
        """Everything but pixels."""
        return self._meta

    def _read_plane(
        self, i: int, layer: str, rows: slice | None = None, columns: slice | None = None, out: Any = None
    ) -> NDArray[Any] | None:
        image = self.layout.images[i]
        plane = image.planes.get(layer)
        dtype = self.meta.dtypes[layer][i]
        if plane is None or dtype is None:  # KBMOD needs a PSF in the file even where there is none
            return None
        values = self.files[image.file].read(plane, rows, columns, out if plane.dtype == dtype else None)
        if plane.dtype != dtype:  # FITS has no such dtype: the values are the same
            values = values.astype(dtype)
            if out is not None:
                out[...] = values
        height, width = plane.shape
        count = plane.n_decoded(rows or slice(0, height), columns or slice(0, width))
        self._count(count)
        return values

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box, decoding only the tiles it touches; see `wustore.protocol.Reader.read`."""
        times, rows, columns = index
        dtype = self.meta.layer_dtype(layer)
        if out is None:
            shape = tuple(part.stop - part.start for part in index)
            out = np.empty(shape, dtype)

        def fill(k: int) -> None:
            i = times.start + k
            height, width = self.meta.shape_of(layer, i)
            y, x = slice(rows.start, min(rows.stop, height)), slice(columns.start, min(columns.stop, width))
            box = out[k]
            if self.meta.dtypes[layer][i] is None or y.stop <= y.start or x.stop <= x.start:
                box[...] = fill_value(dtype)
                return
            part = box[: y.stop - y.start, : x.stop - x.start]
            if part.shape != box.shape:
                box[...] = fill_value(dtype)
            direct = part.dtype == self.meta.dtypes[layer][i] and part.flags.c_contiguous
            values = self._read_plane(i, layer, y, x, part if direct else None)
            if not direct:
                part[...] = values

        # At a URL each image takes two requests, which need not wait for those of another one.
        for _ in read_ahead(fill, range(times.stop - times.start), _CONNECTIONS if self.files[0].is_remote else 1):
            pass
        return out

    def image(self, i: int, layers: Sequence[str] = LAYERS, *, capsule: bool = False) -> Image:
        """Read one image; see `wustore.protocol.Reader.image`."""
        planes = {layer: values for layer in layers if (values := self._read_plane(i, layer)) is not None}
        image = _image(planes)
        if capsule:
            from wustore.fits import capsule as leftovers

            image = replace(image, capsule=leftovers.piece(self, i, image))
        self._release(i)
        return image

    def _release(self, i: int) -> None:
        """Give back the memory of the mapped bytes of an image."""
        planes = self.layout.images[i].planes
        for plane in planes.values():
            hdu = plane.hdu
            release(self.files[self.layout.images[i].file].data, hdu.data_start, hdu.end)

    def _count(self, pixels: int) -> None:
        with self._lock:
            self.pixels_decoded += pixels

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return one tile of the first image that has the layer; one row of a plain image."""
        for image in self.layout.images:
            if layer in image.planes:
                return 1, *image.planes[layer].tile_shape
        return 1, 1, 1

    def hdus_of(self, i: int) -> list[tuple[int, int, str]]:
        """Return the HDUs of image ``i`` in file order: file number, HDU number, layer."""
        image = self.layout.images[i]
        return sorted((image.file, plane.hdu.index, layer) for layer, plane in image.planes.items())

    def role_of(self, file: int, hdu: int) -> str:
        """Return what an HDU is (`wustore.fits.layouts.Layout.roles`), ``foreign`` where it is nothing we know."""
        return self.layout.roles.get((file, hdu), "foreign")

    def capsule(self) -> Capsule | None:
        """Return what gives the identical files back; reads and hashes them."""
        from wustore.fits import capsule as leftovers

        return leftovers.build(self)

    def places(self) -> list[str]:
        """Return all files of the set."""
        return [shown(file.path) for file in self.files]

    def audit(self) -> Iterator[tuple[str, str]]:
        """Yield the CHECKSUM and DATASUM cards that do not hold; see `wustore.protocol.Reader.audit`."""
        for file in self.files:
            name = "" if len(self.files) == 1 else f"{Path(shown(file.path)).name}, "
            data = file.data
            for hdu in file.scan.hdus:
                yield from ((name + place, what) for place, what in wrong_sums(data, hdu))

    def describe(self) -> dict[str, Any]:
        """Return layout, compression and sizes; see `wustore.protocol.Reader.describe`."""
        facts: dict[str, Any] = {
            "layout": self.meta.source.get("layout"),
            "files": len(self.files),
            "hdus": sum(len(file.scan.hdus) for file in self.files),
        }
        outer = source.compression_of(self._address)
        if outer is not None:
            facts["file compression"] = outer
        plane = self.layout.images[0].planes["science"]
        facts["science compression"] = plane.compression
        return facts

    def close(self) -> None:
        """Release the files."""
        self._cache.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return FitsReader, (self._address, self.format)


def _has_shards(path: str, scanned: ScannedFile) -> bool:
    count = scanned.hdus[0].header.get("NUMIMG")
    if type(count) is not int:
        return False
    if is_remote(path):
        return count > 0 and _exists(_shard_path(path, 0))
    directory, name = os.path.split(path)
    beside = {entry.name for entry in os.scandir(directory or ".")}
    return any(f"{i}_{name}" in beside for i in range(min(count, len(beside))))


def _starts_like_fits(path: str) -> bool:
    try:
        return (is_remote(path) or Path(path).is_file()) and is_fits(source.first_bytes(path, BLOCK))
    except (OSError, FormatError):
        return False


def _path_of(path: str) -> str:
    if not is_remote(path) and Path(path).is_dir():
        raise FormatError("a directory, not a FITS file", path=path)
    return path


class FitsBackend(Backend):
    """A WorkUnit in one FITS file, plain or inside .gz, .bz2 or .zip."""

    name = "fits"
    suffixes = (".fits.gz", ".fits.bz2", ".fits.zip", ".fit.gz", ".fits.fz", ".fits", ".fit", ".fts")
    description = "KBMOD's single FITS file, of any layout since 2023"

    def sniff(self, path: str) -> bool:
        """Return whether the file starts like FITS, unpacked where it is compressed."""
        return _starts_like_fits(path)

    def open(self, path: str, **options: Any) -> FitsReader:
        """Open a file; see `wustore.protocol.Backend.open`."""
        _refuse(options, self.name)
        return FitsReader(_path_of(path), "fits")

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Writer:
        """Start a file; see `wustore.protocol.Backend.create` and `wustore.fits.writer.create` for the options."""
        from wustore.fits import writer

        if is_remote(path):
            refuse_writing(path, "FITS")
        return writer.create(path, meta, capsule=capsule, overwrite=overwrite, sharded=False, **options)

    def resumes(self, path: str) -> bool:
        """Return whether it is a local file."""
        return not is_remote(path)

    def resume(self, path: str, meta: Meta, **options: Any) -> PieceWriter:
        """Start or join a file that is written in pieces; see `wustore.protocol.Backend.resume`."""
        return _in_pieces(self, path, meta, sharded=False, **options)


class ShardedFitsBackend(Backend):
    """A WorkUnit in a primary FITS file and one file for each image, named by the primary file."""

    name = "sharded-fits"
    description = "KBMOD's sharded set: a primary FITS file, and <i>_<name> for each image"

    def sniff(self, path: str) -> bool:
        """Return whether the file counts images without holding them, and has a shard beside it."""
        if is_remote(path) and not _exists(_shard_path(path, 0)):
            return False  # at the price of one request, where a scan takes many
        if not _starts_like_fits(path):
            return False
        try:
            remote = _remote(path)
            scanned = scan(source.load(path) if remote is None else remote, path)
        except (OSError, FormatError):
            return False
        return scanned.get("SCI_0") is None and _has_shards(path, scanned)

    def open(self, path: str, **options: Any) -> FitsReader:
        """Open a set by its primary file; see `wustore.protocol.Backend.open`."""
        _refuse(options, self.name)
        return FitsReader(_path_of(path), "sharded-fits")

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Writer:
        """Start a set; see `wustore.protocol.Backend.create` and `wustore.fits.writer.create` for the options."""
        from wustore.fits import writer

        if is_remote(path):
            refuse_writing(path, "FITS")
        return writer.create(path, meta, capsule=capsule, overwrite=overwrite, sharded=True, **options)

    def resumes(self, path: str) -> bool:
        """Return whether they are local files."""
        return not is_remote(path)

    def resume(self, path: str, meta: Meta, **options: Any) -> PieceWriter:
        """Start or join a set that is written in pieces; see `wustore.protocol.Backend.resume`."""
        return _in_pieces(self, path, meta, sharded=True, **options)


def _in_pieces(
    backend: Backend,
    path: str,
    meta: Meta,
    *,
    sharded: bool,
    fingerprint: str,
    capsule: Capsule | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    **options: Any,
) -> PieceWriter:
    from wustore.fits import writer

    # An image is encoded in one thread, whatever ``workers`` says.
    return PieceWriter(
        backend,
        path,
        meta,
        writer.encoder(meta, capsule=capsule, sharded=sharded, **options),
        fingerprint=fingerprint,
        capsule=capsule,
        overwrite=overwrite,
        options=options,
    )


def _refuse(options: dict[str, Any], name: str) -> None:
    if options:
        raise UsageError("unknown options", where=name, expected="none", found=sorted(options))
