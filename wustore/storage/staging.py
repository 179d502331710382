"""All or nothing: write next to the target, make it durable, then let it appear in one step.

A `Staging` is a file or directory next to its target, on the same file system, whose lock its process holds. Whatever
dies before `commit` leaves the target as it was. Overwriting swaps old and new in one step if the system can
(Linux ``renameat2``, macOS ``renamex_np``); elsewhere the old one is set aside first, and put back if
the new one cannot take its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import shutil
import stat
import sys
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Self

from wustore.errors import StoreExistsError, StoreNotFoundError, UsageError
from wustore.storage.files import sync, walk
from wustore.storage.journal import JOURNAL
from wustore.storage.locks import is_alive, is_open_file, machine, open_lock, refuse_link
from wustore.storage.threads import in_threads

__all__ = [
    "ASIDE",
    "INNER",
    "Leftover",
    "Staging",
    "check_target",
    "is_partial",
    "leftovers",
    "partial_path",
    "remove",
    "retire",
    "stores_of",
    "sync_tree",
    "take_mode",
]

_MARK = ".wustore-partial"
ASIDE = "-old"
"""What is added to the name of a private staging, for what it is about to replace."""
_LOCK = "-lock"
"""What the lock of a private staging adds to its name."""
INNER = "-inner"
"""What is added to the name of a private staging, for the content of a file before it is compressed."""
_SYNC_WHOLE_FILE_SYSTEM = 64
"""Above this many files one ``syncfs`` is cheaper than an ``fsync`` each (about 1 ms a file on ext4)."""
_TOGETHER = 8
"""Threads that wait for the disk at a time."""


def partial_path(target: str | os.PathLike[str]) -> Path:
    """Return where a conversion to ``target`` that can be resumed is kept until it is whole.

    Raises
    ------
    UsageError
        If the path names nothing, or somebody has put a symbolic link there, at its journal or at the lock in it.
    """
    path = Path(target)
    if not path.name:
        raise UsageError(
            "a path without a name",
            found=repr(os.fspath(target)),
            hint="Give the name of a store; is a variable empty?",
        )
    partial = path.with_name(f".{path.name}{_MARK}")
    for place in (partial, partial / JOURNAL, partial / JOURNAL / "lock"):
        refuse_link(place)
    return partial


def is_partial(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the name of what is being written, or was left, next to a target."""
    name = os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119
    return name.startswith(".") and _MARK in name


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _rename(a: Path, b: Path, linux: int, mac: int) -> int:
    """Rename in a way that Python has no function for; return an error number, ENOSYS if the system has none."""
    if os.name != "posix":
        return errno.ENOSYS
    libc = _libc()
    old, new = os.fsencode(a), os.fsencode(b)
    here = -100  # AT_FDCWD
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return ctypes.get_errno() if libc.renameat2(here, old, here, new, linux) else 0
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return ctypes.get_errno() if libc.renamex_np(old, new, mac) else 0
    return errno.ENOSYS


def _swap(a: Path, b: Path) -> bool:
    """Exchange two directory entries in one step; False if the system cannot."""
    return _rename(a, b, linux=2, mac=2) == 0  # RENAME_EXCHANGE, RENAME_SWAP


def _rename_to_new(a: Path, b: Path) -> bool:
    """Rename where there is nothing at the new name; False if there is, though it appeared this instant."""
    error = _rename(a, b, linux=1, mac=4)  # RENAME_NOREPLACE, RENAME_EXCL
    if error in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}:
        if os.path.lexists(b):
            return False
        a.rename(b)  # some file systems (network) know no better
    elif error not in {0, errno.EEXIST}:
        raise OSError(error, os.strerror(error), str(a), None, str(b))
    return error != errno.EEXIST


def sync_tree(path: Path) -> None:
    """Make a file, or a directory with all below it, durable."""
    if not path.is_dir():
        sync(path)
        return
    entries = [Path(root) / name for root, _, names in walk(path) for name in names]
    if len(entries) > _SYNC_WHOLE_FILE_SYSTEM and sys.platform == "linux":
        libc = _libc()
        handle = os.open(path, os.O_RDONLY)
        try:
            if hasattr(libc, "syncfs") and libc.syncfs(handle) == 0:
                return
        finally:
            os.close(handle)
    in_threads(sync, entries, _TOGETHER)
    for root, _, _ in os.walk(path, topdown=False):
        sync(Path(root))


