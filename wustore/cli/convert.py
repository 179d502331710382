"""``wustore convert``."""

from __future__ import annotations

import json
from typing import Any

import click

from wustore.cli.progress import progress_bar
from wustore.errors import UsageError

__all__ = ["convert"]

_EXAMPLES = """
\b
Examples:
  wustore convert night.fits night.zarr
  wustore convert night.zarr night.h5
  wustore convert night.zarr again.fits
  wustore convert night.zarr out/night.fits --format sharded-fits
  wustore convert night.fits small.zarr --profile portable
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--format", "target_format", metavar="NAME", help="Format of DST; by default its name says it.")
@click.option("--from-format", "source_format", metavar="NAME", help="Format of SRC; by default its content says it.")
@click.option("--profile", metavar="NAME", help="Compression of a Zarr or HDF5 DST: compact, portable, fast, none.")
@click.option("--layout", metavar="NAME", help="Chunking of a Zarr or HDF5 DST: images, cutouts, balanced.")
@click.option(
    "--option",
    "-o",
    "others",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of DST's format, such as compression_type=GZIP_2 for FITS. May be repeated.",
)
@click.option("--overwrite", is_flag=True, help="Replace DST where it exists; it stays until the new one is whole.")
@click.option("--no-capsule", is_flag=True, help="Leave out what gives back the identical FITS files.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Images at a time; as many as processors.")
def convert(
    source: str,
    target: str,
    *,
    target_format: str | None,
    source_format: str | None,
    profile: str | None,
    layout: str | None,
    others: tuple[str, ...],
    overwrite: bool,
    no_capsule: bool,
    workers: int | None,
) -> None:
    """Convert SRC into DST; nothing is lost.

    Formats are found from content (SRC) and name (DST); ``wustore formats`` lists them. A sharded FITS set
    is named by its primary file. DST appears when it is whole, or not at all.
    """
    from wustore.api import convert as run

    options = _options(others)
    options |= {name: value for name, value in (("profile", profile), ("layout", layout)) if value is not None}
    with progress_bar("converting") as progress:
        run(
            source,
            target,
            source_format=source_format,
            format=target_format,
            overwrite=overwrite,
            capsule=not no_capsule,
            workers=workers,
            progress=progress,
            **options,
        )


def _options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` pairs as options; a value that is JSON is taken as such, any other as text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError("an option of the format is not NAME=VALUE", where="--option", found=pair)
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options
