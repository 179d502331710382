"""Figures of images and stamps with matplotlib, an optional dependency (extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.errors import MissingDependencyError, UsageError
from wustore.model.kbmod_rules import is_masked
from wustore.stamps.picture import EMPTY, MASKED, limits_of
from wustore.stamps.sky import linked_wcs_or_none

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "label_sky", "new_figure", "plot_image"]


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return an empty figure of a size [inch], with a layout engine of matplotlib or none.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib is not installed", hint="pip install 'wustore[plot]' brings it."
        ) from error
    return Figure(figsize=(width, height), layout=layout)


def draw(axes: Any, plane: NDArray[Any], masked: NDArray[Any] | None, stretch: str = "zscale") -> None:
    """Draw a plane into axes of matplotlib: grey, masked pixels in colour, the first row at the bottom."""
    from matplotlib import colormaps
    from matplotlib.colors import AsinhNorm, Normalize

    low, high = limits_of(plane, stretch)
    norm = AsinhNorm((high - low) / 10 or 1.0, low, high) if stretch == "asinh" else Normalize(low, high)
    colours = colormaps["gray"].with_extremes(bad="#{:02x}{:02x}{:02x}".format(*EMPTY))
    finite = np.where(np.isfinite(plane), plane, np.nan)
    axes.imshow(finite, origin="lower", cmap=colours, norm=norm, interpolation="nearest")
    if masked is not None and masked.any():
        overlay = np.zeros((*masked.shape, 4), np.uint8)
        overlay[masked] = (*MASKED, 255)
        axes.imshow(overlay, origin="lower", interpolation="nearest")


def label_sky(axes: Any, *, visible: bool) -> None:
    """Draw small ticks and labels in RA and Dec at axes of a small picture with a WCS, or none."""
    for coordinate in axes.coords:
        coordinate.set_auto_axislabel(False)
        coordinate.set_ticks_visible(visible)
        coordinate.set_ticklabel_visible(visible)
        coordinate.set_ticks(number=2)
        coordinate.set_ticklabel(size=5, exclude_overlapping=True)


def plot_image(reader: Reader, i: int = 0, layer: str = "science", stretch: str = "zscale") -> Figure:
    """Plot an image, with coordinates of the sky if it has a WCS; parameters as of `wustore.WorkUnit.plot`."""
    from wustore.format.wcs import text_to_wcs

    meta = reader.meta
    if not 0 <= i < meta.n_images:
        raise UsageError("there is no such image", path=reader.path, expected=f"0 to {meta.n_images - 1}", found=i)
    if layer not in {"science", "variance"} or not meta.has_layer(layer):
        raise UsageError("not a layer to plot", path=reader.path, expected="science or variance", found=layer)
    figure = new_figure(7, 6)
    text = linked_wcs_or_none(meta, i)
    axes = figure.add_subplot(projection=None if text is None else text_to_wcs(text))
    image = reader.image(i, (layer, "mask"))
    plane = image.layer(layer)
    assert plane is not None
    draw(axes, plane, None if image.mask is None else is_masked(image.mask), stretch)
    axes.set_xlabel("x [pixel]" if text is None else "RA")
    axes.set_ylabel("y [pixel]" if text is None else "Dec")
    axes.set_title(f"image {i}, MJD {meta.times[i]:.5f}, {layer}")
    return figure
