"""What ``wustore convert --dry-run`` shows."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from wustore.cli._sizes import size_text

__all__ = ["show_estimate"]


def show_estimate(
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
