"""KBMOD's FITS files: one file, or a sharded set (a primary file and ``<i>_<name>`` for each image beside it)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from wustore.backends.base import Backend, Writer
from wustore.backends.fits.files import input as source
from wustore.backends.fits.files.open_files import exists, has_shards, remote_at, shard_path
from wustore.backends.fits.hdu.header import BLOCK
from wustore.backends.fits.hdu.scan import is_fits, scan
from wustore.backends.fits.reader import FitsReader
from wustore.backends.pieces import PieceWriter
from wustore.errors import FormatError, UsageError
from wustore.model.meta import Capsule, Meta
from wustore.storage.url import is_remote, refuse_writing

__all__ = ["FitsBackend", "ShardedFitsBackend"]


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
    options: ClassVar[Mapping[str, str]] = {
        "mode": "archive: nothing is lost (default); kbmod: the bytes that KBMOD writes, quantised",
        "lossless": "true for GZIP_2 without quantisation",
        "compression_type": "NOCOMPRESS, RICE_1, GZIP_1, GZIP_2 or HCOMPRESS_1",
        "quantize_level": "the step of quantisation, as KBMOD's to_fits takes it: -0.01 is a step of 0.01",
    }

    def sniff(self, path: str) -> bool:
        """Return whether the file starts like FITS, unpacked where it is compressed."""
        return _starts_like_fits(path)

    def open(self, path: str, **options: Any) -> FitsReader:
        """Open a file; see `wustore.backends.base.Backend.open`."""
        _refuse(options, self.name)
        return FitsReader(_path_of(path), "fits")

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Writer:
        """Start a file; see `Backend.create` and `fits.writer.create` for the options."""
        from wustore.backends.fits import writer

        if is_remote(path):
            refuse_writing(path, "FITS")
        return writer.create(path, meta, capsule=capsule, overwrite=overwrite, sharded=False, **options)

    def resumes(self, path: str) -> bool:
        """Return whether it is a local file."""
        return not is_remote(path)

    def resume(self, path: str, meta: Meta, **options: Any) -> PieceWriter:
        """Start or join a file that is written in pieces; see `wustore.backends.base.Backend.resume`."""
        return _in_pieces(self, path, meta, sharded=False, **options)


class ShardedFitsBackend(Backend):
    """A WorkUnit in a primary FITS file and one file for each image, named by the primary file."""

    name = "sharded-fits"
    description = "KBMOD's sharded set: a primary FITS file, and <i>_<name> for each image"
    options: ClassVar[Mapping[str, str]] = FitsBackend.options

    def sniff(self, path: str) -> bool:
        """Return whether the file counts images without holding them, and has a shard beside it."""
        if is_remote(path) and not exists(shard_path(path, 0)):
            return False  # at the price of one request, where a scan takes many
        if not _starts_like_fits(path):
            return False
        try:
            remote = remote_at(path)
            scanned = scan(source.load(path) if remote is None else remote, path)
        except (OSError, FormatError):
            return False
        return scanned.get("SCI_0") is None and has_shards(path, scanned)

    def open(self, path: str, **options: Any) -> FitsReader:
        """Open a set by its primary file; see `wustore.backends.base.Backend.open`."""
        _refuse(options, self.name)
        return FitsReader(_path_of(path), "sharded-fits")

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Writer:
        """Start a set; see `Backend.create` and `fits.writer.create` for the options."""
        from wustore.backends.fits import writer

        if is_remote(path):
            refuse_writing(path, "FITS")
        return writer.create(path, meta, capsule=capsule, overwrite=overwrite, sharded=True, **options)

    def resumes(self, path: str) -> bool:
        """Return whether they are local files."""
        return not is_remote(path)

    def resume(self, path: str, meta: Meta, **options: Any) -> PieceWriter:
        """Start or join a set that is written in pieces; see `wustore.backends.base.Backend.resume`."""
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
    from wustore.backends.fits import writer

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
