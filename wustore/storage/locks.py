"""Locks: two processes never change a store at a time, and what a living process writes is not taken for a leftover.

They are those of the file system (``flock``), so they hold between containers that share a volume, whatever these call
their host and number their processes, and end with the process that held them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wustore.errors import UsageError

if TYPE_CHECKING:
    from wustore.storage.zarr_store import Keys

__all__ = ["CLAIM", "LOCK", "Claim", "alone", "is_alive", "lock_of", "machine", "open_lock", "refuse_link"]

LOCK = ".wustore-lock"
CLAIM = ".wustore-writer"
"""Key of what says who writes to a store without file locks."""

_RENEWED = 60.0
"""Seconds after which who writes says so again."""
_STALE = 600.0
"""Seconds after which who has not said so again is taken to be gone."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def lock_of(store: Path) -> Path:
    """Return the file that who changes a local store locks: below a directory, next to a file."""
    return store / LOCK if store.is_dir() else store.with_name(f".{store.name}{LOCK}")


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link at a name that anyone can tell beforehand: what is written there would go elsewhere."""
    if path.is_symlink():
        raise UsageError(
            "a symbolic link in the place of an own file",
            path=path,
            hint="Somebody else has made it: remove it, or write into a directory that is yours alone.",
        )


def open_lock(path: Path) -> tuple[int, bool | None]:
    """Return a descriptor of a lock file, and whether it is locked now: None if the file system has no locks.

    Raises
    ------
    UsageError
        If it is a symbolic link.
    OSError
    """
    import fcntl

    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EMLINK}:  # EMLINK on FreeBSD
            refuse_link(path)
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UsageError("a lock that is no regular file", path=path, hint="Remove it.")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return handle, None
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            os.close(handle)
            raise
        return handle, False
    except BaseException:
        os.close(handle)
        raise
    return handle, True


def is_open_file(path: Path, handle: int) -> bool:
    """Return whether a name still leads to an open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except OSError:
        return False


@contextlib.contextmanager
def alone(lock: Path, path: str) -> Iterator[None]:
    """Hold a lock while a store is changed: two processes at a time would undo each other's work.

    If the file system has no locks, nothing is held.

    Parameters
    ----------
    lock
        The file to lock; it goes when the lock is given back.

    Raises
    ------
    UsageError
        If another process holds it.
    """
    if os.name != "posix":
        yield
        return
    busy = UsageError("another process is changing this store", path=path, hint="Wait for it.")
    try:
        handle, locked = open_lock(lock)
    except FileNotFoundError:
        raise busy from None  # it has moved away the directory of the lock
    try:
        # Who had it may have removed it, or have moved it away with the store, between the two calls above.
        if locked is False or not is_open_file(lock, handle):
            raise busy
        try:
            yield
        finally:
            # If the store was exchanged, the lock in the new one belongs to the next process.
            if is_open_file(lock, handle):
                lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


@functools.cache
def machine() -> str:
    """Return the name of this machine, and of the namespace in which its processes are numbered (a container's)."""
    try:
        return f"{socket.gethostname()}.{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    except OSError:
        return socket.gethostname()


def is_alive(lock: Path, where: str, process: int) -> bool:
    """Return whether what has a lock file belongs to a process that is alive, or that nothing is known of.

    Parameters
    ----------
    lock
        Its lock file. If there is none, or the file system has no locks, the process is asked for.
    where, process
        Its `machine`, and its number there.
    """
    if os.name == "posix" and lock.exists():
        try:
            handle, locked = open_lock(lock)
        except (OSError, UsageError):
            return True
        os.close(handle)
        if locked is not None:
            return not locked
    return _may_run(where, process)


class Claim:
    """The right to write to a store that has no file locks: an object there says who writes, and since when.

    It is taken with a conditional write, so of two at a time one has it. Who writes says so again every minute; after
    ten minutes of silence, or if the process is gone from this machine, another one may take it.

    Attributes
    ----------
    was_left
        Whether the one before was killed, or had errors, before it had tidied up.
    """

    def __init__(self, keys: Keys) -> None:
        self.was_left = False
        self._keys = keys
        self._mine = {"id": uuid.uuid4().hex, "machine": machine(), "process": os.getpid()}
        self._text = b""
        self._renewed = 0.0
        self._lock = threading.Lock()

    def refuse_others(self) -> str | None:
        """Return the version of a claim that was left; raise UsageError for one that holds."""
        found = self._keys.versioned(CLAIM)
        if found is None:
            return None
        holder = _holder(found[0])
        if holder is None:
            return found[1]
        where, process, silent = holder
        # A time far ahead is no better than one long ago: it would keep everybody away until then.
        if abs(silent) <= _STALE and _may_run(where, process):
            raise self._busy(f"process {process} on {where.partition('.')[0]}, {silent:.0f} s ago")
        return found[1]

    def take(self) -> None:
        """Take the claim.

        Raises
        ------
        UsageError
            If another process has it.
        """
        version = self.refuse_others()
        self.was_left = version is not None
        if not self._write(version):
            raise self._busy("one that began at the same time")

    def _write(self, version: str | None) -> bool:
        text = json.dumps({**self._mine, "when": time.time()}).encode()
        if not self._keys.set_if(CLAIM, text, version):
            return False
        self._text, self._renewed = text, time.monotonic()
        return True

    def renew(self, *, now: bool = False) -> None:
        """Say again who writes, ``now`` or if a minute has gone.

        Raises
        ------
        UsageError
            If another process has taken the claim.
        """
        with self._lock:
            if not now and time.monotonic() - self._renewed < _RENEWED:
                return
            found = self._keys.versioned(CLAIM)
            if found is None or found[0] != self._text or not self._write(found[1]):
                raise self._busy("one that has taken over, because nothing was heard of this one")

    def is_held(self) -> bool:
        """Return whether the claim is still this one."""
        return bool(self._text) and self._keys.get(CLAIM) == self._text

    def leave(self) -> None:
        """Let others take the claim at once; that it is there says that this process has not tidied up."""
        found = self._keys.versioned(CLAIM)
        if found is not None and found[0] == self._text:
            self._keys.set_if(CLAIM, b"{}", found[1])
        self._text = b""

    def release(self) -> None:
        """Give the claim back."""
        if self.is_held():
            self._keys.delete(CLAIM)
        self._text = b""

    def _busy(self, found: str) -> UsageError:
        return UsageError(
            "another process is changing this store",
            path=self._keys.name,
            found=found,
            hint=f"Wait for it. If it is gone, try again after {_STALE / 60:.0f} minutes, or remove {CLAIM} there.",
        )


def _holder(claim: bytes) -> tuple[str, int, float] | None:
    """Return who wrote a claim, its machine and process, and how long ago [s]; None if it is no claim."""
    try:
        other = json.loads(claim)
        where, process, when = other["machine"], other["process"], other["when"]
        silent = time.time() - when
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    is_claim = isinstance(where, str) and isinstance(process, int) and math.isfinite(silent)
    return (where, process, silent) if is_claim else None


def _may_run(where: str, process: int) -> bool:
    """Return whether a process of a `machine` runs, or nothing is known of it."""
    if where != machine() or process == os.getpid() or os.name != "posix":
        return True  # on Windows `os.kill` sends Ctrl-C to the process instead of asking for it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
