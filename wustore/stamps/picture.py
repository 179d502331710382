"""Pictures of image planes: stretched to grey, masked pixels in colour, laid side by side with labels; as PNG or text.

The first row of a plane is at the bottom, as on the sky.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import FormatError, UsageError

__all__ = [
    "BACKGROUND",
    "EMPTY",
    "HEIGHT",
    "MASKED",
    "STEP",
    "STRETCHES",
    "Marks",
    "Tile",
    "coloured",
    "contact_sheet",
    "data_url",
    "drawn",
    "grey",
    "labelled_sheet",
    "limits_of",
    "marks_of",
    "png",
    "shrunk",
    "terminal",
    "zscale",
]

# --- letters ----------------------------------------------------------------------------------------------
# Printable ASCII in 5 x 7 pixels, so that pictures need no font of the system.

HEIGHT, STEP = 7, 6
"""Of a letter [pixel], and from one letter to the next."""

_FIRST, _LAST = " ", "~"

_COLUMNS = (
    "000000000000005f00000007000700147f147f14242a7f2a12231308646236495522500005030000001c2241000041221c00"
    "082a1c2a0808083e080800503000000808080808006060000020100804023e5149453e00427f400042615149462141454b31"
    "1814127f1027454545393c4a49493001710905033649494936064949291e0036360000005636000008142241001414141414"
    "00412214080201510906324979413e7e1111117e7f494949363e414141227f4141221c7f494949417f090909013e4149497a"
    "7f0808087f00417f41002040413f017f081422417f404040407f020c027f7f0408107f3e4141413e7f090909063e4151215e"
    "7f09192946464949493101017f01013f4040403f1f2040201f3f4038403f631408146307087008076151494543007f414100"
    "02040810200041417f0004020102044040404040000102040020545454787f484444383844444420384444487f3854545418"
    "087e0901020c5252523e7f0804047800447d40002040443d007f1028440000417f40007c041804787c080404783844444438"
    "7c14141408081414187c7c080404084854545420043f4440203c4040207c1c2040201c3c4030403c44281028440c5050503c"
    "4464544c44000836410000007f000000413608001008081008"
)
"""Five columns a letter, in the order of ASCII, as bytes whose lowest bit is the upper pixel."""

_BITS = np.unpackbits(np.frombuffer(bytes.fromhex(_COLUMNS), np.uint8).reshape(-1, 5, 1), axis=2, bitorder="little")


def drawn(text: str) -> NDArray[np.bool_]:
    """Return a line of text as pixels, shape (7, 6 for each letter); what is not ASCII is drawn as a question mark."""
    codes = [ord(letter if _FIRST <= letter <= _LAST else "?") - ord(_FIRST) for letter in text]
    pixels = np.zeros((len(codes), STEP, HEIGHT), bool)
    pixels[:, : STEP - 1] = _BITS[codes, :, :HEIGHT]
    return pixels.reshape(-1, HEIGHT).T


# --- colours ----------------------------------------------------------------------------------------------

BACKGROUND = 48
"""Grey of gaps and of pixels without a finite value: neither black nor white, so that both stay visible."""

MASKED = (205, 40, 95)
"""Colour (red, green, blue) of masked pixels: no grey."""

EMPTY = (28, 44, 92)
"""Colour of pixels that are not masked and have no finite value."""

_INK, _MARK = (230, 230, 230), (255, 214, 64)
"""Colours of text, and of compass and scale bar."""

STRETCHES = ("zscale", "asinh")

_SOFTENING = 10.0
"""How far asinh bends: values are linear below a tenth of the range."""

Limits = tuple[float, float]


# --- stretching -------------------------------------------------------------------------------------------


def zscale(values: NDArray[Any]) -> Limits:
    """Return the zscale limits of the finite values; (0, 1) without any."""
    from astropy.visualization import ZScaleInterval

    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = ZScaleInterval().get_limits(finite)
    return float(low), float(high)


def limits_of(values: NDArray[Any], stretch: str = "zscale") -> Limits:
    """Return the values that become black and white.

    Parameters
    ----------
    stretch
        ``zscale``: the limits of IRAF's algorithm, which follow the sky and not the brightest star. ``asinh``: from
        the lower of these up to the value below which 99.9 % of the pixels are.

    Raises
    ------
    UsageError
        For an unknown stretch.
    """
    if stretch not in STRETCHES:
        raise UsageError("unknown stretch", expected=", ".join(STRETCHES), found=stretch)
    low, high = zscale(values)
    if stretch == "zscale":
        return low, high
    finite = np.asarray(values)[np.isfinite(values)]
    return low, max(float(np.percentile(finite, 99.9)) if finite.size else 1.0, high)


def _scaled(values: NDArray[Any], limits: Limits, stretch: str) -> NDArray[np.float64]:
    low, high = limits
    span = high - low if high > low else 1.0
    scaled: NDArray[np.float64] = np.clip((values.astype(np.float64) - low) / span, 0, 1)
    return np.arcsinh(scaled * _SOFTENING) / math.asinh(_SOFTENING) if stretch == "asinh" else scaled


def grey(plane: NDArray[Any], limits: Limits | None = None, stretch: str = "zscale") -> NDArray[np.uint8]:
    """Return a plane as 8-bit grey.

    Parameters
    ----------
    plane
        Shape (y, x).
    limits
        Values that become black and white; by default those of `limits_of`.
    stretch
        ``zscale`` (linear between the limits) or ``asinh``.

    Returns
    -------
    ndarray
        Shape (y, x), uint8; `BACKGROUND` where the value is not finite.
    """
    values = np.asarray(plane)
    finite = np.isfinite(values)
    limits = limits_of(values, stretch) if limits is None else limits
    shades = np.rint(_scaled(np.where(finite, values, limits[0]), limits, stretch) * 255)
    return np.where(finite, shades, BACKGROUND).astype(np.uint8)


def coloured(
    plane: NDArray[Any],
    masked: NDArray[Any] | None = None,
    limits: Limits | None = None,
    stretch: str = "zscale",
) -> NDArray[np.uint8]:
    """Return a plane as a colour picture, its first row at the bottom.

    Parameters
    ----------
    plane
        Shape (y, x).
    masked
        How much of each pixel is masked, 0 to 1 (or booleans); shown by `MASKED`.

    Returns
    -------
    ndarray
        Shape (y, x, 3), uint8; grey, but for masked pixels and those without a finite value.
    """
    picture = np.repeat(grey(plane, limits, stretch)[:, :, None], 3, axis=2)
    picture[~np.isfinite(plane)] = EMPTY
    if masked is not None:
        # The root keeps a bad column visible where eight columns are shown as one.
        part = np.sqrt(np.asarray(masked, np.float64))[:, :, None]
        picture = np.rint(picture * (1 - part) + np.array(MASKED) * part).astype(np.uint8)
    return picture[::-1]


def shrunk(plane: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Return the means of blocks of ``factor`` x ``factor`` pixels, of their finite values; NaN without any.

    Blocks at the last row and column may be smaller.
    """
    if factor == 1:
        return np.asarray(plane, np.float32)
    values = np.asarray(plane)
    finite = np.isfinite(values)
    starts = [np.arange(0, size, factor) for size in values.shape]

    def sums(array: NDArray[Any]) -> NDArray[np.float64]:
        rows = np.add.reduceat(array, starts[0], axis=0, dtype=np.float64)
        return np.asarray(np.add.reduceat(rows, starts[1], axis=1))

    count = sums(finite)
    total = sums(values if finite.all() else np.where(finite, values, values.dtype.type(0)))
    mean: NDArray[np.float32] = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
    return mean


