"""Reading at a place of an open file, from several threads."""

from __future__ import annotations

import os
import threading

__all__ = ["pread"]

_LOCK = threading.Lock()


def _seek_and_read(handle: int, length: int, offset: int) -> bytes:
    """Do `os.pread` without it (Windows): the position of the file is shared, so one thread at a time."""
    with _LOCK:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, length)


_once = getattr(os, "pread", _seek_and_read)


def pread(handle: int, length: int, offset: int) -> bytes:
    """Return ``length`` bytes at ``offset``, fewer only at the end of the file.

    The system may give fewer at a time: Linux at most 2 GiB, network file systems and interrupted calls whatever
    they have.
    """
    data: bytes = _once(handle, length, offset)
    if len(data) >= length or not data:
        return data
    parts, have = [data], len(data)
    while have < length:
        data = _once(handle, length - have, offset + have)
        if not data:
            break
        parts.append(data)
        have += len(data)
    return b"".join(parts)
