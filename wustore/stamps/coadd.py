"""Coadds of stamps: one stamp out of those at all times, NaN left out, as KBMOD defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError

__all__ = ["KINDS", "coadd"]

KINDS = ("sum", "mean", "median", "weighted")


def coadd(science: NDArray[Any], kind: str, variance: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return the coadd over time of stamps.

    Parameters
    ----------
    science
        Shape (..., time, y, x); NaN where there is no data.
    kind
        ``sum``; ``mean``; ``median`` (of an even number of values the lower of the two in the middle, as
        torch's ``nanmedian``, which KBMOD uses); ``weighted``, the mean with weights 1 / variance, over the
        pixels whose variance is neither NaN nor 0.
    variance
        As ``science``; needed for ``weighted``.

    Returns
    -------
    ndarray
        Shape (..., y, x), in the unit of ``science``. 0 where no time has data.

    Raises
    ------
    UsageError
        Of an unknown kind, or ``weighted`` without variance.
    """
    if kind not in KINDS:
        raise UsageError("unknown kind of coadd", expected=", ".join(KINDS), found=kind)
    if science.ndim < 3:
        raise UsageError("stamps to coadd need a time axis", expected="shape (..., time, y, x)", found=science.shape)
    if kind == "weighted":
        if variance is None or variance.shape != science.shape:
            raise UsageError(
                "a weighted coadd needs the variance of every stamp",
                expected=f"shape {science.shape}",
                found=None if variance is None else variance.shape,
            )
        return _weighted(science, variance)
    return _SIMPLE[kind](science)


def _sum(science: NDArray[Any]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.nansum(science, axis=-3, dtype=np.float64)
    return total


def _mean(science: NDArray[Any]) -> NDArray[np.float64]:
    count = np.count_nonzero(~np.isnan(science), axis=-3)
    mean: NDArray[np.float64] = _sum(science) / np.maximum(count, 1)
    return mean


def _median(science: NDArray[Any]) -> NDArray[np.float64]:
    if science.shape[-3] == 0:
        return _sum(science)
    ordered = np.sort(science, axis=-3)  # NaN last
    count = np.count_nonzero(~np.isnan(science), axis=-3, keepdims=True)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-3)
    median: NDArray[np.float64] = np.where(count > 0, middle, 0).squeeze(-3).astype(np.float64)
    return median


def _weighted(science: NDArray[Any], variance: NDArray[Any]) -> NDArray[np.float64]:
    valid = ~(np.isnan(science) | np.isnan(variance) | (variance == 0))
    weights = np.divide(1.0, variance, out=np.zeros(science.shape), where=valid)
    total = weights.sum(axis=-3)
    weighted = np.multiply(science, weights, out=np.zeros(science.shape), where=valid).sum(axis=-3)
    mean: NDArray[np.float64] = np.divide(weighted, total, out=np.zeros(total.shape), where=total != 0)
    return mean


_SIMPLE: dict[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = {"sum": _sum, "mean": _mean, "median": _median}
