"""Where the keys of a Zarr store live: a directory, or any zarr Store object."""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wustore.errors import CorruptError
from wustore.storage.files import CLOSED, Descriptor, open_handle, pread, sync, walk, write_all
from wustore.storage.threads import Background
from wustore.storage.url import errors_of, redact
from wustore.storage.url_requests import CONCURRENCY, gather

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

__all__ = ["DirectoryKeys", "Keys", "OpenValue", "StoreKeys", "is_half_written"]

_FLUSHED_BYTES = 1 << 18
"""Values from this size on are flushed while the next ones are encoded: at the end only the small ones are left."""

_FLUSHERS = 4
"""Threads that flush: they wait for the disk, which takes several files at a time faster than one by one."""


_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""What a file system says that has no hard links."""

_FINISHING = 0.1
"""How long a program that used a zarr Store object waits for the threads of others when it ends [s]."""


class OpenValue:
    """A value that lies in an open file, for several reads by `pread`.

    Parameters
    ----------
    of
        Whose file it is; by default that of this value, which closes it.

    Attributes
    ----------
    handle, start, size
        The file, and where in it the value is.
    """

    def __init__(self, handle: int, start: int, size: int, of: Descriptor | None = None) -> None:
        self.handle, self.start, self.size = handle, start, size
        self._of = of

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._of is None:
            os.close(self.handle)


class Keys(ABC):
    """Bytes by key, safe to use from several threads.

    Attributes
    ----------
    name
        What to call the store in messages.
    by_url
        Whether a URL led here, where there may be nothing at all.
    by_request
        Whether reading may ask a server: whole values are read at once then, and more of them at a time.
    in_files
        Whether there is `open`.
    transactional
        Whether nothing that is written is seen before somebody commits it. Such a store holds nodes and chunks of a
        Zarr hierarchy and no other keys: an array's document before its chunks, slashes in the keys of these.
    """

    name: str
    by_url: bool = False
    by_request: bool = False
    in_files: bool = False
    transactional: bool = False

    def open(self, key: str) -> OpenValue | None:
        """Return the value to be read in parts, or None if the key is missing."""
        raise NotImplementedError

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the value, or None if the key is missing."""

    @abstractmethod
    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last ``length`` bytes (all, if there are fewer), or None if the key is missing."""

    @abstractmethod
    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each (start, length), shorter at the end; None if the key is missing."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return the length of the value, or None if the key is missing."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that start with ``prefix`` (empty, or ending in a slash)."""

    @abstractmethod
    def set(self, key: str, value: bytes) -> None:
        """Write the value in one step: a reader sees the old or the new one."""

    def set_pieces(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Write the value that consists of these pieces; as `set`."""
        self.set(key, b"".join(pieces))

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the key; nothing happens if it is missing."""

    def set_durably(self, key: str, value: bytes) -> None:
        """Write the value in one step, so that after a power failure it is the old or the new one."""
        self.set(key, value)

    def delete_all(self, keys: Collection[str]) -> None:
        """Remove keys; one that is missing is no error."""
        for key in keys:
            self.delete(key)

    def delete_below(self, prefix: str) -> None:
        """Remove all keys that start with ``prefix``, which ends in a slash."""
        self.delete_all([*self.list(prefix)])

    def versioned(self, key: str) -> tuple[bytes, str] | None:
        """Return a value and what changes when it is replaced, or None if the key is missing."""
        value = self.get(key)
        return None if value is None else (value, hashlib.sha256(value).hexdigest())

    def set_if(self, key: str, value: bytes, version: str | None) -> bool:
        """Write a value durably if the one there is of this version (None: if none is); return whether it stands there.

        In one step if the store has conditional writes; else between looking and writing another may write.
        """
        found = self.versioned(key)
        if (None if found is None else found[1]) != version:
            return found is not None and found[0] == value
        self.set_durably(key, value)
        return True

    def check_pickles(self) -> None:  # noqa: B027 - most do
        """Check that another process which gets the address pickled can open the store.

        Raises
        ------
        UsageError
        """

    def begin(self) -> None:  # noqa: B027 - of no concern to most
        """Begin to change a transactional store.

        Raises
        ------
        UsageError
            If it cannot be changed, or `undo` could not go back to what it holds.
        """

    def undo(self) -> None:  # noqa: B027
        """Take back what was written to a transactional store since `begin`."""

    def retain(self, nodes: Collection[str]) -> None:  # noqa: B027
        """Remove all nodes of a transactional store but these and the root."""

    def is_same(self) -> bool | None:
        """Return whether the address still leads to the directory or file that is open; None if that is not known."""
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing open
        """Release files."""


def is_half_written(name: str) -> bool:
    """Return whether a file is the unfinished value of a key, which a killed process left."""
    return name.startswith(".") and "~" in name


class DirectoryKeys(Keys):
    """One file per key below a directory.

    Parameters
    ----------
    root
        The directory; created with the first key that is set.
    name
        What to call it in messages, the path by default.
    hold
        Open the directory, and read from this one even if another takes its name: for reading only.
    """

    in_files = True

    def __init__(self, root: str | os.PathLike[str], name: str | None = None, *, hold: bool = False) -> None:
        self._held: Descriptor | None = None
        self.root = os.fspath(root)
        self.name = name or self.root
        self._base = f"{self.root}/"
        if hold and os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd:
            self._held = Descriptor(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY))
            self._base = ""
        self._token = uuid.uuid4().hex[:12]
        self._serial = itertools.count()
        self._made: set[str] = set()
        self._flusher = Background("flush", _FLUSHERS)

    def open(self, key: str) -> OpenValue | None:
        """Return the value to be read in parts; see `Keys.open`."""
        held = self._held
        try:
            handle = open_handle(self._base + key, None if held is None else held.number)
        except (FileNotFoundError, NotADirectoryError):
            return None
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            os.close(handle)
            raise CorruptError("a directory where a file belongs", path=self.name, where=key)
        return OpenValue(handle, 0, status.st_size)

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        value = self.open(key)
        if value is None:
            return None
        with value:
            return pread(value.handle, value.size, 0)

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        value = self.open(key)
        if value is None:
            return None
        with value:
            return pread(value.handle, length, max(value.size - length, 0))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        value = self.open(key)
        if value is None:
            return None
        with value:
            # Wild lengths must not decide how much memory is taken.
            size = value.size
            return [pread(value.handle, max(min(length, size - start), 0), start) for start, length in ranges]

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`."""
        held = self._held
        try:
            # A Path object a key costs more than the call.
            return os.stat(self._base + key, dir_fd=None if held is None else held.number).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""
        top = Path(self.root, prefix)
        for folder, _, names in walk(top):
            for name in names:
                yield Path(folder, name).relative_to(self.root).as_posix()

    def set(self, key: str, value: bytes) -> None:
        """Write the value; see `Keys.set`."""
        self.set_pieces(key, [value])

    def set_pieces(self, key: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Write the value that consists of these pieces, without joining them; see `Keys.set_pieces`."""
        path = self._written(key, pieces, durable=False)
        if sum(map(len, pieces)) >= _FLUSHED_BYTES:
            self._flusher.start(_flush, path)

    def set_durably(self, key: str, value: bytes) -> None:
        """Write the value, and make it and its name durable; see `Keys.set_durably`."""
        self._written(key, [value], durable=True)

    def set_if(self, key: str, value: bytes, version: str | None) -> bool:
        """Write the value on a condition, in one step if there is to be none; see `Keys.set_if`."""
        if version is None:
            try:
                self._written(key, [value], durable=True, new=True)
            except FileExistsError:
                return self.get(key) == value
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            else:
                return True
        return super().set_if(key, value, version)

    def _written(self, key: str, pieces: Sequence[bytes | memoryview], *, durable: bool, new: bool = False) -> str:
        path = self._path(key)
        folder, _, leaf = path.rpartition("/")
        if folder not in self._made:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        # The name is private to this call: parts of a cluster job may write the same key at the same time.
        beside = f"{folder}/.{leaf}~{self._token}-{next(self._serial)}"
        try:
            with open(beside, "xb", buffering=0) as file:  # noqa: PTH123 - unbuffered, hot path
                write_all(file.fileno(), pieces)
                if durable:
                    os.fsync(file.fileno())
            if new:
                os.link(beside, path)
                os.unlink(beside)  # noqa: PTH108
            else:
                os.replace(beside, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)  # noqa: PTH108
            raise
        if durable:
            _flush(folder)
        return path

    def sweep(self) -> None:
        """Remove the halves of values that killed processes left; nobody else may be writing."""
        for folder, _, names in walk(self.root):
            for name in names:
                if is_half_written(name):
                    os.unlink(f"{folder}/{name}")  # noqa: PTH108

    def settle(self) -> None:
        """Wait until the values that are being flushed are on disk.

        Raises
        ------
        OSError
            Where one could not be written.
        """
        self._flusher.settle()

    def is_same(self) -> bool | None:
        """Return whether the path still leads to the directory that is held; see `Keys.is_same`."""
        held = self._held
        if held is None:
            return None
        try:
            return os.path.samestat(os.stat(self.root), os.fstat(held.number))  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return False

    def close(self) -> None:
        """Release the directory; see `Keys.close`."""
        if self._held is not None:
            self._held = CLOSED

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
        sync(path)


@cache
def _wait_at_exit() -> None:
    """Let threads of compiled packages finish before the interpreter ends.

    A thread of Icechunk or obstore wakes the caller before it is done with the interpreter itself. If the caller's
    program ends in this moment, Python before 3.14 ends that thread in the middle of compiled code, which aborts the
    process: all is written, but the exit code is that of a crash. No call says whether a thread is there.
    """
    atexit.register(time.sleep, _FINISHING)


class StoreKeys(Keys):
    """Any zarr Store object: memory, fsspec, obstore and others.

    Parameters
    ----------
    store
        The Store.
    """

    def __init__(self, store: Store) -> None:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.storage import StorePath

        self.store = store
        self.name = redact(str(store))
        self._prototype = default_buffer_prototype()
        _wait_at_exit()
        # zarr-python opens some stores when they are used first, and not in every call.
        self._sync(lambda: StorePath.open(store, ""))

    def _sync(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what a call of zarr-python gives."""
        from zarr.core.sync import sync

        with errors_of(self.name):
            return sync(work())

    def _get(self, key: str, byte_range: Any) -> bytes | None:
        value = self._sync(lambda: self.store.get(key, self._prototype, byte_range))
        return None if value is None else value.to_bytes()

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        return self._get(key, None)

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        from zarr.abc.store import SuffixByteRequest

        value = self._get(key, SuffixByteRequest(length))
        if value is not None and len(value) > length:
            raise self._without_ranges()
        return value

    def _without_ranges(self) -> OSError:
        return OSError(f"the server of {self.name} does not answer range requests")

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        from zarr.abc.store import RangeByteRequest

        async def fetch(start: int, stop: int) -> bytes | None:
            value = await self.store.get(key, self._prototype, RangeByteRequest(start, stop))
            if value is not None and len(value) > stop - start:
                raise self._without_ranges()
            return None if value is None else value.to_bytes()

        async def fetch_all(requests: list[tuple[int, int]]) -> list[bytes] | None:
            import asyncio

            found: list[bytes] = []
            for k in range(0, len(requests), CONCURRENCY):
                for part in await asyncio.gather(*(fetch(*request) for request in requests[k : k + CONCURRENCY])):
                    if part is None:
                        return None
                    found.append(part)
            return found

        wanted = [(start, start + length) for start, length in ranges]
        return gather(wanted, lambda requests: self._sync(lambda: fetch_all(requests)))

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`."""
        try:
            return self._sync(lambda: self.store.getsize(key))
        except FileNotFoundError:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""

        async def list_all() -> list[str]:
            return [key async for key in self.store.list_prefix(prefix)]

        return iter(self._sync(list_all))

    def set(self, key: str, value: bytes) -> None:
        """Write the value; see `Keys.set`."""
        self._sync(lambda: self.store.set(key, self._prototype.buffer.from_bytes(value)))

    def delete(self, key: str) -> None:
        """Remove the key; see `Keys.delete`."""
        self._sync(lambda: self.store.delete(key))
