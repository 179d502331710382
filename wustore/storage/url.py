"""Bytes at URLs: object stores and web servers, through fsspec.

Credentials come from wherever the library of the protocol finds them (environment, profiles, instance roles);
nothing here asks for them, and what messages show of a URL has none.
"""

from __future__ import annotations

import io
import re
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from wustore.errors import BackendError, MissingDependencyError, StoreNotFoundError, UsageError, WuStoreError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

__all__ = [
    "CONCURRENCY",
    "RemoteFile",
    "UrlWithOptions",
    "coalesce",
    "errors_of",
    "gather",
    "is_read_only",
    "is_remote",
    "options_for",
    "read_start",
    "redact",
    "refuse_writing",
    "retried",
    "system_of",
    "with_options_of",
]

CONCURRENCY = 16
"""Range requests in flight for one reader. Measured with 20 ms a request: tests/benchmarks/remote.py."""

GAP = 1 << 16
"""Bytes between two wanted ranges that are fetched along rather than asked for separately: 64 KiB take 0.6 ms at
100 MB/s, a request takes 20 ms and more."""

LARGEST = 8 << 20
"""Bytes of one request made of several ranges; larger ones would leave the other connections idle."""

BLOCK = 1 << 14
"""Bytes of the first block that a `RemoteFile` reads ahead, enough for the header of an image in KBMOD's files; each
block that follows on another is twice as long."""

_LARGEST_BLOCK = 1 << 20
_CACHED = 16 << 20
_ATTEMPTS = 4
_PAUSE = 0.1
"""Seconds before the second attempt; doubled before each further one."""
_PATIENCE = 30.0
"""Seconds after which nothing is tried again: with the limits below a dead server ends in an error in two minutes."""
_CONNECT_SECONDS, _READ_SECONDS = 15, 45

_EXTRA = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_WEB = ("http", "https")


def is_remote(address: Any) -> bool:
    """Return whether ``address`` is a URL."""
    return isinstance(address, str) and "://" in address


_URL_END = re.compile(r"[\s'\"<>]")
_AUTHORITY_END = re.compile(r"[/?#]")
_QUERY = re.compile(r"[?#]")


def redact(text: str) -> str:
    """Return a text whose URLs are without user, password, query string and fragment; in linear time.

    What stands before the last ``@`` of the part that names the server goes, however many there are. A password may
    hold a slash as well: where what seems to be a port is none, the next ``@`` ends the password.
    """
    parts, at = [], 0
    while (found := text.find("://", at)) >= 0:
        start = found + 3
        parts.append(text[at:start])
        match = _URL_END.search(text, start)
        end = len(text) if match is None else match.start()
        parts.append(_without_secrets(text[start:end]))
        at = end
    return "".join(parts) + text[at:]


def _without_secrets(rest: str) -> str:
    """Return what follows ``://`` in a URL without credentials."""
    tail = ""
    if rest[-1:] in {")", "]", ",", ";", "."}:  # of the sentence around it
        rest, tail = rest[:-1], rest[-1]
    match = _AUTHORITY_END.search(rest)
    end = len(rest) if match is None else match.start()
    user, _, port = rest[:end].rpartition(":")
    if user and "@" not in rest[:end] and not port.isdigit() and not port.endswith("]"):
        end = max(rest.rfind("@"), end)
        host = rest[end + 1 :] if rest[end : end + 1] == "@" else rest
    else:
        host = rest[:end].rpartition("@")[2] + rest[end:]
    match = _QUERY.search(host)
    return (host if match is None else host[: match.start()]) + tail


@contextmanager
def errors_of(url: str) -> Iterator[None]:
    """Turn what the libraries of a protocol raise into our errors and `OSError`, without credentials in the text.

    Their own errors are not chained: they quote the whole URL.
    """
    failed: Exception
    try:
        yield
        return
    except (WuStoreError, MemoryError):
        raise
    except FileNotFoundError as error:
        failed = StoreNotFoundError("there is nothing at this URL", path=redact(url), hint="Check the name.")
        cause = error.__cause__
        if url.partition("://")[0] in _WEB and cause is not None and getattr(cause, "status", 404) != 404:
            failed = OSError(f"{redact(url)}: {type(cause).__name__}: {redact(str(cause))}")
        elif isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            # fsspec calls every web server that it cannot talk to a missing file.
            failed = OSError(f"{redact(url)}: {type(cause).__name__}: {redact(str(cause))}")
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = _EXTRA.get(protocol, "aiohttp" if protocol in _WEB else "fsspec")
        bringing = "'wustore[cloud]'" if package in {"s3fs", "fsspec", "aiohttp"} else package
        failed = MissingDependencyError(
            f"reading and writing {protocol}:// needs a package that is not installed",
            path=redact(url),
            expected=package,
            found=redact(str(error)),
            hint=f"pip install {bringing} brings it.",
        )
    except OSError as error:
        failed = type(error)(*(redact(part) if isinstance(part, str) else part for part in error.args))
        failed.filename = failed.filename or redact(url)  # that nothing listens there says not where
    except Exception as error:
        # What botocore, aiohttp and their kin raise derives from nothing in common.
        text = f"{redact(url)}: {type(error).__name__}: {redact(str(error))}"
        if "404" in str(error) and getattr(error, "status", None) == 404:
            failed = StoreNotFoundError("there is nothing at this URL", path=redact(url), hint="Check the name.")
        else:
            failed = OSError(text)
    raise failed from None


