"""A smaller WorkUnit out of a larger one: some of its images, a window of its pixels, as a lazy view.

A view is a `Reader`: it reads nothing until it is asked, reads only what is asked, and streams into any
backend with `wustore.ops.copy.copy`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Index, Reader
from wustore.backends.chunk_grid import Grid
from wustore.errors import FormatError, UsageError
from wustore.model.casting import cast_plane
from wustore.model.meta import LAYERS, PIXEL_LAYERS, Column, Image, Meta
from wustore.model.select import TimeRange, chosen_images, consecutive_runs, selected_meta
from wustore.model.units import in_unit, whole_pixels
from wustore.stamps.sky import shared_wcs, text_sky_to_pixel
from wustore.stamps.trajectories import nearest_pixel

__all__ = ["View", "cutout", "select", "shifted_wcs"]

_CARD = 80
_MOVED_CARD = re.compile(r"(?P<key>(?:CRPIX|NAXIS|DIMM)(?P<axis>[12])[A-Z]?) *= *(?P<value>[^/ ]+) *(?P<comment>/.*)?")
_TABLES = ("cpdis1", "cpdis2", "det2im1", "det2im2")
_ABSOLUTE = re.compile(r"(?:CPDIS|CQDIS|DP|DQ)[0-9]")
"""Distortions whose pixel coordinates do not count from CRPIX, in cards (those in our own tables are moved)."""


def shifted_wcs(text: str, x: int, y: int, width: int, height: int) -> str:
    """Return the header text of a WCS for a window: the same sky, pixels counted from the window's corner.

    CRPIX moves (also that of alternates), NAXIS and DIMM become the window's size; every other card stays as it
    is, character for character. SIP, PV, CD and PC count from CRPIX and need no change (FITS standard 4.0,
    section 8.2; Shupe et al. 2005).

    Parameters
    ----------
    text
        Cards of 80 characters.
    x, y
        Corner of the window [pixel, from 0].
    width, height
        Size of the window [pixel].

    Raises
    ------
    FormatError
        If CRPIX is no number, or a distortion counts pixels in a way that cannot be moved.
    """
    cards = [text[k : k + _CARD] for k in range(0, len(text), _CARD)]
    seen: set[str] = set()
    for k, card in enumerate(cards):
        found = _MOVED_CARD.fullmatch(card.rstrip())
        if found is None:
            if _ABSOLUTE.match(card) and "WUCPDIS" not in card:
                raise FormatError("a WCS has a distortion that cannot be moved to a window", where=card.rstrip())
            continue
        key, first_axis = found["key"], found["axis"] == "1"
        seen.add(key)
        if key.startswith("CRPIX"):
            try:
                value = repr(float(found["value"].upper().replace("D", "E")) - (x if first_axis else y)).upper()
            except ValueError:
                raise FormatError("CRPIX is not a number", where=card.rstrip()) from None
        else:
            value = str(width if first_axis else height)
        comment = found["comment"]
        moved = f"{key:8}= {value:>20}" + (f" {comment}" if comment else "")
        cards[k] = moved[:_CARD].ljust(_CARD)
    for key, corner in (("CRPIX1", x), ("CRPIX2", y)):  # absent means 0
        if key not in seen and corner:
            cards.append(f"{key:8}= {float(-corner)!r:>20}".ljust(_CARD))
    shifted = "".join(cards)
    return _with_moved_tables(shifted, x, y) if "WUCPDIS" in text or "WUD2IM" in text else shifted


def _with_moved_tables(text: str, x: int, y: int) -> str:
    """Move distortion tables, which count pixels of the image from its corner."""
    from wustore.format.wcs import text_to_wcs, wcs_to_text

    wcs = text_to_wcs(text)
    for name in _TABLES:
        table = getattr(wcs, name)
        if table is not None:
            table.crval = (table.crval[0] - x, table.crval[1] - y)
    return wcs_to_text(wcs)


def _moved_column(column: Column, x: int, y: int, width: int, height: int) -> Column:
    values = column.values.copy()
    for k, text in enumerate(column.values.tolist()):
        if isinstance(text, str):
            values[k] = shifted_wcs(text, x, y, width, height)
    return replace(column, values=values)


def _windowed_meta(meta: Meta, rows: slice, columns: slice, path: str) -> Meta:
    """Return the metadata of a window of every image."""
    shape = np.minimum(meta.image_shape, (rows.stop, columns.stop)) - (rows.start, columns.start)
    outside = np.flatnonzero((shape <= 0).any(axis=1))
    if outside.size:
        i = int(outside[0])
        raise UsageError(
            "an image has no pixel in this window",
            path=path,
            where=f"image {i}",
            expected=f"more than {rows.start} rows and {columns.start} columns",
            found=f"shape {meta.shape_of('science', i)}",
            hint="Move the window, or select other images.",
        )
    x, y = columns.start, rows.start
    window = (x, y, columns.stop - x, rows.stop - y)
    table = meta.constituents
    if not meta.reprojected:
        # Of a reprojected stack these describe the pixels of the original images, which no window changes.
        moved = tuple(_moved_column(c, *window) if c.kind == "wcs" else c for c in table.columns)
        table = replace(table, columns=moved)
    return replace(
        meta,
        image_shape=shape.astype(np.int32),
        wcs=None if meta.wcs is None else shifted_wcs(meta.wcs, *window),
        constituents=table,
        additions={},
    )


class View(Reader):
    """Some of the images and a window of the pixels of another reader.

    The FITS reconstruction data belong to the whole and are not there. Closing a view leaves the other reader open.

    Parameters
    ----------
    images
        Indices of its images, in the order wanted; all by default.
    rows, columns
        The window, as slices with bounds and step 1 within the padded shape; everything by default. Constituent
        WCSs move with it if the stack is not reprojected, the global WCS always.
    meta
        Metadata for the chosen images instead of the source's, before the window is cut out; shapes and dtypes
        must be those of the images.

    Raises
    ------
    UsageError
        If no image is chosen, or the window is empty or not within the frame.
    """

    def __init__(
        self,
        source: Reader,
        images: Sequence[int] | NDArray[Any] | None = None,
        rows: slice | None = None,
        columns: slice | None = None,
        meta: Meta | None = None,
    ) -> None:
        self._source = source
        self._images, self._given = images, meta
        self._chosen = chosen_images(source.meta, images=images)
        self.format = source.format
        self.path = str(source.path)
        if images is not None:
            if not self._chosen.size:
                raise UsageError(
                    "no image is chosen", path=self.path, hint="Check times and filters: wustore images lists them."
                )
            self.path += f" (images {_names_of(self._chosen)})"
        if meta is None:
            meta = source.meta if images is None else selected_meta(source.meta, self._chosen)
        _, height, width = meta.layer_shape("science")
        self._rows = _checked(rows, height, "rows", self.path)
        self._columns = _checked(columns, width, "columns", self.path)
        self._is_window = (self._rows, self._columns) != (slice(0, height), slice(0, width))
        if self._is_window:
            self.path += f" (rows {self._rows.start}-{self._rows.stop - 1}, columns {self._columns.start}-"
            self.path += f"{self._columns.stop - 1})"
            meta = _windowed_meta(meta, self._rows, self._columns, self.path)
        self._meta = meta

    @property
    def meta(self) -> Meta:
        """The metadata of what the view shows."""
        return self._meta

    def _in_source(self, layer: str, index: Index) -> list[tuple[slice, Index]]:
        """Return the boxes of the source that make up a box of the view, and the place of each on its time axis."""
        _, rows, columns = index
        if layer in PIXEL_LAYERS:
            y, x = self._rows.start, self._columns.start
            rows, columns = slice(rows.start + y, rows.stop + y), slice(columns.start + x, columns.stop + x)
        wanted = self._chosen[index[0]]
        return [
            (slice(a, b), (slice(int(wanted[a]), int(wanted[b - 1]) + 1), rows, columns))
            for a, b in consecutive_runs(wanted)
        ]

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box; see `wustore.backends.base.Reader.read`."""
        dtype = self._meta.layer_dtype(layer)
        if out is None:
            out = np.empty([part.stop - part.start for part in index], dtype)
        for place, box in self._in_source(layer, index):
            if self._source.meta.layer_dtype(layer) == dtype:
                self._source.read(layer, box, out[place])
            else:
                out[place] = cast_plane(self._source.read(layer, box), dtype)
        return out

    def read_boxes(
        self, layer: str, boxes: Sequence[Index], out: Sequence[NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        """Read several boxes; see `wustore.backends.base.Reader.read_boxes`."""
        dtype = self._meta.layer_dtype(layer)
        arrays = [np.empty([part.stop - part.start for part in box], dtype) for box in boxes] if out is None else out
        targets, inner = [], []
        for box, array in zip(boxes, arrays, strict=True):
            for place, index in self._in_source(layer, box):
                targets.append(array[place])
                inner.append(index)
        if self._source.meta.layer_dtype(layer) == dtype:
            self._source.read_boxes(layer, inner, targets)
        else:
            for target, values in zip(targets, self._source.read_boxes(layer, inner), strict=True):
                target[...] = cast_plane(values, dtype)
        return list(arrays)

    def fills_chunks(self, layer: str) -> bool:
        """Return whether an array can be of whole chunks; see `wustore.backends.base.Reader.fills_chunks`."""
        same = self._source.meta.layer_dtype(layer) == self._meta.layer_dtype(layer)
        return same and not self._is_window and self._source.fills_chunks(layer)

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read one image, without FITS reconstruction data; see `wustore.backends.base.Reader.image`."""
        if not self._is_window:
            return self._source.image(int(self._chosen[i]), layers)
        planes: dict[str, NDArray[Any]] = {}
        for layer in LAYERS:
            dtype = self._meta.dtypes[layer][i]
            if layer not in layers or dtype is None:
                continue
            height, width = self._meta.shape_of(layer, i)
            box = self.read(layer, (slice(i, i + 1), slice(0, height), slice(0, width)))
            planes[layer] = cast_plane(box[0], dtype)
        return Image.of(planes)

    def images(
        self,
        indices: Iterable[int] | None = None,
        layers: Sequence[str] = LAYERS,
        *,
        workers: int | None = None,
    ) -> Iterator[tuple[int, Image]]:
        """Yield (i, image); see `wustore.backends.base.Reader.images`."""
        if self._is_window:
            yield from super().images(indices, layers, workers=workers)
            return
        wanted = list(range(len(self._chosen)) if indices is None else indices)
        chosen = self._chosen[wanted].tolist()
        for k, (_, image) in zip(wanted, self._source.images(chosen, layers, workers=workers), strict=True):
            yield k, image

    def images_at_once(self, n_images: int) -> int | None:
        """Return what the source says."""
        return self._source.images_at_once(n_images)

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the shape of the source's chunks, those at the edges of a window being cut."""
        sizes = zip(self._source.chunks(layer), self._meta.layer_shape(layer), strict=True)
        time, y, x = (max(min(chunk, size), 1) for chunk, size in sizes)
        return time, y, x

    def grid(self, layer: str) -> Grid:
        """Return where the chunks of the source lie in the view."""
        grid = self._source.grid(layer)
        rows, columns = grid.rows, grid.columns
        if layer in PIXEL_LAYERS:
            _, height, width = self._meta.layer_shape(layer)
            rows = np.unique((rows - self._rows.start).clip(0, height))
            columns = np.unique((columns - self._columns.start).clip(0, width))
        return Grid(grid.slabs[self._chosen], rows, columns)

    def checksums(self) -> NDArray[np.uint32] | None:
        """Return the checksums of the chosen images, or None for a window, whose pixels have none."""
        sums = None if self._is_window else self._source.checksums()
        return None if sums is None else sums[self._chosen]

    def state(self) -> str:
        """Return the state of the source."""
        return self._source.state()

    def check_state(self) -> None:
        """Check that the source is still in this state; see `wustore.backends.base.Reader.check_state`."""
        self._source.check_state()

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self._source, self._images, self._rows, self._columns, self._given)


def _checked(part: slice | None, size: int, axis: str, path: str) -> slice:
    if part is None:
        return slice(0, size)
    start, stop, step = part.indices(size)
    if step != 1 or stop <= start:
        raise UsageError(
            "the window has no pixel in the frame",
            path=path,
            where=axis,
            expected=f"within 0 to {size - 1}",
            found=f"{part.start} to {part.stop - 1}" if part.stop else "below 0",
        )
    return slice(start, stop)


def _names_of(chosen: NDArray[np.int64]) -> str:
    """Return what a message calls these images; no two selections have the same name."""
    runs = [(int(chosen[a]), int(chosen[b - 1])) for a, b in consecutive_runs(chosen)]
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
    if len(text) <= 60:
        return text
    return f"{text[:48]}..., {len(chosen)} in all, {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def select(
    reader: Reader,
    times: TimeRange | None = None,
    images: Sequence[int] | NDArray[Any] | None = None,
    filters: Sequence[str] | None = None,
) -> View:
    """Return the view of the images that fulfil every condition; parameters as of `wustore.WorkUnit.select`.

    Constituents that no chosen image is made of are left out, and links renumbered. The reader must stay open.
    """
    chosen = chosen_images(reader.meta, times, images, filters)
    if len(np.unique(chosen)) != len(chosen):
        raise UsageError("an image is chosen twice", path=str(reader.path), found=_names_of(chosen))
    return View(reader, chosen)


