"""What differs between two WorkUnits, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.model.compare import Difference, _short, meta_differences, same_bits
from wustore.model.meta import LAYERS

__all__ = ["differences"]


def _plane_difference(
    where: str, a: NDArray[Any] | None, b: NDArray[Any] | None, rtol: float, atol: float
) -> Difference | None:
    if a is None or b is None:
        if a is b:
            return None
        return Difference(where, "absent" if a is None else "present", "absent" if b is None else "present")
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(where, f"{a.shape} {a.dtype}", f"{b.shape} {b.dtype}")
    if same_bits(a, b):
        return None
    width = a.dtype.itemsize
    bits_a = np.ascontiguousarray(a).view(np.uint8).reshape(-1, width)
    bits_b = np.ascontiguousarray(b).view(np.uint8).reshape(-1, width)
    differs = (bits_a != bits_b).any(axis=1)
    if rtol or atol:
        differs &= ~np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True).ravel()
    unequal = np.flatnonzero(differs)
    if not unequal.size:
        return None
    place = np.unravel_index(unequal[0], a.shape)
    spot = ", ".join(str(int(k)) for k in place)
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(a.ravel()[unequal].astype(np.float64) - b.ravel()[unequal].astype(np.float64))
    finite = gaps[np.isfinite(gaps)]
    return Difference(
        f"{where}, {len(unequal)} pixels, first at (y, x) = ({spot})",
        _short(a[place]),
        _short(b[place]),
        float(finite.max()) if finite.size else None,
    )


def differences(
    a: Reader, b: Reader, *, workers: int | None = None, rtol: float = 0, atol: float = 0
) -> Iterator[Difference]:
    """Yield everything that differs between two stores: metadata first, then layer by layer, bit for bit.

    Parameters
    ----------
    a, b
        Open readers of any formats.
    workers
        Threads that read ahead.
    rtol, atol
        Pixels that differ by no more than ``atol + rtol * abs(b)`` are equal, and so are two NaN; by default only
        the same bits are.
    """
    yield from meta_differences(a.meta, b.meta)
    if a.meta.n_images != b.meta.n_images:
        return
    pairs = zip(a.images(workers=workers), b.images(workers=workers), strict=True)
    for (i, left), (_, right) in pairs:
        for layer in LAYERS:
            where = f"{layer} of image {i}"
            difference = _plane_difference(where, left.layer(layer), right.layer(layer), rtol, atol)
            if difference is not None:
                yield difference
