"""How far a size that a file states is believed: memory is taken only for what its bytes justify."""

from __future__ import annotations

from wustore.errors import CorruptError

__all__ = ["check_size", "most_believed"]

_BELIEVED = 1 << 27
_RATIO = 64
"""Metadata text that repeats itself (WCS headers of one camera) packs 40 times; a hostile stream expands 1000 times
(deflate) and more."""


def most_believed(stored: int, file: int | None = None) -> int:
    """Return how large the content of ``stored`` bytes may be [byte]; memory is taken for no more.

    Parameters
    ----------
    stored
        Of the packed bytes.
    file
        Size of the whole file if it is known: in a file of images metadata are the smaller part.
    """
    most = _RATIO * stored
    return max(_BELIEVED, most if file is None else min(most, file))


def check_size(claimed: int, stored: int, file: int | None = None) -> None:
    """Refuse a stated size that the bytes it comes from do not justify, before memory is taken for it.

    Parameters
    ----------
    claimed, stored, file
        What is to be taken, what it comes from, and the size of the whole file if it is known [byte].
    """
    most = most_believed(stored, file)
    if not 0 <= claimed <= most:
        raise CorruptError("a size that cannot be", expected=f"at most {most} bytes", found=claimed)
