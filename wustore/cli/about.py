"""``wustore demo``, ``formats``, ``doctor`` and ``completion``: about this installation of wustore."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from wustore.cli._options import json_option
from wustore.cli._output import fitted, size_text
from wustore.cli._run import DIFFERS, OK

if TYPE_CHECKING:
    from wustore.work_unit import WorkUnit

__all__ = ["build", "completion", "demo", "doctor", "formats"]

N_IMAGES = 8
SIZE = 384
"""Pixels along each side of the images: large enough for fair ratios, small enough for seconds."""
SKY = 5.0
"""Standard deviation of the sky noise [counts]."""
RADIUS = 10
"""Half the side of a stamp [pixel]."""
_START, _VELOCITY = (95.0, 140.0), (260.0, 150.0)
"""Position at the first image [pixel] and motion [pixel/day] of the source, both (x, y)."""


def _gaussian(x0: float, y0: float, flux: float, sigma: float = 1.4) -> NDArray[np.float64]:
    """Return a source of ``flux`` counts at (x0, y0), in a plane of its own."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    plane: NDArray[np.float64] = np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * sigma**2))
    plane *= flux / (2 * np.pi * sigma**2)
    return plane


def positions() -> NDArray[np.float64]:
    """Return where the moving source is in each image, (x, y) [pixel]; shape (n_images, 2)."""
    days = _times() - _times()[0]
    places: NDArray[np.float64] = np.array(_START) + days[:, None] * np.array(_VELOCITY)
    return places


def _times() -> NDArray[np.float64]:
    return np.arange(N_IMAGES, dtype=np.float64) * 0.08 + 60676.25


def build(seed: int = 20261123) -> WorkUnit:
    """Return a small WorkUnit in memory: noise, stars, one moving source, masked pixels, WCS and a table."""
    import astropy.units as u
    from astropy.coordinates import EarthLocation
    from astropy.table import Table
    from astropy.wcs import WCS

    from wustore import ImageStack, SearchConfiguration, WorkUnit

    rng = np.random.default_rng(seed)
    stars = np.zeros((SIZE, SIZE))
    for _ in range(40):
        x0, y0 = rng.uniform(0, SIZE, 2)
        stars += _gaussian(x0, y0, flux=rng.pareto(1.2) * 600 + 200)
    science, variance, mask, kernels = [], [], [], []
    y, x = np.mgrid[-5:6, -5:6]
    kernel = np.exp(-(x**2 + y**2) / (2 * 1.4**2)).astype(np.float32)
    for x0, y0 in positions():
        sky = rng.normal(0, SKY, (SIZE, SIZE))
        bad = rng.random((SIZE, SIZE)) < 0.02
        science.append((stars + _gaussian(x0, y0, 900) + sky).astype(np.float32))
        variance.append((SKY**2 + np.maximum(stars, 0) / 4).astype(np.float32))
        mask.append(bad.astype(np.float32))
        kernels.append(kernel / kernel.sum())
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [351.3, -5.1]
    wcs.wcs.crpix = [SIZE / 2 + 0.5] * 2
    wcs.wcs.cdelt = [-0.27 / 3600, 0.27 / 3600]
    wcs.pixel_shape = (SIZE, SIZE)
    table = Table(
        {
            "data_loc": [f"demo/exposure_{i}.fits" for i in range(N_IMAGES)],
            "visit": np.arange(N_IMAGES) + 946_000,
            "filter": ["r"] * N_IMAGES,
            "zero_point": 27.0 + rng.normal(0, 0.05, N_IMAGES),
        }
    )
    configuration = SearchConfiguration()
    configuration.set_multiple({"num_obs": 6, "lh_level": 8.0})
    return WorkUnit(
        ImageStack(times=_times(), sci=science, var=variance, mask=mask, psfs=kernels),
        configuration,
        wcs=wcs,
        per_image_wcs=[wcs] * N_IMAGES,
        org_image_meta=table,
        observatory=EarthLocation(lat=-30.169 * u.deg, lon=-70.806 * u.deg, height=2207 * u.m),
    )


@dataclass(frozen=True)
class _Step:
    """A line of the table."""

    name: str
    size: int
    seconds: float
    proof: str


@click.command()
@click.option("--keep", "directory", metavar="DIR", help="Leave the files in DIR (made if it is not there).")
def demo(*, directory: str | None) -> int:
    """Make a small KBMOD FITS WorkUnit, convert it to Zarr and HDF5 and back, and prove the bytes equal.

    Takes seconds and needs nothing but the core install. Exits 1 if a byte differs.
    """
    with ExitStack() as stack:
        if directory is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wustore-demo-")))
        else:
            folder = Path(directory)
            folder.mkdir(parents=True, exist_ok=True)
        return _demo(folder, kept=directory is not None)


