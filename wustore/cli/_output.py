"""What commands print: results, a progress bar, sizes in bytes, tables.

Data goes to standard output (`click.echo`). Everything else goes to standard error: a line of result (`report`) unless
``--quiet``, more with ``--verbose`` (`detail`), warnings and errors always.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import click

from wustore.backends.base import Progress
from wustore.format import tagged_json

__all__ = [
    "SETTINGS",
    "SIZE",
    "columns",
    "csv_text",
    "detail",
    "fitted",
    "json_text",
    "progress_bar",
    "report",
    "say",
    "size_text",
]


@dataclass
class Settings:
    """How much the running command says.

    Attributes
    ----------
    quiet
        No result lines, no progress; of ``verify``, ``diff`` and the like only the exit code.
    verbose
        Result lines with times, and what is being done.
    progress
        Whether a bar may be shown on a terminal.
    storage_options
        Of the paths that are URLs.
    index
        Of the FITS files at them.
    """

    quiet: bool = False
    verbose: bool = False
    progress: bool = True
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    index: str | None = None

    def reset(self) -> None:
        """Go back to the defaults: a process may run several commands one after the other."""
        self.quiet, self.verbose, self.progress, self.storage_options, self.index = False, False, True, {}, None


SETTINGS = Settings()
"""Of the command that runs now; the options that all commands have set them."""

_STARTED = time.perf_counter()


def say(message: str) -> None:
    """Write a line to standard error; if nobody reads it any more, that is no reason to stop."""
    with suppress(BrokenPipeError):
        click.echo(message, err=True)


def report(message: str) -> None:
    """Write the line that says what a command did, unless it is to be quiet."""
    if not SETTINGS.quiet:
        say(f"{message} ({time.perf_counter() - _STARTED:.1f} s)" if SETTINGS.verbose else message)


def detail(message: str) -> None:
    """Write a line that only ``--verbose`` shows."""
    if SETTINGS.verbose:
        say(f"wustore: {message}")


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """Give a function that shows how many images are done, or None if no bar is to be shown."""
    if SETTINGS.quiet or not SETTINGS.progress or not sys.stderr.isatty():
        yield None
        return
    from wustore.stamps.notebook import shown_progress

    with shown_progress(label) as show:
        yield show


# --- sizes ----------------------------------------------------------------------------------------------

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


# --- documents and tables -------------------------------------------------------------------------------


def json_text(value: Any) -> str:
    """Return a value as JSON, with tags for what JSON does not have."""
    return json.dumps(tagged_json.encode(value), indent=2, allow_nan=False, ensure_ascii=False)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as CSV with a line of names; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of a table whose cells are aligned: numbers to the right, text to the left."""
    table = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[k]) for row in table) for k in range(len(heads))]
    right = [all(re.fullmatch(r"[-+\d.]*%?|-", row[k]) for row in rows) for k in range(len(heads))]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in table
    ]


def fitted(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines of names and values; on a terminal, those that are too long are broken below their value."""
    if not sys.stdout.isatty():
        yield from lines
        return
    width = shutil.get_terminal_size().columns
    for line in lines:
        start = re.match(r" *\S+ {2,}|  +", line)
        yield from textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * (start.end() if start and start.end() < width // 2 else 4),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
