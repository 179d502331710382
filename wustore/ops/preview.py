"""Pictures of a whole store: thumbnails with facts, a labelled contact sheet, a page for the browser in one file."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Progress, Reader
from wustore.errors import UsageError
from wustore.model.kbmod_rules import hide_pixels, is_masked, no_data_of
from wustore.model.meta import PIXEL_LAYERS, Image, Meta
from wustore.model.select import FILTER_COLUMNS, image_column
from wustore.ops.images import iso_date, sky_of
from wustore.stamps import picture
from wustore.stamps.sky import linked_wcs_or_none, pixel_to_sky
from wustore.storage.threads import read_ahead

__all__ = ["image_lines", "limits_by_stretch", "page", "page_text", "sheet", "thumbnails"]

PAGE_BYTES = 18_000_000
"""Size that a page for the browser aims at."""

_SHEET_PIXELS = 24_000_000
"""Largest contact sheet [screen pixels]: 1000 pictures of 128 x 128 with their text."""

_SKY_PIXELS = 1 << 19
"""Enough of them for the median of the sky to 0.2 % of its noise."""

_LEVEL_BYTES = 1.35
"""Of a pixel in 255 levels, compressed and as base64 text."""


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """An image made small.

    Attributes
    ----------
    factor
        Pixels that are one here, in each direction.
    planes
        Science, variance: means of the pixels with data that are not masked; with ``factor`` 1 all values as stored.
        Mask: the part of the pixels that is masked; with ``factor`` 1 the flags as stored. Float, but for flags.
    masked
        Part of the pixels that is masked, 0 to 1.
    """

    i: int
    factor: int
    planes: dict[str, NDArray[Any]]
    masked: NDArray[np.float32]
    lines: tuple[str, ...]


def image_lines(meta: Meta, i: int, filters: Sequence[Any]) -> list[str]:
    """Return what to say about an image that needs no pixels: index and filter, MJD, date."""
    mjd = float(meta.times[i])
    date = iso_date(mjd)
    first = f"image {i}" + (f"  {filters[i]}" if filters[i] is not None else "")
    return [first, f"MJD {mjd:.5f}" if math.isfinite(mjd) else "no time", *([date[:19]] if date else [])]


def _statistics(image: Image) -> list[str]:
    """Return what its pixels say about an image: of a large one, those of every n-th row and column."""
    step = math.isqrt(max(image.science.size // _SKY_PIXELS, 1))
    part = slice(None, None, step), slice(None, None, step)
    median, noise, masked = sky_of(image.science[part], None if image.mask is None else image.mask[part])
    sky = "no data" if median is None else f"sky {median:.4g} +- {noise:.3g}"
    return [sky, f"masked {masked:.1f} %"]


def thumbnails(
    reader: Reader,
    factor: Callable[[tuple[int, int]], int],
    layers: Sequence[str] = PIXEL_LAYERS,
    *,
    progress: Progress | None = None,
) -> Iterator[Thumbnail]:
    """Yield every image made small, reading and shrinking in threads.

    Parameters
    ----------
    factor
        How many pixels become one, from the shape (y, x) of an image.
    layers
        Wanted, of science, variance and mask.
    """
    meta = reader.meta
    filters = image_column(meta, FILTER_COLUMNS)
    wanted = [layer for layer in PIXEL_LAYERS if meta.has_layer(layer) and layer in {*layers, "science", "mask"}]

    def make(i: int) -> Thumbnail:
        image = reader.image(i, wanted)
        step = factor(meta.shape_of("science", i))
        flags = np.zeros(image.science.shape, np.int8) if image.mask is None else image.mask
        masked = is_masked(flags)
        part = picture.shrunk(masked.astype(np.float32), step)
        planes: dict[str, NDArray[Any]] = {}
        for layer in layers:
            plane = image.layer(layer)
            if layer == "mask":
                planes[layer] = flags if step == 1 else part
            elif plane is None or not plane.size:
                planes[layer] = np.full(part.shape, np.nan, np.float32)
            elif step == 1:
                planes[layer] = plane
            else:
                values = plane.astype(np.float64)
                hide_pixels(values, masked, no_data_of(meta))
                planes[layer] = picture.shrunk(values, step)
        return Thumbnail(i, step, planes, part, (*image_lines(meta, i, filters), *_statistics(image)))

    for i, small in read_ahead(make, range(meta.n_images)):
        yield small
        if progress is not None:
            progress(i + 1, meta.n_images)


# --- a contact sheet ---------------------------------------------------------------------------------------


def sheet(
    reader: Reader,
    *,
    stretch: str = "zscale",
    cut: tuple[float, float] | None = None,
    columns: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Return the contact sheet of a store: index, filter, time and statistics with each image, masked pixels in colour.

    Parameters
    ----------
    stretch
        ``zscale`` or ``asinh``; see `wustore.stamps.picture.limits_of`.
    cut
        Values that become black and white in all images, instead of those that suit each image.
    columns
        Images in a row; by default the page is about as wide as high.

    Returns
    -------
    ndarray
        Colours, shape (y, x, 3), uint8.
    """
    _check(reader, stretch)
    meta = reader.meta
    side = int(max(min(256, math.sqrt(_SHEET_PIXELS / meta.n_images) - 40), 64))
    tiles = []
    marks: dict[tuple[str | None, int, int], picture.Marks | None] = {}
    for small in thumbnails(reader, lambda shape: max(-(-max(shape) // side), 1), ("science",), progress=progress):
        science = small.planes["science"].astype(np.float64)
        science[small.masked >= 1] = np.nan
        colours = picture.coloured(science, small.masked, cut or picture.limits_of(science, stretch), stretch)
        zoom = max(128 // max(*colours.shape, 1), 1)
        key = linked_wcs_or_none(meta, small.i), *meta.shape_of("science", small.i)
        if key not in marks:
            marks[key] = picture.marks_of(key[0], (key[2] - 1) / 2, (key[1] - 1) / 2)
        tiles.append(
            picture.Tile(
                colours.repeat(zoom, axis=0).repeat(zoom, axis=1),
                small.lines[:3],
                small.lines[3:],
                marks[key],
                zoom / small.factor,
            )
        )
    scale = f"{cut[0]:g} to {cut[1]:g}" if cut is not None else "each image by its own sky"
    legend = (f"stretch {stretch}, {scale}; masked pixels are red, pixels without a value are blue",)
    return picture.labelled_sheet(tiles, columns=columns, title=_title(reader), legend=legend)


def _title(reader: Reader) -> str:
    meta = reader.meta
    _, height, width = meta.layer_shape("science")
    return f"{reader.path}: {meta.n_images} images of {width} x {height} pixels"


def _check(reader: Reader, stretch: str) -> None:
    if stretch not in picture.STRETCHES:
        raise UsageError("unknown stretch", expected=", ".join(picture.STRETCHES), found=stretch)
    if not reader.meta.n_images:
        raise UsageError("the store has no image", path=reader.path)


# --- a page for the browser --------------------------------------------------------------------------------


def page(
    reader: Reader,
    *,
    stretch: str = "zscale",
    cut: tuple[float, float] | None = None,
    max_bytes: int = PAGE_BYTES,
    progress: Progress | None = None,
) -> str:
    """Return a page for the browser that needs nothing else: images to blink, zoom and read values from.

    A small store is in it with every value as stored. The images of a larger one are made smaller, each pixel the mean
    of a block, and their values are rounded to 255 levels; the page says so.

    Parameters
    ----------
    max_bytes
        Size to aim at [bytes].
    """
    _check(reader, stretch)
    meta = reader.meta
    layers = [layer for layer in PIXEL_LAYERS if meta.has_layer(layer)]
    pixels = int(np.prod(meta.image_shape.astype(np.int64), axis=1).sum())
    exact_bytes = pixels * sum(meta.layer_dtype(layer).itemsize for layer in layers) * 4 / 3
    n_float = sum(layer != "mask" for layer in layers) + 0.1
    share = max_bytes * 0.95 / _LEVEL_BYTES / n_float / max(pixels, 1)
    is_exact = exact_bytes <= max_bytes
    step = 1 if is_exact else max(math.ceil(1 / math.sqrt(share)), 2)
    images = []
    for small in thumbnails(reader, lambda _: step, layers, progress=progress):
        height, width = meta.shape_of("science", small.i)
        images.append(
            {
                "height": height,
                "width": width,
                "factor": small.factor,
                "lines": small.lines,
                "limits": limits_by_stretch(small.planes),
                "planes": {name: _encoded(plane, small.factor) for name, plane in small.planes.items()},
            }
        )
    note = (
        "Every value as stored."
        if is_exact
        else f"Shown are means of {step} x {step} pixels without masked ones, rounded to 255 levels; "
        "`wustore view` shows every pixel."
    )
    approximate = f"mean of {step} x {step} pixels, rounded"
    return page_text(reader, images, "preview", note, stretch=stretch, cut=cut, approximate=approximate)


def limits_by_stretch(planes: dict[str, NDArray[Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the limits of each layer but the mask, for each stretch."""
    return {
        name: {stretch: picture.limits_of(plane, stretch) for stretch in picture.STRETCHES}
        for name, plane in planes.items()
        if name != "mask"
    }


def page_text(
    reader: Reader,
    images: list[dict[str, Any]],
    mode: str,
    note: str,
    *,
    stretch: str = "zscale",
    cut: tuple[float, float] | None = None,
    approximate: str = "",
) -> str:
    """Return the page for images that are described as its script expects them.

    Parameters
    ----------
    images
        Of each: height, width, factor, lines; limits and planes if they are in the page.
    mode
        ``preview`` if the planes are in the page, ``view`` if it asks a server for them.
    approximate
        What to say next to a value that is not exactly one of the store.
    """
    meta = reader.meta
    texts = [linked_wcs_or_none(meta, i) for i in range(meta.n_images)]
    keys = [(text, image["height"], image["width"]) for text, image in zip(texts, images, strict=True)]
    distinct = list(dict.fromkeys(keys))
    nodes = 33 if len(distinct) <= 4 else 9
    numbers = {key: k for k, key in enumerate(distinct)}
    for image, key in zip(images, keys, strict=True):
        image["wcs"] = numbers[key]
    data = {
        "title": _title(reader),
        "mode": mode,
        "note": note,
        "approximate": approximate,
        "stretch": stretch,
        "cut": cut,
        "layers": [layer for layer in PIXEL_LAYERS if meta.has_layer(layer)],
        "colours": {"masked": picture.MASKED, "empty": picture.EMPTY},
        "wcs": [_sky_grid(text, height, width, nodes if mode == "preview" else 0) for text, height, width in distinct],
        "images": images,
    }
    # No text of the store can end the element that holds it.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return files("wustore.ops").joinpath("page.html").read_text("utf-8").replace("/*DATA*/", text)


def _sky_grid(text: str | None, height: int, width: int, nodes: int) -> dict[str, Any] | None:
    """Return compass, scale, and unit vectors towards the sky at ``nodes`` x ``nodes`` points from edge to edge."""
    marks = picture.marks_of(text, (width - 1) / 2, (height - 1) / 2)
    if text is None or marks is None:
        return None
    found: dict[str, Any] = {"marks": {"north": marks.north, "east": marks.east, "scale": marks.scale}}
    if nodes:
        vectors = _unit_vectors(text, np.linspace(-0.5, width - 0.5, nodes), np.linspace(-0.5, height - 0.5, nodes))
        if vectors is not None:
            found |= {"nodes": nodes, "grid": base64.b64encode(vectors.astype("<f8").tobytes()).decode("ascii")}
    return found


def _unit_vectors(text: str, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64] | None:
    grid_x, grid_y = np.meshgrid(x, y)
    ra, dec = (np.radians(angle[..., 0]) for angle in pixel_to_sky((text,), grid_x[..., None], grid_y[..., None]))
    vectors = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)
    return vectors if np.isfinite(vectors).all() else None


def _encoded(plane: NDArray[Any], factor: int) -> dict[str, Any]:
    """Return a plane as the script of the page reads it: compressed numbers, or levels on an asinh scale."""
    height, width = plane.shape
    shape = {"height": height, "width": width, "factor": factor}
    if factor == 1:
        kind = "f4" if plane.dtype == np.float32 or (plane.dtype.kind in "iu" and plane.dtype.itemsize < 4) else "f8"
        return {**shape, "type": kind, "data": _packed(plane.astype("<" + kind))}
    values = plane.astype(np.float64)
    finite = np.isfinite(values)
    good = values[finite]
    if not good.size:
        return {**shape, "type": "levels", "levels": [0, 1, 0, 0], "data": _packed(np.zeros(plane.shape, np.uint8))}
    middle = float(np.median(good))
    scale = float(1.4826 * np.median(np.abs(good - middle))) or float(np.std(good)) or 1.0
    bent = np.arcsinh((np.where(finite, values, middle) - middle) / scale)
    low, high = float(bent.min()), float(bent.max())
    codes = np.rint((bent - low) / (high - low or 1.0) * 254) + 1
    levels = np.where(finite, codes, 0).astype(np.uint8)
    return {**shape, "type": "levels", "levels": [middle, scale, low, high], "data": _packed(levels)}


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode("ascii")
