"""Facts of single images: what ``wustore images`` lists, and the header cards they came with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Progress, Reader
from wustore.errors import FormatError, UsageError
from wustore.model.select import FILTER_COLUMNS, image_column

__all__ = ["VISIT_COLUMNS", "field_of", "header_cards", "image_facts", "iso_date", "psf_fwhm", "sky_of"]

VISIT_COLUMNS = ("visit", "visit_id", "exposure", "expnum")

_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
"""FWHM of a Gaussian in units of its standard deviation."""
_MAD = 1.4826
"""Standard deviation of a Gaussian in units of its median absolute deviation."""
_CARD = 80
_MJD_ZERO = np.datetime64("1858-11-17", "ms")
_FIRST_DAY, _LAST_DAY = -678_575, 2_973_483
"""MJD of the first day of year 1, and of the first day of year 10000."""


def iso_date(mjd: float) -> str | None:
    """Return an MJD [days, UTC] as ISO 8601 to the millisecond; None for NaN and beyond the years 1 to 9999."""
    if not _FIRST_DAY <= mjd < _LAST_DAY:
        return None
    days = np.floor(mjd)
    rest = round((mjd - days) * 86_400_000)
    return str(_MJD_ZERO + np.timedelta64(int(days) * 86_400_000 + rest, "ms"))


def sky_of(science: NDArray[Any], mask: NDArray[Any] | None) -> tuple[float | None, float | None, float]:
    """Return median and noise of the pixels that are finite and not masked, and the percentage of the others.

    The noise is 1.4826 times the median absolute deviation, which stars hardly change.
    """
    good = np.isfinite(science)
    if mask is not None:
        good &= ~(mask > 0)
    pixels = science[good].astype(np.float64)
    masked = 100.0 * (1.0 - pixels.size / science.size) if science.size else 0.0
    if not pixels.size:
        return None, None, masked
    median = float(np.median(pixels))
    return median, float(_MAD * np.median(np.abs(pixels - median))), masked


def psf_fwhm(psf: NDArray[Any] | None) -> float | None:
    """Return the FWHM [pixel] of a Gaussian with the second moments of a kernel; None without one."""
    if psf is None or psf.size < 2 or not np.isfinite(psf).all() or psf.sum() <= 0:
        return None
    weights = psf.astype(np.float64) / psf.sum()
    y, x = np.indices(psf.shape)
    centre_y, centre_x = (weights * y).sum(), (weights * x).sum()
    second = 0.5 * (weights * ((y - centre_y) ** 2 + (x - centre_x) ** 2)).sum()
    return float(_FWHM * np.sqrt(second)) if second > 0 else None


def field_of(text: str, shape: tuple[int, int]) -> dict[str, float]:
    """Return where an image is on the sky.

    Parameters
    ----------
    text
        Header text of its WCS.
    shape
        Its size (y, x) [pixel].

    Returns
    -------
    dict
        ``ra``, ``dec`` of the centre (ICRS) [deg], ``width``, ``height`` [deg], ``pixel_scale`` [arcsec].

    Raises
    ------
    FormatError
        If the text is no WCS of the sky.
    """
    from astropy.wcs.utils import proj_plane_pixel_scales

    from wustore.format.wcs import text_to_wcs

    wcs = text_to_wcs(text)
    height, width = shape
    try:
        centre = wcs.pixel_to_world((width - 1) / 2, (height - 1) / 2).icrs
        scales = proj_plane_pixel_scales(wcs.celestial)
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError("the WCS has no position on the sky", found=str(error)) from error
    return {
        "ra": float(centre.ra.deg),
        "dec": float(centre.dec.deg),
        "width": float(scales[0] * width),
        "height": float(scales[1] * height),
        "pixel_scale": float(np.sqrt(scales[0] * scales[1]) * 3600),
    }


def image_facts(
    reader: Reader, *, pixels: bool = True, workers: int | None = None, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image, always with the same keys; None for what is not known.

    Parameters
    ----------
    pixels
        Whether to read pixels. Without them ``masked_percent``, ``sky_median``, ``sky_noise`` and ``psf_fwhm`` are
        None.
    """
    from wustore.stamps.sky import linked_wcs

    meta = reader.meta
    filters, visits = image_column(meta, FILTER_COLUMNS), image_column(meta, VISIT_COLUMNS)
    layers = [layer for layer in ("science", "mask", "psf") if meta.has_layer(layer)]
    images = reader.images(layers=layers, workers=workers) if pixels else ((i, None) for i in range(meta.n_images))
    fields: dict[tuple[str, tuple[int, int]], dict[str, float]] = {}
    for i, image in images:
        shape = meta.shape_of("science", i)
        try:
            key = linked_wcs(meta, i), shape
            if key not in fields:
                fields[key] = field_of(*key)
            field: dict[str, Any] = fields[key]
        except (UsageError, FormatError):
            field = {}
        median = noise = masked = fwhm = None
        if image is not None:
            median, noise, masked = sky_of(image.science, image.mask)
            fwhm = psf_fwhm(image.psf)
        mjd = float(meta.times[i])
        yield {
            "image": i,
            "mjd": mjd if np.isfinite(mjd) else None,
            "date": iso_date(mjd),
            "filter": filters[i],
            "visit": visits[i],
            "height": shape[0],
            "width": shape[1],
            "masked_percent": masked,
            "sky_median": median,
            "sky_noise": noise,
            "psf_fwhm": fwhm,
            "ra": field.get("ra"),
            "dec": field.get("dec"),
        }
        if progress is not None:
            progress(i + 1, meta.n_images)


def header_cards(reader: Reader, i: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield (name, cards) of FITS headers as they were imported, character for character.

    Parameters
    ----------
    reader
        A store of FITS files, or one that keeps their capsule; of any other one the WCS is all there is.
    i
        The image whose HDUs are wanted; None for the primary HDU.

    Raises
    ------
    UsageError
        If there is no such image, or neither header nor WCS.
    CorruptError
        If the capsule is damaged.
    """
    from wustore.backends.fits.capsule import Head, regenerate
    from wustore.backends.fits.reader import FitsReader
    from wustore.stamps.sky import linked_wcs

    meta = reader.meta
    if i is not None and not 0 <= i < meta.n_images:
        raise UsageError("there is no such image", expected=f"0 to {meta.n_images - 1}", found=i)
    if isinstance(reader, FitsReader):
        roles = reader.layout.roles
        wanted = [place for place, role in roles.items() if (role.endswith(f" {i}") if i is not None else False)]
        for number, index in sorted(wanted) or [(0, 0)]:
            hdu = reader.files[number].scan.hdus[index]
            yield hdu.name or "unnamed", hdu.header.text
        return
    capsule = reader.capsule()
    if capsule is not None:
        head = Head.decode(capsule.head)
        if i is None:
            first = next(data for number, start, data in head.segments if (number, start) == (0, 0))
            yield "PRIMARY", _cards_of(first)
            return
        image = reader.image(i)
        for block in regenerate(reader.image_capsule(i, image) or b"", i, image, head.template):
            if block.layer >= 0:
                yield block.name or "unnamed", _cards_of(block.data)
        return
    yield (
        f"WCS of image {i}" if i is not None else "WCS",
        (linked_wcs(meta, i or 0) if i is not None else meta.wcs or ""),
    )


def _cards_of(hdu: bytes) -> str:
    """Return the cards of an HDU up to END."""
    text = hdu.decode("latin-1")
    end = next((k for k in range(0, len(text), _CARD) if text[k : k + _CARD].rstrip() == "END"), len(text))
    return text[:end]
