"""FITS read and written, beside astropy doing the same the way KBMOD does it."""

from __future__ import annotations

import numpy as np
from astropy.io import fits
from common import N_IMAGES, SIDE, at_least, at_most, finish, folder, seconds, stack, work_unit

import wustore
from wustore.backends.registry import open_reader
from wustore.cli.measure import astropy_read, astropy_write
from wustore.stamps.trajectory_stamps import stamps

PSF = np.ones((1, 1))


def reading_and_writing(place):
    images = stack()
    ours, theirs = place / "ours.fits", place / "theirs.fits"
    unit = work_unit(images)
    write = seconds(lambda: unit.to_fits(ours, overwrite=True), 2)
    with_psf = [(science, variance, PSF) for science, variance in images]
    their_write = seconds(lambda: astropy_write(str(theirs), with_psf), 1)
    at_least("to_fits against astropy", their_write / write, 8, f"{write:.2f} s, {their_write:.2f} s")
    read = seconds(lambda: wustore.WorkUnit.from_fits(ours), 2)
    their_read = seconds(lambda: astropy_read(str(ours)), 2)
    at_least("from_fits against astropy", their_read / read, 5, f"{read:.2f} s, {their_read:.2f} s")
    with open_reader(ours) as reader:
        stamps(reader, SIDE / 2, SIDE / 2, 10)
        share = reader.pixels_decoded / sum(science.size + variance.size for science, variance in images)
    at_most("share of the pixels decoded for a stamp of 21 x 21", share, 0.05)


def opening(place):
    """Cost of tiny images: opening lazily against astropy's walk, and how it grows."""
    taken = {}
    for n_images in (100, 1000, 10_000):
        rng = np.random.default_rng(1)
        images = [(rng.normal(0, 5, (8, 6)).astype(np.float32), np.ones((8, 6), np.float32)) for _ in range(n_images)]
        path = place / f"tiny{n_images}.fits"
        unit = work_unit(images)
        write = seconds(lambda unit=unit, path=path: unit.to_fits(path, overwrite=True), 1)
        read = seconds(lambda path=path: wustore.WorkUnit.from_fits(path), 1)
        lazy = seconds(lambda path=path: wustore.open(path).close())
        taken[n_images] = {"write": write, "read": read, "open": lazy}
        print(f"     {n_images} images: write {write:.2f} s, read {read:.2f} s, open {lazy * 1e3:.1f} ms", flush=True)
    for name in ("write", "read", "open"):
        at_most(f"{name}: 10000 images against ten times 1000", taken[10_000][name] / taken[1000][name] / 10, 1.5)

    def walk():
        with fits.open(place / "tiny1000.fits") as hdus:
            for i in range(1000):
                _ = hdus[f"SCI_{i}"].header["MJD"]

    their_open = seconds(walk, 1)
    at_least("lazy open of 1000 images against astropy", their_open / taken[1000]["open"], 50, f"{their_open:.2f} s")


if __name__ == "__main__":
    print(f"FITS, {N_IMAGES} images")
    with folder() as place:
        reading_and_writing(place)
        opening(place)
    finish()
