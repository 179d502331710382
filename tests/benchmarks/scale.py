"""What one image costs to convert, how two workers share the work, and what 100 TB would take.

Run by hand on an idle machine: ``python tests/benchmarks/scale.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import warnings

import numpy as np
from common import N_IMAGES, SIDE, at_least, at_most, finish, folder, size, stack, work_unit

import wustore
from wustore.jobs import plan, run

PEAK = """
import sys, wustore
wustore.convert(sys.argv[1], sys.argv[2], workers=1)
# Not ru_maxrss: that of a child begins with what its parent had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def clock(task, repeats=2):
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        task()
        best = min(best, time.perf_counter() - begin)
    return best


def astropy_way(path, target):
    """Load as KBMOD does, then save the arrays as they are: what a user would do without wustore."""
    from astropy.io import fits

    planes = {}
    with fits.open(path) as hdus:
        for i in range(N_IMAGES):
            science, variance = (hdus[f"{name}_{i}"].data.astype(np.float32) for name in ("SCI", "VAR"))
            mask = hdus[f"MSK_{i}"].data.astype(np.float32)
            science[mask > 0] = variance[mask > 0] = np.nan
            planes |= {f"science_{i}": science, f"variance_{i}": variance, f"mask_{i}": mask.astype(np.int8)}
    np.savez_compressed(target, **planes)


def memory(source, target):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PEAK, source, target], capture_output=True, text=True)
    return int(done.stdout) / 1e3


def main():
    warnings.simplefilter("ignore")
    with folder() as place:
        source, target = place / "night.fits", place / "night.zarr"
        images = stack()
        work_unit(images).to_fits(source)

        def convert(**options):
            shutil.rmtree(target, ignore_errors=True)
            wustore.convert(source, target, **options)

        def in_processes():
            shutil.rmtree(target, ignore_errors=True)
            run(plan(str(source), str(target)), workers=2, processes=True)

        one, two = clock(lambda: convert(workers=1)), clock(lambda: convert(workers=2))
        at_least("FITS -> Zarr, two workers against one", one / two, 1.7)
        at_least("the same with two processes, their start included", one / clock(in_processes), 1.3)
        plain = clock(lambda: astropy_way(source, place / "plain.npz"), 1)
        at_least("FITS -> Zarr, two workers against loading and saving with astropy and numpy", plain / two, 2.5)
        stored, original = size(target), size(source)
        at_most("peak memory, one worker [MB]", memory(str(source), str(place / "m.zarr")), 600)
        images_in_100_tb = 100e12 / (original / N_IMAGES)
        megabytes = original / N_IMAGES / 1e6, stored / N_IMAGES / 1e6
        hours = images_in_100_tb * one / N_IMAGES / 3600
        print(
            f"{SIDE} x {SIDE}: {one / N_IMAGES:.3f} core seconds an image, {megabytes[0]:.1f} -> {megabytes[1]:.1f} MB"
        )
        print(f"100 TB of such files: {images_in_100_tb / 1e6:.1f} million images, {hours:.0f} core hours")
    finish()


if __name__ == "__main__":
    main()
