"""FITS header cards: 80 characters to keyword, value and comment, only when asked for.

Card syntax: FITS standard 4.0, section 4; CONTINUE: section 4.2.1.2; HIERARCH: the registered convention
of that name. If the standard leaves a card undefined, the value is the one astropy gives, because that
is what KBMOD sees. So it is for strings that astropy ends at another quote than the standard: a doubled one
before a slash, and if the string is empty one in the comment. Bytes outside ASCII are taken as Latin-1, so that no
header is ever refused for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from wustore.errors import CorruptError

__all__ = ["BLOCK", "CARD", "Card", "Header"]

CARD = 80
"""Characters of a card (FITS 4.0, section 3.3.1)."""

BLOCK = 2880
"""Bytes of a FITS block (FITS 4.0, section 3.1)."""

_COMMENTARY = frozenset({"", "COMMENT", "HISTORY", "END"})
_NUMBER = r"[+-]? *(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?) *(?:[deDE] *[+-]? *[0-9]+)?"
_COMMENT = r"(?:/ *(?P<comment>.*))?$"
_TEXT = r"'(?P<text>[^\x00-\x1f\x7f]+?|)'(?=$|/| )"  # an empty one last, as in astropy
# A number, a logical, a string or a complex number; nothing at all is an undefined value.
_VALUE = re.compile(
    rf" *(?:{_TEXT}|(?P<logical>[FT])|(?P<number>{_NUMBER})"
    rf"|\( *(?P<real>{_NUMBER}) *, *(?P<imaginary>{_NUMBER}) *\))? *{_COMMENT}",
    re.DOTALL,
)
_HEADS = re.compile(r"(.{10}).{70}", re.DOTALL)
_KEYWORDS: dict[str, str] = {}
"""The first ten characters of cards met before to their keyword: opening 4000 HDUs takes half the time."""
_MOST_KEYWORDS = 10_000
_FORMS: dict[str, dict[str, int]] = {}
"""The heads of all cards of a header met before to its places: the headers of a stack are much alike."""
_MOST_FORMS = 200
_PART = re.compile(rf"(?:{_TEXT})? *{_COMMENT}", re.DOTALL)


class Card(NamedTuple):
    """One card, or a string with its CONTINUE cards.

    Attributes
    ----------
    keyword
        In capitals; that of a HIERARCH card without the word HIERARCH; empty for a blank card.
    value
        str, bool, int, float or complex; None where undefined; the text of a commentary card; the raw text
        after the keyword if it cannot be parsed.
    comment
        Without the slash.
    """

    keyword: str
    value: Any
    comment: str


def _number(text: str) -> int | float:
    plain = text.replace(" ", "")
    try:
        return int(plain)
    except ValueError:
        return float(plain.replace("D", "E").replace("d", "e"))


def _usual_value(image: str) -> int | str | None:
    """Return the value of a card with an integer or a string in the standard's fixed columns; None for any other."""
    if image[8:10] != "= " or "= " in image[:8]:
        return None
    if image[10:11] == "'":
        end = image.find("'", 11)
        text = image[11:end]
        if end > 11 and image[end + 1 :].lstrip(" ")[:1] in {"", "/"} and text.isprintable():
            return text.rstrip()
        return None
    digits = image[10:30].strip(" ")
    if digits.isdigit() and digits.isascii() and image[30:].lstrip(" ")[:1] in {"", "/"}:
        return int(digits)
    return None


def _split(image: str) -> tuple[str, str | None]:
    """Return the keyword of a card and the text that holds its value; None for a card without a value."""
    keyword = image[:8].strip().upper()
    if keyword in _COMMENTARY:
        return keyword, None
    rest = None
    if keyword == "CONTINUE":
        rest = image.partition(" ")[2]
    elif (at := image.find("= ", 0, 10)) >= 0:  # some writers put it too early: the first one counts
        keyword, rest = image[:at].strip().upper(), image[at + 2 :]
    elif keyword == "HIERARCH" and image[8:9] == " " and "=" in image:
        name, _, rest = image.partition("=")
        keyword = name[9:].strip().upper()
    return keyword, None if keyword in _COMMENTARY else rest


def _parse(rest: str) -> tuple[Any, str]:
    """Return value and comment of the text behind the keyword."""
    match = _VALUE.match(rest.strip())
    if match is None:
        return rest.strip(), rest.partition("/")[2].strip()
    parts = match.groupdict()
    comment = (parts["comment"] or "").rstrip()
    value: Any = None
    if parts["text"] is not None:
        value = parts["text"].replace("''", "'").rstrip()
    elif parts["logical"] is not None:
        value = parts["logical"] == "T"
    elif parts["number"] is not None:
        value = _number(parts["number"])
    elif parts["real"] is not None:
        value = _number(parts["real"]) + _number(parts["imaginary"]) * 1j
    return value, comment


def _parse_long(images: list[str]) -> tuple[Any, str]:
    """Return value and comment of a string card and its CONTINUE cards."""
    texts, comments = [], []
    for image in images:
        rest = (_split(image)[1] or "").strip()
        match = _PART.match(rest)
        if match is None:
            return _parse(rest)
        text = (match["text"] or "").rstrip()
        texts.append(text[:-1] if text.endswith("&") else text)
        if match["comment"]:
            comments.append(match["comment"].rstrip())
    return _parse(f"'{''.join(texts)}' / {' '.join(comments)}")


