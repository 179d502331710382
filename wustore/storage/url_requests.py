"""Requests to URLs: near ranges are one request, what fails is tried again, and what is written may have a condition.

obstore makes them, or fsspec for protocols that obstore does not know. Both retry what a server may answer differently
the next time; nothing above this module asks twice.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from wustore.errors import BackendError, StoreReplacedError, UsageError
from wustore.storage.url import (
    OBSTORE,
    WEB,
    errors_of,
    options_of,
    protocol_of,
    redact,
    settings_of,
    unknown_options,
    without_user,
)

if TYPE_CHECKING:
    from zarr.abc.store import Store

__all__ = [
    "CONCURRENCY",
    "LARGEST",
    "RETRIES",
    "TIMEOUTS",
    "Facts",
    "Objects",
    "coalesce",
    "gather",
    "objects_at",
    "objects_of",
]

CONCURRENCY = 16
"""Range requests in flight for one reader. Measured with 20 ms a request: tests/benchmarks/remote.py."""

GAP = 1 << 16
"""Bytes between two wanted ranges that are fetched along rather than asked for separately: 64 KiB take 0.6 ms at
100 MB/s, a request takes 20 ms and more."""

LARGEST = 8 << 20
"""Bytes of one request made of several ranges; larger ones would leave the other connections idle."""

RETRIES: dict[str, Any] = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
"""After so many attempts, or so long, nothing is tried again: a dead server ends in an error in two minutes."""

TIMEOUTS: dict[str, Any] = {
    "connect_timeout": timedelta(seconds=15),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(seconds=600),
}

_WHOLE_PUT = 64 << 20
"""Bytes of the largest object that is written in one request; larger ones are written in parts."""

_ENVIRONMENT = ("AWS_", "AZURE_", "GOOGLE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT")
_KEPT = 64
"""Connected stores that are kept."""


# --- ranges ---------------------------------------------------------------------------------------------


def coalesce(ranges: Sequence[tuple[int, int]], gap: int = GAP, largest: int = LARGEST) -> list[tuple[int, int]]:
    """Return ranges (start, stop) that cover the given ones, near ones joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if stop <= start:
            continue
        if joined and start - joined[-1][1] <= gap and max(stop, joined[-1][1]) - joined[-1][0] <= largest:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def gather(
    ranges: Sequence[tuple[int, int]], fetch: Callable[[list[tuple[int, int]]], Sequence[bytes] | None]
) -> list[bytes] | None:
    """Return the bytes of ranges (start, stop), near ones fetched together.

    Parameters
    ----------
    ranges
        In any order; they may overlap.
    fetch
        Function that gives the bytes of each of the coalesced ranges, None if there is no such object.
    """
    requests = coalesce(ranges)
    found = fetch(requests) if requests else []
    if found is None:
        return None
    starts = [start for start, _ in requests]
    parts = []
    for start, stop in ranges:
        k = max(bisect_right(starts, start) - 1, 0)
        parts.append(found[k][start - starts[k] : stop - starts[k]] if stop > start else b"")
    return parts


# --- objects --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What a store says of an object: its size [byte], and what changes when it is replaced, empty if unknown."""

    size: int
    version: str


