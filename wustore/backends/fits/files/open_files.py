"""The files of a WorkUnit: their bytes, unpacked if they are compressed, and their HDUs; where shards lie."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from wustore.backends.fits.files import input as source
from wustore.backends.fits.hdu.header import BLOCK
from wustore.backends.fits.hdu.image import Fetch, Plane
from wustore.backends.fits.hdu.scan import Buffer, Hdu, ScannedFile, Sliceable, is_fits, scan
from wustore.backends.state import replaced
from wustore.errors import StoreNotFoundError, UsageError
from wustore.storage.buffers import release
from wustore.storage.files import RemoteFile
from wustore.storage.threads import read_ahead
from wustore.storage.url import is_remote, redact, with_options_of
from wustore.storage.url_requests import CONCURRENCY, LARGEST, gather

__all__ = ["Cache", "FitsFile", "fetch", "has_shards", "shard_name", "shard_path"]


class Cache:
    """The bytes of the files last used. An evicted mapping closes with its last user."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, source.Content] = OrderedDict()
        self._closed = False

    def get(self, path: str, remote: RemoteFile | None = None) -> source.Content:
        """Return the bytes of a file, mapped or unpacked; one at a URL is fetched."""
        with self._lock:
            if self._closed:
                raise UsageError("the reader is closed", path=path)
            content = self._entries.get(path)
            if content is None:
                content = source.load(path) if remote is None else source.load_remote(remote)
                self._entries[path] = content
                if len(self._entries) > self._limit:
                    self._entries.popitem(last=False)
            else:
                self._entries.move_to_end(path)
            return content

    def close(self) -> None:
        """Give them up; asking again is an error."""
        with self._lock:
            self._entries.clear()
            self._closed = True


def check_unchanged(path: str, state: object) -> None:
    """Check that a file, or an object at a URL, is the one that had this state.

    Raises
    ------
    StoreReplacedError
        If it was changed or removed.
    """
    try:
        found = source.state_of(path)
    except StoreNotFoundError as error:
        raise replaced(redact(path), "none") from error
    if found != state:
        raise replaced(redact(path))


class FitsFile:
    """One file of a WorkUnit: its path, its bytes (unpacked if it is compressed) and its HDUs.

    Parameters
    ----------
    cache
        Where the bytes of the reader's files are kept.

    Attributes
    ----------
    state
        Size, time and inode of the file when it was opened.
    compression
        How the file is compressed as a whole: ``gzip``, ``bzip2``, ``zip``, or None.
    """

    def __init__(self, path: str, cache: Cache) -> None:
        self.path = path
        self._cache = cache
        self._remote = RemoteFile(path) if is_remote(path) else None
        self._is_fetched = self._remote is None or not is_fits(self._remote.cached(0, BLOCK))
        self.compression: str | None = None
        parts: Sliceable
        if self._is_fetched:
            content = cache.get(path, self._remote)
            self.state, self.compression, parts = content.state, content.compression, content.data
        else:
            assert self._remote is not None
            self.state, parts = self._remote.state, self._remote
        self.scan: ScannedFile = scan(parts, redact(path))

    def check_state(self) -> None:
        """Check that the file was not changed since it was opened."""
        check_unchanged(self.path, self.state)

    @property
    def data(self) -> Buffer:
        """All bytes of the file.

        Raises
        ------
        StoreReplacedError
            If the file was changed since it was opened: what the scan found does not hold any more.
        """
        # What was fetched from a URL does not change; of a compressed file the capsule reads the original once more.
        settled = self._is_fetched and self._remote is not None and self.compression is None
        if not settled:
            self.check_state()
        self._is_fetched = True  # from here on what is at hand is used
        return self._cache.get(self.path, self._remote).data

    @property
    def parts(self) -> Sliceable:
        """The file as bytes of which only what is taken is read; at a URL in blocks."""
        if self._is_fetched:
            return self.data
        assert self._remote is not None
        return self._remote

    @property
    def is_remote(self) -> bool:
        """Whether the file is read by ranges."""
        return not self._is_fetched

    def read(
        self,
        plane: Plane,
        rows: slice | None = None,
        columns: slice | None = None,
        out: NDArray[Any] | None = None,
        data: Buffer | None = None,
    ) -> NDArray[Any]:
        """Decode a plane of this file or a window of it; see `wustore.backends.fits.hdu.image.Plane.read`.

        Parameters
        ----------
        data
            What `data` has just given, so that the file need not be looked at again.
        """
        if self._is_fetched:
            return plane.read(self.data if data is None else data, rows, columns, out)
        return plane.read_ranges(self._fetcher(plane.hdu), rows, columns, out)

    def pieces(self) -> Iterator[Buffer]:
        """Yield all bytes of the file in order, in pieces of `wustore.storage.url_requests.LARGEST`."""
        if self._remote is not None and not self._is_fetched:
            yield from source.pieces(self._remote)
            return
        view = memoryview(self.data)
        for start in range(0, len(view), LARGEST):
            yield view[start : start + LARGEST]
            release(self.data, start, start + LARGEST)

    def _fetcher(self, hdu: Hdu) -> Fetch:
        """Return a function that reads ranges of an HDU: near ones in one request, several requests at a time."""
        assert self._remote is not None
        return partial(fetch, self._remote)

    def __iter__(self) -> Iterator[Any]:
        """Yield path, bytes and scan, so that a file can be taken apart like a tuple."""
        yield from (self.path, self.data, self.scan)


def fetch(
    remote: RemoteFile, ranges: Sequence[tuple[int, int]], check: Callable[[int, bytes], None] | None = None
) -> list[bytes]:
    """Return the bytes of ranges of a file at a URL, near ones in one request, several requests at a time.

    Parameters
    ----------
    remote, ranges
        The file, and (start, stop).
    check
        Called with the first byte and the bytes of each request.
    """

    def ask(requests: list[tuple[int, int]]) -> list[bytes]:
        def read(k: int) -> bytes:
            start, stop = requests[k]
            data = remote.read(start, stop - start)
            if check is not None:
                check(start, data)
            return data

        return [piece for _, piece in read_ahead(read, range(len(requests)), min(len(requests), CONCURRENCY))]

    return gather(ranges, ask) or []


def _exists(url: str) -> bool:
    """Return whether there is a file at a URL; no, if the server refuses to say (403 from a bucket without listing)."""
    try:
        RemoteFile(url)
    except OSError:  # of which `StoreNotFoundError` is one
        return False
    return True


def shard_name(primary: str, i: int) -> str:
    """Return the name of the file of image ``i`` next to a primary file of that name."""
    return f"{i}_{primary}"


def shard_path(primary: str, i: int) -> str:
    """Return where the file of image ``i`` of a sharded set lies."""
    directory, name = os.path.split(primary)  # of a URL too
    if is_remote(primary):
        return with_options_of(f"{directory}/{shard_name(name, i)}", primary)
    return str(Path(directory, shard_name(name, i)))


def has_shards(path: str, scanned: ScannedFile) -> bool:
    """Return whether a file counts images (NUMIMG) and has a shard of one of them next to it."""
    count = scanned.hdus[0].header.get("NUMIMG")
    if type(count) is not int:
        return False
    if is_remote(path):
        return count > 0 and _exists(shard_path(path, 0))
    directory, name = os.path.split(path)
    beside = {entry.name for entry in os.scandir(directory or ".")}
    return any(shard_name(name, i) in beside for i in range(min(count, len(beside))))