def remove(path: Path) -> None:
    """Remove a file or directory; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        if hasattr(os, "fwalk"):
            # The system takes milliseconds to give the blocks of a large file back, of several files at the same time.
            for _, _, names, folder in os.fwalk(path, topdown=False):
                if len(names) >= _TOGETHER:
                    in_threads(functools.partial(os.unlink, dir_fd=folder), names, _TOGETHER)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_ROOT = "zarr.json"
"""The root document of a store in a directory."""


def _is_store(directory: Path) -> bool:
    """Return whether the root document of a Zarr store in a directory names wustore, damaged as it may be."""
    try:
        return b'"wustore"' in (directory / _ROOT).read_bytes()
    except OSError:
        return False


def _refuse_foreign_directory(target: Path) -> None:
    """Refuse to replace a directory with anything in it that is no store of ours: all of it would be gone."""
    if not target.is_dir() or _is_store(target):
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
    """Return a name next to a target that nobody else has, and that says whose it is."""
    return target.with_name(f".{target.name}~{machine()}~{os.getpid()}-{uuid.uuid4().hex[:8]}{_MARK}")


def _lock_name(private: Path) -> Path:
    return private.with_name(f"{private.name}{_LOCK}")


def _locked_private(target: Path) -> tuple[Path, Callable[[], None]]:
    """Return a private name whose lock is held, and what gives it back."""
    while True:
        path = _private(target)
        if os.name != "posix":
            return path, lambda: None
        lock = _lock_name(path)
        handle, locked = open_lock(lock)
        # Another writer may have taken the file for a leftover before it was locked.
        if locked is not False and is_open_file(lock, handle):
            return path, functools.partial(_give_back, lock, handle)
        os.close(handle)


def _give_back(lock: Path, handle: int) -> None:
    with contextlib.suppress(OSError):
        lock.unlink(missing_ok=True)
    os.close(handle)


def _is_stale(path: Path) -> bool:
    """Return whether a private staging, its lock or what else has its name, belongs to a process that is gone."""
    name = path.name.removesuffix(_LOCK).removesuffix(INNER)
    parts = name.removesuffix(_MARK).rsplit("~", 2)
    process = parts[-1].partition("-")[0]
    if not name.endswith(_MARK) or len(parts) != 3 or not (process.isascii() and process.isdigit()):
        return False
    return not is_alive(_lock_name(path.with_name(name)), parts[1], int(process))


def _is_needed(lock: Path) -> bool:
    """Return whether a lock says whose the files are that are set aside."""
    name = lock.name
    return name.endswith(_LOCK) and os.path.lexists(lock.with_name(name.removesuffix(_LOCK) + ASIDE))


def take_mode(path: Path, old: Path) -> None:
    """Give what is to take the place of a store the permissions and the group of that store.

    Parameters
    ----------
    path
        The new file or directory; of a directory everything below is meant as well.
    old
        What it replaces; nothing is done if there is nothing, or a link.
    """
    try:
        status = old.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode) or os.name != "posix":
        return
    mode = stat.S_IMODE(status.st_mode)
    if not path.is_dir():
        _change(path, mode & 0o666 if stat.S_ISDIR(status.st_mode) else mode, status.st_gid)
        return
    if not stat.S_ISDIR(status.st_mode):
        mode |= (mode & 0o444) >> 2
    files = mode & 0o666
    with contextlib.suppress(OSError):
        files = stat.S_IMODE((old / _ROOT).lstat().st_mode)
    now = path.stat()
    inner = path / _ROOT
    same = stat.S_IMODE(now.st_mode) == mode and now.st_gid == status.st_gid
    if same and inner.is_file() and stat.S_IMODE(inner.stat().st_mode) == files:
        return
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            _change(Path(folder, name), files, status.st_gid)
        _change(Path(folder), mode, status.st_gid)


def _change(path: Path, mode: int, group: int) -> None:
    with contextlib.suppress(OSError):  # a group that the user is not in, a file system without groups
        if path.stat().st_gid != group:
            os.chown(path, -1, group)
    path.chmod(mode)


def retire(path: Path, target: Path) -> None:
    """Remove a file or directory next to or below a target; in one step it is no longer there.

    What a process leaves that is killed meanwhile is removed by the next one that writes to this target.
    """
    aside, give_back = _locked_private(target)
    try:
        path.rename(aside)
        remove(aside)
    except FileNotFoundError:
        pass  # another process was faster
    finally:
        give_back()


def _exists(target: Path) -> StoreExistsError:
    return StoreExistsError(
        "the target exists already",
        path=target,
        hint="Choose another name, or overwrite it (--overwrite, overwrite=True).",
    )


def _check(target: Path, overwrite: bool) -> None:
    if os.path.lexists(target) and not overwrite:
        raise _exists(target)
    _refuse_foreign_directory(target)
    if not target.parent.is_dir():
        raise StoreNotFoundError("the target's directory does not exist", path=target.parent, hint="Create it first.")


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
        staging survives `abort` unless asked otherwise. If it is there already, whether the target may be
        replaced is asked by `commit` alone. By default the name is private to this object.

    Attributes
    ----------
    target, path
        The final path, and where to write until `commit`. Nothing is created at ``path`` here.

    Raises
    ------
    StoreExistsError
        The target exists and ``overwrite`` is False, or it is a directory that is neither empty nor a wustore store.
    StoreNotFoundError
        The target's directory does not exist.
    """

    def __init__(self, target: str | os.PathLike[str], *, overwrite: bool = False, keep: bool = False) -> None:
        self.target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link at the target
        self.overwrite = overwrite
        self.keep = keep
        if not keep or not partial_path(self.target).exists():
            _check(self.target, self.overwrite)
        self._release: Callable[[], object] = _nothing
        if keep:
            self.path = partial_path(self.target)
            _refuse_links_below(self.path)
        else:
            self._remove_stale()
            self.path, give_back = _locked_private(self.target)
            # A staging that is dropped without commit or abort is a leftover, which the next writer removes.
            self._release = weakref.finalize(self, give_back)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Commit, or after an error abort."""
        try:
            if kind is None:
                self.commit()
        except BaseException:
            self.abort()
            raise
        if kind is not None:
            self.abort()

    def make_directory(self) -> None:
        """Make `path` a directory, private from the start if what it replaces is; nothing happens if it is there."""
        self.path.mkdir(exist_ok=True)
        self.protect()

    def protect(self) -> None:
        """Keep others from reading what has just been created at `path`, if they cannot read what it replaces."""
        with contextlib.suppress(FileNotFoundError):
            if os.name == "posix" and self.overwrite and not self.target.lstat().st_mode & 0o077:
                self.path.chmod(0o700 if self.path.is_dir() else 0o600)

    def _remove_stale(self) -> None:
        with contextlib.suppress(OSError):
            entries = [e for e in self.target.parent.iterdir() if e.name.startswith(f".{self.target.name}~")]
            # All are asked for before any goes, and a lock goes last: it says whose the others are.
            stale = [entry for entry in entries if _is_stale(entry) and not _is_needed(entry)]
            for entry in sorted(stale, key=lambda entry: entry.name.endswith(_LOCK)):
                remove(entry)

    def commit(self) -> None:
        """Make what is at `path` durable and let it take the target's place in one step, with its permissions."""
        if self.overwrite:
            take_mode(self.path, self.target)
        sync_tree(self.path)
        _check(self.target, self.overwrite)
        if _rename_to_new(self.path, self.target):
            pass
        elif not self.overwrite:
            raise _exists(self.target)
        elif not self.path.is_dir() and not self.target.is_dir():
            self.path.replace(self.target)
        elif _swap(self.path, self.target):
            retire(self.path, self.target)
        else:
            self._replace_in_two_steps()
        sync(self.target.parent)
        self._release()

    def _replace_in_two_steps(self) -> None:
        aside = self.path.with_name(f"{self.path.name}{ASIDE}")
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
        self._release()


