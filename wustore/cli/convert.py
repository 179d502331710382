"""``wustore convert``."""

from __future__ import annotations

import click

from wustore.cli._options import format_options, target_options
from wustore.cli._progress import progress_bar
from wustore.cli._sizes import SIZE
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
        from wustore.cli._dry_run import show_estimate

        show_estimate(
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
