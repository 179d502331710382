"""Locks: two processes never change a store at a time, and what a living process writes is not taken for a leftover.

They are those of the file system (``flock``), so they hold between containers that share a volume, whatever these call
their host and number their processes, and end with the process that held them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from wustore.errors import UsageError

__all__ = ["LOCK", "alone", "is_alive", "lock_of", "machine", "open_lock", "refuse_link"]

LOCK = ".wustore-lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def lock_of(store: Path) -> Path:
    """Return the file that who changes a local store locks: below a directory, beside a file."""
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
    if where != machine() or process == os.getpid() or os.name != "posix":
        return True  # on Windows `os.kill` sends Ctrl-C to the process instead of asking for it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
