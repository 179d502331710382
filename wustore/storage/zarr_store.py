"""Where the keys of a Zarr store live: a directory, a zip file, or any zarr Store object."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import struct
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wustore.errors import CorruptError
from wustore.storage.pread import pread
from wustore.storage.threads import Background
from wustore.storage.url import CONCURRENCY, LARGEST, errors_of, merged, shown

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

__all__ = ["DirectoryKeys", "Keys", "OpenValue", "StoreKeys", "ZipKeys"]

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)

_WHOLE = 16 << 20
"""Bytes asked for at once of an object of unknown length: no shard of 2048 x 2048 float32 pixels is longer."""

_FLUSHED_BYTES = 1 << 18
"""Values from this size on are flushed while the next ones are encoded: at the end only the small ones are left."""


class OpenValue:
    """A value that lies in an open file, for several reads by `pread`.

    Attributes
    ----------
    handle, start, size
        The file, and where in it the value is.
    """

    def __init__(self, handle: int, start: int, size: int, *, close: bool) -> None:
        self.handle, self.start, self.size = handle, start, size
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._close:
            os.close(self.handle)


class Keys(ABC):
    """Bytes by key, safe to use from several threads.

    Attributes
    ----------
    name
        What to call the store in messages.
    by_url
        Whether a URL led here, where there may be nothing at all.
    in_files
        Whether there is `open`.
    """

    name: str
    by_url: bool = False
    in_files: bool = False

    def open(self, key: str) -> OpenValue | None:
        """Return the value to be read in parts, or None where the key is missing."""
        raise NotImplementedError

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the value, or None where the key is missing."""

    @abstractmethod
    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last ``length`` bytes (all, where there are fewer), or None where the key is missing."""

    @abstractmethod
    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each (start, length), shorter at the end; None where the key is missing."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the length of the value, or None where the key is missing."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that start with ``prefix`` (empty, or ending in a slash)."""

    @abstractmethod
    def set(self, key: str, value: bytes) -> None:
        """Write the value in one step: a reader sees the old or the new one."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the key; nothing happens where it is missing."""

    def delete_below(self, prefix: str) -> None:
        """Remove all keys that start with ``prefix``, which ends in a slash."""
        for key in [*self.list(prefix)]:
            self.delete(key)

    def close(self) -> None:  # noqa: B027 - most hold nothing open
        """Release files."""


