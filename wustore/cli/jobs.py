"""``wustore plan``, ``wustore part`` and ``wustore finish``: one conversion as the tasks of a job array."""

from __future__ import annotations

import json

import click

from wustore.cli._options import format_options, target_options
from wustore.cli._progress import progress_bar
from wustore.cli._run import say

__all__ = ["finish", "part", "plan"]

_EXAMPLES = """
\b
Examples:
  wustore plan night.fits night.zarr --parts 20
  wustore part night.zarr $SLURM_ARRAY_TASK_ID     (in a job array 0-19)
  wustore finish night.zarr
"""


@click.command(epilog=_EXAMPLES)
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


@click.command(epilog=_EXAMPLES)
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


@click.command(epilog=_EXAMPLES)
@click.argument("target", metavar="DST")
def finish(target: str) -> None:
    """Check that every part of the conversion to DST is there, and let DST appear."""
    from wustore.ops.jobs import finish as run

    run(target)
