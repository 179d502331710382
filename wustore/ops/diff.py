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


def _plane_difference(where: str, a: NDArray[Any] | None, b: NDArray[Any] | None) -> Difference | None:
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
    unequal = np.flatnonzero((bits_a != bits_b).any(axis=1))
    place = np.unravel_index(unequal[0], a.shape)
    spot = ", ".join(str(int(k)) for k in place)
    return Difference(f"{where}, {len(unequal)} pixels, first at (y, x) = ({spot})", _short(a[place]), _short(b[place]))


def differences(a: Reader, b: Reader, *, workers: int | None = None) -> Iterator[Difference]:
    """Yield everything that differs between two stores: metadata first, then layer by layer, bit for bit.

    Parameters
    ----------
    a, b
        Open readers of any formats.
    workers
        Threads that read ahead.
    """
    yield from meta_differences(a.meta, b.meta)
    if a.meta.n_images != b.meta.n_images:
        return
    pairs = zip(a.images(workers=workers), b.images(workers=workers), strict=True)
    for (i, left), (_, right) in pairs:
        for layer in LAYERS:
            difference = _plane_difference(f"{layer} of image {i}", left.layer(layer), right.layer(layer))
            if difference is not None:
                yield difference
