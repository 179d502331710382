"""``wustore stamp``."""

from __future__ import annotations

from typing import Any

import click

from wustore.cli._run import say
from wustore.errors import UsageError

__all__ = ["stamp"]

_EXAMPLES = """
\b
Examples:
  wustore stamp night.zarr --x 1000 --y 1200 --radius 10 -o stamp.png
  wustore stamp night.fits --ra 351.42 --dec -5.51 -o stamp.fits
  wustore stamp night.zarr --trajectories results.parquet --coadd mean -o coadds.npz
"""


@click.command(epilog=_EXAMPLES)
@click.argument("path")
@click.option("--x", type=float, metavar="PIXEL", help="Centre in x, from 0.")
@click.option("--y", type=float, metavar="PIXEL", help="Centre in y, from 0.")
@click.option("--ra", type=float, metavar="DEG", help="Centre in right ascension, ICRS.")
@click.option("--dec", type=float, metavar="DEG", help="Centre in declination, ICRS.")
@click.option("--radius", type=click.IntRange(min=0), default=10, show_default=True, help="Pixels around the centre.")
@click.option(
    "--trajectories",
    metavar="FILE",
    help="Follow the motions in a KBMOD results file (.ecsv, .parquet, .hdf5) or a .csv table: "
    "x, y, vx, vy, or ra, dec, v_ra, v_dec, or ra, dec, mjd.",
)
@click.option("--times", type=float, nargs=2, metavar="START STOP", help="Only images in this range of MJD.")
@click.option(
    "--coadd",
    "kind",
    type=click.Choice(["sum", "mean", "median", "weighted"]),
    help="Write the coadd over time instead of the stamps.",
)
@click.option("--output", "-o", required=True, metavar="OUT", help="Ending in .npy, .npz, .fits, .zarr or .png.")
@click.option("--format", "format_name", metavar="NAME", help="Format of PATH, where the content must not decide.")
@click.option("--overwrite", is_flag=True, help="Replace OUT where it exists.")
def stamp(
    path: str,
    *,
    x: float | None,
    y: float | None,
    ra: float | None,
    dec: float | None,
    radius: int,
    trajectories: str | None,
    times: tuple[float, float] | None,
    kind: str | None,
    output: str,
    format_name: str | None,
    overwrite: bool,
) -> None:
    """Cut stamps out of all images of the store at PATH: at a position, or along trajectories.

    Reads only the chunks that the stamps touch. Pixels outside of the frame and masked ones are NaN.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.convert import refuse_same
    from wustore.stamps.extract import Coadds, Stamps, stamps, trajectory_coadds, trajectory_stamps
    from wustore.stamps.files import write_stamps

    position: dict[str, Any] = {"x": x, "y": y, "ra": ra, "dec": dec}
    if trajectories is not None and any(value is not None for value in position.values()):
        raise UsageError("a position and trajectories", expected="one of them")
    refuse_same(path, output)
    refuse_same(trajectories, output)
    found: Stamps | Coadds
    with open_reader(path, format=format_name) as reader:
        if trajectories is None:
            found = stamps(reader, radius=radius, times=times, **position)
        elif kind is not None:
            found = trajectory_coadds(reader, trajectories, radius, kind, times)
        else:
            found = trajectory_stamps(reader, trajectories, radius, times)
    write_stamps(found, output, coadd=kind, overwrite=overwrite)
    n_positions, n_times = found.x.size // max(len(found.times), 1), len(found.times)
    size = f"{2 * radius + 1} x {2 * radius + 1} pixels"
    what = f"{n_positions * n_times} stamps of {size}" if kind is None else f"{n_positions} coadds of {size}"
    say(f"wustore: {output}: {what}, from {n_times} images")
