"""``wustore verify``, ``diff``, ``checksum``, ``repair``, ``clean``: is a store whole, and what to do if it is not."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import click

from wustore.cli._options import STORE, format_option, json_option, many_options, over, workers_option
from wustore.cli._output import SETTINGS, detail, progress_bar, report, say
from wustore.cli._run import DAMAGED, DIFFERS, OK
from wustore.errors import StoreExistsError, UsageError

__all__ = ["checksum", "clean", "diff", "repair", "verify"]

_VERIFY_EXAMPLES = """
\b
Examples:
  wustore verify night.zarr
  wustore verify night.h5 --json
  wustore verify night.zarr --fits && rm night.fits
  wustore verify night.zarr --against night.fits
  wustore verify night.zarr --receipt night.receipt.json
  wustore verify *.zarr --jobs 4 --continue-on-error --quiet
"""


@click.command(epilog=_VERIFY_EXAMPLES)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=STORE)
@format_option
@click.option("--fits", "with_fits", is_flag=True, help="Also write the FITS files it came from, and hash them.")
@click.option("--against", metavar="SRC", type=STORE, help="Also compare every value and pixel with those of SRC.")
@click.option("--receipt", metavar="FILE", type=click.Path(), help="Also compare every file with a receipt.")
@json_option
@workers_option
@many_options
def verify(
    paths: tuple[str, ...],
    *,
    format_name: str | None,
    with_fits: bool,
    against: str | None,
    receipt: str | None,
    as_json: bool,
    workers: int | None,
    jobs: int,
    continue_on_error: bool,
) -> int:
    """Read all of the store at PATH: every chunk, checksum and document, and the capsule.

    Of FITS files the CHECKSUM and DATASUM cards are compared with the bytes; a file in which they are wrong is
    converted all the same.

    With --fits the original FITS files are written to a temporary directory, and their sha256 is compared with
    the recorded one. Prints each place that is wrong, or what was proven; --json lists every file with its sha256, too.
    Exits 0 if nothing is wrong, 1 if the store is whole but invalid or differs from SRC, 3 if it is damaged, 4 if its
    conversion has not finished.
    """

    def one(path: str) -> int:
        from wustore.backends.registry import open_reader
        from wustore.ops.verify import (
            against_problems,
            check_receipt,
            counts,
            file_sums,
            fits_problems,
            problems,
            read_receipt,
        )

        detail(f"verifying {path}")
        with open_reader(path, format=format_name) as reader, progress_bar("verifying") as progress:
            found = list(problems(reader, workers=workers, progress=progress))
            if with_fits and not found:
                found = list(fits_problems(reader, workers=workers, progress=progress))
            if against is not None:
                with open_reader(against) as source:
                    found += against_problems(reader, source, workers=workers)
            if receipt is not None:
                found += check_receipt(read_receipt(receipt), reader)
            n_images, protection = reader.meta.n_images, "" if found else reader.protection()
            files = [asdict(one) for one in file_sums(reader)] if as_json and Path(reader.path).exists() else []
            counted = counts(reader)
        proven = [protection or "every image could be read"]
        proven += ["the FITS files come back with their sha256"] if with_fits else []
        proven += [f"every value and pixel is that of {against}"] if against is not None else []
        proven += [f"every file is that of {receipt}"] if receipt is not None else []
        if as_json:
            listed = [{"kind": p.kind, "where": p.where, "what": p.what} for p in found]
            document = {
                "path": path,
                "ok": not found,
                "images": n_images,
                "checksums": bool(protection),
                "protection": protection,
                "proven": [] if found else proven,
                "counts": counted,
                "files": files,
                "problems": listed,
            }
            click.echo(json.dumps(document, indent=2))
        elif not SETTINGS.quiet:
            several = f"{path}: " if len(paths) > 1 else ""
            for problem in found:
                click.echo(f"{several}{problem}")
            if not found:
                how = "".join(f"; {what}" for what in proven[1:])
                if protection:
                    click.echo(f"{path}: ok, {n_images} images read; {protection}{how}")
                else:
                    nothing = "it carries no checksums, so changed values would not be noticed"
                    click.echo(f"{path}: readable, {n_images} images read; {nothing}{how}")
        if not found:
            return OK
        return DAMAGED if any(problem.kind == "damaged" for problem in found) else DIFFERS

    return over([(path,) for path in paths], one, jobs=jobs, continue_on_error=continue_on_error, done="ok")


_CHECKSUM_EXAMPLES = """
\b
Examples:
  wustore checksum night.zarr > night.sha256 && sha256sum -c night.sha256
  wustore checksum night.zarr --receipt night.receipt.json && rm night.fits
  wustore verify night.zarr --receipt night.receipt.json