def _demo(folder: Path, *, kept: bool) -> int:
    from wustore.backends.registry import open_reader
    from wustore.ops.convert import convert
    from wustore.ops.diff import differences

    click.echo(
        f"A WorkUnit of {N_IMAGES} images of {SIZE} x {SIZE}: noise, stars, one moving source.\nFiles in {folder}\n"
    )
    source = folder / "night.fits"
    work_unit = build()
    seconds = _seconds(work_unit.to_fits, str(source), overwrite=True)
    digest = _sha256(source)
    steps = [_Step(source.name, _size(source), seconds, f"sha256 {digest[:8]}")]
    same = True
    for name, again in (("night.zarr", "from_zarr.fits"), ("night.h5", "from_hdf5.fits")):
        store, back = folder / name, folder / again
        seconds = _seconds(convert, source, store, overwrite=True)
        with open_reader(source) as a, open_reader(store) as b:
            n_different = sum(1 for _ in differences(a, b))
        proof = "every value equal" if n_different == 0 else f"{n_different} DIFFERENCES"
        steps.append(_Step(name, _size(store), seconds, proof))
        seconds = _seconds(convert, store, back, overwrite=True)
        identical = _sha256(back) == digest
        proof = f"sha256 {_sha256(back)[:8]} " + ("identical" if identical else "DIFFERENT")
        steps.append(_Step(again, _size(back), seconds, proof))
        same = same and identical and n_different == 0
    _tell(steps)
    _show_stamps(folder)
    if kept:
        click.echo(f"\nThe files stay in {folder}. Try: wustore info {folder / 'night.zarr'}")
    else:
        click.echo("\nThe files are gone now; wustore demo --keep DIR leaves them.")
    click.echo("FITS -> Zarr -> FITS and FITS -> HDF5 -> FITS: " + ("identical bytes." if same else "NOT identical."))
    return 0 if same else 1