class DirectoryKeys(Keys):
    """One file per key below a directory.

    Parameters
    ----------
    root
        The directory; created with the first key that is set.
    name
        What to call it in messages, the path by default.
    """

    def __init__(self, root: str | os.PathLike[str], name: str | None = None) -> None:
        self.root = os.fspath(root)
        self.name = name or self.root
        self._serial = itertools.count()
        self._made: set[str] = set()
        self._flusher = Background("flush")

    in_files = True

    def open(self, key: str) -> OpenValue | None:
        """Return the value to be read in parts; see `Keys.open`."""
        handle = self._open(key)
        if handle is None:
            return None
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            os.close(handle)
            raise CorruptError("a directory where a file belongs", path=self.name, where=key)
        return OpenValue(handle, 0, status.st_size, close=True)

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _open(self, key: str) -> int | None:
        try:
            return os.open(f"{self.root}/{key}", _READ)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        handle = self._open(key)
        if handle is None:
            return None
        try:
            return _read(handle, os.fstat(handle).st_size)
        except IsADirectoryError as error:
            raise CorruptError("a directory where a file belongs", path=self.name, where=key) from error
        finally:
            os.close(handle)

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        handle = self._open(key)
        if handle is None:
            return None
        try:
            size = os.fstat(handle).st_size
            return pread(handle, length, max(size - length, 0))
        except IsADirectoryError as error:
            raise CorruptError("a directory where a file belongs", path=self.name, where=key) from error
        finally:
            os.close(handle)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        handle = self._open(key)
        if handle is None:
            return None
        try:
            # Wild lengths must not decide how much memory is taken.
            size = os.fstat(handle).st_size
            return [pread(handle, max(min(length, size - start), 0), start) for start, length in ranges]
        finally:
            os.close(handle)

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`."""
        try:
            return os.stat(self._path(key)).st_size  # noqa: PTH116 - a Path object a key costs more than the call
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""
        top = Path(self.root, prefix)
        for folder, _, names in os.walk(top):
            for name in names:
                yield Path(folder, name).relative_to(self.root).as_posix()

    def set(self, key: str, value: bytes) -> None:
        """Write the value; see `Keys.set`."""
        path = self._path(key)
        folder, _, leaf = path.rpartition("/")
        if folder not in self._made:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        # The name is private to this call: parts of a cluster job may write the same key at the same time.
        beside = (
            f"{folder}/.{leaf}~{os.uname().nodename if hasattr(os, 'uname') else ''}~{os.getpid()}-{next(self._serial)}"
        )
        try:
            with open(beside, "wb", buffering=0) as file:  # noqa: PTH123 - unbuffered, hot path
                view = memoryview(value)
                while view:
                    view = view[file.write(view) :]
            os.replace(beside, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)  # noqa: PTH108
            raise
        if len(value) >= _FLUSHED_BYTES:
            self._flusher.start(_flush, path)

    def sweep(self) -> None:
        """Remove the halves of values that killed processes left; nobody else may be writing."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                if name.startswith(".") and "~" in name:
                    os.unlink(f"{folder}/{name}")  # noqa: PTH108

    def settle(self) -> None:
        """Wait until the values that are being flushed are on disk.

        Raises
        ------
        OSError
            Where one could not be written.
        """
        self._flusher.settle()

    def delete(self, key: str) -> None:
        """Remove the key; see `Keys.delete`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._path(key))  # noqa: PTH108

    def delete_below(self, prefix: str) -> None:
        """Remove the keys below; see `Keys.delete_below`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._path(prefix))


def _flush(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # aborted, or replaced by another part of the same job
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read(handle: int, size: int) -> bytes:
    # One call as a rule; Linux reads at most 2 GiB at once.
    data = pread(handle, size, 0)
    while len(data) < size:
        more = pread(handle, size - len(data), len(data))
        if not more:
            break
        data += more
    return data


_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Local file header of a zip member (PKWARE APPNOTE 4.3.7); the last two fields are the lengths of name and extra."""


class ZipKeys(Keys):
    """Members of a zip file, read by range where they are stored uncompressed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import zipfile

        self.name = os.fspath(path)
        try:
            self._zip = zipfile.ZipFile(self.name)
        except (zipfile.BadZipFile, ValueError, EOFError, IndexError, NotImplementedError, struct.error) as error:
            raise CorruptError("the zip file cannot be read", path=self.name, found=error) from error
        self._members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        self._handle = os.open(self.name, _READ)
        self._starts: dict[str, int] = {}
        self._is_stored = all(
            info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 for info in self._members.values()
        )
        self._lock = threading.Lock()

    def _start(self, key: str) -> int:
        start = self._starts.get(key)
        if start is None:
            info = self._members[key]
            header = pread(self._handle, _LOCAL_HEADER.size, info.header_offset)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
                raise CorruptError("a member of the zip file is not where it should be", path=self.name, where=key)
            fields = _LOCAL_HEADER.unpack(header)
            start = info.header_offset + _LOCAL_HEADER.size + int(fields[-2]) + int(fields[-1])
            self._starts[key] = start
        return start

    def _unpacked(self, key: str) -> bytes | None:
        """Return the value of a member that was compressed (by another tool), None where it is stored."""
        import zipfile
        import zlib

        info = self._members[key]
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            return None
        try:
            with self._lock:
                return self._zip.read(info)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            raise CorruptError("a member of the zip file cannot be read", path=self.name, where=key) from error

    @property
    def in_files(self) -> bool:  # type: ignore[override]
        """Whether no member is compressed."""
        return self._is_stored

    def open(self, key: str) -> OpenValue | None:
        """Return the value to be read in parts; see `Keys.open`."""
        size = self.size(key)
        return None if size is None else OpenValue(self._handle, self._start(key), size, close=False)

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        size = self.size(key)
        if size is None:
            return None
        unpacked = self._unpacked(key)
        return pread(self._handle, size, self._start(key)) if unpacked is None else unpacked

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        size = self.size(key)
        if size is None:
            return None
        ranges = self.get_ranges(key, [(max(size - length, 0), min(length, size))])
        return None if ranges is None else ranges[0]

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        size = self.size(key)
        if size is None:
            return None
        unpacked = self._unpacked(key)
        if unpacked is not None:
            return [unpacked[start : start + length] for start, length in ranges]
        base = self._start(key)
        return [pread(self._handle, max(min(length, size - start), 0), base + start) for start, length in ranges]

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`."""
        info = self._members.get(key)
        return None if info is None else info.file_size

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""
        return (key for key in self._members if key.startswith(prefix))

    def set(self, key: str, value: bytes) -> None:
        """Write the value; see `Keys.set`."""
        raise NotImplementedError("zip files are written whole")

    def delete(self, key: str) -> None:
        """Remove the key; see `Keys.delete`."""
        raise NotImplementedError("zip files are written whole")

    def close(self) -> None:
        """Release files; see `Keys.close`."""
        self._zip.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class StoreKeys(Keys):
    """Any zarr Store object: memory, fsspec, obstore and others.

    Parameters
    ----------
    store
        The Store.
    name
        What to call it in messages, its own text by default.
    """

    def __init__(self, store: Store, name: str | None = None) -> None:
        from zarr.core.buffer import default_buffer_prototype

        self.store = store
        self._url = name or str(store)
        self.by_url = name is not None
        self.name = shown(self._url)
        self._prototype = default_buffer_prototype()

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        # By range: for a whole object s3fs asks for its length first, which is a second request.
        from zarr.abc.store import RangeByteRequest

        try:
            value = self._get(key, RangeByteRequest(0, _WHOLE))
        except OSError:
            return self._get(key, None)  # an empty object has no ranges
        if value is None or len(value) < _WHOLE:
            return value
        size = self.size(key) or 0
        rest = self.get_ranges(key, [(k, min(LARGEST, size - k)) for k in range(_WHOLE, size, LARGEST)])
        return None if rest is None else b"".join([value, *rest])

    def _sync(self, work: Coroutine[Any, Any, T]) -> T:
        from zarr.core.sync import sync

        with errors_of(self._url):
            return sync(work)

    def _get(self, key: str, byte_range: Any) -> bytes | None:
        value = self._sync(self.store.get(key, self._prototype, byte_range))
        return None if value is None else value.to_bytes()

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        from zarr.abc.store import SuffixByteRequest

        return self._get(key, SuffixByteRequest(length))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        from zarr.abc.store import RangeByteRequest

        requests = merged([(start, start + length) for start, length in ranges])

        async def fetch(start: int, stop: int) -> memoryview | None:
            value = await self.store.get(key, self._prototype, RangeByteRequest(start, stop))
            return None if value is None else memoryview(value.to_bytes())

        async def gather() -> list[bytes] | None:
            import asyncio

            found: list[memoryview] = []
            for k in range(0, len(requests), CONCURRENCY):
                for part in await asyncio.gather(*(fetch(*request) for request in requests[k : k + CONCURRENCY])):
                    if part is None:
                        return None
                    found.append(part)
            starts = [start for start, _ in requests]
            parts = []
            for start, length in ranges:
                k = max(bisect_right(starts, start) - 1, 0)
                parts.append(bytes(found[k][start - starts[k] : start - starts[k] + length]) if length else b"")
            return parts

        return self._sync(gather())

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`."""
        try:
            return self._sync(self.store.getsize(key))
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""

        async def gather() -> list[str]:
            return [key async for key in self.store.list_prefix(prefix)]

        return iter(self._sync(gather()))

    def set(self, key: str, value: bytes) -> None:
        """Write the value; see `Keys.set`."""
        self._sync(self.store.set(key, self._prototype.buffer.from_bytes(value)))

    def delete(self, key: str) -> None:
        """Remove the key; see `Keys.delete`."""
        self._sync(self.store.delete(key))
