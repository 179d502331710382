"""What KBMOD takes for granted: which pixels are masked, and what an image without a PSF or without links has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from wustore.model.meta import Meta

__all__ = ["hide_pixels", "identity_psf", "is_masked", "no_data_of"]


def is_masked(mask: ArrayLike, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Return which pixels of a mask layer are masked: those greater than 0, so a negative flag masks nothing.

    Parameters
    ----------
    mask
        The layer.
    out
        Memory for the result, by default new.
    """
    return np.asarray(np.greater(mask, 0, out=out))


def no_data_of(meta: Meta) -> float | None:
    """Return the number that marks pixels without data (-9999 in the files of 2023), or None."""
    value = meta.source.get("no_data")
    return None if value is None else float(value)


def hide_pixels(plane: NDArray[Any], masked: NDArray[np.bool_] | None, no_data: float | None = None) -> None:
    """Set pixels that are masked or without data to NaN, in place.

    Parameters
    ----------
    plane
        Science or variance, a float dtype.
    masked
        True where a pixel is masked, same shape; None if nothing is.
    no_data
        Number of pixels without data; see `no_data_of`.
    """
    if no_data is not None:
        plane[plane == plane.dtype.type(no_data)] = np.nan
    if masked is not None:
        np.copyto(plane, plane.dtype.type(np.nan), where=masked)


def identity_psf(dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return the PSF of an image without one: a single pixel of 1."""
    return np.ones((1, 1), dtype)
