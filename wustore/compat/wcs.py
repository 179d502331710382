"""WCSes in the forms in which KBMOD stores them, and KBMOD's functions of ``wcs_utils``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from wustore.errors import FormatError

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.io.fits import Header
    from astropy.wcs import WCS
    from numpy.typing import NDArray
from wustore.format.wcs import CardValue, decode_header, decoded_header, header_cards, quiet_astropy, text_to_wcs

__all__ = [
    "append_wcs_to_hdu_header",
    "calc_ecliptic_angle",
    "deserialize_wcs",
    "each_sky_to_pixel",
    "extract_wcs_from_hdu_header",
    "kbmod_header_cards",
    "kbmod_json_to_text",
    "make_fake_wcs",
    "rounding_shift",
    "serialize_wcs",
    "sky_to_pixel",
    "text_to_kbmod_json",
    "wcs_fits_equal",
]


def kbmod_header_cards(wcs: WCS | str) -> list[tuple[str, CardValue]]:
    """Return the (keyword, value) pairs, in order, that KBMOD puts in an HDU's header for a WCS.

    ``DIMM1``, ``DIMM2`` (the size, since astropy refuses to store NAXIS) and the cards of ``to_header()``
    without their comments: SIP is left out and numbers have 14 digits, as in KBMOD's files.
    """
    return list(_kbmod_cards_of_text(wcs)) if isinstance(wcs, str) else _kbmod_cards(wcs)


@lru_cache(maxsize=512)
def _kbmod_cards_of_text(text: str) -> tuple[tuple[str, CardValue], ...]:
    return tuple(_kbmod_cards(decoded_header(text)))


def _kbmod_cards(shaped: WCS) -> list[tuple[str, CardValue]]:
    cards: list[tuple[str, CardValue]] = []
    if shaped.array_shape is not None:
        height, width = shaped.array_shape
        cards += [("DIMM1", int(width)), ("DIMM2", int(height))]
    with quiet_astropy():
        header = shaped.to_header()
    return cards + [(key, header[key]) for key in header]


@lru_cache(maxsize=512)
def rounding_shift(text: str) -> float:
    """Return how far a corner of the image moves [arcsec] because KBMOD's files round the numbers of a WCS.

    Distortions are not looked at; 0 for a WCS that is not of the sky.
    """
    from astropy.io.fits import Header

    exact = decoded_header(text)
    cards = kbmod_header_cards(text)
    if exact.naxis != 2 or _holds(cards, exact):
        return 0.0
    width, height = exact.pixel_shape or (2 * _CORNER, 2 * _CORNER)
    corners = np.array([[x, y] for x in (1, width) for y in (1, height)], dtype=np.float64)
    with quiet_astropy():
        rounded = decode_header(Header(cards).tostring())
        if min(exact.wcs.lng, exact.wcs.lat) < 0:
            return 0.0
        directions = [_directions(wcs, corners) for wcs in (exact, rounded)]
    shift = np.linalg.norm(directions[0] - directions[1], axis=-1)
    return float(np.degrees(np.nanmax(shift, initial=0.0))) * 3600


_CORNER = 2000
"""Where a WCS without a size is looked at [pixel]."""


def _holds(cards: list[tuple[str, CardValue]], wcs: WCS) -> bool:
    """Return whether cards hold the numbers of a plain WCS of two axes; a tenth of the work of decoding them."""
    found = dict(cards)
    pc, cdelt = wcs.wcs.get_pc(), wcs.wcs.get_cdelt()
    for k in range(2):
        numbers = {"CRPIX": (wcs.wcs.crpix[k], 0), "CRVAL": (wcs.wcs.crval[k], 0), "CDELT": (cdelt[k], 1)}
        if any(found.get(f"{name}{k + 1}", default) != value for name, (value, default) in numbers.items()):
            return False
        if any(found.get(f"PC{k + 1}_{j + 1}", int(j == k)) != pc[k, j] for j in range(2)):
            return False
    poles = all(found.get(key) == getattr(wcs.wcs, key.lower()) for key in ("LONPOLE", "LATPOLE"))
    return poles and not any(key.startswith("PV") for key in found)


def _directions(wcs: WCS, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return unit vectors: angles of 360 degrees would hide what is small."""
    world = np.radians(wcs.wcs.p2s(pixels, 1)["world"])
    longitude, latitude = world[:, wcs.wcs.lng], world[:, wcs.wcs.lat]
    return np.stack(
        (np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), axis=-1
    )


