"""Where a path, URL or Store object leads: to its keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from wustore.errors import FormatError, OtherFormatError, StoreExistsError, StoreNotFoundError, UsageError
from wustore.storage import url as remote
from wustore.storage.files import open_regular
from wustore.storage.icechunk import IcechunkKeys, icechunk_name, is_icechunk
from wustore.storage.url_requests import Objects, gather, objects_at, objects_of
from wustore.storage.zarr_store import DirectoryKeys, Keys, StoreKeys
from wustore.storage.zip import ZipKeys

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

__all__ = ["ZIP_SIGNATURES", "ObjectKeys", "address_of", "exists", "is_local", "name_of", "open_keys", "writable_keys"]


def is_local(address: Any) -> bool:
    """Return whether ``address`` is a path of a local file system."""
    return isinstance(address, str) and "://" not in address


class ObjectKeys(Keys):
    """Objects at a URL, or of a Store of zarr-python that is made of obstore.

    Parameters
    ----------
    url
        What to call the store in messages.
    objects, base
        Where its objects are.
    """

    by_url = True
    by_request = True

    def __init__(self, url: str, objects: Objects, base: str) -> None:
        self.name = remote.redact(url)
        self._url = url
        self.objects, self.base = objects, base

    def _path(self, key: str) -> str:
        return f"{self.base}/{key}" if self.base else key

    def _found(self, ask: Callable[[], T]) -> T | None:
        """Return what ``ask`` gives; None if there is no such object."""
        try:
            with remote.errors_of(self._url):
                return ask()
        except StoreNotFoundError:
            return None

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        found = self._found(lambda: self.objects.get(self._path(key)))
        return None if found is None else found[0]

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        return self._found(lambda: self.objects.get_tail(self._path(key), length))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        wanted = [(start, start + length) for start, length in ranges]
        path = self._path(key)
        return gather(wanted, lambda requests: self._found(lambda: self.objects.get_ranges(path, requests)))

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`."""
        facts = self._found(lambda: self.objects.facts(self._path(key)))
        return None if facts is None else facts.size

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""
        top = self._path(prefix)
        found = self._found(lambda: [*self.objects.list(top.rstrip("/"))]) or []
        return iter([path.removeprefix(self.base).lstrip("/") for path in found if path.startswith(top)])

    def set(self, key: str, value: bytes) -> None:
        """Write the value; see `Keys.set`."""
        with remote.errors_of(self._url):
            self.objects.put(self._path(key), value)

    def delete(self, key: str) -> None:
        """Remove the key; see `Keys.delete`."""
        self.delete_all([key])

    def delete_all(self, keys: Collection[str]) -> None:
        """Remove keys; see `Keys.delete_all`."""
        with remote.errors_of(self._url):
            self.objects.delete([self._path(key) for key in keys])

    def versioned(self, key: str) -> tuple[bytes, str] | None:
        """Return a value and its version; see `Keys.versioned`."""
        return self._found(lambda: self.objects.get(self._path(key)))

    def set_if(self, key: str, value: bytes, version: str | None) -> bool:
        """Write a value on a condition; see `Keys.set_if`."""
        with remote.errors_of(self._url):
            if self.objects.put(self._path(key), value, version):
                return True
        return self.get(key) == value  # it was written, and the answer got lost


def open_keys(address: Any) -> Keys:
    """Return the keys of an existing store.

    Parameters
    ----------
    address
        Directory, zip file, URL, or zarr Store object.
    """
    if not isinstance(address, str):
        return _keys_of_store(address)
    if not is_local(address):
        return _keys_at(address)
    if os.path.isdir(address):  # noqa: PTH112
        return DirectoryKeys(address, hold=True)
    if not os.path.lexists(address):
        raise StoreNotFoundError("there is nothing at this path", path=address, hint="Check the name.")
    if not _is_zip(address):
        raise OtherFormatError("not a Zarr store", path=address, expected="a directory, or a zip file")
    return ZipKeys(address)


def writable_keys(address: Any) -> Keys:
    """Return the keys of a URL or Store object to write to.

    Raises
    ------
    MissingDependencyError, BackendError
    UsageError
        For a protocol that only reads.
    """
    if isinstance(address, str) and remote.is_read_only(address):
        raise UsageError(
            "nothing can be written to a web server", path=remote.redact(address), hint="Write elsewhere and upload it."
        )
    return _keys_at(address) if isinstance(address, str) else _keys_of_store(address)


