"""``wustore bench``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from wustore.cli._run import DIFFERS, OK, say
from wustore.cli._sizes import size_text
from wustore.errors import UsageError

if TYPE_CHECKING:
    from wustore.cli._bench import Measurement

__all__ = ["bench"]

_EXAMPLES = """
\b
Examples:
  wustore bench night.fits
  wustore bench night.zarr --images 4 --only zarr --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("path")
@click.option("--images", "n_images", type=click.IntRange(min=1), default=10, show_default=True, help="Images to use.")
@click.option("--only", metavar="TEXT", multiple=True, help="Only cases whose name holds TEXT. May be repeated.")
@click.option("--directory", metavar="DIR", help="Where to write the copies, which are removed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
def bench(path: str, *, n_images: int, only: tuple[str, ...], directory: str | None, as_json: bool) -> int:
    """Measure formats and profiles on your own data, the first images of PATH.

    Size, writing, loading everything, one image, one stamp and 1000 moving ones (each from a cold open), peak
    memory and exactness, beside astropy's way of doing the same. Exits 1 where a case fails.
    """
    from wustore.cli._bench import ASTROPY, CASES
    from wustore.cli._bench import bench as measure

    chosen = [case for case in CASES if not only or any(text.lower() in case.name.lower() for text in only)]
    if not chosen:
        raise UsageError("no case has such a name", found=", ".join(only), expected=", ".join(c.name for c in CASES))
    if ASTROPY not in chosen:
        chosen.insert(0, ASTROPY)
    found = list(
        measure(
            path,
            n_images=n_images,
            cases=chosen,
            directory=directory,
            progress=lambda name: say(f"wustore: measuring {name}"),
        )
    )
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps({"path": path, "cases": [asdict(measurement) for measurement in found]}, indent=2))
    else:
        click.echo("\n".join(_table(found)))
    return DIFFERS if any(measurement.failed for measurement in found) else OK


_HEADS = ("", "size", "write", "load", "one image", "stamp", "1000 moving", "memory", "exact")


def _table(found: Sequence[Measurement]) -> list[str]:
    base = found[0]
    rows: list[tuple[str, ...]] = [_HEADS]
    for one in found:
        if one.failed is not None:
            rows.append((one.name, f"failed: {one.failed}", *[""] * (len(_HEADS) - 2)))
            continue
        size = "" if one.bytes is None else size_text(one.bytes)
        rows.append(
            (
                one.name,
                size,
                _seconds(one.write, base.write),
                _seconds(one.load, base.load),
                _seconds(one.image, base.image),
                _seconds(one.stamp, base.load),
                _seconds(one.trajectories, base.load),
                "" if one.memory is None else size_text(one.memory),
                "yes" if one.different == 0 else f"within {one.largest:.2g}",
            )
        )
    shown = [row for row in rows if not row[1].startswith("failed")]
    widths = [max(len(row[k]) for row in shown) for k in range(len(_HEADS))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("(n x): times as fast as astropy's way; a stamp takes astropy a full load.")
    return lines


def _seconds(value: float | None, base: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.1f} ms"
    return text if base is None or base == value else f"{text} ({base / value:.3g} x)"