class Header(Mapping[str, Any]):
    """The cards of one HDU over their raw text; nothing is parsed before it is asked for.

    As a mapping it gives the value of the first card of a keyword (in capitals).

    Parameters
    ----------
    text
        The cards without END, 80 characters each, in one string.
    """

    __slots__ = ("_places", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._places: dict[str, int] | None = None

    @property
    def places(self) -> dict[str, int]:
        """Keyword to the offset of its first card in `text`; not to be changed."""
        if self._places is None:
            heads = _HEADS.findall(self.text)
            form = "".join(heads)
            places = _FORMS.get(form)
            if places is None:
                places = self._find_places(heads)
                # If every card has the regular form, the keywords follow from the heads alone.
                if len(_FORMS) < _MOST_FORMS and all(head in _KEYWORDS for head in heads):
                    _FORMS[form] = places
            self._places = places
        return self._places

    def _find_places(self, heads: list[str]) -> dict[str, int]:
        places: dict[str, int] = {}
        at = len(self.text)
        # Backwards, so that of duplicate keywords the first one stays.
        for head in reversed(heads):
            at -= CARD
            places[_KEYWORDS.get(head) or self._learn(head, at)] = at
        return places

    def _learn(self, head: str, at: int) -> str:
        """Return the keyword of the card at an offset; one in regular form is known from then on by its ``head``."""
        keyword = head[:8].rstrip()
        if head[8:] == "= " and keyword.isupper() and "= " not in keyword:
            if len(_KEYWORDS) < _MOST_KEYWORDS:
                _KEYWORDS[head] = keyword
            return keyword
        return _split(self.text[at : at + CARD])[0]

    def __contains__(self, keyword: object) -> bool:
        return keyword in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value of the first card of that keyword (in capitals), or ``default``.

        An undefined value is None, whatever the default.
        """
        at = self.places.get(keyword)
        return default if at is None else self._value_at(at, keyword)

    def __getitem__(self, keyword: str) -> Any:
        at = self.places.get(keyword)
        if at is None:
            raise KeyError(keyword)
        return self._value_at(at, keyword)

    def integer(
        self,
        keyword: str,
        default: int | None = None,
        *,
        allowed: Collection[int] | None = None,
        path: str | None = None,
        where: str = "",
    ) -> int:
        """Return an integer that the file's structure rests on.

        Parameters
        ----------
        allowed
            The values that it may have; any by default.

        Raises
        ------
        CorruptError
            If the card is missing (and there is no default) or holds something else.
        """
        value = self.get(keyword, default)
        if type(value) is not int:
            raise self._bad(keyword, "does not hold an integer", "an integer", path, where)
        if allowed is not None and value not in allowed:
            ends = f"{allowed[0]} … {allowed[-1]}" if isinstance(allowed, range) else sorted(allowed)
            raise self._bad(keyword, "holds an integer that cannot be", ends, path, where)
        return value

    def number(self, keyword: str, default: float, *, path: str | None = None, where: str = "") -> float:
        """Return a finite number, an integer or not, that values rest on.

        Raises
        ------
        CorruptError
            If the card holds something else.
        """
        value = self.get(keyword, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._bad(keyword, "does not hold a number", "a finite number", path, where)
        return value

    @property
    def blank(self) -> int | None:
        """BLANK: what integer pixels without a value hold. As in astropy, one that is no integer says nothing."""
        value = self.get("BLANK")
        return value if isinstance(value, int) else None

    def _bad(self, keyword: str, what: str, expected: object, path: str | None, where: str) -> CorruptError:
        found = repr(self[keyword])[:80] if keyword in self else "no such card"
        text = f"the header card {keyword} {what}"
        return CorruptError(text, path=path, where=where or None, expected=expected, found=found)

    def _value_at(self, at: int, keyword: str) -> Any:
        text = self.text
        if keyword not in _COMMENTARY and text[at + CARD : at + CARD + 8] != "CONTINUE":
            value = _usual_value(text[at : at + CARD])
            if value is not None:
                return value
        return self._card_at(at)[0].value

    def _card_at(self, at: int) -> tuple[Card, int]:
        """Return the card at an offset and the offset of the next one."""
        text = self.text
        image = text[at : at + CARD]
        after = at + CARD
        if text[after : after + 8] == "CONTINUE":
            images = [image]
            while text[after : after + 8] == "CONTINUE":
                images.append(text[after : after + CARD])
                after += CARD
            keyword, rest = _split(image)
            if rest is None:
                return Card(keyword, text[at + 8 : after].rstrip(), ""), after
            return Card(keyword, *_parse_long(images)), after
        keyword, rest = _split(image)
        if rest is None:
            return Card(keyword, image[8:].rstrip(), ""), after
        return Card(keyword, *_parse(rest)), after

    def cards(self) -> Iterator[Card]:
        """Yield every card in order, duplicates included, CONTINUE cards joined to theirs."""
        at = 0
        while at < len(self.text):
            card, at = self._card_at(at)
            yield card

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield keyword and raw text of every card in order; the text includes the CONTINUE cards."""
        text, at = self.text, 0
        while at < len(text):
            after = at + CARD
            while text[after : after + 8] == "CONTINUE":
                after += CARD
            yield _split(text[at : at + CARD])[0], text[at:after]
            at = after
