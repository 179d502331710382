"""HDF5: one file that any HDF5 or netCDF-4 tool opens, read in parallel around the library's lock.

Layout and rules: docs/spec.md. The names of groups and arrays are those of the Zarr stores.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from wustore.backends.base import Reader
from wustore.backends.chunk_grid import chunk_sides
from wustore.backends.hdf5.append import append_images
from wustore.backends.hdf5.encoder import Encoder
from wustore.backends.hdf5.file import has_signature
from wustore.backends.hdf5.presets import need_plugins
from wustore.backends.hdf5.reader import Hdf5Reader
from wustore.backends.hdf5.writer import Hdf5Writer
from wustore.backends.pieces import PiecewiseBackend
from wustore.errors import UsageError
from wustore.format.preset_names import check_names
from wustore.model.meta import Capsule, Meta
from wustore.storage.staging import Staging
from wustore.storage.threads import worker_count
from wustore.storage.url import is_remote, refuse_writing
from wustore.storage.url_requests import CONCURRENCY

__all__ = ["Hdf5Backend", "Hdf5Reader"]


class Hdf5Backend(PiecewiseBackend):
    """WorkUnits in HDF5 files."""

    name = "hdf5"
    suffixes = (".hdf5", ".h5", ".hdf")
    description = "one HDF5 file, readable with h5py, netCDF and xarray"
    options: ClassVar[Mapping[str, str]] = {
        "profile": "compression: compact, portable, fast or none (default portable)",
        "layout": "chunk size: images, balanced or cutouts (default images)",
        "chunks": "sides [y, x] of a chunk, instead of a layout",
    }

    def recognises(self, start: bytes) -> bool:
        """Return whether HDF5's signature is there."""
        return has_signature(io.BytesIO(start), len(start))

    def open(self, path: str, **options: Any) -> Hdf5Reader:
        """Open a store; see `wustore.backends.base.Backend.open`.

        Parameters
        ----------
        options
            ``workers``: threads that decode (the number of processors by default; for a URL
            `wustore.storage.url_requests.CONCURRENCY`, because each waits for a request most of the time).
        """
        workers = options.pop("workers", None)
        if workers is None and is_remote(path):
            workers = CONCURRENCY
        reader = Hdf5Reader(path, workers=workers)
        if options:
            reader.close()
            _refuse(options, path, "workers")
        return reader

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Hdf5Writer:
        """Start a store; see `wustore.backends.base.Backend.create`.

        Parameters
        ----------
        options
            ``profile``, ``layout``: names of `wustore.format.preset_names`. ``chunks``: shape (y, x) or
            (1, y, x) of a chunk, instead of a layout. ``workers``: threads that encode.
        """
        if is_remote(path):
            refuse_writing(path, "HDF5")
        encoder = self.encoder(path, meta, capsule=capsule, workers=options.pop("workers", None), **options)
        return Hdf5Writer(Staging(path, overwrite=overwrite), encoder, capsule)

    def encoder(
        self, path: str, meta: Meta, *, capsule: Capsule | None, workers: int | None, **options: Any
    ) -> Encoder:
        """Return what encodes images, with checked options of `create`."""
        profile = options.pop("profile", None) or "portable"
        layout = options.pop("layout", None) or "images"
        chunks = options.pop("chunks", None)
        worker_count(workers)
        _refuse(options, path, "profile, layout, chunks, workers")
        check_names(profile, layout)
        if profile == "fast":
            need_plugins()
        return Encoder(path, meta, profile, layout, chunk_sides(chunks), workers)

    def append(
        self,
        path: str,
        sources: Sequence[Reader],
        history: Callable[[int], dict[str, Any]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Append images; see `wustore.backends.base.Backend.append`."""
        if is_remote(path):
            refuse_writing(path, "HDF5")
        return append_images(path, sources, history, progress=progress)


def _refuse(options: Mapping[str, Any], path: str, known: str) -> None:
    if options:
        raise UsageError("unknown options", path=path, where="hdf5", expected=known, found=sorted(options))
