"""What differs between two WorkUnits, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.model.compare import Difference, _short, meta_differences, same_bits
from wustore.model.meta import LAYERS

__all__ = ["LayerLoss", "differences", "losses"]


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


@dataclass(frozen=True)
class LayerLoss:
    """What a layer lost when it was written with options that do not hold its values exactly.

    Attributes
    ----------
    layer
        Its name.
    pixels, changed
        How many pixels it has, and how many of them have another value.
    largest
        The largest absolute difference of finite values.
    lost
        How many finite values are none any more.
    images
        How many images lost the layer as a whole.
    """

    layer: str
    pixels: int
    changed: int
    largest: float
    lost: int
    images: int

    def __str__(self) -> str:
        text = f"{self.layer}: {self.changed} of {self.pixels} pixels changed, by {self.largest:.4g} at most"
        text += f"; {self.lost} lost" if self.lost else ""
        return text + (f"; not kept in {self.images} images" if self.images else "")


def losses(a: Reader, b: Reader, *, workers: int | None = None) -> list[LayerLoss]:
    """Return what each layer of ``b`` lost of ``a``, from which it was written; layers that lost nothing are left out.

    Parameters
    ----------
    a, b
        Open readers of any formats, with the same images.
    """
    counts = {layer: [0, 0, 0.0, 0, 0] for layer in LAYERS}
    pairs = zip(a.images(workers=workers), b.images(workers=workers), strict=True)
    for (_, left), (_, right) in pairs:
        for layer, count in counts.items():
            old, new = left.layer(layer), right.layer(layer)
            if old is None:
                continue
            count[0] += old.size
            if new is None or new.shape != old.shape:
                count[4] += 1
                continue
            with np.errstate(invalid="ignore"):  # signalling NaN
                before, after = old.astype(np.float64), new.astype(np.float64)
            same = (before == after) | (np.isnan(before) & np.isnan(after))
            finite = np.isfinite(before) & np.isfinite(after)
            gaps = np.abs(before[finite & ~same] - after[finite & ~same])
            count[1] += int(np.count_nonzero(~same))
            count[2] = max(count[2], float(gaps.max()) if gaps.size else 0.0)
            count[3] += int(np.count_nonzero(np.isfinite(before) & ~np.isfinite(after)))
    found = [
        LayerLoss(layer, int(count[0]), int(count[1]), float(count[2]), int(count[3]), int(count[4]))
        for layer, count in counts.items()
    ]
    return [loss for loss in found if loss.changed or loss.images]
