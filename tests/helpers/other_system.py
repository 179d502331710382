"""Importing this takes away what Linux on x86 has and Windows or macOS lack, and does what Windows does differently.

No POSIX calls; a file that is open is neither renamed nor replaced nor removed, nor is its directory; nothing is
renamed to a name that is taken; only what is open for writing is synced; `os.kill` asks for no process. To be imported
first, in a process of its own; it imports the packages that need these calls when they are imported.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import astropy.io.fits  # noqa: F401
import h5py  # noqa: F401
import zarr  # noqa: F401

_CALLS = (
    *("pread", "preadv", "pwrite", "fork", "chown", "fdatasync", "mkfifo", "posix_fallocate", "sched_getaffinity"),
    *("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC"),
)


def _opened(path: str) -> str | None:
    """Return what is open at a path or below it."""
    place = os.path.realpath(path)
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target == place or target.startswith(f"{place}/"):
            return target
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return next((line for line in mapped if line.endswith(place)), None)


def _guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*paths: Any, **options: Any) -> Any:
        for path in paths[: 2 if name in {"rename", "replace"} else 1]:
            found = _opened(os.fspath(path)) if os.path.lexists(path) else None
            if found is not None:
                raise PermissionError(13, "used by another process", os.fspath(path), None, found)
        if name == "rename" and os.path.lexists(paths[1]):
            raise FileExistsError(17, "exists already", os.fspath(paths[1]))
        return real(*paths, **options)

    return call


def _fsync(handle: int, real: Callable[[int], None] = os.fsync) -> None:
    flags = next(line for line in Path(f"/proc/self/fdinfo/{handle}").read_text().splitlines() if "flags" in line)
    if not int(flags.split()[1], 8) & (os.O_WRONLY | os.O_RDWR):
        raise OSError(9, "Bad file descriptor")
    real(handle)


def _refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError(f"there is no such call: {arguments}")


sys.platform = os.name = "other"  # "nt" would need a file system with drives
for _name in _CALLS:
    if hasattr(os, _name):
        delattr(os, _name)
for _name in ("rename", "replace", "unlink", "remove", "rmdir"):
    setattr(os, _name, _guarded(_name, getattr(os, _name)))
os.fsync, os.kill, os.supports_dir_fd = _fsync, _refuse, set()  # type: ignore[assignment]
ctypes.CDLL = _refuse  # type: ignore[assignment, misc]
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))  # type: ignore[arg-type]
del mmap.MADV_DONTNEED
shutil._use_fd_functions = False  # type: ignore[attr-defined]
