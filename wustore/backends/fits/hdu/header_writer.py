"""FITS header text, card by card, as astropy writes it.

Built here and not through `astropy.io.fits.Header`, because the text must not depend on the version that is
installed and because one header object per HDU costs more than compressing a small image. Fixed format:
FITS standard 4.0, section 4.2; keywords longer than 8 characters: the HIERARCH convention.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from wustore.backends.fits.hdu.header import BLOCK, CARD

__all__ = ["HeaderText", "card", "float_text", "padding"]

_VALUE_WIDTH = 20
_LONGEST_STRING = 68


def float_text(value: float) -> str:
    """Return a number in at most 20 characters, cut and not rounded, as astropy does."""
    text = str(float(value)).replace("e", "E")
    if len(text) <= _VALUE_WIDTH:
        return text
    at = text.find("E")
    if at < 0:
        return text[:_VALUE_WIDTH]
    return text[: _VALUE_WIDTH - (len(text) - at)] + text[at:]


def _value_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        quoted = "'{:8}'".format(value.replace("'", "''"))
        return f"{quoted:20}" if value else "''"
    if isinstance(value, bool | np.bool_):
        return f"{'T' if value else 'F':>20}"
    if isinstance(value, int | np.integer):
        return f"{int(value):>20d}"
    return f"{float_text(value) if math.isfinite(value) else '':>20}"


def card(keyword: str, value: Any, comment: str = "") -> str:
    """Return one card, 80 characters (more if a long string needs CONTINUE).

    ``None`` and numbers that FITS cannot write (NaN, infinities) give an undefined value.
    """
    text = _value_text(value)
    image = f"{keyword:8}= {text}" if len(keyword) <= 8 else f"HIERARCH {keyword} = {text.strip()}"
    if comment:
        image = f"{image:30} / {comment}"
    if len(image) > CARD or (isinstance(value, str) and len(text) > _LONGEST_STRING + 2):
        from astropy.io.fits import Card

        return str(Card(keyword, value, comment).image)
    return f"{image:80}"


def padding(size: int) -> int:
    """Return how many bytes complete a block of 2880."""
    return -size % BLOCK


class HeaderText:
    """Cards in order; setting a keyword again changes its card in place, as in astropy."""

    def __init__(self, cards: Iterable[tuple[Any, ...]] = ()) -> None:
        self._cards: dict[str, str] = {}
        for item in cards:
            self.set(*item)

    def set(self, keyword: str, value: Any, comment: str = "") -> None:
        """Append a card, or replace the one of that keyword."""
        self._cards[keyword] = card(keyword, value, comment)

    def update(self, cards: dict[str, str]) -> None:
        """Append ready-made cards by keyword."""
        self._cards.update(cards)

    def block(self) -> bytes:
        """Return the header with its END card, padded with blanks to whole blocks."""
        text = "".join(self._cards.values()) + f"{'END':80}"
        return (text + " " * padding(len(text))).encode("ascii")