def cutout(
    reader: Reader,
    x: Any = None,
    y: Any = None,
    width: Any = None,
    height: Any = None,
    *,
    ra: Any = None,
    dec: Any = None,
    size: Any = None,
) -> View:
    """Return the view of a window of all images; parameters as of `wustore.WorkUnit.cutout`.

    The window is the same for all images and is cut where the frame ends. Values with a unit (Quantity, or text such as
    ``2arcmin``) are converted; of a ``size`` pixels are counted with the scale at the centre, up to a whole one. The
    reader must stay open.
    """
    x, y, scale = _centre(reader.meta, x, y, ra, dec, on_sky=size is not None)
    width, height = (
        None if value is None else whole_pixels(value, name) for name, value in (("width", width), ("height", height))
    )
    if size is not None:
        if width is not None or height is not None:
            raise UsageError("two sizes of the window", expected="width and height, or size")
        # A thousandth of a pixel is no reason for one more: no scale is that exact.
        arcsec = float(in_unit(size, "arcsec", "size"))
        width = height = max(int(np.ceil(arcsec / scale - 1e-3)), 1) if arcsec > 0 else 0
    if width is None or width < 1 or (height is not None and height < 1):
        raise UsageError("the window has no size", expected="width and height in pixels, or size in arcseconds")
    height = width if height is None else height
    left, top = int(nearest_pixel(x)) - width // 2, int(nearest_pixel(y)) - height // 2
    rows = slice(max(top, 0), max(top + height, 0))
    columns = slice(max(left, 0), max(left + width, 0))
    return View(reader, rows=rows, columns=columns)


