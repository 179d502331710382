"""Zarr and HDF5: size, full load, write, memory, opening, two processes."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
from common import (
    N_IMAGES,
    at_least,
    at_most,
    child,
    decode_shard,
    finish,
    folder,
    load,
    seconds,
    size,
    stack,
    stored_chunks,
    work_unit,
)

import wustore
from wustore.cli.measure import astropy_read, astropy_write
from wustore.storage.threads import in_threads

PSF = np.ones((1, 1))
STEP = 0.01


def entropy(values: np.ndarray) -> float:
    """Order-0 entropy of the quantised values [bytes per pixel], NaN being one of them."""
    steps = np.where(np.isnan(values), np.iinfo(np.int64).min, np.rint(np.nan_to_num(values) / STEP).astype(np.int64))
    _, counts = np.unique(steps, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum() / 8)


def layer_bytes(path) -> int:
    return sum(entry.stat().st_size for entry in (path / "science").rglob("*") if entry.is_file())


MEMORY = """
import sys, wustore
unit = wustore.open(sys.argv[1]); unit.load_images()
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""

READ = """
import sys, time, wustore
reader = wustore.open_reader(sys.argv[1], workers=1)
reader.image(0)
print("ready", flush=True); sys.stdin.readline()
for _ in range(5):
    for i in eval(sys.argv[2]): reader.image(i)
print("done", flush=True)
"""


def together(path, shares) -> float:
    """Time until every one of several processes has read its share of the images, started at the same moment."""
    command = [sys.executable, "-W", "ignore", "-c", READ, str(path)]
    running = [
        subprocess.Popen([*command, repr(share)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for share in shares
    ]
    for process in running:
        process.stdout.readline()
    start = time.perf_counter()
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        process.stdout.readline()
    taken = time.perf_counter() - start
    for process in running:
        process.communicate()
    return taken


def codec_alone(path):
    """Time to decode the pcodec chunks of a store in two threads, the bytes at hand, the values thrown away."""
    shards = stored_chunks(path)
    return seconds(lambda: in_threads(decode_shard, shards, 2))


def main(place):
    images = stack()
    source = place / "kbmod.fits"
    work_unit(images).to_fits(source)
    their_write = seconds(lambda: astropy_write(str(place / "a.fits"), [(*planes, PSF) for planes in images]), 1)
    their_read = seconds(lambda: astropy_read(str(source)), 2)
    held = astropy_read(str(source))
    raw = sum(science.nbytes + variance.nbytes for science, variance in held)
    unit = work_unit(held)
    for name, path, load_floor, write_floor in (
        ("Zarr", place / "x.zarr", 15, 4),
        ("HDF5", place / "x.h5", 4, 1),
    ):
        wustore.convert(source, path)
        at_most(f"{name} size against FITS", size(path) / source.stat().st_size, 0.5 if name == "Zarr" else 1)
        loaded = load(path)
        exact = all(
            np.array_equal(mine, theirs, equal_nan=True)
            for layer, k in ((loaded.im_stack.sci, 0), (loaded.im_stack.var, 1))
            for mine, theirs in zip(layer, (planes[k] for planes in held), strict=True)
        )
        at_least(f"{name} exact", exact, 1)
        del loaded
        taken = seconds(lambda path=path: load(path))
        at_least(f"{name} full load against astropy", their_read / taken, load_floor, f"{taken:.2f} s")
        if name == "Zarr":
            alone = codec_alone(path)
            at_least("Zarr, if decoding were all", their_read / alone, load_floor, f"{alone:.2f} s")
        taken = seconds(lambda path=path: wustore.save(unit, path, overwrite=True), 2)
        at_least(f"{name} write against astropy's FITS", their_write / taken, write_floor, f"{taken:.2f} s")
        peak = int(child(MEMORY, str(path))) * 1024
        at_most(f"{name} peak memory of a full load [MB]", peak / 1e6, (1.15 * raw + 150e6) / 1e6)
        whole = list(range(N_IMAGES))
        one = together(path, [whole])
        two = together(path, [whole[::2], whole[1::2]])
        at_least(f"{name} two processes against one", one / two, 1.7)
    bound = np.mean([entropy(science) for science, _ in held]) * held[0][0].size * N_IMAGES
    at_most("Zarr science layer against its entropy", layer_bytes(place / "x.zarr") / bound, 1.04)
    opening(place)


def opening(place):
    rng = np.random.default_rng(1)
    tiny = work_unit([(rng.normal(0, 5, (8, 6)).astype(np.float32), np.ones((8, 6), np.float32)) for _ in range(1000)])
    for suffix in ("zarr", "h5"):
        path = place / f"tiny.{suffix}"
        wustore.save(tiny, path)
        taken = seconds(lambda path=path: wustore.open(path).close(), 5)
        at_most(f"lazy open of 1000 images, {suffix} [ms]", taken * 1e3, 50)
        command = [sys.executable, "-m", "wustore", "info", str(path)]
        taken = seconds(lambda command=command: subprocess.run(command, capture_output=True, check=True))
        at_most(f"wustore info, {suffix} [s]", taken, 0.6)


if __name__ == "__main__":
    print(f"Zarr and HDF5, {N_IMAGES} images")
    with folder() as place:
        main(place)
    finish()
