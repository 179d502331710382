"""``wustore verify``."""

from __future__ import annotations

import json

import click

from wustore.cli._progress import progress_bar
from wustore.cli._run import DAMAGED, DIFFERS, OK

__all__ = ["verify"]

_EXAMPLES = """
\b
Examples:
  wustore verify night.zarr
  wustore verify night.h5 --json
  wustore verify night.zarr --fits && rm night.fits
"""


@click.command(epilog=_EXAMPLES)
@click.argument("path")
@click.option("--format", "format_name", metavar="NAME", help="Format, where the content must not decide.")
@click.option("--fits", "with_fits", is_flag=True, help="Also write the FITS files it came from, and hash them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Images at a time; as many as processors.")
def verify(path: str, *, format_name: str | None, with_fits: bool, as_json: bool, workers: int | None) -> int:
    """Read all of the store at PATH: every chunk, checksum, document and FITS leftover.

    Of FITS files the CHECKSUM and DATASUM cards are held against the bytes; a file in which they are wrong is
    converted all the same.

    With --fits the original FITS files are written to a temporary directory and their sha256 compared with
    the recorded one. Prints each place that is wrong. Exits 0 where there is none, 1 where the store is whole
    but invalid, 3 where it is damaged, 4 where its conversion has not finished.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.verify import fits_problems, problems

    with open_reader(path, format=format_name) as reader, progress_bar("verifying") as progress:
        found = list(problems(reader, workers=workers, progress=progress))
        if with_fits and not found:
            found = list(fits_problems(reader, workers=workers, progress=progress))
        n_images, checked = reader.meta.n_images, reader.checksums() is not None
    if as_json:
        listed = [{"kind": p.kind, "where": p.where, "what": p.what} for p in found]
        click.echo(json.dumps({"path": path, "ok": not found, "checksums": checked, "problems": listed}, indent=2))
    elif found:
        click.echo("\n".join(str(problem) for problem in found))
    else:
        how = "every plane matches its checksum" if checked else "the format stores no checksums of planes"
        how += "; the FITS files come back with their sha256" if with_fits else ""
        click.echo(f"{path}: ok, {n_images} images read; {how}")
    if not found:
        return OK
    return DAMAGED if any(problem.kind == "damaged" for problem in found) else DIFFERS
