"""Pictures of image planes: stretched to grey, laid side by side, as PNG or in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BACKGROUND", "contact_sheet", "grey", "png", "terminal"]

BACKGROUND = 48
"""Grey of gaps and of pixels without a finite value: neither black nor white, so that both stay visible."""


def grey(plane: NDArray[Any], limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Return a plane as 8-bit grey, linear between limits.

    Parameters
    ----------
    plane
        Shape (y, x).
    limits
        Values that become black and white; by default those of the zscale algorithm of IRAF
        (`astropy.visualization.ZScaleInterval`), which follow the sky and not the brightest star.

    Returns
    -------
    ndarray
        Shape (y, x), uint8; `BACKGROUND` where the value is not finite.
    """
    values = np.asarray(plane, dtype=np.float64)
    finite = np.isfinite(values)
    low, high = limits if limits is not None else zscale(values)
    span = high - low if high > low else 1.0
    scaled = np.clip((np.where(finite, values, low) - low) / span, 0, 1)
    return np.where(finite, np.rint(scaled * 255), BACKGROUND).astype(np.uint8)


def zscale(values: NDArray[Any]) -> tuple[float, float]:
    """Return the zscale limits of the finite values; (0, 1) where there is none."""
    from astropy.visualization import ZScaleInterval

    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = ZScaleInterval().get_limits(finite)
    return float(low), float(high)


def contact_sheet(
    planes: Sequence[NDArray[Any]],
    *,
    columns: int | None = None,
    zoom: int = 1,
    gap: int = 2,
    limits: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Return planes side by side in one grey picture, first row of each plane at the bottom as on the sky.

    Parameters
    ----------
    planes
        Arrays of shape (y, x), of any sizes.
    columns
        Planes in a row; all by default.
    zoom
        Screen pixels for a pixel, in each direction.
    gap
        Screen pixels between planes.
    limits
        As for `grey`; by default one stretch for all planes, so that they can be compared.

    Returns
    -------
    ndarray
        Shape (y, x), uint8.
    """
    if not planes:
        raise ValueError("a contact sheet needs at least one plane")
    if limits is None:
        limits = zscale(np.concatenate([np.asarray(plane, dtype=np.float64).ravel() for plane in planes]))
    columns = len(planes) if columns is None else min(columns, len(planes))
    rows = -(-len(planes) // columns)
    height = max(plane.shape[0] for plane in planes) * zoom
    width = max(plane.shape[1] for plane in planes) * zoom
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), BACKGROUND, dtype=np.uint8)
    for k, plane in enumerate(planes):
        tile = np.repeat(np.repeat(grey(plane, limits)[::-1], zoom, axis=0), zoom, axis=1)
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a grey picture, shape (y, x), as a PNG file."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))


_FIRST_GREY, _N_GREYS = 232, 24  # of the 256 colours of a terminal


def terminal(picture: NDArray[np.uint8], *, max_width: int = 120) -> str:
    """Return a grey picture as lines of half blocks in the 256 colours of a terminal.

    Parameters
    ----------
    picture
        Shape (y, x). Made narrower by taking every n-th pixel where it is wider than ``max_width``.
    max_width
        Characters in a line.
    """
    step = max(1, -(-picture.shape[1] // max_width))
    small = picture[::step, ::step]
    if small.shape[0] % 2:
        small = np.vstack([small, np.full((1, small.shape[1]), BACKGROUND, dtype=np.uint8)])
    shades = small.astype(np.int64) * (_N_GREYS - 1) // 255 + _FIRST_GREY
    # The upper half block shows the foreground colour above the background colour: two pixels a character.
    lines = (
        "".join(f"\x1b[38;5;{upper};48;5;{lower}m\u2580" for upper, lower in zip(above, below, strict=True)) + "\x1b[0m"
        for above, below in zip(shades[::2].tolist(), shades[1::2].tolist(), strict=True)
    )
    return "\n".join(lines)
