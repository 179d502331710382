"""Stamps: from a cold open against loading the FITS file as KBMOD does, and thousands of moving ones."""

from __future__ import annotations

import numpy as np
from common import N_IMAGES, SIDE, at_least, at_most, finish, folder, seconds, stack, work_unit

import wustore
from wustore.backends.compiling import Loops
from wustore.cli.measure import astropy_read
from wustore.stamps.cutting import gather


def in_a_second(name, path, motions):
    """Stamps a second from a warm store, and how much faster compiled loops cut them than numpy."""
    with wustore.open(path) as unit:

        def cut():
            return unit.trajectory_stamps(motions, 10)

        cut()
        taken = seconds(cut, 5)
        there, gather._LOOPS = gather._LOOPS, Loops("none", 1 << 60)
        by_numpy = seconds(cut, 5)
        gather._LOOPS = there
    stamps = len(motions) * N_IMAGES / 1e3
    at_least(f"{name} stamps a second, warm [thousand]", stamps / taken, 100 if name == "Zarr" else 60)
    at_least(f"{name} the same against numpy", by_numpy / taken, 1)


def main(place):
    source = place / "kbmod.fits"
    work_unit(stack()).to_fits(source)
    their_read = seconds(lambda: astropy_read(str(source)), 2)
    rng = np.random.default_rng(2)
    motions = np.stack([*rng.uniform(0, SIDE, (2, 1000)), *rng.uniform(-300, 300, (2, 1000))], axis=1)
    expected = None
    for name, path, floor in (("Zarr", place / "x.zarr", 100), ("HDF5", place / "x.h5", 100), ("FITS", source, 20)):
        if path != source:
            wustore.convert(source, path)

        def one(path=path, place=SIDE * 0.55):
            with wustore.open(path) as unit:
                return unit.stamps(place, place, 10)

        def many(path=path):
            with wustore.open(path) as unit:
                return unit.trajectory_stamps(motions, 10)

        taken = seconds(one, 5)
        at_least(f"{name} one stamp against loading the FITS", their_read / taken, floor, f"{taken * 1e3:.1f} ms")
        if path != source:  # one in seven lies on an edge of chunks, one in 160 on a corner
            taken = seconds(lambda: one(place=SIDE / 2), 5)
            at_least(f"{name} the same where four chunks meet", their_read / taken, floor / 4, f"{taken * 1e3:.1f} ms")
        taken = seconds(many)
        at_most(f"{name} 1000 trajectories x {N_IMAGES} images [s]", taken, 3)
        found = many()
        if expected is None:
            expected = found
        if path != source:
            in_a_second(name, path, np.vstack([motions, motions[::-1] + 1]))
        same = found.science.tobytes() == expected.science.tobytes()
        at_least(f"{name} the same stamps", same, 1)


if __name__ == "__main__":
    print(f"Stamps, {N_IMAGES} images of {SIDE} x {SIDE}")
    with folder() as place:
        main(place)
    finish()
