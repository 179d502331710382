"""``wustore verify`` and ``wustore diff``: a store held against its checksums, and against another one."""

from __future__ import annotations

import itertools
import json

import click

from wustore.cli._output import progress_bar
from wustore.cli._run import DAMAGED, DIFFERS, OK, say

__all__ = ["diff", "verify"]

_VERIFY_EXAMPLES = """
\b
Examples:
  wustore verify night.zarr
  wustore verify night.h5 --json
  wustore verify night.zarr --fits && rm night.fits
"""


@click.command(epilog=_VERIFY_EXAMPLES)
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


_DIFF_EXAMPLES = """
\b
Examples:
  wustore diff night.fits night.zarr && echo equal
  wustore diff night.zarr night.h5 --json
"""


@click.command(epilog=_DIFF_EXAMPLES)
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Stop after that many.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Images at a time; as many as processors.")
def diff(left: str, right: str, *, as_json: bool, limit: int, workers: int | None) -> int:
    """Compare the stores A and B, whatever their formats: every value, type and pixel, bit for bit.

    Prints the places that differ. Exits 0 where there are none and 1 where there are.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.diff import differences

    with open_reader(left) as a, open_reader(right) as b:
        found = list(itertools.islice(differences(a, b, workers=workers), limit))
    if as_json:
        places = [{"where": d.where, "left": d.left, "right": d.right} for d in found]
        click.echo(json.dumps({"equal": not found, "differences": places}, indent=2))
    else:
        for difference in found:
            click.echo(str(difference))
    if len(found) == limit:
        say(f"wustore: stopped after {limit} differences")
    return DIFFERS if found else OK