def _keys_at(url: str) -> ObjectKeys:
    return ObjectKeys(url, *objects_at(url))


def _keys_of_store(store: Store) -> Keys:
    if is_icechunk(store):
        return IcechunkKeys(store)
    objects = objects_of(store)
    return StoreKeys(store) if objects is None else ObjectKeys(str(store), objects, "")


ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
"""What a zip file begins with; the second one of an empty archive."""


def _is_zip(path: str) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(4) in ZIP_SIGNATURES
    except (OSError, FormatError):
        return False


# --- what users give --------------------------------------------------------------------------------------


def address_of(path: Any, *, to_write: bool = False, storage_options: Mapping[str, Any] | None = None) -> Any:
    """Return what a user gave as a path, as it is used everywhere: the one place that tells kinds of places apart.

    Paths, ``file://`` URLs and zarr's LocalStore and ZipStore give the text of a local path; other URLs, and ``ram:``
    names, are texts as they are; any other zarr Store object stays, and a zarr group at the root of its store is that
    store.

    Parameters
    ----------
    path
        What was given.
    to_write
        Whether something is to be written there.
    storage_options
        Of a URL: the address has them with it. They say nothing about other places.

    Raises
    ------
    UsageError
        If it is none of these: None, an open file, or some other object; or a Store that cannot be written to.
    """
    if isinstance(path, bytes | str | os.PathLike):
        text = os.fsdecode(path)
        if text.lower().startswith(_LOCAL_URLS):
            return _path_of(text)
        if storage_options and remote.is_remote(text):
            return remote.UrlWithOptions(text, {**remote.options_of(path), **storage_options})
        return path if isinstance(path, str) else text
    # What comes from a package that is not imported cannot be one of its objects.
    zarr, zarr_store = sys.modules.get("zarr"), sys.modules.get("zarr.abc.store")
    if zarr is not None and isinstance(path, zarr.Group) and path.path == "":
        path = path.store
    if zarr_store is not None and isinstance(path, zarr_store.Store):
        return _address_of_store(path, to_write)
    raise UsageError(
        "this is no path",
        expected="a path, a URL, a ram: name, or a zarr Store",
        found="None" if path is None else f"{type(path).__name__} object",
        hint="Is a variable not set?"
        if path is None
        else "Give the name of the file instead of the open file."
        if hasattr(path, "close")
        else "Give its store: session.store."
        if hasattr(path, "snapshot_id")
        else None,
    )


_LOCAL_URLS = ("file://", "local://")


def _path_of(url: str) -> str:
    """Return the path in a ``file://`` URL (RFC 8089)."""
    from urllib.request import url2pathname

    host, slash, rest = url.partition("://")[2].partition("/")
    if host not in {"", "localhost"}:
        raise UsageError(
            "a file URL that names a server",
            path=url,
            expected="file:///path",
            hint="Three slashes begin a local path.",
        )
    return url2pathname(slash + rest)


def _address_of_store(store: Store, to_write: bool) -> Any:
    from zarr.storage import LocalStore, ZipStore

    if to_write and store.read_only:
        raise UsageError("the zarr Store is open for reading only", found=str(store), hint="Open it for writing.")
    if isinstance(store, LocalStore):
        return os.fspath(store.root)
    if isinstance(store, ZipStore):
        if to_write:
            # The zip file is packed when its store is whole, and replaced: no open file leads to the new one.
            if store._is_open or not hasattr(store, "_zmode"):
                raise UsageError(
                    "the zarr ZipStore is open, and its file would be replaced",
                    path=store.path,
                    hint="Close it, or give its path, which ends in .zarr.zip, instead.",
                )
            store._zmode = "a"  # to be used afterwards without emptying what was written
        return os.fspath(store.path)
    return store


def exists(path: str) -> StoreExistsError:
    """Return the error of a target that is there and must not be replaced."""
    return StoreExistsError(
        "the target exists already",
        path=path,
        hint="Choose another name, or overwrite it (--overwrite, overwrite=True).",
    )


def name_of(address: Any) -> str:
    """Return what to call a place in messages and in the history of a store: without user, password and query."""
    return icechunk_name(address) if is_icechunk(address) else remote.redact(str(address))
