"""How objects show themselves: a few facts on one screen as text, and with a picture as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.stamps.picture import data_url

__all__ = ["facts_html", "facts_text", "span_of", "text_of_bytes"]


def facts_text(title: str, facts: Mapping[str, Any]) -> str:
    """Return a title and a line for each fact that is not None.

    Parameters
    ----------
    title
        First line.
    facts
        Name to value.
    """
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
        f"<tr><th>{escape(name)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
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
