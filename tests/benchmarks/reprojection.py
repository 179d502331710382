"""Peak memory of a reprojection: KBMOD's in memory, or into a store. Needs the real KBMOD.

    python tests/benchmarks/reprojection.py FOLDER IMAGES SIDE make
    python tests/benchmarks/reprojection.py FOLDER IMAGES SIDE memory
    python tests/benchmarks/reprojection.py FOLDER IMAGES SIDE store

``make`` writes the store that the other two read, each in a process of its own. They print the peak resident memory of
their process, what it was before, with KBMOD and wustore imported, and the processor time.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from pathlib import Path

import kbmod.work_unit  # noqa: F401 - imported before memory is looked at
import numpy as np
from astropy.wcs import WCS
from kbmod.reprojection import reproject_work_unit

import wustore
import wustore.kbmod


def wcs(k: int, side: int) -> WCS:
    """Return the WCS of image k: each is shifted by some arcseconds."""
    made = WCS(naxis=2)
    made.wcs.ctype = "RA---TAN", "DEC--TAN"
    made.wcs.crval = 200 + 0.001 * k, -5 + 0.0005 * k
    made.wcs.crpix = side / 2, side / 2
    made.wcs.cdelt = -0.2 / 3600, 0.2 / 3600
    made.array_shape = (side, side)
    return made


def peak() -> float:
    """Return the peak resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make(path: Path, n: int, side: int) -> None:
    """Write a store of noise."""
    rng = np.random.default_rng(0)
    stack = wustore.ImageStack(
        times=[60000 + 0.01 * k for k in range(n)],
        sci=[rng.normal(0, 5, (side, side)).astype("f4") for _ in range(n)],
        var=[np.full((side, side), 25, "f4") for _ in range(n)],
    )
    work_unit = wustore.WorkUnit(stack, wustore.SearchConfiguration(), per_image_wcs=[wcs(k, side) for k in range(n)])
    wustore.save(work_unit, path, overwrite=True, profile="fast")


def main(words: list[str]) -> None:
    """Do one of the three."""
    folder, n, side, what = Path(words[0]), int(words[1]), int(words[2]), words[3]
    warnings.simplefilter("ignore")
    source = folder / f"{n}x{side}.zarr"
    if what == "make":
        make(source, n, side)
        return
    before, begun = peak(), time.process_time()
    if what == "store":
        wustore.kbmod.reproject(source, folder / f"{n}x{side}-out.zarr", wcs(0, side), overwrite=True)
    else:
        loaded = wustore.kbmod.open(source, load=True)
        reproject_work_unit(loaded, wcs(0, side), parallelize=False, show_progress=False)
    print(f"{what}: {peak():.0f} MiB, {before:.0f} before; {time.process_time() - begun:.0f} s of processor time")


if __name__ == "__main__":
    main(sys.argv[1:])
