"""Which files this process holds open."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

HANDLES = Path("/proc/self/fd")


def open_below(folder: Path) -> list[str]:
    """Return the files at or below a folder that are open, once each; one without a name ends in ``(deleted)``."""
    gc.collect()  # what earlier tests left to it goes now
    found = []
    for handle in HANDLES.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, by another thread
            found.append(str(handle.readlink()))
    return sorted(name for name in found if name.startswith(str(folder)))
