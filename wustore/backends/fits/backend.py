"""KBMOD's FITS files: one file, or a sharded set (a primary file and ``<i>_<name>`` next to it for each image)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from wustore.backends.base import Backend, Encoder, Writer
from wustore.backends.fits.files.index import SUFFIX, Index, is_index
from wustore.backends.fits.files.input import compression_of
from wustore.backends.fits.hdu.scan import is_fits
from wustore.backends.fits.reader import FitsReader
from wustore.backends.pieces import PiecewiseBackend
from wustore.errors import OtherFormatError, StoreNotFoundError, UsageError
from wustore.model.meta import Capsule, Meta
from wustore.storage.stores import address_of
from wustore.storage.url import UrlWithOptions, is_remote, redact, refuse_writing, with_options_of

__all__ = ["FitsBackend", "FitsIndexBackend", "ShardedFitsBackend"]


class _FilesBackend(PiecewiseBackend):
    """What a single file and a sharded set have in common."""

    sharded: ClassVar[bool]
    options: ClassVar[Mapping[str, str]] = {
        "mode": "archive: nothing is lost (default); kbmod: the bytes that KBMOD writes, quantised",
        "lossless": "true for GZIP_2 without quantisation",
        "compression_type": "NOCOMPRESS, RICE_1, GZIP_1, GZIP_2 or HCOMPRESS_1",
        "quantize_level": "the step of quantisation, as KBMOD's to_fits takes it: -0.01 is a step of 0.01",
        "checksum": "true for the cards CHECKSUM and DATASUM in every HDU (--checksum)",
    }

    def recognises(self, start: bytes) -> bool:
        """Return whether it begins as a FITS file, or as a compressed file."""
        return is_fits(start) or compression_of(start) is not None

    def open(self, path: str, **options: Any) -> FitsReader:
        """Open a file, or a set by its primary file; see `wustore.backends.base.Backend.open`."""
        return _open(path, self.name, options)

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Writer:
        """Start a file or a set; see `Backend.create` and `fits.writer.create` for the options."""
        from wustore.backends.fits import writer

        if is_remote(path):
            refuse_writing(path, "FITS")
        return writer.create(path, meta, capsule=capsule, overwrite=overwrite, sharded=self.sharded, **options)

    def encoder(
        self, path: str, meta: Meta, *, capsule: Capsule | None, workers: int | None, **options: Any
    ) -> Encoder:
        """Return what encodes an image, in one thread whatever ``workers`` says."""
        from wustore.backends.fits import writer

        return writer.encoder(meta, capsule=capsule, sharded=self.sharded, **options)

    def lossy(self, options: Mapping[str, Any]) -> str | None:
        """Return which option loses values; see `wustore.backends.base.Backend.lossy`."""
        if options.get("mode") == "kbmod":
            return "mode=kbmod writes what KBMOD sees, and quantises it"
        if options.get("quantize_level") not in {None, 0}:
            return f"quantize_level={options['quantize_level']} rounds the pixels"
        if options.get("compression_type") in {"RICE_1", "HCOMPRESS_1"}:
            return f"compression_type={options['compression_type']} without quantisation truncates pixels to integers"
        return None


class FitsBackend(_FilesBackend):
    """A WorkUnit in one FITS file, plain or inside .gz, .bz2 or .zip."""

    name = "fits"
    suffixes = (".fits.gz", ".fits.bz2", ".fits.zip", ".fit.gz", ".fits.fz", ".fits", ".fit", ".fts")
    description = "KBMOD's single FITS file, of any layout since 2023"
    sharded = False

    def try_open(self, path: str, **options: Any) -> FitsReader | None:
        """Open a file, or a sharded set by its primary file; see `wustore.backends.base.Backend.try_open`."""
        try:
            return _open(path, None, options)
        except OtherFormatError:
            return None


class ShardedFitsBackend(_FilesBackend):
    """A WorkUnit in a primary FITS file and one file for each image, named by the primary file."""

    name = "sharded-fits"
    description = "KBMOD's sharded set: a primary FITS file, and <i>_<name> for each image"
    sharded = True


def _open(path: str, form: str | None, options: dict[str, Any]) -> FitsReader:
    index = options.pop("index", path.fits_index if isinstance(path, UrlWithOptions) else None)
    if index is not None and not isinstance(index, bool):
        index = address_of(index)
        index = os.path.abspath(index) if isinstance(index, str) and not is_remote(index) else index  # noqa: PTH100
    if index is True or not isinstance(index, str | bool | None):
        raise UsageError("index is no address", where="index", expected="a path or URL, or False", found=repr(index))
    reader = FitsReader(path, form, index, options.pop("workers", None))
    if options:
        reader.close()
        raise UsageError("unknown options", where=form or "fits", expected="index, workers", found=sorted(options))
    return reader


class FitsIndexBackend(Backend):
    """An index of FITS files next to it: the files, read through it or compared with it."""

    name = "fits-index"
    suffixes = (SUFFIX,)
    description = "index of FITS files next to it (wustore index), through which they are read; read only"

    def recognises(self, start: bytes) -> bool:
        """Return whether it begins as an index."""
        return is_index(start)

    def open(self, path: str, **options: Any) -> FitsReader:
        """Open the files of an index; see `wustore.backends.base.Backend.open`."""
        workers = options.pop("workers", None)
        if options:
            raise UsageError("unknown options", where=self.name, expected="workers", found=sorted(options))
        place, mark, query = path.partition("?") if is_remote(path) else (path, "", "")
        if not place.endswith(SUFFIX):
            raise OtherFormatError("no name of an index", path=redact(path), expected=f"a name ending in {SUFFIX}")
        Index(path)  # what is no index is said to be none, whatever is next to it
        try:
            return FitsReader(with_options_of(f"{place.removesuffix(SUFFIX)}{mark}{query}", path), None, path, workers)
        except StoreNotFoundError as error:
            error.hint = "An index is opened next to its FITS file; elsewhere open the file with index=…"
            raise

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Writer:
        """Refuse: an index is made of FITS files.

        Raises
        ------
        UsageError
        """
        raise UsageError("an index holds no images", path=path, hint="wustore index makes one of a FITS file.")
