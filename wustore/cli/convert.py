"""``wustore convert``, and ``plan``, ``part``, ``finish``: one conversion as the tasks of a job array."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from wustore.cli._options import format_options, target_options
from wustore.cli._output import SIZE, progress_bar, size_text
from wustore.cli._run import say
from wustore.errors import UsageError

__all__ = ["convert", "finish", "part", "plan"]

_EXAMPLES = """
\b
Examples:
  wustore convert night.fits night.zarr
  wustore convert night.zarr night.h5
  wustore convert night.zarr again.fits
  wustore convert night.zarr out/night.fits --format sharded-fits
  wustore convert night.fits small.zarr --profile portable
  wustore convert night.fits night.zarr --resume --workers 8 --max-memory 4G
  wustore convert night.fits night.zarr --dry-run
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@target_options
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Images at a time; as many as processors.")
@click.option(
    "--processes/--threads",
    default=None,
    help="What a worker is; by default a process from 5 workers on, where DST is Zarr.",
)
@click.option("--max-memory", type=SIZE, metavar="SIZE", help="Memory for the images in work, such as 2G; lowers N.")
@click.option("--resume", is_flag=True, help="Go on where a killed conversion stopped; keep what is written.")
@click.option("--scheduler", metavar="ADDRESS", help="Run the parts on the Dask cluster of this scheduler.")
@click.option("--dry-run", is_flag=True, help="Estimate size, files, memory, time and free space; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: the estimate as JSON.")
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
    processes: bool | None,
    max_memory: int | None,
    resume: bool,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert SRC into DST; nothing is lost.

    Formats are found from content (SRC) and name (DST); ``wustore formats`` lists them. A sharded FITS set
    is named by its primary file. DST appears when it is whole, or not at all.
    """
    options = format_options(profile, layout, others)
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run", where="--json", hint="A conversion prints no data.")
    if dry_run:
        _show_estimate(
            source,
            target,
            source_format=source_format,
            format=target_format,
            overwrite=overwrite,
            workers=workers,
            max_memory=max_memory,
            options=options,
            as_json=as_json,
        )
        return

    from wustore.ops.convert import convert as run

    with progress_bar("converting") as progress:
        run(
            source,
            target,
            source_format=source_format,
            format=target_format,
            overwrite=overwrite,
            capsule=not no_capsule,
            workers=workers,
            processes=processes,
            max_memory=max_memory,
            resume=resume,
            scheduler=scheduler,
            progress=progress,
            **options,
        )


def _show_estimate(
    source: str,
    target: str,
    *,
    source_format: str | None,
    format: str | None,  # noqa: A002
    overwrite: bool,
    workers: int | None,
    max_memory: int | None,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Print what a conversion will need, and refuse one that will not fit.

    Raises
    ------
    WuStoreError
        The target exists, or has no room.
    """
    from wustore.backends.registry import open_reader
    from wustore.ops.estimate import estimate, refuse_if_too_large
    from wustore.storage.staging import Staging

    if "://" not in target and not target.startswith("ram:"):
        Staging(target, overwrite=overwrite)  # the same refusals as the conversion itself
    with open_reader(source, format=source_format) as reader:
        found = estimate(reader, target, format=format, workers=workers, max_memory=max_memory, options=options)
    if as_json:
        click.echo(json.dumps({**asdict(found), "fits": found.fits}, indent=2))
    else:
        sampled = " and ".join(map(str, found.sampled))
        free = "unknown" if found.free_bytes is None else size_text(found.free_bytes)
        click.echo(f"images   {found.n_images} (measured on image {sampled})")
        click.echo(f"size     {size_text(found.target_bytes)} in {found.target_files} files; capsule not counted")
        click.echo(f"memory   {size_text(found.memory_bytes)} with {found.workers} images in work")
        click.echo(f"time     {found.seconds:.1f} s")
        click.echo(f"free     {free}")
    refuse_if_too_large(found, target)


_JOB_EXAMPLES = """
\b
Examples:
  wustore plan night.fits night.zarr --parts 20
  wustore part night.zarr $SLURM_ARRAY_TASK_ID     (in a job array 0-19)
  wustore finish night.zarr
"""


@click.command(epilog=_JOB_EXAMPLES)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--parts", type=click.IntRange(min=1), required=True, metavar="N", help="Into how many parts.")
@target_options
def plan(
    source: str,
    target: str,
    *,
    parts: int,
    target_format: str | None,
    source_format: str | None,
    profile: str | None,
    layout: str | None,
    others: tuple[str, ...],
    overwrite: bool,
    no_capsule: bool,
) -> None:
    """Plan the conversion of SRC into DST in N parts.

    Prints the plan as JSON. Then every part may run anywhere, in any order, more than once; ``wustore
    finish`` checks that all is there and lets DST appear.
    """
    from wustore.ops.jobs import plan as run

    job = run(
        source,
        target,
        source_format=source_format,
        format=target_format,
        overwrite=overwrite,
        capsule=not no_capsule,
        parts=parts,
        **format_options(profile, layout, others),
    )
    images = [len(job.images_of(k)) for k in range(job.parts)]
    click.echo(json.dumps({"target": job.target, "images": job.n_images, "parts": job.parts, "images_of_part": images}))


@click.command(epilog=_JOB_EXAMPLES)
@click.argument("target", metavar="DST")
@click.argument("number", metavar="K", type=click.IntRange(min=0))
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Images at a time; as many as processors.")
def part(target: str, number: int, *, workers: int | None) -> None:
    """Write part K (0 … N-1) of the planned conversion to DST.

    What is written already is checked and kept, so that a part that was killed can simply run again.
    """
    from wustore.ops.jobs import part as run

    with progress_bar(f"part {number}") as progress:
        written = run(target, number, workers=workers, progress=progress)
    say(f"part {number}: {written} images written")


@click.command(epilog=_JOB_EXAMPLES)
@click.argument("target", metavar="DST")
def finish(target: str) -> None:
    """Check that every part of the conversion to DST is there, and let DST appear."""
    from wustore.ops.jobs import finish as run

    run(target)
