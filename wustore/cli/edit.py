"""``wustore append``, ``repack``, ``drop`` and ``migrate``: a store edited in place, journalled in its history."""

from __future__ import annotations

import click

from wustore.cli._options import STORE, format_options
from wustore.cli._output import progress_bar, report
from wustore.errors import UsageError

__all__ = ["append", "drop", "migrate", "repack"]


@click.command(
    epilog="""
\b
Examples:
  wustore append night.zarr late.fits
  wustore append night.h5 late.fits --drop-capsule
  wustore append s3://bucket/night.zarr a.h5 b.h5
"""
)
@click.argument("store", type=STORE)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...", type=STORE)
@click.option(
    "--drop-capsule/--keep-capsule",
    default=None,
    help="Agree that STORE gives no original FITS files back any more, or refuse; by default a warning says so.",
)
@click.option(
    "--duplicates/--no-duplicates",
    default=None,
    help="Append images that are in STORE already, or refuse them; by default a warning says so.",
)
def append(store: str, sources: tuple[str, ...], *, drop_capsule: bool | None, duplicates: bool | None) -> None:
    """Append the images of every SRC to STORE (Zarr or HDF5).

    Existing chunks stay as they are, and readers of STORE see the old or the new state. An HDF5 file is
    replaced by a new one, for which there must be room in the same directory.
    """
    from wustore.ops.edit import append as run

    with progress_bar("appending") as progress:
        count = run(store, *sources, drop_capsule=drop_capsule, duplicates=duplicates, progress=progress)
    report(f"{store}: {count} images appended")


@click.command(
    epilog="""
\b
Examples:
  wustore repack night.zarr --profile portable
  wustore repack night.zarr --layout cutouts
"""
)
@click.argument("store", type=STORE)
@click.option("--profile", metavar="NAME", help="Compression: compact, portable, fast, none.")
@click.option("--layout", metavar="NAME", help="Chunking: images, cutouts, balanced.")
def repack(store: str, *, profile: str | None, layout: str | None) -> None:
    """Write STORE (Zarr or HDF5) again in its place, in another profile or layout."""
    options = format_options(profile, layout, ())
    if not options:
        raise UsageError("nothing to change", path=store, hint="Give --profile, --layout, or both.")
    from wustore.ops.edit import repack as run

    with progress_bar("repacking") as progress:
        run(store, progress=progress, **options)
    report(f"{store}: repacked, {', '.join(f'{name} {value}' for name, value in options.items())}")


@click.command(
    epilog="""
\b
Examples:
  wustore drop night.zarr capsule
  wustore drop night.h5 mask psf capsule
"""
)
@click.argument("store", type=STORE)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def drop(store: str, names: tuple[str, ...]) -> None:
    """Remove layers (mask, psf) or the FITS reconstruction data (capsule) from STORE."""
    from wustore.ops.edit import drop as run

    with progress_bar("rewriting") as progress:
        run(store, names, progress=progress)
    report(f"{store}: removed {', '.join(names)}")


@click.command(
    epilog="""
\b
Examples:
  wustore migrate night.zarr
  wustore migrate s3://bucket/night.zarr new.zarr
"""
)
@click.argument("store", type=STORE)
@click.argument("out", required=False, type=STORE)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists; the old one stays until the new is whole.")
def migrate(store: str, out: str | None, *, overwrite: bool) -> None:
    """Write STORE, of an older version of the format, in the current one: to OUT, or in its place.

    The new store is read again and compared with the old one before it appears. Older versions stay readable; this is
    for programs that know the current version only.
    """
    from wustore.format.version import VERSION
    from wustore.ops.edit import migrate as run

    with progress_bar("migrating") as progress:
        done = run(store, out, overwrite=overwrite, progress=progress)
    report(f"{store if out is None else out}: version {VERSION}" if done else f"{store}: already {VERSION}")
