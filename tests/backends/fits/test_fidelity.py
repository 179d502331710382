"""Losses of KBMOD's files are named, with numbers."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS
from fits_samples import image, meta_of

from wustore.backends.fits.fidelity import FitsLossWarning, image_losses, meta_losses, option_losses, warn_of
from wustore.backends.fits.kbmod_hdus import FitsOptions
from wustore.format.wcs import wcs_to_text
from wustore.model.meta import Column, ConstituentTable
from wustore.testing import WCS_TEXT

RNG = np.random.default_rng(11)


def test_destroyed_planes_are_named_with_numbers() -> None:
    tiny = replace(image(), science=RNG.normal(0, 0.02, (20, 30)).astype(np.float32))
    tiny = replace(tiny, variance=np.full((20, 30), 4e-4, np.float32))
    found = list(image_losses(3, tiny, FitsOptions()))
    assert len(found) == 2
    assert re.search(r"SCI_3: the quantisation step 0\.01 is 0\.\d+ times its noise 0\.0", found[0])
    assert "VAR_3" in found[1]
    assert "25 times its median 0.0004" in found[1]
    assert list(image_losses(3, tiny, FitsOptions("GZIP_2", 0))) == []
    assert list(image_losses(3, image(), FitsOptions())) == []


def test_losses_of_pixels() -> None:
    odd = image()
    odd.science[0, 0] = np.inf
    odd = replace(odd, mask=np.full((20, 30), 4097, np.int32))
    text = " ".join(image_losses(0, odd, FitsOptions("RICE_1", 0)))
    assert "flag values of MSK_0" in text
    assert "fractions of SCI_0" in text
    assert "infinities of SCI_0" in " ".join(image_losses(0, odd, FitsOptions()))
    assert "NOCOMPRESS quantises too" in " ".join(option_losses(FitsOptions("NOCOMPRESS", -0.01)))
    assert not list(option_losses(FitsOptions("NOCOMPRESS", 0)))


def test_losses_of_metadata() -> None:
    mixed = np.empty(1, object)
    mixed[0] = 41.5
    columns = (
        Column("né", "plain", np.array(["é "])),
        Column("half", "plain", np.zeros(1, np.float16)),
        Column("mixed", "json", mixed),
        Column("seen", "plain", np.zeros(1), unit="s", mask=np.array([True])),
    )
    meta = meta_of(
        [image()],
        constituents=ConstituentTable(1, columns, {"survey": "x"}),
        wcs=WCS_TEXT + f"{'A_ORDER = 2':80}{'B_ORDER = 2':80}",
        configuration={"pair": (1, 2)},
    )
    meta = replace(meta, times=np.array([-3.3333333333333333e-06]))
    text = "; ".join(meta_losses(meta))
    named = ("SIP", "time of image 0", "pair", "non-ASCII text", "non-ASCII name", "trailing blanks", "float16")
    for part in (*named, "types in column 'mixed'", "unit of column 'seen'", "masked cells", "metadata of the table"):
        assert part in text, part
    with pytest.warns(FitsLossWarning, match="SIP"):
        warn_of(meta_losses(meta))


def test_rounded_wcs_is_named_where_positions_move() -> None:
    def told(longitude: float) -> str:
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [longitude, -5], [15, 10], [-5e-5, 5e-5]
        wcs.array_shape = (20, 30)
        text = wcs_to_text(wcs)
        table = ConstituentTable(1, (Column("per_image_wcs", "wcs", np.array([text], object)),), {})
        return "; ".join(meta_losses(meta_of([image()], constituents=table, wcs=text)))

    assert not told(351.3)
    assert not told(np.nextafter(351.3, 0))  # 2e-10 arcsec
    text = told(351.30000000000456)  # 11 decimals are written
    assert "the last digits of the global WCS (which moves a corner of the image by 1.6e-08 arcsec)" in text
    assert "last digits in column 'per_image_wcs'" in text


def test_nothing_lost_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of(meta_losses(meta_of([image()])))
