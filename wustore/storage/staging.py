"""All or nothing: write beside the target, make it durable, then let it appear in one step.

A `Staging` is a file or directory next to its target, on the same file system. Whatever dies before
`commit` leaves the target as it was. Overwriting swaps old and new in one step where the system can
(Linux ``renameat2``, macOS ``renamex_np``); elsewhere the old one is set aside first, and put back if
the new one cannot take its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from wustore.errors import StoreExistsError, StoreNotFoundError, UsageError

__all__ = ["Staging", "alone", "lock_of", "partial_path", "remove", "retire", "sync", "sync_tree"]

_MARK = ".wustore-partial"
_LOCK = ".wustore-lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_SYNC_WHOLE_FILE_SYSTEM = 64
"""Above this many files one ``syncfs`` is cheaper than an ``fsync`` each (about 1 ms a file on ext4)."""


def partial_path(target: str | os.PathLike[str]) -> Path:
    """Return where a conversion to ``target`` that can be resumed is kept until it is whole.

    Raises
    ------
    UsageError
        Where the path names nothing.
    """
    path = Path(target)
    if not path.name:
        raise UsageError(
            "a path without a name",
            found=repr(os.fspath(target)),
            hint="Give the name of a store; is a variable empty?",
        )
    return path.with_name(f".{path.name}{_MARK}")


def _rename(a: Path, b: Path, linux: int, mac: int) -> int:
    """Rename in a way that Python has no function for; return an error number, ENOSYS where the system has none."""
    if os.name != "posix":
        return errno.ENOSYS
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(a), os.fsencode(b)
    here = -100  # AT_FDCWD
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return ctypes.get_errno() if libc.renameat2(here, old, here, new, linux) else 0
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return ctypes.get_errno() if libc.renamex_np(old, new, mac) else 0
    return errno.ENOSYS


def _swap(a: Path, b: Path) -> bool:
    """Exchange two directory entries in one step; False where the system cannot."""
    return _rename(a, b, linux=2, mac=2) == 0  # RENAME_EXCHANGE, RENAME_SWAP


def _rename_to_new(a: Path, b: Path) -> bool:
    """Rename where there is nothing at the new name; False where there is, though it appeared this instant."""
    error = _rename(a, b, linux=1, mac=4)  # RENAME_NOREPLACE, RENAME_EXCL
    if error in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}:
        if os.path.lexists(b):
            return False
        a.rename(b)  # some file systems (network) know no better
    elif error not in {0, errno.EEXIST}:
        raise OSError(error, os.strerror(error), str(a), None, str(b))
    return error != errno.EEXIST


def sync(path: Path) -> None:
    """Make a file, or the entries of a directory, durable."""
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open a directory
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (FUSE, network) refuse to sync a directory; there is nothing more to do then.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Make a file, or a directory with all below it, durable."""
    if not path.is_dir():
        sync(path)
        return
    entries = [Path(root) / name for root, _, names in os.walk(path) for name in names]
    if len(entries) > _SYNC_WHOLE_FILE_SYSTEM and sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        handle = os.open(path, os.O_RDONLY)
        try:
            if hasattr(libc, "syncfs") and libc.syncfs(handle) == 0:
                return
        finally:
            os.close(handle)
    for entry in entries:
        sync(entry)
    for root, _, _ in os.walk(path, topdown=False):
        sync(Path(root))


def remove(path: Path) -> None:
    """Remove a file or directory; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock_of(store: Path) -> Path:
    """Return the file that who changes a local store locks: below a directory, beside a file."""
    return store / _LOCK if store.is_dir() else store.with_name(f".{store.name}{_LOCK}")


@contextlib.contextmanager
def alone(lock: Path, path: str) -> Iterator[None]:
    """Hold a lock while a store is changed: two processes at a time would undo each other's work.

    Where the file system has no locks, nothing is held.

    Parameters
    ----------
    lock
        The file to lock; it goes when the lock is given back.
    path
        The store, for messages.

    Raises
    ------
    UsageError
        Where another process holds it.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    busy = UsageError("another process is changing this store", path=path, hint="Wait for it.")
    try:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
    except FileNotFoundError:
        raise busy from None  # it has moved away the directory of the lock
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as error:
            free = error.errno in _NO_LOCKS
        # Who had it may have removed it, or have moved it away with the store, between the two calls above.
        if not free or not _is_open_file(lock, handle):
            raise busy
        try:
            yield
        finally:
            # Where the store was exchanged, the lock in the new one belongs to the next process.
            if _is_open_file(lock, handle):
                lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is_open_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _is_stale(name: str) -> bool:
    """Return whether a private staging belongs to a process of this machine that is gone."""
    if not name.endswith(_MARK):
        return False
    parts = name.removesuffix(_MARK).rsplit("~", 2)
    if len(parts) != 3 or not parts[2].split("-")[0].isdigit() or parts[1] != socket.gethostname():
        return False
    process = int(parts[2].split("-")[0])
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