# --- sheets -----------------------------------------------------------------------------------------------


def contact_sheet(
    planes: Sequence[NDArray[Any]],
    *,
    columns: int | None = None,
    zoom: int = 1,
    gap: int = 2,
    limits: Limits | None = None,
) -> NDArray[np.uint8]:
    """Return planes side by side in one grey picture, without labels.

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
        tile = _enlarged(grey(plane, limits)[::-1], zoom)
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _enlarged(picture: NDArray[np.uint8], zoom: int) -> NDArray[np.uint8]:
    return np.repeat(np.repeat(picture, zoom, axis=0), zoom, axis=1)


@dataclass(frozen=True, eq=False)
class Marks:
    """Where north and east are in an image, and how large a pixel is.

    Attributes
    ----------
    north, east
        Unit vectors (x, y) in pixels.
    scale
        Of a pixel [arcsec].
    """

    north: tuple[float, float]
    east: tuple[float, float]
    scale: float


def marks_of(text: str | None, x: float, y: float) -> Marks | None:
    """Return the marks for a position in an image; None if it has no WCS of the sky.

    Parameters
    ----------
    x, y
        Position [pixel, from 0].
    """
    from astropy import units
    from astropy.wcs import NoConvergence

    from wustore.format.wcs import text_to_wcs

    if text is None:
        return None
    step = 1 * units.arcsec
    try:
        wcs = text_to_wcs(text)
        here = wcs.pixel_to_world(x, y).icrs
        vectors = []
        for angle in (0, 90):
            there = here.directional_offset_by(angle * units.deg, step)
            to_x, to_y = wcs.world_to_pixel(there)
            vectors.append((float(to_x) - x, float(to_y) - y))
    except (AttributeError, TypeError, ValueError, FormatError, NoConvergence):
        return None
    lengths = [math.hypot(*vector) for vector in vectors]
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        return None
    north, east = ((v[0] / length, v[1] / length) for v, length in zip(vectors, lengths, strict=True))
    return Marks(north, east, 2 / sum(lengths))


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture in a sheet with text around it.

    Attributes
    ----------
    picture
        Colours, shape (y, x, 3).
    above, below
        Lines of text.
    marks
        Compass and scale bar to draw into it.
    zoom
        Screen pixels for a pixel of the image; below 1 if several pixels were taken together.
    """

    picture: NDArray[np.uint8]
    above: Sequence[str] = ()
    below: Sequence[str] = ()
    marks: Marks | None = None
    zoom: float = 1.0


