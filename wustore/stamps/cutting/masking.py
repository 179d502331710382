"""Planes as KBMOD sees them: pixels that are masked are NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops
from wustore.model.kbmod_rules import hide_pixels, is_masked
from wustore.storage import buffers

__all__ = ["hide"]

_LOOPS = Loops("wustore.stamps.cutting.loops_numba", 1 << 30)
"""So many pixels are worth importing numba: an image of 2048 x 2048 then takes 1 ms less."""

_COMPILED = frozenset(map(np.dtype, ("f4", "f8")))


def hide(planes: Sequence[NDArray[Any]], mask: NDArray[Any] | None, no_data: float | None) -> None:
    """Set pixels that are masked or without data to NaN, in place; see `wustore.model.kbmod_rules.hide_pixels`.

    Parameters
    ----------
    planes
        Of one shape, with float dtypes.
    mask
        The mask layer, of the same shape; None if nothing is masked.
    """
    if mask is None:
        for plane in planes:
            hide_pixels(plane, None, no_data)
        return
    loops = _LOOPS.get(mask.size)
    known = mask.dtype == np.int8 and no_data is None and mask.flags.c_contiguous
    if loops is not None and known and all(_is_like(plane, mask) for plane in planes):
        words = mask.reshape(-1)[: mask.size // 8 * 8].view(np.int64)
        for plane in planes:
            loops.hide(plane.reshape(-1), words, mask.reshape(-1), plane.dtype.type(np.nan))
        return
    masked = is_masked(mask, buffers.empty(mask.shape, np.bool_))
    for plane in planes:
        hide_pixels(plane, masked, no_data)


def _is_like(plane: NDArray[Any], mask: NDArray[Any]) -> bool:
    return plane.shape == mask.shape and plane.dtype in _COMPILED and plane.flags.c_contiguous
