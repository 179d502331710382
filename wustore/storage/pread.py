"""Reading at a place of an open file, from several threads."""

from __future__ import annotations

import os
import threading

__all__ = ["pread"]

_LOCK = threading.Lock()


def _seek_and_read(handle: int, length: int, offset: int) -> bytes:
    """Do `os.pread` where there is none (Windows): the position of the file is shared, so one thread at a time."""
    with _LOCK:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, length)


pread = getattr(os, "pread", _seek_and_read)
"""Return up to ``length`` bytes at ``offset``: called with (handle, length, offset)."""