"""


@click.command(epilog=_CHECKSUM_EXAMPLES)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=STORE)
@click.option("--receipt", metavar="FILE", type=click.Path(), help="Verify PATH, and write a receipt to FILE.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@workers_option
def checksum(paths: tuple[str, ...], *, receipt: str | None, overwrite: bool, workers: int | None) -> None:
    """Print the sha256 of every file of the stores at PATH, as ``sha256sum -c`` reads them.

    A receipt is a JSON document: the sha256 of every file, of the source files, and what was proven. If the store has
    FITS reconstruction data, the source files are written again and hashed for it. ``wustore verify --receipt``
    compares a store with it later. There is none for a store that something is wrong with.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.verify import file_sums, make_receipt

    if receipt is not None and len(paths) > 1:
        raise UsageError("a receipt is for one store", where="--receipt", found=f"{len(paths)} stores")
    if receipt is not None and not overwrite and Path(receipt).exists():
        raise StoreExistsError("the receipt exists already", path=receipt, hint="Choose another name, or --overwrite.")
    for path in paths:
        with open_reader(path) as reader, progress_bar("hashing") as progress:
            if receipt is not None:
                document = make_receipt(reader, workers=workers, progress=progress)
                Path(receipt).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
                report(f"{receipt}: {len(document['store']['files'])} files; {'; '.join(document['proven'])}")
                continue
            for one in file_sums(reader):
                name = f"{path.rstrip('/')}/{one.name.partition('/')[2]}" if "/" in one.name else one.name
                name = name if "/" in one.name else str(Path(path).with_name(one.name))
                escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
                click.echo(f"{'' if escaped == name else chr(92)}{one.sha256}  {escaped}")


_REPAIR_EXAMPLES = """
\b
Examples:
  wustore repair damaged.zarr saved.zarr
  wustore repair damaged.h5 saved.h5 --json
"""


@click.command(epilog=_REPAIR_EXAMPLES)
@click.argument("damaged", metavar="DAMAGED", type=STORE)
@click.argument("target", metavar="OUT", type=STORE)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@json_option
@workers_option
def repair(damaged: str, target: str, *, overwrite: bool, as_json: bool, workers: int | None) -> int:
    """Save every whole image of the store DAMAGED into a new store OUT, and list what is lost.

    An image is whole if each of its layers can be read and matches its checksum. DAMAGED stays as it is. Exits 0 if
    nothing is lost, 1 if something is, 3 if nothing can be saved.
    """
    from wustore.ops.repair import repair as run

    with progress_bar("repairing") as progress:
        lost = run(damaged, target, overwrite=overwrite, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps({"path": target, "lost": [asdict(problem) for problem in lost]}, indent=2))
    elif not SETTINGS.quiet:
        for problem in lost:
            click.echo(f"lost: {problem.where}: {problem.what}")
    report(f"{target}: written; {len(lost) or 'nothing'} lost")
    return DIFFERS if lost else OK


_CLEAN_EXAMPLES = """
\b
Examples:
  wustore clean night.zarr --dry-run
  wustore clean archive/
  wustore clean night.h5 --unfinished
"""


@click.command(epilog=_CLEAN_EXAMPLES)
@click.argument("path", metavar="PATH", type=STORE)
@click.option("--unfinished", is_flag=True, help="Remove conversions that can be resumed, too.")
@click.option("--dry-run", is_flag=True, help="List, and remove nothing.")
@json_option
def clean(path: str, *, unfinished: bool, dry_run: bool, as_json: bool) -> None:
    """List and remove what killed processes left next to the store PATH, or in the directory PATH.

    An append to a Zarr store that was killed at its very end is finished: what it left are metadata documents that
    only other programs read. What a living process writes stays, and so do conversions that can be resumed, and files
    that were set aside.
    """
    from wustore.ops.repair import clean as run

    found = run(path, unfinished=unfinished, dry_run=dry_run)
    if as_json:
        entries = [{"path": str(c.leftover.path), "kind": c.leftover.kind, "removed": c.removed} for c in found]
        click.echo(json.dumps(entries, indent=2))
        return
    for one in found:
        did = "written" if one.leftover.kind == "outdated" else "removed"
        click.echo(f"{one.leftover.path}: {one.leftover.kind}{f', {did}' if one.removed else ''}")
    report(f"{sum(one.removed for one in found)} of {len(found)} leftovers removed or put right")


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
