"""Names of profiles and layouts, the same for every container; each format says in its ``presets`` what they mean."""

from __future__ import annotations

from wustore.errors import UsageError

__all__ = ["LAYOUTS", "PROFILES", "check_names"]

PROFILES = ("compact", "portable", "fast", "none")
"""Profiles: how chunks are encoded, with which codecs or filters."""

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
