"""Coadds of stamps: one stamp out of those at all times, NaN left out, as KBMOD defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError

__all__ = ["KINDS", "RunningCoadd", "check_kind", "coadd"]

KINDS = ("sum", "mean", "median", "weighted")


class RunningCoadd:
    """A coadd of many stamps to which one image after the other is added.

    Parameters
    ----------
    kind
        ``sum``, ``mean`` or ``weighted``, as for `coadd`.
    """

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        self._kind = kind
        self._total = np.zeros(shape)
        self._weights = np.zeros(shape, np.float64 if kind == "weighted" else np.int32) if kind != "sum" else None

    def add(self, which: Any, science: NDArray[Any], variance: NDArray[Any] | None = None) -> None:
        """Add the stamps of an image; threads may add to different stamps at the same time.

        Parameters
        ----------
        which
            Index of the coadds, none of them twice.
        """
        if self._kind == "weighted":
            assert variance is not None
            assert self._weights is not None
            valid = ~(np.isnan(science) | np.isnan(variance) | (variance == 0))
            weights = np.divide(1.0, variance, out=np.zeros(science.shape), where=valid)
            self._weights[which] += weights
            self._total[which] += np.multiply(science, weights, out=np.zeros(science.shape), where=valid)
            return
        there = ~np.isnan(science)
        if self._weights is not None:
            self._weights[which] += there
        self._total[which] += np.where(there, science, science.dtype.type(0))

    def result(self) -> NDArray[np.float64]:
        """Return the coadds; call it once, at the end."""
        if self._weights is not None:
            counted = self._weights != 0
            np.divide(self._total, self._weights, out=self._total, where=counted)
            self._total[~counted] = 0
        return self._total


def check_kind(kind: str) -> None:
    """Refuse what is no kind of coadd."""
    if kind not in KINDS:
        raise UsageError("unknown kind of coadd", expected=", ".join(KINDS), found=kind)


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
        For an unknown kind, or ``weighted`` without variance.

    Examples
    --------
    >>> import numpy as np
    >>> coadd(np.array([1.0, 4.0, np.nan, 3.0]).reshape(4, 1, 1), "median")
    array([[3.]])
    """
    check_kind(kind)
    if science.ndim < 3:
        raise UsageError("stamps to coadd need a time axis", expected="shape (..., time, y, x)", found=science.shape)
    if kind == "weighted" and (variance is None or variance.shape != science.shape):
        raise UsageError(
            "a weighted coadd needs the variance of every stamp",
            expected=f"shape {science.shape}",
            found=None if variance is None else variance.shape,
        )
    if kind == "median":
        return _median(science)
    running = RunningCoadd(kind, (*science.shape[:-3], *science.shape[-2:]))
    for k in range(science.shape[-3]):
        of_time = None if variance is None else variance[..., k, :, :]
        running.add(..., science[..., k, :, :], of_time)
    return running.result()


def _median(science: NDArray[Any]) -> NDArray[np.float64]:
    if science.shape[-3] == 0:
        return np.zeros((*science.shape[:-3], *science.shape[-2:]))
    ordered = np.sort(science, axis=-3)  # NaN last
    count = np.count_nonzero(~np.isnan(science), axis=-3, keepdims=True)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-3)
    median: NDArray[np.float64] = np.where(count > 0, middle, 0).squeeze(-3).astype(np.float64)
    return median
