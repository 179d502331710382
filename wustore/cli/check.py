"""``wustore verify`` and ``wustore diff``: a store held against its checksums, and against another one."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import click

from wustore.cli._options import STORE, format_option, json_option, many_options, over, workers_option
from wustore.cli._output import SETTINGS, detail, progress_bar, report, say
from wustore.cli._run import DAMAGED, DIFFERS, OK

__all__ = ["diff", "verify"]

_VERIFY_EXAMPLES = """
\b
Examples:
  wustore verify night.zarr
  wustore verify night.h5 --json
  wustore verify night.zarr --fits && rm night.fits
  wustore verify *.zarr --jobs 4 --continue-on-error --quiet
"""


@click.command(epilog=_VERIFY_EXAMPLES)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=STORE)
@format_option
@click.option("--fits", "with_fits", is_flag=True, help="Also write the FITS files it came from, and hash them.")
@json_option
@workers_option
@many_options
def verify(
    paths: tuple[str, ...],
    *,
    format_name: str | None,
    with_fits: bool,
    as_json: bool,
    workers: int | None,
    jobs: int,
    continue_on_error: bool,
) -> int:
    """Read all of the store at PATH: every chunk, checksum and document, and the capsule.

    Of FITS files the CHECKSUM and DATASUM cards are compared with the bytes; a file in which they are wrong is
    converted all the same.

    With --fits the original FITS files are written to a temporary directory, and their sha256 is compared with
    the recorded one. Prints each place that is wrong. Exits 0 if there is none, 1 if the store is whole
    but invalid, 3 if it is damaged, 4 if its conversion has not finished.
    """

    def one(path: str) -> int:
        from wustore.backends.registry import open_reader
        from wustore.ops.verify import fits_problems, problems

        detail(f"verifying {path}")
        with open_reader(path, format=format_name) as reader, progress_bar("verifying") as progress:
            found = list(problems(reader, workers=workers, progress=progress))
            if with_fits and not found:
                found = list(fits_problems(reader, workers=workers, progress=progress))
            n_images, protection = reader.meta.n_images, reader.protection()
        if as_json:
            listed = [{"kind": p.kind, "where": p.where, "what": p.what} for p in found]
            document = {
                "path": path,
                "ok": not found,
                "images": n_images,
                "checksums": bool(protection),
                "protection": protection,
                "problems": listed,
            }
            click.echo(json.dumps(document, indent=2))
        elif not SETTINGS.quiet:
            several = f"{path}: " if len(paths) > 1 else ""
            for problem in found:
                click.echo(f"{several}{problem}")
            if not found:
                how = "; the FITS files come back with their sha256" if with_fits else ""
                if protection:
                    click.echo(f"{path}: ok, {n_images} images read; {protection}{how}")
                else:
                    nothing = "it carries no checksums, so changed values would not be noticed"
                    click.echo(f"{path}: readable, {n_images} images read; {nothing}{how}")
        if not found:
            return OK
        return DAMAGED if any(problem.kind == "damaged" for problem in found) else DIFFERS

    return over([(path,) for path in paths], one, jobs=jobs, continue_on_error=continue_on_error, done="ok")


_DIFF_EXAMPLES = """
\b
Examples:
  wustore diff night.fits night.zarr && echo equal
  wustore diff night.zarr night.h5 --json
  wustore diff night.fits lossy.fits --atol 0.005
"""


@click.command(epilog=_DIFF_EXAMPLES)
@click.argument("left", metavar="A", type=STORE)
@click.argument("right", metavar="B", type=STORE)
@click.option("--rtol", type=click.FloatRange(min=0), default=0.0, help="Relative difference of pixels to allow.")
@click.option("--atol", type=click.FloatRange(min=0), default=0.0, help="Absolute difference of pixels to allow.")
@json_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Stop after that many.")
@workers_option
def diff(left: str, right: str, *, rtol: float, atol: float, as_json: bool, limit: int, workers: int | None) -> int:
    """Compare the stores A and B, whatever their formats: every value, type and pixel, bit for bit.

    Prints the places that differ, with the largest difference of the pixels there. Exits 0 if there are none and
    1 if there are. With --rtol or --atol, pixels that differ by no more than atol + rtol * abs(B) are equal.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.diff import differences

    with open_reader(left) as a, open_reader(right) as b:
        found = list(itertools.islice(differences(a, b, workers=workers, rtol=rtol, atol=atol), limit))
        n_images = a.meta.n_images
    largest: dict[str, float] = {}
    for difference in found:
        if difference.largest is not None:
            layer = difference.where.partition(" ")[0]
            largest[layer] = max(largest.get(layer, 0.0), difference.largest)
    if as_json:
        document = {"equal": not found, "differences": [asdict(d) for d in found], "largest": largest}
        click.echo(json.dumps(document, indent=2))
    elif not SETTINGS.quiet:
        for difference in found:
            click.echo(str(difference))
    if len(found) == limit:
        say(f"wustore: stopped after {limit} differences; --limit shows more")
    if not found:
        how = "bit for bit" if rtol == atol == 0 else f"within rtol {rtol:g} and atol {atol:g}"
        report(f"{left} and {right} are equal: {n_images} images, every value, {how}")
        return OK
    if largest:
        report("largest difference: " + ", ".join(f"{layer} {value:.4g}" for layer, value in largest.items()))
    return DIFFERS
