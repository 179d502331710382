"""How reading, converting and saving scale over the cores of one machine, in GB/s of raw science and variance pixels.

One table, all in one run: a row for each kind of work, a column for each number of workers. Three yardsticks: what
astropy does with the same FITS, as KBMOD reads and writes it, in one thread; fresh memory that the system hands out;
and the decoding of the chunks of a store with their bytes at hand and the values thrown away.

``N_IMAGES`` (48) and ``SIDE`` (2048) in the environment, and ``WORKERS`` (1,2,4,... up to all cores) choose the size.
"""

from __future__ import annotations

import os
import warnings
from functools import partial

os.environ.setdefault("N_IMAGES", "48")

import numpy as np
from common import N_IMAGES, SIDE, decode_shard, folder, load, seconds, stack, stored_chunks, work_unit

import wustore
from wustore.cli.measure import astropy_read, astropy_write
from wustore.storage import buffers
from wustore.storage.threads import available_cores, in_threads

warnings.simplefilter("ignore")
RAW = N_IMAGES * SIDE * SIDE * 8 / 1e9
PROFILES = ("compact", "portable", "fast", "none")


def steps() -> list[int]:
    given = os.environ.get("WORKERS")
    if given:
        return [int(part) for part in given.split(",")]
    cores = available_cores()
    return sorted({*(1 << k for k in range(cores.bit_length())), cores})


def hand_out(_):
    arrays = [buffers.empty((SIDE, SIDE), np.float32) for _ in range(2)]
    for array in arrays:
        array.fill(0)
    return arrays


def decode_all(shards, workers):
    in_threads(decode_shard, shards, workers)


def read_all(path, workers):
    with wustore.open_reader(path, workers=workers) as reader:
        return list(reader.images(workers=workers))


def row(name, work, columns, default=None):
    """Print a row: ``work`` is a function of the number of workers, ``default`` the rate of loading a WorkUnit."""
    cells = [f"{RAW / seconds(lambda n=n: work(n), 2):.2f}" for n in columns] if work else [""] * len(columns)
    print(f"| {name} | {' | '.join(cells)} | {'' if default is None else f'{default:.2f}'} |", flush=True)


def main(place):
    columns = steps()
    few = stack(min(N_IMAGES, 8))
    images = [tuple(np.roll(plane, 37 * k) for plane in few[k % len(few)]) for k in range(N_IMAGES)]
    source = place / "night.fits"
    unit = work_unit(images)
    unit.to_fits(source)
    print(f"{N_IMAGES} images of {SIDE} x {SIDE}, {available_cores()} cores; GB/s of raw pixels\n")
    print(f"| what | {' | '.join(map(str, columns))} | WorkUnit |\n|---|{'---|' * (len(columns) + 1)}", flush=True)
    n = min(N_IMAGES, 6)
    some = [(*planes, np.ones((1, 1))) for planes in images[:n]]
    row("astropy reads FITS", None, columns, RAW * n / N_IMAGES / seconds(lambda: astropy_read(str(source), n), 2))
    written = str(place / "a.fits")
    row("astropy writes FITS", None, columns, RAW * n / N_IMAGES / seconds(lambda: astropy_write(written, some), 1))
    row("fresh memory handed out", lambda n: in_threads(hand_out, range(N_IMAGES), n), columns)
    default = RAW / seconds(lambda: wustore.WorkUnit.from_fits(source), 2)
    row("FITS, full load", lambda n: read_all(source, n), columns, default)
    for profile in PROFILES:
        path = place / f"{profile}.zarr"
        wustore.convert(source, path, profile=profile)
        if profile == "compact":
            row("decoding the chunks of `compact`", partial(decode_all, stored_chunks(path)), columns)
        default = RAW / seconds(lambda path=path: load(path), 2)
        row(f"Zarr `{profile}`, full load", lambda n, path=path: read_all(path, n), columns, default)
    path = place / "night.h5"
    wustore.convert(source, path)
    row("HDF5, full load", lambda n: read_all(path, n), columns, RAW / seconds(lambda: load(path), 2))
    for ending in ("zarr", "h5"):
        target = place / f"made.{ending}"
        row(
            f"FITS to {ending}",
            lambda n, target=target: wustore.convert(source, target, overwrite=True, workers=n),
            columns,
        )
        row(
            f"save to {ending} from memory",
            lambda n, target=target: wustore.save(unit, target, overwrite=True, workers=n),
            columns,
        )


if __name__ == "__main__":
    with folder() as place:
        main(place)