class Objects(ABC):
    """The objects below a bucket, or of a server; safe to use from several threads."""

    @abstractmethod
    def facts(self, path: str) -> Facts:
        """Return what is known of an object without reading it."""

    @abstractmethod
    def start(self, path: str, length: int) -> tuple[Facts, bytes]:
        """Return what is known of an object, and its first bytes."""

    @abstractmethod
    def get(self, path: str) -> tuple[bytes, str]:
        """Return all bytes of an object, and its version."""

    @abstractmethod
    def get_range(self, path: str, start: int, stop: int, version: str = "") -> bytes:
        """Return a range of an object, shorter at its end; raise StoreReplacedError for another ``version``."""

    @abstractmethod
    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return ranges (start, stop) of an object, each one request, several at a time."""

    @abstractmethod
    def get_tail(self, path: str, length: int) -> bytes:
        """Return the last bytes of an object."""

    @abstractmethod
    def put(self, path: str, data: bytes, version: str | None = "") -> bool:
        """Write an object in one step; return whether it was written.

        With a ``version`` it is only written if the object there has it; with None, if there is none.
        """

    @abstractmethod
    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; one that is missing is no error."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """Yield the paths of the objects below a prefix."""

    @abstractmethod
    def zarr_store(self, path: str) -> tuple[Store, str]:
        """Return a Store of zarr-python, and where in it the objects below ``path`` are."""


# --- obstore --------------------------------------------------------------------------------------------


class _Obstore(Objects):
    def __init__(self, store: Any, name: str) -> None:
        import obstore

        self._obs: Any = obstore
        self._store = store
        self._name = name

    def facts(self, path: str) -> Facts:
        return _facts(self._obs.head(self._store, path))

    def start(self, path: str, length: int) -> tuple[Facts, bytes]:
        try:
            found = self._obs.get(self._store, path, options={"range": (0, length)})
            return _facts(found.meta), bytes(found.bytes())
        except self._obs.exceptions.GenericError:
            facts = self.facts(path)
            if facts.size:
                raise
            return facts, b""  # an empty object has no ranges

    def get(self, path: str) -> tuple[bytes, str]:
        found = self._obs.get(self._store, path)
        return bytes(found.bytes()), _facts(found.meta).version

    def get_range(self, path: str, start: int, stop: int, version: str = "") -> bytes:
        if not version.startswith('"'):  # a weak one never matches
            return bytes(self._obs.get_range(self._store, path, start=start, end=stop))
        try:
            found = self._obs.get(self._store, path, options={"range": (start, stop), "if_match": version})
            return bytes(found.bytes())
        except self._obs.exceptions.PreconditionError:
            raise StoreReplacedError(
                "the store was replaced or changed since it was opened", path=self._name, hint="Open it again."
            ) from None

    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, stops = zip(*ranges, strict=True)
        # They are coalesced already.
        return list(map(bytes, self._obs.get_ranges(self._store, path, starts=starts, ends=stops, coalesce=0)))

    def get_tail(self, path: str, length: int) -> bytes:
        try:
            return bytes(self._obs.get(self._store, path, options={"range": {"suffix": length}}).bytes())
        except self._obs.exceptions.NotSupportedError:
            size = self.facts(path).size  # Azure knows no ranges from the end
            return self.get_range(path, max(size - length, 0), size)

    def put(self, path: str, data: bytes, version: str | None = "") -> bool:
        mode: Any = "overwrite" if version == "" else "create" if version is None else {"e_tag": version}
        try:
            self._obs.put(self._store, path, data, mode=mode, use_multipart=len(data) > _WHOLE_PUT)
        except (self._obs.exceptions.AlreadyExistsError, self._obs.exceptions.PreconditionError):
            return False
        except FileNotFoundError:
            if version:
                return False  # S3 says so of an object that was to be replaced
            raise
        return True

    def delete(self, paths: Sequence[str]) -> None:
        with suppress(FileNotFoundError):
            self._obs.delete(self._store, list(paths))

    def list(self, prefix: str) -> Iterator[str]:
        for batch in self._obs.list(self._store, prefix or None):
            for one in batch:
                yield one["path"]

    def zarr_store(self, path: str) -> tuple[Store, str]:
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=True), path


def _facts(meta: Mapping[str, Any]) -> Facts:
    version = meta.get("e_tag") or meta.get("version")
    if not version:
        changed = meta.get("last_modified")
        version = "" if changed is None else changed.isoformat()
    return Facts(int(meta["size"]), version)


def _obstore_at(url: str, protocol: str, options: dict[str, Any]) -> tuple[Objects, str]:
    """Return the objects of a bucket and the path in it; of a web server those below the URL, and no path."""
    rest = url.partition("://")[2]
    path = ""
    if protocol in WEB:
        user, rest = without_user(rest.partition("#")[0])
        if user:
            options = {**options, "headers": {**options.get("headers", {}), "Authorization": user}}
        root = f"{protocol}://{rest}"
    else:
        bucket, _, path = rest.partition("/")
        if "@" in bucket and protocol != "abfss":
            raise UsageError(
                "a URL of an object store holds no user or password",
                path=redact(url),
                hint="Give credentials by the environment, a profile or storage options.",
            )
        root = f"{OBSTORE[protocol]}://{bucket}"
    return _Obstore(_connected(root, protocol, options), redact(url)), path.strip("/")


_stores: dict[Any, Any] = {}
_lock = threading.Lock()


def _connected(root: str, protocol: str, options: Mapping[str, Any]) -> Any:
    """Return a connected store: the same one for the same place, options and environment."""
    around = tuple(sorted(item for item in os.environ.items() if item[0].upper().startswith(_ENVIRONMENT)))
    key = root, repr(sorted(options.items())), around
    with _lock:
        store = _stores.pop(key, None)
        if store is None:
            store = _connect(root, protocol, options)
            if len(_stores) >= _KEPT:
                _stores.pop(next(iter(_stores)))
        _stores[key] = store  # the last one used is the last one to go
    return store


def _connect(root: str, protocol: str, options: Mapping[str, Any]) -> Any:
    from obstore import store

    stores: Any = store  # its types know each option by name

    config, client, retries, provider = settings_of(root, protocol, options)
    client, retries = TIMEOUTS | client, RETRIES | retries
    if protocol in WEB:
        if config:
            raise unknown_options(root, ", ".join(sorted(config)))
        return stores.HTTPStore.from_url(root, client_options=client, retry_config=retries)
    try:
        return stores.from_url(
            root, config=config, client_options=client, retry_config=retries, credential_provider=provider
        )
    except (ValueError, TypeError) as error:
        raise unknown_options(root, str(error)) from None
    except Exception as error:
        if type(error).__name__ != "UnknownConfigurationKeyError":
            raise
        raise unknown_options(root, str(error).partition("\n")[0]) from None


# --- fsspec ---------------------------------------------------------------------------------------------


class _Fsspec(Objects):
    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        from fsspec.core import url_to_fs

        self._url, self._name = url, redact(url)
        # A cached listing would hide what another process has written or deleted since.
        self._options = {"use_listings_cache": False} | dict(options)
        self._system, self.path = url_to_fs(url, **self._options)

    def facts(self, path: str) -> Facts:
        found = self._system.info(path)
        if found.get("type") == "directory":
            raise FileNotFoundError(path)
        size = found.get("size")
        if not isinstance(size, int):
            raise OSError(f"the server does not say how long {self._name} is")
        version = next(
            (found[name] for name in ("ETag", "etag", "mtime", "LastModified", "created") if name in found), ""
        )
        return Facts(size, str(version))

    def start(self, path: str, length: int) -> tuple[Facts, bytes]:
        facts = self.facts(path)
        return facts, self.get_range(path, 0, min(length, facts.size)) if facts.size else b""

    def get(self, path: str) -> tuple[bytes, str]:
        version = self.facts(path).version
        return bytes(self._system.cat_file(path)), version

    def get_range(self, path: str, start: int, stop: int, version: str = "") -> bytes:
        data = bytes(self._system.cat_file(path, start=start, end=stop))
        if len(data) > stop - start:
            raise OSError(f"the server of {self._name} does not answer range requests")
        return data

    def get_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.get_range(path, start, stop) for start, stop in ranges]

    def get_tail(self, path: str, length: int) -> bytes:
        size = self._system.info(path)["size"]
        return self.get_range(path, max(size - length, 0), size) if size else b""

    def put(self, path: str, data: bytes, version: str | None = "") -> bool:
        if version != "" and self._version(path) != version:
            return False
        self._system.pipe_file(path, data)
        return True

    def _version(self, path: str) -> str | None:
        try:
            return self.facts(path).version
        except FileNotFoundError:
            return None

    def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                self._system.rm_file(path)

    def list(self, prefix: str) -> Iterator[str]:
        yield from self._system.find(prefix)

    def zarr_store(self, path: str) -> tuple[Store, str]:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self._url, storage_options=self._options, read_only=True), ""


def _fsspec_at(url: str, protocol: str, options: Mapping[str, Any]) -> tuple[Objects, str]:
    try:
        objects = _Fsspec(url, options)
    except ValueError as error:
        raise BackendError(
            "the URL cannot be used",
            path=redact(url),
            expected=f"{', '.join(OBSTORE)}, or a protocol of fsspec",
            found=redact(str(error)),
        ) from None
    return objects, objects.path.rstrip("/")


def objects_at(url: str) -> tuple[Objects, str]:
    """Return the objects of the place that a URL leads to, and the path there.

    Parameters
    ----------
    url
        Of an object or a prefix; with its storage options, if it is a `wustore.storage.url.UrlWithOptions`.
    """
    protocol = protocol_of(url)
    with errors_of(url):
        open_ = _obstore_at if protocol in OBSTORE else _fsspec_at
        return open_(str(url), protocol, options_of(url))


def objects_of(store: Store) -> Objects | None:
    """Return the objects of a Store of zarr-python that is made of obstore, None of any other."""
    from zarr.storage import ObjectStore

    return _Obstore(store.store, str(store)) if isinstance(store, ObjectStore) else None