def _centre(meta: Meta, x: Any, y: Any, ra: Any, dec: Any, *, on_sky: bool) -> tuple[float, float, float]:
    """Return the centre (x, y) [pixel] and, if it is needed, the scale [arcsec / pixel] there."""
    in_pixels = x is not None and y is not None and ra is None and dec is None
    in_degrees = ra is not None and dec is not None and x is None and y is None
    if not (in_pixels or in_degrees):
        raise UsageError("the centre of the window is not clear", expected="x and y, or ra and dec")
    if in_pixels:
        x, y = (float(in_unit(value, "pix", name)) for name, value in (("x", x), ("y", y)))
        if not on_sky:
            return x, y, 1.0
    text = shared_wcs(
        meta, "one window does not show the same sky in all", "Give the window in pixels, or take stamps."
    )
    if in_degrees:
        found_x, found_y = text_sky_to_pixel(text, ra, dec)
        x, y = float(found_x), float(found_y)
        if not (np.isfinite(x) and np.isfinite(y)):
            raise UsageError("the WCS does not reach this position", found=f"RA {ra}, dec {dec}")
    return x, y, _scale(text, x, y) if on_sky else 1.0


def _scale(text: str, x: float, y: float) -> float:
    """Return the pixel scale at a position [arcsec / pixel]: the square root of a pixel's area."""
    from astropy.coordinates import SkyCoord

    from wustore.format.wcs import text_to_wcs

    corners: SkyCoord = text_to_wcs(text).pixel_to_world([x, x + 1, x], [y, y, y + 1])
    steps = [float(corners[0].separation(corners[k]).arcsec) for k in (1, 2)]
    angle = float((corners[0].position_angle(corners[1]) - corners[0].position_angle(corners[2])).rad)
    return float(np.sqrt(steps[0] * steps[1] * abs(np.sin(angle))))