def text_to_kbmod_json(wcs: WCS | str | None) -> str:
    """Return the JSON text that KBMOD stores in a ``_WCSSTR_`` column; an empty string for None.

    A WCS without a size gets ``NAXIS1`` and ``NAXIS2`` of 0, which reads back as "no size" (KBMOD itself
    cannot write one).
    """
    if wcs is None:
        return ""
    if isinstance(wcs, str):
        return _json_of_text(wcs)
    return _json_of(wcs)


@lru_cache(maxsize=512)
def _json_of_text(text: str) -> str:
    return _json_of(decoded_header(text))


def _json_of(wcs: WCS) -> str:
    with quiet_astropy():
        header = wcs.to_header(relax=True)
        width, height = (0, 0) if wcs.pixel_shape is None else wcs.pixel_shape[:2]
        header["NAXIS1"], header["NAXIS2"] = int(width), int(height)
        return json.dumps(dict(header))


@lru_cache(maxsize=512)
def kbmod_json_to_text(text: str) -> str | None:
    """Return the header text of a WCS that KBMOD stored as JSON; None for an empty one.

    Raises
    ------
    FormatError
        If it is not a JSON object of header values.
    """
    if text.strip() == "" or text.strip().lower() == "none":
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError("a WCS is not JSON text", found=text[:60]) from error
    if not isinstance(values, dict) or not all(
        value is None or isinstance(value, str | int | float) for value in values.values()
    ):
        raise FormatError("a WCS is not a JSON object of header values", found=text[:60])
    cards = []
    for key, value in values.items():
        if not key.isascii() or (isinstance(value, str) and not (value.isascii() and value.isprintable())):
            raise FormatError("a WCS holds text that a FITS header cannot", where=key[:20], found=str(value)[:40])
        try:
            cards.append(header_cards(key.upper(), value))
        except ValueError as error:
            raise FormatError("a WCS holds what a FITS header cannot", where=key[:20], found=str(error)) from error
    return "".join(cards)


def serialize_wcs(wcs: WCS | None) -> str:
    """Return a WCS as KBMOD's JSON text (`text_to_kbmod_json`)."""
    return text_to_kbmod_json(wcs)


def deserialize_wcs(wcs_str: str) -> WCS | None:
    """Return the WCS of KBMOD's JSON text, None for an empty one."""
    text = kbmod_json_to_text(wcs_str)
    return None if text is None else text_to_wcs(text)


def sky_to_pixel(coords: SkyCoord, wcs: WCS) -> NDArray[np.float64]:
    """Return where sky positions are in the pixels of a WCS.

    Parameters
    ----------
    coords
        Shape S.
    wcs
        With or without distortion.

    Returns
    -------
    ndarray
        (x, y) from 0, shape S + (2,). NaN where the projection does not reach or the distortion cannot be inverted,
        never the place where the inversion gave up.
    """
    from astropy.wcs import NoConvergence
    from astropy.wcs.utils import skycoord_to_pixel

    try:
        with quiet_astropy():
            pixels = np.stack(skycoord_to_pixel(coords.ravel(), wcs), axis=-1, dtype=np.float64)
    except NoConvergence as error:
        pixels = np.array(error.best_solution, dtype=np.float64)
        for failed in (error.divergent, error.slow_conv):
            if failed is not None:
                pixels[failed] = np.nan
    return pixels.reshape(*coords.shape, 2)


def each_sky_to_pixel(coords: SkyCoord, wcses: Sequence[WCS]) -> NDArray[np.float64]:
    """Return the pixel (x, y) of coordinate ``k`` in ``wcses[k]``, shape (n, 2): `sky_to_pixel` once for each WCS."""
    rows: dict[int, list[int]] = {}
    for k, wcs in enumerate(wcses):
        rows.setdefault(id(wcs), []).append(k)
    pixels = np.empty((len(wcses), 2))
    for chosen in rows.values():
        pixels[chosen] = sky_to_pixel(coords[chosen], wcses[chosen[0]])
    return pixels


