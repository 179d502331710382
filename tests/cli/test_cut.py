"""``wustore export``: FITS for KBMOD's programs."""

from __future__ import annotations

import numpy as np
from astropy.io import fits

import wustore
from wustore.compat.image_stack import ImageStack
from wustore.compat.wcs import make_fake_wcs


def test_export_for_kbmod(run, tmp_path) -> None:
    sci = [np.full((6, 7), k + 0.125, np.float32) for k in range(4)]
    stack = ImageStack(60000.0 + np.arange(4), sci, sci)
    work_unit = wustore.WorkUnit(stack, wustore.SearchConfiguration(), wcs=make_fake_wcs(10, 5, 6, 7))
    wustore.save(work_unit, tmp_path / "a.zarr")
    code, _, said = run("export", "--for-kbmod", "--images", "1,3", tmp_path / "a.zarr", tmp_path / "few.fits")
    assert (code, said) == (0, f"{tmp_path / 'few.fits'}: 2 images\n")
    with fits.open(tmp_path / "few.fits") as file:
        assert file[0].header["NUMIMG"] == 2
        assert {"SCI_1", "VAR_1", "PSF_1", "KBMOD_CONFIG", "IMG_META"} <= {hdu.name for hdu in file}
        assert np.array_equal(file["SCI_1"].data, sci[3])
    code, _, error = run("export", tmp_path / "a.zarr", tmp_path / "b.fits")
    assert code == 2
    assert "--for-kbmod" in error
