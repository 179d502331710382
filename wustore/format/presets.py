"""Names of profiles and layouts, chunk shapes that users ask for, and how an axis is cut: for every container."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wustore.errors import UsageError

__all__ = ["LAYOUTS", "PROFILES", "check_names", "chunk_sides", "split_axis"]

PROFILES = ("compact", "portable", "fast", "none")
"""Profiles: how chunks are encoded. Which codecs or filters each of them means is said in the ``presets`` module of a
format."""

LAYOUTS = ("images", "balanced", "cutouts")
"""Layouts: how images are cut into chunks, from large chunks to small ones."""


def check_names(profile: str, layout: str) -> None:
    """Refuse names that are none.

    Raises
    ------
    UsageError
        If ``profile`` is none of `PROFILES`, or ``layout`` none of `LAYOUTS`.
    """
    for what, name, known in (("profile", profile, PROFILES), ("layout", layout, LAYOUTS)):
        if name not in known:
            raise UsageError(f"no such {what}", expected=", ".join(known), found=name)


def chunk_sides(chunks: Any) -> tuple[int, int] | None:
    """Return the sides (y, x) [pixel] of a chunk that was asked for, None if the layout decides.

    Parameters
    ----------
    chunks
        (y, x), or (1, y, x), or None.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if chunks is None:
        return None
    sides = tuple(chunks) if isinstance(chunks, Sequence) and not isinstance(chunks, str) else ()
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sides)
    if not whole or len(sides) not in {2, 3} or (len(sides) == 3 and sides[0] != 1):
        raise UsageError("not a chunk shape", where="chunks", expected="(y, x) or (1, y, x)", found=chunks)
    return sides[-2], sides[-1]


def split_axis(size: int, side: int) -> tuple[int, int]:
    """Return (length, count) of equal chunks of about ``side`` that cover ``size`` with the least padding."""
    count = max(1, round(size / side))
    return max(1, -(-size // count)), count