def check_target(target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a target as `Staging` does, without creating anything."""
    _check(Path(os.path.abspath(target)), overwrite)  # noqa: PTH100 - as in `Staging`


def _nothing() -> None:
    pass


def _refuse_links_below(path: Path) -> None:
    """Refuse a staging that others could have prepared: what is written below a link goes elsewhere."""
    for folder, folders, names in walk(path):
        for name in (*folders, *names):
            refuse_link(Path(folder, name))


class Leftover(NamedTuple):
    """What a process left: its path, and what it is; see `leftovers`.

    ``outdated``: a document within a store that an edit no longer came to replace.
    """

    path: Path
    kind: Literal["abandoned", "unfinished", "in use", "set aside", "outdated"]


def stores_of(path: Path) -> list[Path]:
    """Return a directory that is a store, or the directories directly in it that are; nothing for a file."""
    if not path.is_dir():
        return []
    if _is_store(path):
        return [path]
    return [entry for entry in sorted(path.iterdir()) if _is_store(entry) and not is_partial(entry)]


def leftovers(path: Path) -> Iterator[Leftover]:
    """Yield what processes that write, or wrote, left next to a store, or in a directory that is none.

    ``abandoned``: nobody will use it again. ``unfinished``: a conversion that can be resumed. ``in use``: of a living
    process, or nothing is known of it. ``set aside``: old files that a killed process was about to replace.
    """
    several = path.is_dir() and not _is_store(path)
    folder, name = (path, "") if several else (Path(os.path.abspath(path)).parent, path.name)  # noqa: PTH100
    for entry in sorted(folder.iterdir()):
        known = (
            entry.name.startswith(f".{name}") if several else entry.name.startswith((f".{name}~", f".{name}{_MARK}"))
        )
        if not known or _MARK not in entry.name or entry.is_symlink() or _is_needed(entry):
            continue
        if entry.name.endswith(ASIDE):
            owner = entry.with_name(entry.name.removesuffix(ASIDE))
            yield Leftover(entry, "set aside" if _is_stale(owner) else "in use")
        elif "~" in entry.name:
            yield Leftover(entry, "abandoned" if _is_stale(entry) else "in use")
        elif entry.name.endswith(_MARK):
            yield Leftover(entry, "unfinished" if not _is_locked(entry / JOURNAL / "lock") else "in use")


def _is_locked(lock: Path) -> bool:
    """Return whether a process holds a lock."""
    if os.name != "posix" or not lock.is_file():
        return False
    try:
        handle, locked = open_lock(lock)
    except (OSError, UsageError):
        return True
    os.close(handle)
    return locked is False
