"""Which backend a path belongs to.

Order of resolution: an explicit format name; the content, asked first of the backend whose suffix the path has, and at
a URL only of that one; for a new store the suffix. A path that several backends open by content alone is an error
that names them. Recognising a store is opening it (`Backend.try_open`), so that a file is opened and scanned once.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from wustore.backends.base import RECOGNISED, Backend, Reader
from wustore.errors import (
    FormatError,
    IncompleteError,
    StoreNotFoundError,
    UnknownFormatError,
    UsageError,
    WuStoreError,
)
from wustore.storage.files import check_regular, open_regular
from wustore.storage.staging import Leftover, is_partial, leftovers, partial_path
from wustore.storage.stores import address_of
from wustore.storage.threads import worker_count
from wustore.storage.url import is_remote, redact

__all__ = [
    "GROUP",
    "backend_for_writing",
    "backend_named",
    "format_names",
    "open_reader",
]

GROUP = "wustore.backends"
"""Entry-point group in which other packages name their `Backend` classes."""


@dataclass(frozen=True)
class _Entry:
    """A backend by name, imported when first needed (h5py and zarr take longer to import than a small job)."""

    name: str
    address: str
    suffixes: tuple[str, ...]
    writes: bool = True
    opened_as: str = ""
    """The backend that opens these stores too, if nobody names a format."""


_BUILT_IN = (
    _Entry("zarr", "wustore.backends.zarr.backend:ZarrBackend", (".zarr",)),
    _Entry("zarr-zip", "wustore.backends.zarr.backend:ZarrZipBackend", (".zarr.zip",)),
    _Entry("hdf5", "wustore.backends.hdf5.backend:Hdf5Backend", (".hdf5", ".h5", ".hdf")),
    _Entry(
        "fits",
        "wustore.backends.fits.backend:FitsBackend",
        (".fits.gz", ".fits.bz2", ".fits.zip", ".fit.gz", ".fits.fz", ".fits", ".fit", ".fts"),
    ),
    _Entry("sharded-fits", "wustore.backends.fits.backend:ShardedFitsBackend", (), opened_as="fits"),
    _Entry("fits-index", "wustore.backends.fits.backend:FitsIndexBackend", (".wuindex",), writes=False),
    _Entry("kbmod-yaml", "wustore.backends.kbmod_yaml:YamlDumpBackend", (".yaml", ".yml"), writes=False),
    _Entry("memory", "wustore.backends.memory:MemoryBackend", ()),
)


@cache
def _load(address: str) -> Backend:
    module, _, name = address.partition(":")
    kind: type[Backend] = getattr(importlib.import_module(module), name)
    return kind()


@cache
def _plug_ins() -> dict[str, Backend]:
    found: dict[str, Backend] = {}
    for point in entry_points(group=GROUP):
        if any(point.name == entry.name for entry in _BUILT_IN):
            continue  # a plug-in cannot take over a built-in format
        found[point.name] = point.load()()
    return found


def format_names() -> list[str]:
    """Return the names of all formats, built in and plugged in."""
    return [*(entry.name for entry in _BUILT_IN), *_plug_ins()]


def backend_named(name: str) -> Backend:
    """Return the backend of that name."""
    for entry in _BUILT_IN:
        if entry.name == name:
            return _load(entry.address)
    if name in _plug_ins():
        return _plug_ins()[name]
    raise UnknownFormatError("no such format", expected=", ".join(format_names()), found=name)


def _by_suffix(path: str) -> Iterator[Backend]:
    """Yield the backends whose suffix the path has, longest suffix first."""
    name = (path.partition("?")[0] if is_remote(path) else path).rstrip("/").lower()
    built_in = [(s, entry) for entry in _BUILT_IN for s in entry.suffixes if name.endswith(s)]
    for _, entry in sorted(built_in, key=lambda pair: -len(pair[0])):
        yield _load(entry.address)
    plugged = [(s, backend) for backend in _plug_ins().values() for s in backend.suffixes if name.endswith(s)]
    for _, backend in sorted(plugged, key=lambda pair: -len(pair[0])):
        yield backend


def _left_next_to(path: str) -> list[Leftover]:
    try:
        return [*leftovers(Path(path))]
    except OSError:  # a folder that cannot be listed, or is not there
        return []


def _check_exists(path: str) -> None:
    """Refuse a path with nothing there, and one that leads to a named pipe or a device, before it is opened."""
    if os.path.lexists(path):
        with suppress(FileNotFoundError):  # a link to nothing: the backend says so
            check_regular(path)
        return
    partial = partial_path(path)
    aside = next((left.path for left in _left_next_to(path) if left.kind == "set aside"), None)
    if aside is not None:
        raise IncompleteError(
            "the store was about to be replaced when its writer was stopped; the old one is set aside",
            path=path,
            found=aside.name,
            hint="Write the new one again; or move back what is set aside.",
        )
    if partial.exists():
        raise IncompleteError(
            "the conversion to this store has not finished",
            path=path,
            found=f"its unfinished part {partial.name}",
            hint="Run the same conversion again with --resume; wustore info says what is left of one in parts.",
        )
    raise StoreNotFoundError("there is nothing at this path", path=path, hint="Check the name.")


def open_reader(
    path: Any,
    *,
    format: str | None = None,  # noqa: A002
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Reader:
    """Open a store of any format as the `wustore.backends.base.Reader` that its backend gives.

    Parameters
    ----------
    path
        A file, directory, URL, ``ram:`` name or zarr Store object; the primary file of a sharded set. A relative path
        is made absolute: what is read later, or in another process, does not depend on the current directory.
    format
        Format name, if the content must not decide.
    storage_options
        Of a URL, such as ``{"anon": True}`` for a public bucket: docs/howto/cloud.md lists them. They are in no
        message, but in a pickle.
    options
        Of the backend; an unknown one is refused. All take ``workers``: how many threads read and decode, the number of
        processors by default, 1 for the calling thread alone.

    Returns
    -------
    Reader
        To be closed, or used in a ``with`` statement. No pixel has been read.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
    MissingDependencyError
        If the store, or a URL, needs an extra that is not installed.
    """
    worker_count(options.get("workers"))
    address = address_of(path, storage_options=storage_options)
    if storage_options and not is_remote(address):
        raise UsageError("storage_options are for URLs", path=str(address), hint="Leave them out.")
    if not isinstance(address, str):
        return backend_named(format or "zarr").open(address, **options)
    if address.startswith("ram:"):
        return backend_named(format or "memory").open(address, **options)
    if not is_remote(address):
        _check_exists(address)
        address = os.path.abspath(address)  # noqa: PTH100 - links stay links
    with _unfinished(address):
        return _opened(address, format, options)


def _opened(address: str, form: str | None, options: dict[str, Any]) -> Reader:
    if form is not None:
        return backend_named(form).open(address, **options)
    named = list(_by_suffix(address))
    for backend in named:
        reader = backend.try_open(address, **options)
        if reader is not None:
            return reader
        if is_remote(address):
            break  # at a URL each look is a request
    others = [] if named and is_remote(address) else _by_content(address, named)
    return _only_one(address, others, named, options)


@contextmanager
def _unfinished(address: str) -> Iterator[None]:
    """Say of what is being written, or was left by a writer, that it is not whole, whatever it looks like so far."""
    try:
        yield
    except (FormatError, UnknownFormatError) as error:
        partial = not is_remote(address) and (is_partial(address) or is_partial(Path(address).parent))
        if isinstance(error, IncompleteError) or not partial:
            raise
        raise IncompleteError(
            "this is being written, or was left by a writer that was stopped",
            path=address,
            found=error.what,
            hint="Open the store that it belongs to; 'wustore clean' removes what nobody writes to any more.",
        ) from error


def _by_content(path: str, asked: list[Backend]) -> list[Backend]:
    """Return the backends, but those asked already, that may know what is at a path whose name does not say it."""
    others = [_load(entry.address) for entry in _BUILT_IN if not entry.opened_as and entry.name not in _names(asked)]
    others += [backend for backend in _plug_ins().values() if backend not in asked]
    if is_remote(path) or Path(path).is_dir():
        return others
    with open_regular(path) as file:
        start = file.read(RECOGNISED)
    return [backend for backend in others if backend.recognises(start)]


def _names(backends: list[Backend]) -> set[str]:
    return {backend.name for backend in backends}


def _only_one(path: str, others: list[Backend], named: list[Backend], options: dict[str, Any]) -> Reader:
    """Return the reader of the one backend that knows what is at ``path``, or say why there is none."""
    readers: list[Reader] = []
    failed: WuStoreError | None = None
    missing: StoreNotFoundError | None = None
    for backend in others:
        try:
            reader = backend.try_open(path, **options)
        except StoreNotFoundError as error:
            missing = missing or error
        except WuStoreError as error:
            failed = failed or error
        else:
            readers += [] if reader is None else [reader]
    if len(readers) == 1:
        return readers[0]
    for reader in readers:
        reader.close()
    if readers:
        raise UnknownFormatError(
            "several formats recognise this path",
            path=redact(path),
            found=", ".join(reader.format for reader in readers),
            hint="Say which with format=… or --format.",
        )
    if failed is not None:
        raise failed
    if missing is not None and is_remote(path):
        raise missing
    if named:
        return named[0].open(path, **options)  # it says best what is wrong with the file that carries its suffix
    raise UnknownFormatError(
        "no format recognises this path",
        path=redact(path),
        expected=", ".join(format_names()),
        hint="Is it a WorkUnit?",
    )


def backend_for_writing(path: Any, name: str | None = None) -> Backend:
    """Return the backend that writes a new store at ``path``: by name, else by suffix."""
    if name is not None:
        return backend_named(name)
    if not isinstance(path, str):
        return backend_named("zarr")
    if path.startswith("ram:"):
        return backend_named("memory")
    for backend in _by_suffix(path):
        return backend
    endings = sorted({s for entry in _BUILT_IN if entry.writes for s in entry.suffixes})
    raise UnknownFormatError(
        "the name does not say which format to write",
        path=redact(path),
        expected=f"a name ending in {', '.join(endings)}",
        hint="Use such an ending, or say format=… or --format.",
    )
