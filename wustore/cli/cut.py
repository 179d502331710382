"""``wustore stamp``, ``wustore cutout`` and ``wustore export``: parts of a store."""

from __future__ import annotations

from typing import Any

import click

from wustore.backends.base import Reader
from wustore.cli._options import MOMENT, STORE, Number, format_option, grouped
from wustore.cli._output import progress_bar, report
from wustore.errors import UsageError
from wustore.model.meta import Meta

__all__ = ["cutout", "export", "stamp"]

_STAMP_EXAMPLES = """
\b
Examples:
  wustore stamp night.zarr --x 1000 --y 1200 --radius 10 -o stamp.png
  wustore stamp night.fits --ra 351.42 --dec -5.51 -o stamp.fits
  wustore stamp night.zarr --trajectories a.ecsv --coadd mean -o coadds.npz
"""


_position_options = grouped(
    click.option("--x", type=float, metavar="PIXEL", help="Centre in x, from 0."),
    click.option("--y", type=float, metavar="PIXEL", help="Centre in y, from 0."),
    click.option("--ra", type=Number("deg"), metavar="DEG", help="Centre in right ascension, ICRS; or such as 12h30m."),
    click.option("--dec", type=Number("deg"), metavar="DEG", help="Centre in declination, ICRS; or such as -5d30m."),
)
_times_option = click.option(
    "--times", type=MOMENT, nargs=2, metavar="START STOP", help="Only images between these times: MJD or ISO."
)
_selection_options = grouped(
    _times_option,
    click.option("--images", metavar="LIST", help="Only these images, such as 0,3-7; from 0."),
    click.option("--filters", metavar="LIST", help="Only images through these filters, such as g,r."),
)


@click.command(epilog=_STAMP_EXAMPLES)
@click.argument("path", type=STORE)
@_position_options
@click.option("--radius", type=click.IntRange(min=0), default=10, show_default=True, help="Pixels around the centre.")
@click.option(
    "--trajectories",
    metavar="FILE",
    help="Follow the motions in a KBMOD results file (.ecsv, .parquet, .hdf5) or a .csv table: "
    "x, y, vx, vy, or ra, dec, v_ra, v_dec, or ra, dec, mjd.",
)
@_times_option
@click.option(
    "--coadd",
    "kind",
    type=click.Choice(["sum", "mean", "median", "weighted"]),
    help="Write the coadd over time instead of the stamps.",
)
@click.option("--output", "-o", required=True, metavar="OUT", help="Ending in .npy, .npz, .fits, .zarr or .png.")
@format_option
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
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

    Reads only the chunks that the stamps touch. Pixels outside of the image and masked ones are NaN.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.convert import refuse_same
    from wustore.stamps.files import write_stamps
    from wustore.stamps.results import Coadds, Stamps
    from wustore.stamps.trajectory_stamps import stamps, trajectory_coadds, trajectory_stamps

    position: dict[str, Any] = {"x": x, "y": y, "ra": ra, "dec": dec}
    if trajectories is not None and any(value is not None for value in position.values()):
        raise UsageError("a position and trajectories", expected="one of them", hint="Leave out one of the two.")
    refuse_same(path, output)
    refuse_same(trajectories, output)
    found: Stamps | Coadds
    with open_reader(path, format=format_name) as reader, progress_bar("cutting") as progress:
        if trajectories is None:
            found = stamps(reader, radius=radius, times=times, progress=progress, **position)
        elif kind is not None:
            found = trajectory_coadds(reader, trajectories, radius, kind, times, progress=progress)
        else:
            found = trajectory_stamps(reader, trajectories, radius, times, progress=progress)
    write_stamps(found, output, coadd=kind, overwrite=overwrite)
    n_positions, n_times = found.x.size // max(len(found.times), 1), len(found.times)
    size = f"{2 * radius + 1} x {2 * radius + 1} pixels"
    what = f"{n_positions * n_times} stamps of {size}" if kind is None else f"{n_positions} coadds of {size}"
    n_outside = int(found.is_outside.sum()) if isinstance(found, Stamps) else 0
    outside = f"; {n_outside} stamps have no pixel of their image" if n_outside else ""
    report(f"{output}: {what}, from {n_times} images{outside}")


_CUTOUT_EXAMPLES = """
\b
Examples:
  wustore cutout night.zarr small.fits --x 1000 --y 1200 --width 200
  wustore cutout night.fits small.zarr --ra 351.42 --dec -5.51 --size 60
  wustore cutout night.zarr green.zarr --filters g --times 60000.1 60000.2
"""


