"""What a notebook shows: objects as a few facts and a picture, and progress bars.

Functions with a parameter ``progress`` are decorated with `with_bar`: in a notebook, or an interactive session, they
show a bar unless they are given something else.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Progress
from wustore.model.quiet import quiet
from wustore.stamps.picture import data_url

__all__ = ["facts_html", "facts_text", "is_interactive", "shown_progress", "span_of", "text_of_bytes", "with_bar"]

F = TypeVar("F", bound=Callable[..., Any])

DELAY = 0.5
"""Seconds after which a bar appears that nobody asked for."""


def facts_text(title: str, facts: Mapping[str, Any]) -> str:
    """Return a title and a line for each fact that is not None."""
    shown = {name: value for name, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in shown.items())])


def facts_html(title: str, facts: Mapping[str, Any], picture: NDArray[np.uint8] | None = None) -> str:
    """Return a title, a table of the facts that are not None, and a picture, as HTML.

    Parameters
    ----------
    picture
        Grey (y, x) or colours (y, x, 3).
    """
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    image = ""
    if picture is not None:
        image = f"<img alt='' style='max-width:100%;image-rendering:pixelated' src='{data_url(picture)}'>"
    return f"<div><b>{escape(title)}</b><table>{rows}</table>{image}</div>"


def span_of(times: NDArray[np.float64]) -> str:
    """Return how many times there are, and the first and the last [MJD]."""
    known = times[np.isfinite(times)]
    if not known.size:
        return str(len(times))
    low, high = float(known.min()), float(known.max())
    return f"{len(times)}, MJD {low:.5f}" + (f" to {high:.5f}" if high > low else "")


def text_of_bytes(size: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def is_interactive() -> bool:
    """Return whether this is a notebook, or a session at a Python prompt."""
    return "ipykernel" in sys.modules or hasattr(sys, "ps1")


@contextmanager
def shown_progress(label: str, *, leave: bool = False, delay: float = 0) -> Iterator[Progress]:
    """Give a function that moves a progress bar, a widget in notebooks.

    Parameters
    ----------
    leave
        Whether the bar stays when all is done.
    delay
        Seconds after which it appears.
    """
    with quiet():  # without ipywidgets the bar is text, which tqdm warns of
        from tqdm.auto import tqdm

    with tqdm(desc=label, unit="image", leave=leave, delay=delay, dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def with_bar(label: str) -> Callable[[F], F]:
    """Decorate a function with a keyword ``progress``: if it is None, an interactive session shows a bar."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if options.get("progress") is not None or not is_interactive():
                return function(*arguments, **options)
            with shown_progress(label, delay=DELAY) as progress:
                return function(*arguments, **{**options, "progress": progress})

        return cast("F", call)

    return decorate