_GAP, _LINE = 8, HEIGHT + 3


def labelled_sheet(
    tiles: Sequence[Tile], *, columns: int | None = None, title: str = "", legend: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Return pictures with labels on one page.

    Parameters
    ----------
    columns
        Tiles in a row; by default as many as make the page about as wide as high.
    legend
        Lines of text at the end.

    Returns
    -------
    ndarray
        Shape (y, x, 3), uint8.
    """
    if not tiles:
        raise UsageError("there is nothing to show", expected="at least 1 picture", found=0)
    n_above, n_below = max(len(tile.above) for tile in tiles), max(len(tile.below) for tile in tiles)
    width = max(tile.picture.shape[1] for tile in tiles)
    width = max(width, STEP * max((len(line) for tile in tiles for line in (*tile.above, *tile.below)), default=0))
    height = max(tile.picture.shape[0] for tile in tiles) + (n_above + n_below) * _LINE
    if columns is None:
        columns = max(round(math.sqrt(len(tiles) * height / width)), 1)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    head = 2 * _LINE if title else 0
    page_width = max(columns * (width + _GAP) + _GAP, STEP * max(map(len, (title, *legend))) + 2 * _GAP)
    page = np.full(
        (head + rows * (height + _GAP) + _GAP + len(legend) * _LINE + (_GAP if legend else 0), page_width, 3),
        BACKGROUND // 2,
        np.uint8,
    )
    write_text(page, _GAP, _GAP, title)
    for k, tile in enumerate(tiles):
        top, left = head + _GAP + k // columns * (height + _GAP), _GAP + k % columns * (width + _GAP)
        for n, line in enumerate(tile.above):
            write_text(page, top + n * _LINE, left, line)
        top += n_above * _LINE
        shown = tile.picture if tile.marks is None else tile.picture.copy()
        if tile.marks is not None:
            draw_marks(shown, tile.marks, tile.zoom)
        page[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
        for n, line in enumerate(tile.below):
            write_text(page, top + shown.shape[0] + 2 + n * _LINE, left, line)
    for n, line in enumerate(legend):
        write_text(page, page.shape[0] - _GAP - (len(legend) - n) * _LINE, _GAP, line)
    return page


def write_text(
    page: NDArray[np.uint8], top: int, left: int, text: str, colour: tuple[int, int, int] = _INK, zoom: int = 1
) -> None:
    """Write a line of text into a colour picture; what does not fit is cut off."""
    letters = _enlarged(drawn(text).astype(np.uint8), zoom).astype(bool)
    part = page[max(top, 0) : top + letters.shape[0], max(left, 0) : left + letters.shape[1]]
    part[letters[: part.shape[0], : part.shape[1]]] = colour


def draw_marks(picture: NDArray[np.uint8], marks: Marks, zoom: float) -> None:
    """Draw compass and scale bar into a colour picture, first row at the bottom; none if it is too small."""
    height, width = picture.shape[:2]
    arm = min(height, width) // 9
    if arm < 6:
        return
    x0, y0 = width - arm - 2 * STEP, arm + 2 * STEP
    for name, (dx, dy) in (("N", marks.north), ("E", marks.east)):
        _draw_line(picture, (x0, y0), (x0 + dx * arm, y0 - dy * arm))
        at_x, at_y = x0 + dx * (arm + STEP), y0 - dy * (arm + STEP)
        write_text(picture, round(at_y) - HEIGHT // 2, round(at_x) - STEP // 2, name, _MARK)
    arcsec, pixels = scale_bar(marks.scale, width / zoom / 3)
    length = max(round(pixels * zoom), 1)
    base = height - 4
    for y in (base, base - 1):
        _draw_line(picture, (4, y), (4 + length, y))
    write_text(picture, base - HEIGHT - 3, 4, angle_text(arcsec), _MARK)


def scale_bar(scale: float, longest: float) -> tuple[float, float]:
    """Return a round length for a scale bar [arcsec], and the same in pixels, at most ``longest``."""
    most = scale * longest
    exponent = math.floor(math.log10(most))
    steps = [digit * 10.0**power for power in (exponent - 1, exponent) for digit in (1, 2, 5)]
    arcsec = max(step for step in steps if step <= most)
    for unit in (3600.0, 60.0):
        nice = [digit * unit for digit in (1, 2, 5, 10, 20, 30) if digit * unit <= most]
        if nice:
            arcsec = max(nice)
            break
    return arcsec, arcsec / scale


def angle_text(arcsec: float) -> str:
    """Return an angle in degrees, minutes or seconds of arc."""
    for unit, sign in ((3600, " deg"), (60, "'")):
        if arcsec >= unit:
            return f"{arcsec / unit:g}{sign}"
    return f'{arcsec:g}"'


def _draw_line(picture: NDArray[np.uint8], start: tuple[float, float], stop: tuple[float, float]) -> None:
    n = int(max(abs(stop[0] - start[0]), abs(stop[1] - start[1]))) + 1
    x, y = (np.rint(np.linspace(a, b, n)).astype(int) for a, b in zip(start, stop, strict=True))
    there = (x >= 0) & (y >= 0) & (x < picture.shape[1]) & (y < picture.shape[0])
    picture[y[there], x[there]] = _MARK


# --- output -----------------------------------------------------------------------------------------------


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture, grey of shape (y, x) or in colour (y, x, 3), as a PNG file."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))


def data_url(picture: NDArray[np.uint8]) -> str:
    """Return a picture as the address of an image in an HTML page."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


_FIRST_GREY, _N_GREYS = 232, 24  # of the 256 colours of a terminal


def terminal(picture: NDArray[np.uint8], *, max_width: int = 120) -> str:
    """Return a grey picture as lines of half blocks in the 256 colours of a terminal.

    Parameters
    ----------
    picture
        Shape (y, x). If it is wider than ``max_width``, every n-th pixel is taken.
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
