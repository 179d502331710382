"""Zarr v3: a directory, a single zip file, or any zarr Store object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from wustore.backends.base import Backend, Reader
from wustore.backends.zarr.append import append_images, finish_append
from wustore.backends.zarr.encoder import Structure
from wustore.backends.zarr.reader import ZarrReader, open_reader
from wustore.backends.zarr.writer import (
    DirectoryTarget,
    Options,
    StoreTarget,
    Target,
    TransactionTarget,
    ZarrWriter,
    ZipTarget,
    options_from,
)
from wustore.errors import CorruptError, StoreExistsError, UsageError
from wustore.format.document import NAMES
from wustore.format.tagged_json import parse
from wustore.model.meta import Capsule, Meta
from wustore.storage.staging import Staging
from wustore.storage.stores import ZIP_SIGNATURES, exists, is_local, writable_keys
from wustore.storage.zarr_store import DirectoryKeys, Keys, is_half_written

__all__ = ["ZarrBackend", "ZarrZipBackend"]


class ZarrBackend(Backend):
    """Zarr v3 stores: directories, URLs and Store objects."""

    name: ClassVar[str] = "zarr"
    suffixes: ClassVar[tuple[str, ...]] = (".zarr",)
    description: ClassVar[str] = "Zarr v3 in a directory or object store: chunked, parallel, the default"
    options: ClassVar[Mapping[str, str]] = {
        "profile": "compression: compact, portable, fast or none (default compact)",
        "layout": "chunk size: images, balanced or cutouts (default images)",
        "chunks": "sides [y, x] of a chunk, instead of a layout",
    }

    def recognises(self, start: bytes) -> bool:
        """Return False: a directory is no file."""
        return False

    def try_open(self, path: Any, **options: Any) -> Reader | None:
        """Open a directory or a URL; a zip file is another format."""
        return None if is_local(path) and not Path(path).is_dir() else super().try_open(path, **options)

    def open(self, path: Any, *, workers: int | None = None, **options: Any) -> ZarrReader:
        """Open a store; see `wustore.backends.base.Backend.open`.

        Parameters
        ----------
        path
            Directory, zip file, URL, or zarr Store object.
        """
        reader = open_reader(path, self.name, workers)
        if options:
            reader.close()
            raise UsageError("unknown options", where=self.name, expected="workers", found=", ".join(sorted(options)))
        return reader

    def create(
        self, path: Any, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> ZarrWriter:
        """Start a store; see `wustore.backends.base.Backend.create`.

        Options are those of `wustore.backends.zarr.writer.Options`: ``profile``, ``layout``, ``chunks``, ``workers``,
        ``resume``, ``fingerprint``.
        """
        chosen = options_from(options)
        structure = Structure(meta, profile=chosen.profile, layout=chosen.layout, chunks=chosen.chunks)
        target = self._target(path, overwrite, chosen)
        structure.separators = target.separators
        try:
            return ZarrWriter(target, structure, capsule, chosen)
        except UsageError:
            target.leave()  # what stands there belongs to another conversion
            raise
        except BaseException:
            target.discard()
            raise

    def resumes(self, path: Any) -> bool:
        """Return whether other processes know the place by its name; shards are files, or objects, of their own."""
        return isinstance(path, str)

    def resume(self, path: Any, meta: Meta, **options: Any) -> ZarrWriter:
        """Start or join a store that is written in pieces; see `wustore.backends.base.Backend.resume`."""
        return self.create(path, meta, resume=True, **options)

    def append(
        self,
        path: Any,
        sources: Sequence[Reader],
        history: Callable[[int], dict[str, Any]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Append images to a directory, URL or Store; see `wustore.backends.base.Backend.append`."""
        return append_images(path, sources, history, progress=progress)

    def finish_edit(self, path: Any, *, dry_run: bool = False) -> list[str]:
        """Finish an interrupted append; see `wustore.backends.base.Backend.finish_edit`."""
        return finish_append(path, dry_run=dry_run)

    def _target(self, path: Any, overwrite: bool, options: Options) -> Target:
        if is_local(path):
            if overwrite and Path(path, "zarr.json").is_file():
                _refuse_others(DirectoryKeys(path))
            return DirectoryTarget(Staging(path, overwrite=overwrite, keep=options.resume))
        keys = writable_keys(path)
        if keys.size("zarr.json") is not None:
            if not overwrite:
                raise exists(keys.name)
            _refuse_others(keys)
        if keys.transactional:
            return TransactionTarget(keys)
        return StoreTarget(keys, overwrite=overwrite, keep=options.resume)


def _refuse_others(keys: Keys) -> None:
    """Refuse to replace what is not a store of ours, or holds what somebody else put into it: it would be gone."""
    try:
        root = parse(keys.get("zarr.json") or b"")
    except CorruptError:
        root = {"attributes": {"wustore": None}}  # a damaged store may be replaced
    attributes = root.get("attributes") if isinstance(root, dict) else None
    names = {key.partition("/")[0] for key in keys.list("")} - NAMES - {"zarr.json"}
    names = {name for name in names if not name.startswith(".wustore-") and not is_half_written(name)}
    if not isinstance(attributes, dict) or "wustore" not in attributes or names:
        raise StoreExistsError(
            "the target holds something else, which is not overwritten",
            path=keys.name,
            found=", ".join(sorted(names)[:5]) or "a Zarr group that is no wustore store",
            hint="Choose another name, or remove it yourself.",
        )


class ZarrZipBackend(ZarrBackend):
    """Zarr v3 in one zip file, for quotas on the number of files."""

    name: ClassVar[str] = "zarr-zip"
    suffixes: ClassVar[tuple[str, ...]] = (".zarr.zip",)
    description: ClassVar[str] = "Zarr v3 in a single zip file"
    options: ClassVar[Mapping[str, str]] = ZarrBackend.options

    def recognises(self, start: bytes) -> bool:
        """Return whether it begins as a zip file does."""
        return start.startswith(ZIP_SIGNATURES)

    def try_open(self, path: Any, **options: Any) -> Reader | None:
        """Open a local file; see `wustore.backends.base.Backend.try_open`."""
        return Backend.try_open(self, path, **options) if is_local(path) and Path(path).is_file() else None

    def resumes(self, path: Any) -> bool:
        """Return whether it is a local file."""
        return is_local(path)

    append = Backend.append  # a zip file is written whole: refused

    def finish_edit(self, path: Any, *, dry_run: bool = False) -> list[str]:
        """Return nothing: a zip file is replaced as a whole."""
        return []

    def _target(self, path: Any, overwrite: bool, options: Options) -> Target:
        if not is_local(path):
            raise UsageError("a zip file is written to a local path", path=str(path), hint="Copy it afterwards.")
        return ZipTarget(Staging(path, overwrite=overwrite, keep=options.resume))
