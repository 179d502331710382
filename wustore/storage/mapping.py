"""Giving back the memory of mapped files."""

from __future__ import annotations

import mmap

__all__ = ["release"]

_AROUND = 1 << 16
"""Bytes that Linux maps around a page that is touched (``fault_around_bytes``)."""


def release(data: object, start: int = 0, stop: int | None = None) -> None:
    """Give back the memory of mapped bytes that are not needed again soon; they are read anew where they are.

    The pages of a mapped file count as this process's memory as long as nobody needs them, so that a conversion
    would seem to hold the whole file.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not isinstance(data, mmap.mmap):
        return
    stop = len(data) if stop is None else min(stop + _AROUND, len(data))
    first = max(start - _AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > first:
        data.madvise(advice, first, stop - first)