class UrlWithOptions(str):
    """A URL and the options of its file system that the user gave; its text is that of the URL alone.

    Parameters
    ----------
    storage_options
        As fsspec takes them. They are pickled with it, and appear in no message and no stored document.
    """

    __slots__ = ("storage_options",)
    storage_options: Mapping[str, Any]

    def __new__(cls, url: str, storage_options: Mapping[str, Any]) -> UrlWithOptions:  # noqa: D102
        self = super().__new__(cls, url)
        self.storage_options = dict(storage_options)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlWithOptions, (str(self), self.storage_options)


def with_options_of(url: str, other: str) -> str:
    """Return ``url`` with the options that another URL of the same file system has, if it has any."""
    return UrlWithOptions(url, other.storage_options) if isinstance(other, UrlWithOptions) else url


def options_for(url: str) -> dict[str, Any]:
    """Return options of the file system for this URL: the user's, no cache of listings, time limits.

    A cached listing would hide what another process has written or deleted since.
    """
    given = dict(url.storage_options) if isinstance(url, UrlWithOptions) else {}
    return _defaults_for(url) | given


def _defaults_for(url: str) -> dict[str, Any]:
    options: dict[str, Any] = {"use_listings_cache": False}
    protocol = url.partition("://")[0]
    if protocol in {"s3", "s3a"}:
        limits = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS, "retries": {"max_attempts": 1}}
        return options | {"config_kwargs": limits}
    if protocol not in _WEB:
        return options
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        return options  # opening says what is missing
    limit = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
    return options | {"client_kwargs": {"timeout": limit}}


def retried(url: str, ask: Callable[[], T]) -> T:
    """Return what ``ask`` gives; a dropped connection is tried again, what the server refuses is not."""
    pause, begun = _PAUSE, time.monotonic()
    for attempt in range(_ATTEMPTS):
        try:
            with errors_of(url):
                return ask()
        except (WuStoreError, PermissionError):
            raise
        except OSError:
            if attempt == _ATTEMPTS - 1 or time.monotonic() - begun > _PATIENCE:
                raise
        time.sleep(pause)
        pause *= 2
    raise AssertionError


def system_of(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it."""
    with errors_of(url):
        try:
            from fsspec.core import url_to_fs

            system, path = url_to_fs(url, **options_for(url))
        except ValueError as error:
            found = redact(str(error))
            raise BackendError("the URL cannot be used", path=redact(url), found=found) from None
    return system, path


def read_start(url: str, most: int) -> bytes:
    """Return the first bytes of an object, ``most`` of them at most, in one request: its size need not be known.

    Raises
    ------
    StoreNotFoundError, MissingDependencyError, BackendError, OSError
    """
    system, path = system_of(url)
    return bytes(retried(url, lambda: system.cat_file(path, start=0, end=most)))[:most]


def refuse_writing(url: str, kind: str) -> None:
    """Refuse to write a single file to a URL."""
    raise UsageError(
        f"{kind} is not written to URLs", path=redact(url), hint="Write to a local path and copy it, or write Zarr."
    )


def is_read_only(url: str) -> bool:
    """Return whether nothing can be written by this protocol."""
    return url.partition("://")[0] in _WEB


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
        Of the contents, so far.
    """

    def __init__(self, url: str, block: int = BLOCK) -> None:
        self.url = url
        self.name = redact(url)
        self._system, self._path = system_of(url)
        self._block = block
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes_read = 0
        facts = retried(url, lambda: self._system.info(self._path))
        if facts.get("type") == "directory":
            raise StoreNotFoundError("a prefix, not an object", path=self.name, hint="Check the name.")
        size = facts.get("size")
        if not isinstance(size, int):
            raise OSError(f"the server does not say how long {self.name} is")
        self.size = size
        version = facts.get("ETag") or facts.get("etag") or facts.get("mtime") or facts.get("LastModified")
        self.state = size, str(version or "")

    def __len__(self) -> int:
        return self.size

    def read(self, start: int, size: int) -> bytes:
        """Return ``size`` bytes at ``start`` in one request, fewer where the object ends before."""
        stop = min(start + size, self.size)
        if stop <= start:
            return b""
        data = bytes(retried(self.url, lambda: self._system.cat_file(self._path, start=start, end=stop)))
        if len(data) > stop - start:
            raise OSError(f"the server of {self.name} does not answer range requests")
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
        with self._lock:
            self._held += len(data) - len(self._blocks.pop(base, b""))
            self._blocks[base] = data
            while self._held > _CACHED:
                self._held -= len(self._blocks.popitem(last=False)[1])
        return base, data

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
