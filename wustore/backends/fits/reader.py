"""Reading KBMOD's FITS files: one file, or a sharded set (a primary file, and ``<i>_<name>`` for each image)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.backends.chunk_grid import Index as Box
from wustore.backends.fits.capsule import is_digest_of
from wustore.backends.fits.files.index import Index, find
from wustore.backends.fits.files.indexed_file import IndexedFitsFile
from wustore.backends.fits.files.open_files import Cache, FitsFile, has_shards, shard_path
from wustore.backends.fits.hdu import wustore_hdu
from wustore.backends.fits.hdu.checksum import has_sums, wrong_sums
from wustore.backends.fits.hdu.scan import Buffer
from wustore.backends.fits.interpret import Layout, interpret
from wustore.backends.state import digest, reopen
from wustore.errors import CorruptError, FormatError, OtherFormatError, StoreNotFoundError
from wustore.format.planes import fill_value
from wustore.model.meta import LAYERS, Capsule, Image, Meta
from wustore.storage.buffers import release
from wustore.storage.threads import read_ahead, sharing, worker_count
from wustore.storage.url import is_remote, redact

__all__ = ["FitsReader"]

_OPEN_FILES = 64
"""Files of a sharded set whose bytes are kept at hand at a time; a process may open about 1000."""

_CONNECTIONS = 8
"""Images of a box at a URL that are read at a time; more of them are no faster (tests/benchmarks/remote.py)."""


class FitsReader(Reader):
    """A reader of a FITS file or of a sharded set.

    Parameters
    ----------
    path
        The file; of a sharded set the primary one.
    form
        ``fits`` or ``sharded-fits``; None if the file says which.
    index
        Address of an index; False for none, None (the default) for the one next to a file at a URL, if there is one.

    Attributes
    ----------
    files
        The files: of a sharded set the primary one, then the shards in order.
    index
        The index that they are read through (at a URL) or compared with, None for none.
    layout
        What their HDUs mean.
    pixels_decoded
        How many pixels were decoded so far.
    """

    def __init__(
        self, path: str, form: str | None = None, index: str | bool | None = None, workers: int | None = None
    ) -> None:
        self._address = path
        self._workers = workers
        self.path = redact(path)
        self._lock = threading.Lock()
        self._cache = Cache(_OPEN_FILES)
        self.pixels_decoded = 0
        self.index = Index(index) if isinstance(index, str) else None if index is False else find(path)
        self.files: list[FitsFile] = [self._file(path, 0)]
        is_set = form != "sharded-fits" and self._is_primary_of_set()
        if is_set and form is not None:
            raise FormatError(
                "the primary file of a sharded set: the images are in files next to it",
                path=path,
                hint="Open it as sharded-fits.",
            )
        self.format = "sharded-fits" if is_set else form or "fits"
        if self.index is not None and len(self.index.files) != 1 + self._n_shards():
            raise CorruptError(
                "the index is of another number of files",
                path=self.index.name,
                expected=1 + self._n_shards(),
                found=len(self.index.files),
            )
        self.files += self._shards()
        self.layout: Layout = interpret(
            [file.scan for file in self.files], lambda number: self.files[number].parts, self.format
        )
        self._meta = self._exact_meta()

    def _exact_meta(self) -> Meta:
        """Return the metadata of our own HDU if there is one that belongs to this content, else the layout's."""
        plain = self.layout.meta
        hdu = self.files[0].scan.get(wustore_hdu.NAME)
        if hdu is None or hdu.kind != "IMAGE":
            return plain
        data = bytes(self.files[0].parts[hdu.data_start : hdu.data_start + hdu.data_length])
        exact, digest = wustore_hdu.read_wustore_hdu(data, path=self.path)
        # Another digest: the file was edited by something that does not know the HDU.
        fits_here = is_digest_of(digest, plain) and np.array_equal(exact.image_shape, plain.image_shape)
        return exact if fits_here else plain

    def _file(self, path: str, number: int) -> FitsFile:
        """Return a file, compared with the index if there is one; a shard at a URL is looked at when it is read."""
        if self.index is None:
            return FitsFile(path, self._cache)
        if number >= len(self.index.files):
            raise CorruptError("the index lacks a file of the set", path=self.index.name, where=f"file {number}")
        entry = self.index.files[number]
        if not is_remote(path):
            file = FitsFile(path, self._cache)
            entry.check_parts(file.data, file.path)
            return file
        indexed = IndexedFitsFile(path, self._cache, entry)
        if number == 0:
            indexed.check_start()
        return indexed

    def _is_primary_of_set(self) -> bool:
        if self.index is not None:
            return self.index.kind == "sharded-fits"
        scanned = self.files[0].scan
        return scanned.get("SCI_0") is None and has_shards(self._address, scanned)

    def _n_shards(self) -> int:
        count = self.files[0].scan.hdus[0].header.get("NUMIMG")
        return count if self.format == "sharded-fits" and type(count) is int else 0

    def _shards(self) -> list[FitsFile]:
        count = self._n_shards()
        shards: list[FitsFile] = []
        for i in range(count):
            path = shard_path(self._address, i)
            try:
                shards.append(self._file(path, 1 + i))
            except (StoreNotFoundError, OtherFormatError) as error:
                raise CorruptError(
                    "a shard is missing",
                    path=redact(path),
                    expected=f"{count} shards, 0_{Path(self.path).name} … (NUMIMG = {count})",
                    found=error.what,
                    hint="Put the file back, next to the primary file.",
                ) from error
        return shards

    @property
    def meta(self) -> Meta:
        """Everything but pixels."""
        return self._meta

    def _read_plane(
        self,
        i: int,
        layer: str,
        rows: slice | None = None,
        columns: slice | None = None,
        out: Any = None,
        data: Buffer | None = None,
    ) -> NDArray[Any] | None:
        image = self.layout.images[i]
        plane = image.planes.get(layer)
        dtype = self.meta.dtypes[layer][i]
        if plane is None or dtype is None:  # KBMOD needs a PSF in the file even if there is none
            return None
        values = self.files[image.file].read(plane, rows, columns, out if plane.dtype == dtype else None, data)
        if plane.dtype != dtype:  # FITS has no such dtype: the values are the same
            values = values.astype(dtype)
            if out is not None:
                out[...] = values
        height, width = plane.shape
        whole = rows is None and columns is None
        self._count(height * width if whole else plane.n_decoded(rows or slice(0, height), columns or slice(0, width)))
        return values

    def read(self, layer: str, index: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box, decoding only the tiles it touches; see `wustore.backends.base.Reader.read`."""
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
        workers = self._workers or (_CONNECTIONS if self.files[0].is_remote else worker_count(work=out.nbytes))
        for _ in read_ahead(fill, range(times.stop - times.start), workers):
            pass
        return out

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read one image; see `wustore.backends.base.Reader.image`."""
        file = self.files[self.layout.images[i].file]
        data = None if file.is_remote else file.data  # of a remote file it would fetch all
        with sharing(worker_count(self._workers)):
            planes = {layer: self._read_plane(i, layer, data=data) for layer in layers}
        if data is not None:
            self._release(i, data)
        return Image.of({layer: values for layer, values in planes.items() if values is not None})

    def images_at_once(self, n_images: int) -> int | None:
        """Return how many threads were asked for."""
        return self._workers

    def _release(self, i: int, data: Buffer) -> None:
        """Give back the memory of the mapped bytes of an image."""
        image = self.layout.images[i]
        hdus = sorted((plane.hdu for plane in image.planes.values()), key=lambda hdu: hdu.data_start)
        start = 0
        for hdu, after in zip(hdus, [*hdus[1:], None], strict=True):
            start = start or hdu.data_start
            if after is None or after.index != hdu.index + 1:  # those that follow one another in one call
                release(data, start, hdu.end)
                start = 0

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
        """Return what an HDU is (`eras.Layout.roles`), ``foreign`` if it is nothing we know."""
        return self.layout.roles.get((file, hdu), "foreign")

    def capsule(self) -> Capsule | None:
        """Return what gives the identical files back; reads and hashes them."""
        from wustore.backends.fits import capsule

        return capsule.build(self)

    def image_capsule(self, i: int, image: Image | None = None) -> bytes:
        """Regenerate the HDUs of an image, and return what this needs besides its pixels."""
        from wustore.backends.fits import capsule

        made = capsule.piece(self, i, self.image(i) if image is None else image)
        file = self.files[self.layout.images[i].file]
        if not file.is_remote:
            self._release(i, file.data)
        return made

    def places(self) -> list[str]:
        """Return all files of the set."""
        return [redact(file.path) for file in self.files]

    def state(self) -> str:
        """Return a digest of sizes and times, or versions, of the files when they were opened."""
        return digest((Path(redact(file.path)).name, *file.state[:2]) for file in self.files)

    def check_state(self) -> None:
        """Check that no file was changed; see `wustore.backends.base.Reader.check_state`."""
        for _ in read_ahead(lambda k: self.files[k].check_state(), range(len(self.files)), _CONNECTIONS):
            pass

    def audit(self) -> Iterator[tuple[str, str]]:
        """Yield the CHECKSUM and DATASUM cards that do not hold; see `wustore.backends.base.Reader.audit`."""
        for k, file in enumerate(self.files):
            name = "" if len(self.files) == 1 else f"{Path(redact(file.path)).name}, "
            data = file.data
            if self.index is not None:
                yield from ((name + place, what) for place, what in self.index.files[k].wrong_blocks(0, data))
            for hdu in file.scan.hdus:
                yield from ((name + place, what) for place, what in wrong_sums(data, hdu))

    def protection(self) -> str:
        """Return which HDUs carry sums, or that the compression around the file has one."""
        if self.files[0].compression is not None:
            return f"the checksum of the {self.files[0].compression} file holds"
        if self.index is not None:
            return f"every block matches its checksum in the index {Path(self.index.name).name}"
        hdus = [hdu for file in self.files for hdu in file.scan.hdus]
        summed = sum(map(has_sums, hdus))
        if not summed:
            return ""
        return f"CHECKSUM and DATASUM hold in {'all' if summed == len(hdus) else summed} of {len(hdus)} HDUs"

    def describe(self) -> dict[str, Any]:
        """Return layout, compression and sizes; see `wustore.backends.base.Reader.describe`."""
        facts: dict[str, Any] = {
            "layout": self.meta.source.get("layout"),
            "files": len(self.files),
            "hdus": sum(len(file.scan.hdus) for file in self.files),
        }
        if self.files[0].compression is not None:
            facts["file compression"] = self.files[0].compression
        if self.index is not None:
            facts["index"] = self.index.name
        plane = self.layout.images[0].planes["science"]
        facts["science_compression"] = plane.compression
        return facts

    def close(self) -> None:
        """Release the files."""
        self._cache.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (
            FitsReader,
            (self._address, self.format, False if self.index is None else self.index.address, self._workers),
            self.state(),
        )
