"""One image of a WorkUnit in an open FITS file: KBMOD's functions, for pipelines that build files HDU by HDU.

Whole files go through `wustore.backends.fits`, which is faster and exact. Masks are applied here, as KBMOD does.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wustore.compat.layered_image import LayeredImage
from wustore.compat.wcs import append_wcs_to_hdu_header, extract_wcs_from_hdu_header
from wustore.errors import CorruptError, FormatError, StoreNotFoundError
from wustore.model.kbmod_rules import hide_pixels, identity_psf, is_masked
from wustore.model.quiet import quiet

if TYPE_CHECKING:
    from astropy.io.fits import HDUList
    from astropy.wcs import WCS

__all__ = ["add_image_data_to_hdul", "load_layered_image_from_shard", "read_image_data_from_hdul"]


def load_layered_image_from_shard(file_path: str | PathLike[str]) -> LayeredImage:
    """Return the image of one file of a sharded set.

    Parameters
    ----------
    file_path
        ``<i>_<name>``: the number says which HDUs hold the image.

    Raises
    ------
    StoreNotFoundError
        If there is no such file.
    FormatError, CorruptError
        If it does not hold the image that its name says.
    """
    from astropy.io import fits

    path = Path(file_path)
    if not path.is_file():
        raise StoreNotFoundError("no shard there", path=path)
    number = path.name.split("_")[0]
    if not number.isdecimal():
        raise FormatError("a shard's name starts with its image's number", path=path, expected="<i>_<name>")
    with quiet():
        try:
            with fits.open(path) as hdul:
                sci, var, mask, obstime, psf, _ = read_image_data_from_hdul(hdul, int(number))
        except FormatError as error:
            error.path = str(path)
            raise
        except (OSError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise CorruptError("a shard cannot be read", path=path, found=f"{type(error).__name__}: {error}") from error
    return LayeredImage(sci, var, mask, time=obstime, psf=psf)


def add_image_data_to_hdul(
    hdul: HDUList,
    idx: int,
    sci: NDArray[Any],
    var: NDArray[Any],
    mask: NDArray[Any],
    obstime: float,
    psf_kernel: NDArray[Any] | None = None,
    wcs: WCS | None = None,
    compression_type: str = "RICE_1",
    quantize_level: float = -0.01,
) -> None:
    """Append the HDUs SCI_i, VAR_i, MSK_i and PSF_i of an image, as KBMOD does.

    Parameters
    ----------
    hdul
        Where to append.
    idx
        The image's number i.
    sci, var, mask
        Shape (y, x). The mask layer holds 1 where ``mask`` > 0 or a layer is not finite.
    obstime
        Mid-exposure time [MJD, UTC].
    psf_kernel
        Shape (psf_y, psf_x); a single pixel of 1 by default.
    wcs
        Goes into the headers of the first three.
    compression_type, quantize_level
        Of science and variance, as in `WorkUnit.to_fits`.
    """
    from astropy.io import fits

    made = []
    for name, plane in (("SCI", sci), ("VAR", var)):
        hdu = fits.CompImageHDU(plane, compression_type=compression_type, quantize_level=quantize_level)
        hdu.name = f"{name}_{idx}"
        made.append(hdu)
    masked = is_masked(mask) | ~np.isfinite(sci) | ~np.isfinite(var)
    made.append(fits.ImageHDU(masked.astype(np.int8), name=f"MSK_{idx}"))
    for hdu in made:
        hdu.header["MJD"] = obstime
        append_wcs_to_hdu_header(wcs, hdu.header)
    kernel = identity_psf(np.float64) if psf_kernel is None else psf_kernel
    for hdu in (*made, fits.ImageHDU(kernel, name=f"PSF_{idx}")):
        hdul.append(hdu)  # which makes the first HDU of a file a primary one


def read_image_data_from_hdul(
    hdul: HDUList, idx: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], float, NDArray[Any], WCS | None]:
    """Return science, variance, mask, time, PSF and WCS of an image in an open FITS file.

    Masked pixels are NaN in science and variance. Without MSK_i nothing is masked, without PSF_i the PSF is a
    single pixel of 1.

    Parameters
    ----------
    hdul
        The open file.
    idx
        The image's number i.

    Returns
    -------
    sci, var, mask : ndarray
        Shape (y, x), float32.
    obstime : float
        Mid-exposure time [MJD, UTC].
    psf_kernel : ndarray
        Shape (psf_y, psf_x), float32.
    wcs : astropy.wcs.WCS or None
        From the science header.

    Raises
    ------
    FormatError
        If SCI_i, VAR_i or the time is missing.
    """
    for name in (f"SCI_{idx}", f"VAR_{idx}"):
        if name not in hdul:
            raise FormatError("an image layer is missing", where=name)
    science = hdul[f"SCI_{idx}"]
    if "MJD" not in science.header:
        raise FormatError("an image has no time", where=f"SCI_{idx}", expected="MJD")
    sci, var = science.data.astype(np.float32), hdul[f"VAR_{idx}"].data.astype(np.float32)
    mask = np.zeros_like(sci)
    if f"MSK_{idx}" in hdul:
        mask = hdul[f"MSK_{idx}"].data.astype(np.float32)
        for plane in (sci, var):
            hide_pixels(plane, is_masked(mask))
    psf = identity_psf()
    if f"PSF_{idx}" in hdul:
        psf = hdul[f"PSF_{idx}"].data.astype(np.float32)
    return sci, var, mask, float(science.header["MJD"]), psf, extract_wcs_from_hdu_header(science.header)