@click.command(epilog=_CUTOUT_EXAMPLES)
@click.argument("source", metavar="PATH", type=STORE)
@click.argument("target", metavar="OUT", type=STORE)
@_position_options
@click.option("--width", type=click.IntRange(min=1), metavar="N", help="Size in x.")
@click.option("--height", type=click.IntRange(min=1), metavar="N", help="Size in y; as the width by default.")
@click.option("--size", type=Number("arcsec"), metavar="ARCSEC", help="Size on the sky instead; or such as 2arcmin.")
@_selection_options
@click.option("--format", "target_format", metavar="NAME", help="Format of OUT; by default its name says it.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists; it stays until the new one is whole.")
def cutout(
    source: str,
    target: str,
    *,
    x: float | None,
    y: float | None,
    width: int | None,
    height: int | None,
    ra: float | None,
    dec: float | None,
    size: float | None,
    times: tuple[float, float] | None,
    images: str | None,
    filters: str | None,
    target_format: str | None,
    overwrite: bool,
) -> None:
    """Write a smaller WorkUnit: a window of the pixels of PATH, some of its images, or both.

    The WCS moves along, and constituents go with their images. Only the chunks that are needed are read.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.convert import refuse_same
    from wustore.stamps.view import cutout as window

    is_window = any(value is not None for value in (x, y, width, height, ra, dec, size))
    is_selection = any(value is not None for value in (times, images, filters))
    if not (is_window or is_selection):
        raise UsageError(
            "nothing is cut out",
            expected="a window, or some of the images",
            hint="Give --x, --y, --width; or --ra, --dec, --size; or --times, --images, --filters.",
        )
    refuse_same(source, target)
    with open_reader(source) as reader:
        view = reader
        if is_selection:
            view = _selected(view, times, images, filters)
        if is_window:
            view = window(view, x, y, width, height, ra=ra, dec=dec, size=size)
        meta = _write(view, target, target_format, overwrite=overwrite, label="cutting")
    report(f"{target}: {meta.n_images} images of {' x '.join(map(str, meta.layer_shape('science')[1:]))} pixels (y, x)")


_EXPORT_EXAMPLES = """
\b
Examples:
  wustore export --for-kbmod night.zarr night.fits && kbmod-stats night.fits
  wustore export --for-kbmod s3://bucket/night.zarr few.fits --images 0-9
"""


@click.command(epilog=_EXPORT_EXAMPLES)
@click.argument("source", metavar="PATH", type=STORE)
@click.argument("target", metavar="OUT", type=STORE)
@click.option("--for-kbmod", is_flag=True, required=True, help="One FITS file as KBMOD's programs read it.")
@_selection_options
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists; it stays until the new one is whole.")
def export(
    source: str,
    target: str,
    *,
    for_kbmod: bool,
    times: tuple[float, float] | None,
    images: str | None,
    filters: str | None,
    overwrite: bool,
) -> None:
    """Write a store, or some of its images, for programs that read FITS only (kbmod-stamps, kbmod-stats, kbmod-filter).

    Every pixel is exact. The whole frame is written: positions in a results file count pixels from its corner.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.convert import refuse_same

    refuse_same(source, target)
    with open_reader(source) as reader:
        view: Reader = reader
        if any(value is not None for value in (times, images, filters)):
            view = _selected(view, times, images, filters)
        meta = _write(view, target, "fits", overwrite=overwrite, label="exporting")
    report(f"{target}: {meta.n_images} images")


def _selected(view: Reader, times: tuple[float, float] | None, images: str | None, filters: str | None) -> Reader:
    from wustore.stamps.view import select

    chosen = None if images is None else _indices(images)
    return select(view, times, chosen, None if filters is None else filters.split(","))


def _write(view: Reader, target: str, target_format: str | None, *, overwrite: bool, label: str) -> Meta:
    from wustore.backends.registry import backend_for_writing
    from wustore.ops.copy import copy

    backend = backend_for_writing(target, target_format)
    with backend.create(target, view.meta, overwrite=overwrite) as writer, progress_bar(label) as progress:
        copy(view, writer, progress=progress)
    return view.meta


def _indices(text: str) -> list[int]:
    """Return the numbers of a list such as ``0,3-7``."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(
                "not a list of images", where="--images", found=text, hint="Give numbers from 0, such as 0,3-7."
            )
        chosen += range(int(first), int(last if dash else first) + 1)
    return chosen
