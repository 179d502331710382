"""``wustore bench``: formats and profiles on the user's own data, next to the same work done with astropy.

Every measurement runs in a process of its own, so that its peak memory is its own. Files stay in the page cache
between writing and reading: what is compared is software, not disks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.cli._options import STORE, json_option
from wustore.cli._output import report, size_text
from wustore.cli._run import DIFFERS, OK
from wustore.errors import BackendError, UsageError, WuStoreError
from wustore.format.preset_names import PROFILES

__all__ = ["ASTROPY", "CASES", "Case", "Measurement", "astropy_read", "astropy_write", "bench", "measurements"]

STAMP_RADIUS = 10
N_TRAJECTORIES = 1000
SPEED = 300.0
"""Largest speed of the trajectories in each axis [pixel / day]: main-belt objects at 0.2 arcsec a pixel."""


@dataclass(frozen=True)
class Case:
    """One way to store the data.

    Attributes
    ----------
    format
        Format name; None for astropy's way.
    """

    name: str
    format: str | None
    suffix: str
    options: Mapping[str, Any] = field(default_factory=dict)


ASTROPY = Case("FITS, astropy", None, ".fits")
"""What KBMOD does: RICE_1 with steps of 0.01, HDU by HDU; everything is loaded to look at anything."""

CASES = (
    ASTROPY,
    Case("FITS, as KBMOD", "fits", ".fits", {"mode": "kbmod"}),
    Case("FITS, lossless", "fits", ".fits", {"lossless": True}),
    *(Case(f"Zarr {name}", "zarr", ".zarr", {"profile": name}) for name in PROFILES),
    *(Case(f"Zarr compact, {name}", "zarr", ".zarr", {"layout": name}) for name in ("cutouts", "balanced")),
    *(Case(f"HDF5 {name}", "hdf5", ".h5", {"profile": name}) for name in ("portable", "compact", "fast")),
)
"""What ``wustore bench`` measures."""


@dataclass
class Measurement:
    """What was found for one case; None if it does not apply or failed.

    Attributes
    ----------
    write, load
        Writing from memory; opening and reading all images, masked and ready to use [s].
    image, stamp, trajectories
        Cold open plus one image, one stamp of 21 x 21 through all images, 1000 moving ones [s].
    memory
        Peak of the process that loaded everything [bytes], interpreter and libraries included.
    different
        Pixels of science and variance whose bits differ from the source's (NaN counts as equal to NaN).
    largest
        The largest difference of a pixel.
    """

    name: str
    bytes: int | None = None
    write: float | None = None
    load: float | None = None
    image: float | None = None
    stamp: float | None = None
    trajectories: float | None = None
    memory: int | None = None
    different: int | None = None
    largest: float | None = None
    failed: str | None = None


def measurements(
    path: str,
    *,
    n_images: int = 10,
    cases: Sequence[Case] = CASES,
    directory: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[Measurement]:
    """Yield what was measured for each case, on the first images of a store.

    Parameters
    ----------
    path
        A store of any format.
    n_images
        How many of its images to use.
    directory
        Where to write the copies (they are removed); that of temporary files by default.
    progress
        Called with the name of each case before it begins.

    Raises
    ------
    StoreNotFoundError, FormatError, OSError
        If the source cannot be read. A case that fails says so in its measurement.
    """
    from wustore.backends.registry import open_reader

    with open_reader(path) as reader:
        n_images = min(n_images, reader.meta.n_images)
    with tempfile.TemporaryDirectory(prefix="wustore-bench-", dir=directory) as folder:
        for k, case in enumerate(cases):
            if progress is not None:
                progress(case.name)
            yield _measured(case, {"source": path, "n_images": n_images, "path": f"{folder}/{k}{case.suffix}"})


def _measured(case: Case, job: dict[str, Any]) -> Measurement:
    found = Measurement(case.name)
    job |= {"format": case.format, "options": dict(case.options)}
    try:
        for step in ("write", "load", "touch", "check"):
            for key, value in _run(step, job).items():
                setattr(found, key, value)
    except BackendError as error:
        found.failed = str(error)
    return found


def _run(step: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Do one step in a new process and return its figures."""
    done = subprocess.run(
        [sys.executable, "-m", "wustore.cli.measure", step, json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BackendError("the measurement failed", where=step, found=lines[-1][:300])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


# --- the command ---------------------------------------------------------------------------------------

_EXAMPLES = """
\b
Examples:
  wustore bench night.fits
  wustore bench night.zarr --images 4 --only zarr --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("path", type=STORE)
@click.option("--images", "n_images", type=click.IntRange(min=1), default=10, show_default=True, help="Images to use.")
@click.option("--only", metavar="TEXT", multiple=True, help="Only cases whose name holds TEXT. May be repeated.")
@click.option("--directory", metavar="DIR", help="Where to write the copies, which are removed.")
@json_option
def bench(path: str, *, n_images: int, only: tuple[str, ...], directory: str | None, as_json: bool) -> int:
    """Measure formats and profiles on your own data, the first images of PATH.

    Size, writing, loading everything, one image, one stamp and 1000 moving ones (each from a cold open), peak
    memory and exactness, next to the same work done with astropy. Exits 1 if a case fails.
    """
    chosen = [case for case in CASES if not only or any(text.lower() in case.name.lower() for text in only)]
    if not chosen:
        raise UsageError(
            "no case has such a name",
            found=", ".join(only),
            expected=", ".join(c.name for c in CASES),
            hint="Give a part of one of these names.",
        )
    if ASTROPY not in chosen:
        chosen.insert(0, ASTROPY)
    found = list(
        measurements(
            path,
            n_images=n_images,
            cases=chosen,
            directory=directory,
            progress=lambda name: report(f"measuring {name}"),
        )
    )
    if as_json:
        click.echo(json.dumps({"path": path, "cases": [asdict(measurement) for measurement in found]}, indent=2))
    else:
        click.echo("\n".join(_table(found)))
    return DIFFERS if any(measurement.failed for measurement in found) else OK


_HEADS = ("", "size", "write", "load", "one image", "stamp", "1000 moving", "memory", "exact")


def _table(found: Sequence[Measurement]) -> list[str]:
    base = found[0]
    rows: list[tuple[str, ...]] = [_HEADS]
    for one in found:
        if one.failed is not None:
            rows.append((one.name, f"failed: {one.failed}", *[""] * (len(_HEADS) - 2)))
            continue
        size = "" if one.bytes is None else size_text(one.bytes)
        rows.append(
            (
                one.name,
                size,
                _seconds_text(one.write, base.write),
                _seconds_text(one.load, base.load),
                _seconds_text(one.image, base.image),
                _seconds_text(one.stamp, base.load),
                _seconds_text(one.trajectories, base.load),
                "" if one.memory is None else size_text(one.memory),
                "yes" if one.different == 0 else f"within {one.largest:.2g}",
            )
        )
    shown = [row for row in rows if not row[1].startswith("failed")]
    widths = [max(len(row[k]) for row in shown) for k in range(len(_HEADS))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("(n x): times as fast as astropy's way; a stamp takes astropy a full load.")
    return lines


def _seconds_text(value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.1f} ms"
    return text if base is None or base == value else f"{text} ({base / value:.3g} x)"


# --- astropy's way --------------------------------------------------------------------------------------


def astropy_write(path: str, images: Iterable[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]) -> None:
    """Write images (science, variance, PSF) with astropy as KBMOD's defaults do, masked pixels being NaN."""
    from astropy.io import fits

    hdus = fits.HDUList([fits.PrimaryHDU()])
    for i, (science, variance, psf) in enumerate(images):
        for name, plane in (("SCI", science), ("VAR", variance)):
            hdu = fits.CompImageHDU(plane, compression_type="RICE_1", quantize_level=-0.01, name=f"{name}_{i}")
            hdus.append(hdu)
        mask = (np.isnan(science) | np.isnan(variance)).astype(np.int8)
        hdus.append(fits.ImageHDU(mask, name=f"MSK_{i}"))
        hdus.append(fits.ImageHDU(psf, name=f"PSF_{i}"))
    hdus.writeto(path, overwrite=True)


def astropy_read(path: str, n_images: int | None = None) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Read (science, variance) of all images, or the first ones, with astropy as KBMOD does: by name, mask applied."""
    from astropy.io import fits

    images = []
    with fits.open(path) as hdus:
        count = sum(hdu.name.startswith("SCI_") for hdu in hdus) if n_images is None else n_images
        for i in range(count):
            science = hdus[f"SCI_{i}"].data.astype(np.single)
            variance = hdus[f"VAR_{i}"].data.astype(np.single)
            masked = hdus[f"MSK_{i}"].data > 0
            science[masked] = variance[masked] = np.nan
            images.append((science, variance))
    return images


# --- the steps, each in a process of its own ------------------------------------------------------------


def _source(job: Mapping[str, Any]) -> Reader:
    from wustore.backends.registry import open_reader
    from wustore.stamps.view import select

    reader = open_reader(job["source"])
    return reader if job["n_images"] == reader.meta.n_images else select(reader, images=range(job["n_images"]))


def _seen(reader: Reader) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Return (science, variance, PSF) of every image as KBMOD sees them."""
    from wustore.store_view import StoreSource

    science, variance, psfs = StoreSource(reader).load(range(reader.meta.n_images))
    return list(zip(science, variance, psfs, strict=True))


def _write(job: Mapping[str, Any]) -> dict[str, Any]:
    from wustore.backends.memory import MemoryReader
    from wustore.backends.registry import backend_named
    from wustore.ops.copy import copy

    with _source(job) as source:
        if job["format"] is None:
            images = _seen(source)
            start = time.perf_counter()
            astropy_write(job["path"], images)
            elapsed = time.perf_counter() - start
        else:
            held = MemoryReader(source.meta, [image for _, image in source.images()])
            start = time.perf_counter()
            copy(held, backend_named(job["format"]).create(job["path"], held.meta, **job["options"]))
            elapsed = time.perf_counter() - start
    return {"write": elapsed, "bytes": _size(Path(job["path"]))}


def _load(job: Mapping[str, Any]) -> dict[str, Any]:
    import wustore

    if job["format"] is None:  # imports are no part of the work
        from astropy.io import fits

        fits.open(job["path"]).close()
    else:
        wustore.open(job["path"], format=job["format"]).close()
    start = time.perf_counter()
    if job["format"] is None:
        loaded: Any = astropy_read(job["path"])
    else:
        loaded = wustore.open(job["path"], format=job["format"])
        loaded.load_images()
    elapsed = time.perf_counter() - start
    return {"load": elapsed, "memory": _peak_memory()}


def _touch(job: Mapping[str, Any]) -> dict[str, Any]:
    if job["format"] is None:  # one image can be read alone; a stamp needs the stack
        start = time.perf_counter()
        astropy_read(job["path"], 1)
        return {"image": time.perf_counter() - start}
    from wustore.backends.registry import open_reader
    from wustore.stamps.trajectory_stamps import stamps, trajectory_stamps

    with open_reader(job["path"], format=job["format"]) as reader:
        _, height, width = reader.meta.layer_shape("science")
        middle = reader.meta.n_images // 2
    rng = np.random.default_rng(0)
    n = N_TRAJECTORIES
    motions = np.stack(
        [rng.uniform(0, width, n), rng.uniform(0, height, n), *rng.uniform(-SPEED, SPEED, (2, n))], axis=1
    )
    tasks: dict[str, Callable[[Reader], object]] = {
        "image": lambda reader: reader.image(middle),
        "stamp": lambda reader: stamps(reader, width / 2, height / 2, STAMP_RADIUS),
        "trajectories": lambda reader: trajectory_stamps(reader, motions, STAMP_RADIUS),
    }
    return {name: min(_timed(job, task) for _ in range(3)) for name, task in tasks.items()}


def _timed(job: Mapping[str, Any], task: Callable[[Reader], object]) -> float:
    from wustore.backends.registry import open_reader

    start = time.perf_counter()
    with open_reader(job["path"], format=job["format"]) as reader:
        task(reader)
    return time.perf_counter() - start


def _check(job: Mapping[str, Any]) -> dict[str, Any]:
    from wustore.backends.registry import open_reader

    with _source(job) as source:
        if job["format"] is None:
            return _differences(_seen(source), astropy_read(job["path"]))
        with open_reader(job["path"], format=job["format"]) as reader:
            if job["options"].get("mode") == "kbmod":
                return _differences(_seen(source), _seen(reader))
            stored = ((image.science, image.variance) for _, image in source.images())
            return _differences(stored, ((image.science, image.variance) for _, image in reader.images()))


def _differences(expected: Iterable[Sequence[NDArray[Any]]], found: Iterable[Sequence[NDArray[Any]]]) -> dict[str, Any]:
    """Count the pixels of science and variance whose bits differ, any two NaN being equal to one another."""
    different, largest = 0, 0.0
    for mine, theirs in zip(expected, found, strict=True):
        for a, b in zip(mine[:2], theirs[:2], strict=True):
            same = (a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")) | (np.isnan(a) & np.isnan(b))
            if not same.all():
                different += int(np.count_nonzero(~same))
                with np.errstate(invalid="ignore"):
                    gaps = np.abs(a.astype(np.float64) - b)[~same]
                largest = max(largest, float(np.nanmax(gaps, initial=0)))
    return {"different": different, "largest": largest}


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def _peak_memory() -> int:
    """Return the largest resident size this process had [bytes]."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):  # unlike ru_maxrss this does not begin with the parent's size
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_STEPS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "write": _write,
    "load": _load,
    "touch": _touch,
    "check": _check,
}


def _main(arguments: Sequence[str]) -> int:
    warnings.simplefilter("ignore")
    step, job = arguments
    try:
        print(json.dumps(_STEPS[step](json.loads(job))))
    except (WuStoreError, OSError, MemoryError) as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