_ROOTS = ("zarr.json", ".zgroup", ".zarray")
"""One of these is right below a directory that is a Zarr store, of any version."""


def _refuse_foreign_directory(target: Path) -> None:
    """Refuse to replace a directory with anything in it that is no Zarr store: all of it would be gone."""
    if not target.is_dir() or any((target / name).exists() for name in _ROOTS):
        return
    names = sorted(entry.name for entry in target.iterdir())
    if names:
        raise StoreExistsError(
            "the target is a directory of something else, which is not overwritten",
            path=target,
            found=", ".join(names[:5]) + (", …" if len(names) > 5 else ""),
            hint="Choose another name, or remove it yourself.",
        )


def _private(target: Path) -> Path:
    """Return a name beside a target that nobody else has, and that tells whether its process is gone."""
    return target.with_name(f".{target.name}~{socket.gethostname()}~{os.getpid()}-{uuid.uuid4().hex[:8]}{_MARK}")


def retire(path: Path, target: Path) -> None:
    """Remove a file or directory beside or below a target; in one step it is no longer there.

    What a process leaves that is killed meanwhile is removed by the next one that writes to this target.
    """
    aside = _private(target)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return  # another process was faster
    remove(aside)


class Staging:
    """A temporary sibling of a target.

    Parameters
    ----------
    target
        The final path. Its directory must exist.
    overwrite
        Whether an existing target may be replaced.
    keep
        Use the one fixed name of `partial_path`, so that another process can continue or help; such a
        staging survives `abort` unless asked otherwise. Where it is there already, whether the target may be
        replaced is asked by `commit` alone. By default the name is private to this object.

    Attributes
    ----------
    target, path
        The final path, and where to write until `commit`. Nothing is created at ``path`` here.

    Raises
    ------
    StoreExistsError
        The target exists and ``overwrite`` is False, or it is a directory that is neither empty nor a Zarr store.
    StoreNotFoundError
        The target's directory does not exist.
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False, keep: bool = False) -> None:
        self.target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link at the target
        self.overwrite = overwrite
        self.keep = keep
        if not keep or not partial_path(self.target).exists():
            self._check()
        if keep:
            self.path = partial_path(self.target)
        else:
            self._remove_stale()
            self.path = _private(self.target)

    def _check(self) -> None:
        if os.path.lexists(self.target) and not self.overwrite:
            raise self._exists()
        _refuse_foreign_directory(self.target)
        if not self.target.parent.is_dir():
            raise StoreNotFoundError(
                "the target's directory does not exist", path=self.target.parent, hint="Create it first."
            )

    def _exists(self) -> StoreExistsError:
        return StoreExistsError(
            "the target exists already",
            path=self.target,
            hint="Choose another name, or overwrite it (--overwrite, overwrite=True).",
        )

    def _remove_stale(self) -> None:
        with contextlib.suppress(OSError):
            for entry in self.target.parent.iterdir():
                if entry.name.startswith(f".{self.target.name}~") and _is_stale(entry.name):
                    remove(entry)

    def commit(self) -> None:
        """Make what is at `path` durable and let it take the target's place in one step."""
        sync_tree(self.path)
        self._check()
        if _rename_to_new(self.path, self.target):
            pass
        elif not self.overwrite:
            raise self._exists()
        elif not self.path.is_dir() and not self.target.is_dir():
            self.path.replace(self.target)
        elif _swap(self.path, self.target):
            retire(self.path, self.target)
        else:
            self._replace_in_two_steps()
        sync(self.target.parent)

    def _replace_in_two_steps(self) -> None:
        aside = self.path.with_name(f"{self.path.name}-old")
        self.target.rename(aside)
        try:
            self.path.rename(self.target)
        except BaseException:
            aside.rename(self.target)
            raise
        remove(aside)

    def abort(self, *, keep: bool | None = None) -> None:
        """Drop what was written, unless it is to be kept for a resume (default: as constructed)."""
        if not (self.keep if keep is None else keep):
            remove(self.path)