def _seconds(action: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Return how long a call took."""
    start = time.perf_counter()
    action(*arguments, **options)
    return time.perf_counter() - start


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tell(steps: list[_Step]) -> None:
    pixels = N_IMAGES * SIZE * SIZE
    first = steps[0].size
    click.echo(f"{'file':<15}{'size':>10}{'of FITS':>9}{'B/pixel':>9}{'made in':>10}  proof")
    for step in steps:
        click.echo(
            f"{step.name:<15}{step.size / 1e6:>7.2f} MB{step.size / first:>9.2f}{step.size / pixels:>9.2f}"
            f"{step.seconds:>8.2f} s  {step.proof}"
        )


def _show_stamps(folder: Path) -> None:
    """Cut the moving source out of the Zarr store: a picture, and a preview on a terminal."""
    import wustore
    from wustore.stamps import picture as preview

    start = time.perf_counter()
    with wustore.open(folder / "night.zarr") as work_unit:
        found = work_unit.trajectory_stamps([[*_START, *_VELOCITY]], RADIUS)
    seconds = time.perf_counter() - start
    assert found.science is not None
    stamps = list(found.science[0])
    picture = folder / "stamps.png"
    picture.write_bytes(preview.png(preview.contact_sheet(stamps, zoom=6, gap=6)))
    side = 2 * RADIUS + 1
    click.echo(
        f"\n{picture.name}: {len(stamps)} stamps of {side} x {side} along the motion, cut in {seconds * 1000:.0f} ms"
    )
    if sys.stdout.isatty() and sys.stdout.encoding.lower().startswith("utf"):
        n_shown = max((shutil.get_terminal_size().columns - 1) // (side + 1), 1)
        click.echo(preview.terminal(preview.contact_sheet(stamps[:n_shown], gap=1)))


@click.command()
@json_option
def formats(*, as_json: bool) -> None:
    """List the formats that wustore reads and writes, those of other packages among them."""
    from wustore.backends.registry import backend_named, format_names

    rows = []
    for name in format_names():
        backend = backend_named(name)
        rows.append({"name": name, "suffixes": list(backend.suffixes), "description": backend.description})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(str(row["name"])) for row in rows)
    endings = [f" ({', '.join(row['suffixes'])})" if row["suffixes"] else "" for row in rows]
    lines = (f"{row['name']:<{width}}  {row['description']}{each}" for row, each in zip(rows, endings, strict=True))
    click.echo("\n".join(fitted(lines)))


# --- doctor ---------------------------------------------------------------------------------------------

_CORE = (
    *("numpy", "astropy", "zarr", "numcodecs", "pcodec", "google-crc32c", "h5py", "imagecodecs"),
    *("PyYAML", "click", "tqdm"),
)
"""Packages without which nothing works; numba may be missing."""
_EXTRAS = {
    "numba": "compiled loops; without it FITS is several times slower, and reads use fewer cores",
    "hdf5plugin": "extra plugins: the HDF5 profile fast",
    "matplotlib": "extra plot: plots",
    "xarray": "extra xarray: to_xarray() and the xarray engine",
    "dask": "extra xarray: lazy arrays in parallel",
    "distributed": "extra cluster: conversions on a Dask cluster",
    "obstore": "extra cloud: s3://, gs://, az://, https://",
    "fsspec": "extra cloud: other protocols",
    "icechunk": "extra icechunk: transactions and history of a store",
    "pyarrow": "extra parquet: KBMOD results in Parquet",
    "jsonschema": "documents compared with the published schema",
}


@click.command()
@json_option
def doctor(*, as_json: bool) -> int:
    """Say what this installation can do: versions, codecs, plug-ins, extras, processors and limits.

    Exits 1 if a package of the core install is missing, or a codec does not give back what it was given.
    """
    found = _examined()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(fitted(_doctor_lines(found))))
    return OK if found["ok"] else DIFFERS


def _doctor_lines(found: dict[str, Any]) -> Iterator[str]:
    for title, part in found.items():
        if not isinstance(part, dict):
            yield f"{title:<20}{'yes' if part is True else 'no' if part is False else part}"
        elif part:
            yield title
            for name, value in part.items():
                yield f"  {name.replace('_', ' '):<18}{'missing' if value is None else value}"


def _examined() -> dict[str, Any]:
    import platform
    from importlib.metadata import entry_points

    from wustore._version import __version__
    from wustore.backends.registry import GROUP
    from wustore.storage.threads import default_workers

    core = {name: _version(name) for name in _CORE}
    codecs = _codecs()
    return {
        "wustore": __version__,
        "python": f"{platform.python_version()}, {platform.platform()}",
        "core": core,
        "extras": {name: _version(name) or f"not installed ({use})" for name, use in _EXTRAS.items()},
        "codecs": codecs,
        "plugins": {point.name: point.value for point in entry_points(group=GROUP)},
        "limits": {
            "processors": default_workers(),
            "open_files": _open_files(),
            "memory": _memory(),
            "temporary": f"{tempfile.gettempdir()}, {size_text(shutil.disk_usage(tempfile.gettempdir()).free)} free",
        },
        "ok": all(core.values()) and set(codecs.values()) <= {"ok"},
    }


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _codecs() -> dict[str, str]:
    """Return for each profile whether an image comes back from it, or what went wrong."""
    from wustore.backends.memory import MemoryReader
    from wustore.backends.registry import backend_named, open_reader
    from wustore.errors import MissingDependencyError, WuStoreError
    from wustore.format.preset_names import PROFILES
    from wustore.ops.copy import copy
    from wustore.ops.diff import differences

    results = {}
    with tempfile.TemporaryDirectory(prefix="wustore-doctor-") as folder:
        source = MemoryReader(*_small())
        for kind, ending in (("zarr", "zarr"), ("hdf5", "h5")):
            for profile in PROFILES:
                path = f"{folder}/{profile}.{ending}"
                try:
                    copy(source, backend_named(kind).create(path, source.meta, profile=profile))
                    with open_reader(path) as reader:
                        same = next(differences(source, reader), None) is None
                    results[f"{kind} {profile}"] = "ok" if same else "DIFFERENT VALUES"
                except MissingDependencyError as error:
                    if kind == "zarr":
                        results[f"{kind} {profile}"] = str(error)
                except (WuStoreError, ImportError, OSError, ValueError) as error:
                    results[f"{kind} {profile}"] = f"{type(error).__name__}: {error}"
    return results


def _small() -> tuple[Any, Any]:
    """Return metadata and images of a tiny WorkUnit."""
    from wustore.model.meta import ConstituentTable, Image, Meta

    plane = np.random.default_rng(1).normal(0, 5, (16, 16)).astype(np.float32)
    image = Image(plane, plane**2, (plane > 9).astype(np.int8), np.ones((3, 3), np.float32))
    types = {
        name: (value.dtype,)
        for name in ("science", "variance", "mask", "psf")
        if (value := image.layer(name)) is not None
    }
    shape = np.array([[16, 16]], np.int32)
    meta = Meta(np.array([60000.0]), shape, np.array([[3, 3]], np.int32), types, None, ConstituentTable(0))
    return meta, [image]


def _open_files() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{soft} (at most {hard})"


def _memory() -> str:
    try:
        return size_text(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return "unknown"


# --- completion -----------------------------------------------------------------------------------------


@click.command(
    epilog="""
\b
Examples:
  wustore completion bash > ~/.local/share/bash-completion/completions/wustore
  eval "$(wustore completion zsh)"
  wustore completion fish > ~/.config/fish/completions/wustore.fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and paths in SHELL."""
    from click.shell_completion import BashComplete, get_completion_class

    from wustore.cli import COMPLETION, cli

    kind = get_completion_class(shell)
    assert kind is not None
    if kind is BashComplete:
        kind = type("BashComplete", (BashComplete,), {"_check_version": staticmethod(lambda: None)})
    click.echo(kind(cli, {}, "wustore", COMPLETION).source())
