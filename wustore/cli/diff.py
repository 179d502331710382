"""``wustore diff``."""

from __future__ import annotations

import itertools
import json

import click

from wustore.cli._run import DIFFERS, OK, say

__all__ = ["diff"]

_EXAMPLES = """
\b
Examples:
  wustore diff night.fits night.zarr && echo equal
  wustore diff night.zarr night.h5 --json
"""


@click.command(epilog=_EXAMPLES)
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
