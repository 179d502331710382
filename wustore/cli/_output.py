"""What commands print: a progress bar, sizes in bytes, tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from wustore.backends.base import Progress

__all__ = ["SIZE", "progress_bar", "size_text"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class _Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.3
    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(value).lower())
        if match is None or match[2] not in _UNITS:
            self.fail(f"{value!r} is not a size such as 500M, 2G or 1.5GiB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


SIZE = _Size()
"""Parameter type: a number of bytes, with a unit or without."""


def size_text(count: float) -> str:
    """Return a number of bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """Give a function that shows how many images are done, or None where nobody looks.

    Parameters
    ----------
    label
        What is being done.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit="image", leave=False, dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
