"""The compiled loops of Rice tiles (`tiles.rice_numba`), for processes that have enough to code.

Small files are coded by cfitsio's coder (imagecodecs), a row at a time, which needs no numba. Both give the same bytes
and values.
"""

from __future__ import annotations

from types import ModuleType

from wustore.storage.compiling import Loops

__all__ = ["loops"]

_WORTHWHILE = 1 << 23
"""Pixels that a process codes before it imports numba: about 0.1 s of work without it."""

_state = Loops("wustore.backends.fits.tiles.rice_numba", _WORTHWHILE)


def loops(n_pixels: int = 0) -> ModuleType | None:
    """Return `wustore.backends.fits.tiles.rice_numba`, or None if so many pixels more are better coded without it.

    Parameters
    ----------
    n_pixels
        What the caller is to code; see `wustore.storage.compiling.Loops.get`.
    """
    return _state.get(n_pixels)
