"""Which backend a path belongs to.

Order of resolution: an explicit format name; of a URL the suffix; the content, asked first of the backend whose
suffix the path has; for a new store the suffix. A path that several backends claim by content alone is an error
that names them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from wustore.backends.base import Backend, Reader
from wustore.errors import IncompleteError, StoreNotFoundError, UnknownFormatError
from wustore.storage.staging import partial_path
from wustore.storage.stores import address_of
from wustore.storage.url import is_remote, redact

if TYPE_CHECKING:
    pass

__all__ = [
    "GROUP",
    "backend_for_reading",
    "backend_for_writing",
    "backend_named",
    "format_names",
    "open_reader",
    "opened",
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


_BUILT_IN = (
    _Entry("zarr", "wustore.backends.zarr.backend:ZarrBackend", (".zarr",)),
    _Entry("zarr-zip", "wustore.backends.zarr.backend:ZarrZipBackend", (".zarr.zip",)),
    _Entry("hdf5", "wustore.backends.hdf5.backend:Hdf5Backend", (".hdf5", ".h5", ".hdf")),
    _Entry(
        "fits",
        "wustore.backends.fits.backend:FitsBackend",
        (".fits.gz", ".fits.bz2", ".fits.zip", ".fit.gz", ".fits.fz", ".fits", ".fit", ".fts"),
    ),
    _Entry("sharded-fits", "wustore.backends.fits.backend:ShardedFitsBackend", ()),
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
    """Return the backend of that name.

    Raises
    ------
    UnknownFormatError
    """
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


def _check_exists(path: str) -> None:
    if is_remote(path) or os.path.lexists(path):
        return
    partial = partial_path(path)
    if partial.exists():
        raise IncompleteError(
            "the conversion to this store has not finished",
            path=path,
            found=f"its unfinished part {partial.name}",
            hint="Run the same conversion again with --resume; wustore info says what is left of one in parts.",
        )
    raise StoreNotFoundError("there is nothing at this path", path=path, hint="Check the name.")


def backend_for_reading(path: Any, name: str | None = None) -> Backend:
    """Return the backend that reads what is at ``path``.

    Parameters
    ----------
    path
        A path, a URL, a ``ram:`` name, or a zarr Store object.
    name
        A format name that overrides what the content says.

    Raises
    ------
    StoreNotFoundError, IncompleteError, UnknownFormatError
    """
    if not isinstance(path, str):
        return backend_named(name or "zarr")
    if path.startswith("ram:"):
        return backend_named(name or "memory")
    if name is not None:
        backend = backend_named(name)
        _check_exists(path)
        return backend
    _check_exists(path)
    candidates: list[Backend] = []
    for backend in _by_suffix(path):
        # At a URL each look at the content is a request; open() says what is wrong with it.
        if is_remote(path) or backend.sniff(path):
            return _sharded_or(backend, path)
        candidates.append(backend)
    return _by_content(path, candidates)


def _sharded_or(backend: Backend, path: str) -> Backend:
    # A sharded set is named by its primary file, which has the same suffix as a single file.
    if backend.name == "fits":
        sharded = backend_named("sharded-fits")
        if sharded.sniff(path):
            return sharded
    return backend


def _by_content(path: str, asked: list[Backend]) -> Backend:
    others = [_load(entry.address) for entry in _BUILT_IN if entry.name not in {b.name for b in asked}]
    others += [backend for backend in _plug_ins().values() if backend not in asked]
    claims = [backend for backend in others if backend.sniff(path)]
    if {b.name for b in claims} == {"fits", "sharded-fits"}:
        return backend_named("sharded-fits")
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise UnknownFormatError(
            "several formats recognise this path",
            path=redact(path),
            found=", ".join(b.name for b in claims),
            hint="Say which with format=… or --format.",
        )
    if asked:
        return asked[0]  # its open() says best what is wrong with the file that carries its suffix
    raise UnknownFormatError(
        "no format recognises this path", path=redact(path), expected=", ".join(format_names()), hint="Is it a WorkUnit?"
    )


def opened(path: Any, name: str | None = None, **options: Any) -> Reader:
    """Return an open reader of what is at ``path``.

    Parameters
    ----------
    path, name
        As in `backend_for_reading`. A relative path is made absolute: what is read later, or in another process,
        must not depend on the directory that is current then.
    options
        Of the backend.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
    """
    backend = backend_for_reading(path, name)
    local = isinstance(path, str) and os.path.lexists(path)
    return backend.open(os.path.abspath(path) if local else path, **options)  # noqa: PTH100 - links stay links


def backend_for_writing(path: Any, name: str | None = None) -> Backend:
    """Return the backend that writes a new store at ``path``: by name, else by suffix.

    Raises
    ------
    UnknownFormatError
    """
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


def open_reader(path: Any, *, format: str | None = None, **options: Any) -> Reader:  # noqa: A002
    """Open a store of any format as the `wustore.backends.base.Reader` that its backend gives.

    Parameters
    ----------
    path
        A file, directory, URL, ``ram:`` name or zarr Store object; the primary file of a sharded set.
    format
        Format name, where the content must not decide.
    options
        Of the backend (``workers``); an unknown one is refused.

    Returns
    -------
    Reader
        To be closed, or used in a ``with`` statement. No pixel has been read.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
    MissingDependencyError
        Where the store, or a URL, needs an extra that is not installed.
    """
    return opened(address_of(path), format, **options)
