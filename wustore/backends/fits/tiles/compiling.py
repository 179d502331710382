"""Whether tiles are coded by the compiled loops (`tiles.rice_numba`): where there is numba, and enough to do.

Importing numba takes 0.3 s and compiling, once for each installation, some seconds. So small files are coded by
cfitsio's coder (imagecodecs), a row at a time, which needs neither. Both give the same bytes and values.
"""

from __future__ import annotations

import threading
from types import ModuleType

__all__ = ["loops"]

_WORTHWHILE = 1 << 23
"""Pixels that a process codes before it imports numba: about 0.1 s of work without it."""


class _State:
    """What this process knows of numba."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.coded = 0
        self.module: ModuleType | None = None
        self.is_missing = False

    def load(self, n_pixels: int) -> ModuleType | None:
        with self.lock:
            self.coded += n_pixels
            if self.module is None and not self.is_missing and self.coded >= _WORTHWHILE:
                self.module = _import()
                self.is_missing = self.module is None
            return self.module


def _import() -> ModuleType | None:
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", False):  # as Python the loops would take minutes
            return None
        from wustore.backends.fits.tiles import rice_numba
    except (ImportError, OSError):  # llvmlite raises OSError where its library cannot be loaded
        return None
    return rice_numba


_state = _State()


def loops(n_pixels: int = 0) -> ModuleType | None:
    """Return `wustore.backends.fits.tiles.rice_numba`, or None where so many pixels more are better coded without it.

    Parameters
    ----------
    n_pixels
        What the caller is to code, with these loops or without; it counts towards the amount for which compiling pays.
        0 where another function does the work that the loops are not there for: that one counts it.
    """
    return _state.module or (None if _state.is_missing else _state.load(n_pixels))