def extract_wcs_from_hdu_header(header: Header | Mapping[str, Any]) -> WCS | None:
    """Return the WCS of an HDU's header, as KBMOD sees it.

    Parameters
    ----------
    header
        A FITS header; ``DIMM1`` and ``DIMM2`` give the size.

    Returns
    -------
    astropy.wcs.WCS or None
        None if CRVAL1, CRVAL2, CRPIX1 or CRPIX2 is missing, or if it has not two axes.
    """
    from astropy import wcs as astropy_wcs

    if not all(key in header for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")):
        return None
    with quiet_astropy():
        wcs = astropy_wcs.WCS(header)
    if wcs.naxis != 2:
        return None
    if "DIMM1" in header and "DIMM2" in header:
        wcs.array_shape = (header["DIMM2"], header["DIMM1"])
    return wcs


def append_wcs_to_hdu_header(wcs: WCS | Mapping[str, Any] | None, header: Header) -> None:
    """Put a WCS into an HDU's header as KBMOD does; ``wcs`` may be a mapping of keywords, or None for nothing."""
    if wcs is None:
        return
    pairs = list(wcs.items()) if isinstance(wcs, Mapping) else kbmod_header_cards(wcs)
    for key, value in pairs:
        header[key] = value


def wcs_fits_equal(wcs_a: WCS | None, wcs_b: WCS | None) -> bool:
    """Return whether two WCSes give the same FITS cards and have the same size; two None are equal."""
    if wcs_a is None or wcs_b is None:
        return wcs_a is wcs_b
    with quiet_astropy():
        header_a, header_b = wcs_a.to_header(), wcs_b.to_header()
    return (
        dict(header_a) == dict(header_b)
        and wcs_a.array_shape == wcs_b.array_shape
        and wcs_a.pixel_shape == wcs_b.pixel_shape
    )


def make_fake_wcs(
    center_ra: float, center_dec: float, height: int, width: int, deg_per_pixel: float | None = None
) -> WCS:
    """Return a simple TAN WCS for tests, with the very values that KBMOD's function of this name gives.

    Parameters
    ----------
    center_ra, center_dec
        Sky position of the reference pixel [deg].
    height, width
        Size of the image [pixel]. As in KBMOD, CRPIX1 is half the height and CRPIX2 half the width.
    deg_per_pixel
        Scale of both axes [deg]; 1 by default.
    """
    from astropy import wcs as astropy_wcs

    cards: dict[str, Any] = {
        "WCSAXES": 2,
        "CTYPE1": "RA---TAN-SIP",
        "CTYPE2": "DEC--TAN-SIP",
        "CRVAL1": center_ra,
        "CRVAL2": center_dec,
        "CRPIX1": height / 2.0,
        "CRPIX2": width / 2.0,
        "CTYPE1A": "LINEAR  ",
        "CTYPE2A": "LINEAR  ",
        "CUNIT1A": "PIXEL   ",
        "CUNIT2A": "PIXEL   ",
    }
    if deg_per_pixel is not None:
        cards |= {"CDELT1": deg_per_pixel, "CDELT2": deg_per_pixel}
    with quiet_astropy():
        wcs = astropy_wcs.WCS(cards)
    wcs.array_shape = (height, width)
    return wcs


def calc_ecliptic_angle(wcs: WCS, center_pixel: tuple[float, float] = (1000, 2000), step: float = 12) -> float:
    """Return the angle of the ecliptic in pixel space.

    Parameters
    ----------
    center_pixel
        Where to measure, (x, y) [pixel, from 0].
    step
        How far to move along ecliptic longitude [arcsec].

    Returns
    -------
    float
        atan2(dy, dx) [rad] of the pixel displacement for a step of growing ecliptic longitude (geocentric
        true ecliptic) at constant latitude.
    """
    from astropy import units
    from astropy.coordinates import SkyCoord

    x, y = (float(value) for value in center_pixel)
    with quiet_astropy():
        start = SkyCoord.from_pixel(x, y, wcs).geocentrictrueecliptic
        moved = SkyCoord(start.lon + step * units.arcsec, start.lat, frame="geocentrictrueecliptic")
        new_x, new_y = moved.to_pixel(wcs)
    return float(np.arctan2(new_y - y, new_x - x))
