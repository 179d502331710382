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
from wustore.ops.plans import plan
from wustore.ops.run_parts import run

PEAK = """
import sys, wustore
wustore.convert(sys.argv[1], sys.argv[2], workers=1)
# Not ru_maxrss: that of a child begins with what its parent had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


ALONE = """
import shutil, sys, time, wustore
def once():
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    wustore.convert(sys.argv[1], sys.argv[2], workers=1)
once()
print("ready", flush=True)
sys.stdin.readline()
begin = time.perf_counter()
once()
print(time.perf_counter() - begin, flush=True)
"""


def side_by_side(source, targets):
    """Time until as many processes as targets, which share nothing, have converted the file with one worker each."""
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(source)]
    running = [
        subprocess.Popen([*command, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for target in targets
    ]
    for process in running:
        process.stdout.readline()
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    taken = [float(process.stdout.readline()) for process in running]
    for process in running:
        process.communicate()
    return max(taken)


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
        both = [place / "1.zarr", place / "2.zarr"]
        print(
            f"     what the machine gives two processes that share nothing: {2 * one / side_by_side(source, both):.2f}"
        )
        print(f"     the same with two processes, their start included: {one / clock(in_processes):.2f}")
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
