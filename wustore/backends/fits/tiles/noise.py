"""The step of quantisation relative to the noise of each tile, as cfitsio estimates it.

Median absolute differences of second, third and fifth order between every other pixel, as in Stoehr et al. (ST-ECF
Newsletter 42, 2007); the least of the three that is not 0 counts. The details that decide over the last bit, single
precision among them, are those of cfitsio's ``FnNoise5_float``, which astropy calls for every tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["relative_steps"]

#: From the median of the differences to the standard deviation of Gaussian noise, by order.
_FACTORS = (1.0483579, 0.6052697, 0.1772048)
#: Fewer pixels have no difference of fifth order: cfitsio then finds no noise, and does not quantise.
_FEWEST = 9


def relative_steps(values: NDArray[np.floating[Any]], level: float) -> NDArray[np.float64] | None:
    """Return the step of each tile: its noise divided by `level`.

    Parameters
    ----------
    values
        float32 or float64, of shape (tile, pixel).
    level
        The quantize_level, above 0.

    Returns
    -------
    ndarray or None
        0 for tiles that are not to be quantised. None if a result would depend on the order in which C compares
        values that are not numbers.

    Notes
    -----
    Half the time of encoding a plane: with it `encode_plane` takes 0.5 of astropy's time.
    """
    n_tiles, n_pixels = values.shape
    missing = np.isnan(values)
    if missing.any():
        if _has_signalling(values[missing]):
            return None
        # astropy puts the smallest value in the place of NaN, and 0 where there is nothing else.
        lowest = np.fmin.reduce(values, axis=1)
        lowest[np.isnan(lowest)] = 0
        values = np.where(missing, lowest[:, None], values)
    if n_pixels < _FEWEST:
        return np.zeros(n_tiles)
    size = n_pixels - _FEWEST + 1
    v1, v3, v4, v5, v6, v7, v9 = (values[:, i : i + size] for i in (0, 2, 3, 4, 5, 6, 8))
    kind = values.dtype.type
    with np.errstate(all="ignore"):
        second = np.abs(v5 - v7)
        third = np.abs(kind(2) * v5 - v3 - v7)
        fifth = np.abs(kind(6) * v5 - kind(4) * v3 - kind(4) * v7 + v1 + v9)
    if np.isnan(fifth).any() or np.isnan(third).any() or np.isnan(second).any():
        return None
    # Stretches of equal pixels do not count.
    flat2 = (v5 == v6) & (v6 == v7)
    flat3 = flat2 & (v3 == v4) & (v4 == v5)
    count2 = size - np.count_nonzero(flat2, axis=1)
    count3 = size - np.count_nonzero(flat3, axis=1)
    # cfitsio takes the median of second order among as many values as there are of third order, so that
    # zeros make up for those that do not count.
    second[flat2] = 0
    for differences in (second, third, fifth):
        differences[flat3] = np.inf
    noise2, noise3, noise5 = (
        factor * _lower_medians(differences, count3)
        for factor, differences in zip(_FACTORS, (second, third, fifth), strict=True)
    )
    noise2[(count2 == 0) | ((count2 == 1) & (count3 > 1))] = 0
    noise: NDArray[np.float64] = noise3
    for other in (noise2, noise5):
        noise = np.where((other != 0) & (other < noise), other, noise)
    with np.errstate(all="ignore"):
        steps: NDArray[np.float64] = noise / float(np.float32(level))
    return steps if bool(np.isfinite(steps).all()) else None


def _lower_medians(differences: NDArray[Any], counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the lower median of the first `counts` values of each row in increasing order; 0 of none."""
    ordered = np.sort(differences, axis=1)
    middle = ordered[np.arange(len(ordered)), np.maximum(counts - 1, 0) // 2]
    medians: NDArray[np.float64] = middle.astype(np.float64)
    medians[counts == 0] = 0
    return medians


def _has_signalling(nans: NDArray[Any]) -> bool:
    """Tell whether a NaN is signalling: numpy's minimum then forgets what it found before."""
    quiet = {4: 1 << 22, 8: 1 << 51}[nans.dtype.itemsize]
    return bool((nans.view(f"u{nans.dtype.itemsize}") & quiet == 0).any())
