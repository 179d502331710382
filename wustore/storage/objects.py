"""Objects at a URL, one interface: obstore, and fsspec for protocols that obstore does not know.

Both retry what a server may answer differently the next time; nothing above this module asks twice.
"""

from __future__ import annotations

import io
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
    from _typeshed import WriteableBuffer
    from zarr.abc.store import Store

__all__ = ["Facts", "Objects", "RemoteFile", "objects_at", "objects_of"]

_WHOLE_PUT = 64 << 20
"""Bytes of the largest object that is written in one request; larger ones are written in parts."""

_ENVIRONMENT = ("AWS_", "AZURE_", "GOOGLE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT")
_KEPT = 64
"""Connected stores that are kept."""


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


# --- one object -----------------------------------------------------------------------------------------

BLOCK = 1 << 14
"""Bytes of the first block that a `RemoteFile` reads ahead, enough for the header of an image in KBMOD's files; each
block that follows on another is twice as long."""

_LARGEST_BLOCK = 1 << 20
_CACHED = 16 << 20


class RemoteFile:
    """One object, read by byte ranges; safe to use from several threads.

    Parameters
    ----------
    block
        Bytes of the first block that is read ahead.

    Attributes
    ----------
    name
        The URL without credentials, for messages.
    size
        Length [byte].
    state
        What changes when the object is replaced: size, and what the store says of its version.
    requests, bytes_read
        Of the contents, so far, but for the first block, which is read when the object is opened.

    Raises
    ------
    StoreNotFoundError, MissingDependencyError, BackendError, UsageError, OSError
    """

    def __init__(self, url: str, block: int = BLOCK) -> None:
        self.url = url
        self.name = redact(url)
        self._objects, self._path = objects_at(url)
        self._block = block
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes_read = 0
        with errors_of(url):
            facts, first = self._objects.start(self._path, block)
        self.size = facts.size
        self.state = facts.size, facts.version
        if first:
            self._keep(0, first)

    def __len__(self) -> int:
        return self.size

    def read(self, start: int, size: int) -> bytes:
        """Return ``size`` bytes at ``start`` in one request, fewer if the object ends before."""
        stop = min(start + size, self.size)
        if stop <= start:
            return b""
        with errors_of(self.url):
            data = self._objects.get_range(self._path, start, stop, self.state[1])
        with self._lock:
            self.requests += 1
            self.bytes_read += len(data)
        return data

    def cached(self, start: int, stop: int) -> bytes:
        """Return bytes for which the object is read in blocks: metadata, small pieces near each other."""
        stop = min(stop, self.size)
        if stop - start >= _LARGEST_BLOCK:
            return self.read(start, stop - start)
        parts = []
        while start < stop:
            base, block = self._block_at(start)
            part = block[start - base : stop - base]
            if not part:
                break  # shorter than the store said
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def _block_at(self, at: int) -> tuple[int, bytes]:
        with self._lock:
            length = self._block
            for base, block in self._blocks.items():
                if base <= at < base + len(block):
                    self._blocks.move_to_end(base)
                    return base, block
                if base + len(block) == at:
                    length = min(2 * len(block), _LARGEST_BLOCK)
        # The last block is as long as the others: what was added last when the object was written is used together.
        base = at if at + length <= self.size else max(self.size - length, 0)
        data = self.read(base, length)
        self._keep(base, data)
        return base, data

    def _keep(self, base: int, data: bytes) -> None:
        with self._lock:
            self._held += len(data) - len(self._blocks.pop(base, b""))
            self._blocks[base] = data
            while self._held > _CACHED:
                self._held -= len(self._blocks.popitem(last=False)[1])

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size)
        return self.cached(start, stop)

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where ``wanted`` is found first, as `bytes.find`."""
        step, stop = 2880, min(stop, self.size)
        while start < stop:
            piece = self.cached(start, min(start + step + len(wanted) - 1, stop))
            at = piece.find(wanted)
            if at >= 0:
                return start + at
            start += step
        return -1

    def stream(self) -> io.RawIOBase:
        """Return the object as a file that is open for reading."""
        return _Stream(self)


class _Stream(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.cached(self._at, self._at + len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
