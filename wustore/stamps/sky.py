"""Sky positions in the pixels of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.compat import wcs as kbmod_wcs
from wustore.errors import UsageError
from wustore.format import wcs
from wustore.model.meta import Meta
from wustore.model.units import in_unit

__all__ = [
    "linked_wcs",
    "linked_wcs_or_none",
    "numbers_alike",
    "pixel_to_sky",
    "shared_wcs",
    "sky_to_pixel",
    "text_sky_to_pixel",
    "texts_sky_to_pixel",
]

WCS_COLUMN = "per_image_wcs"


def numbers_alike(unit: str, **values: Any) -> tuple[NDArray[np.float64], ...]:
    """Return values, given by name, as numbers of one shape, which they share or can be repeated to.

    Parameters
    ----------
    unit
        That they are in, or are converted to (`wustore.model.units.in_unit`).

    Raises
    ------
    UsageError
        If they are no numbers, their unit cannot be converted, or their shapes do not fit.
    """
    numbers = [in_unit(value, unit, name) for name, value in values.items()]
    try:
        return tuple(np.broadcast_arrays(*numbers))
    except ValueError as error:
        raise UsageError(
            "positions need as many numbers of each", where=" and ".join(values), found=[n.shape for n in numbers]
        ) from error


def linked_wcs(meta: Meta, i: int) -> str:
    """Return the header text of the WCS of image ``i``: the global one, else that of its one linked constituent.

    Raises
    ------
    UsageError
        If it has none.
    """
    if meta.wcs is not None:
        return meta.wcs
    column = meta.constituents.get(WCS_COLUMN)
    linked = meta.links_of(i)
    if column is not None and len(linked) == 1 and isinstance(column.values[linked[0]], str):
        return str(column.values[linked[0]])
    raise UsageError(
        "an image has no WCS, so no sky position can be found in it",
        where=f"image {i}",
        hint="Give positions in pixels.",
    )


def linked_wcs_or_none(meta: Meta, i: int) -> str | None:
    """Return what `linked_wcs` does, or None for an image without WCS."""
    try:
        return linked_wcs(meta, i)
    except UsageError:
        return None


def shared_wcs(meta: Meta, consequence: str, hint: str) -> str:
    """Return the header text of the WCS that all images share.

    Parameters
    ----------
    consequence, hint
        For the message: what different WCSs mean, and what to do then.

    Raises
    ------
    UsageError
        If an image has none, or another.
    """
    texts = {linked_wcs(meta, i) for i in range(meta.n_images)}
    if len(texts) > 1:
        raise UsageError(
            f"the images have different WCSs, so {consequence}",
            expected="one WCS for all of them",
            found=f"{len(texts)} different ones",
            hint=hint,
        )
    return texts.pop()


def text_sky_to_pixel(text: str, ra: ArrayLike, dec: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixel positions (x, y), from 0, of sky positions (ICRS) [deg] in the WCS of some header text.

    NaN where `wustore.compat.wcs.sky_to_pixel` finds none.

    Raises
    ------
    FormatError
        If the text is no WCS.
    UsageError
        If the positions are none.
    """
    from astropy.coordinates import SkyCoord

    ra, dec = numbers_alike("deg", ra=ra, dec=dec)
    try:
        coords = SkyCoord(ra, dec, unit="deg")
    except (TypeError, ValueError) as error:
        raise UsageError("not a sky position in degrees", found=f"RA {ra!r}, dec {dec!r}", hint=str(error)) from error
    pixels = kbmod_wcs.sky_to_pixel(coords, wcs.text_to_wcs(text))
    return pixels[..., 0], pixels[..., 1]


def pixel_to_sky(
    texts: Sequence[str | None], x: NDArray[Any], y: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where pixels of each image are on the sky.

    Parameters
    ----------
    texts
        Header text of the WCS of each image; None if it has none. Length time.
    x, y
        Pixels from 0, shape S + (time,).

    Returns
    -------
    ra, dec : ndarray
        ICRS [deg], shape S + (time,); NaN without a WCS, or if it does not reach a pixel.
    """
    ra, dec = np.full(x.shape, np.nan), np.full(x.shape, np.nan)
    for text in dict.fromkeys(texts):
        places = [k for k, other in enumerate(texts) if other == text]
        if text is None:
            continue
        try:
            found = wcs.text_to_wcs(text).pixel_to_world(x[..., places], y[..., places]).icrs
        except (AttributeError, TypeError, ValueError):  # a WCS of something else than the sky
            continue
        ra[..., places], dec[..., places] = found.ra.deg, found.dec.deg
    return ra, dec


def sky_to_pixel(
    meta: Meta, ra: ArrayLike, dec: ArrayLike, images: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where sky positions are in each image.

    Parameters
    ----------
    ra, dec
        ICRS [deg], shape S.
    images
        Indices of the images, shape (time,).

    Returns
    -------
    x, y : ndarray
        Pixel positions from 0, shape S + (time,).

    Raises
    ------
    UsageError
        If an image has no WCS, or the positions are none.
    """
    return texts_sky_to_pixel([linked_wcs(meta, i) for i in images.tolist()], ra, dec)


def texts_sky_to_pixel(
    texts: Sequence[str], ra: ArrayLike, dec: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where sky positions are in several WCSs, given by header text; see `sky_to_pixel`."""
    ra, dec = numbers_alike("deg", ra=ra, dec=dec)
    found = {text: text_sky_to_pixel(text, ra, dec) for text in dict.fromkeys(texts)}
    x = np.stack([found[text][0] for text in texts], axis=-1) if texts else np.empty((*ra.shape, 0))
    y = np.stack([found[text][1] for text in texts], axis=-1) if texts else np.empty((*ra.shape, 0))
    return x, y
