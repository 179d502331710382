"""Cards are read as astropy reads them, whatever they hold."""

from __future__ import annotations

import warnings

import pytest
from astropy.io import fits
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wustore.backends.fits.hdu.header import Header
from wustore.errors import CorruptError


def astropy_cards(header: fits.Header) -> list[tuple[str, object, str]]:
    return [
        (card.keyword.upper(), None if isinstance(card.value, fits.card.Undefined) else card.value, card.comment)
        for card in header.cards
    ]


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
    st.complex_numbers(allow_nan=False, allow_infinity=False, max_magnitude=1e30),
    st.none(),
)


@settings(max_examples=300)
@given(
    VALUES,
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    st.sampled_from(["KEY", "A_1-B", "a long key"]),
)
@example("", "'", "KEY")
@example("", "a 'comment'", "KEY")
@example("a'/b", "", "KEY")
@example("a'/b" * 30, "'", "KEY")
def test_cards_that_astropy_writes(value: object, comment: str, keyword: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = fits.Card(keyword, value, comment).image
        except ValueError:
            return
        expected = astropy_cards(fits.Header.fromstring(image))
    assert repr([tuple(card) for card in Header(image).cards()]) == repr(expected)


@settings(max_examples=500)
@given(
    st.text(st.sampled_from("'/ =&()TF0123456789.+-eEdD,ab\x7f\xe9"), max_size=70),
    st.sampled_from(["KEY     = ", "KEY     =", "KEY= ", "key     = ", "HIERARCH a b = ", "COMMENT ", "        "]),
)
@example("00/= ", "KEY= ")
@example("5 = 7", "KEY= ")
@example("'a' / 'b'", "= ")
@example("T / 'b'", "HISTORY= ")
@example("= 5", "COMMENT ")
@example("'' / '", "KEY     = ")
@example("''''/'", "KEY     =")
def test_cards_of_any_text(rest: str, start: str) -> None:
    image = (start + rest)[:80].ljust(80)
    header = Header(image)
    (ours,) = header.cards()
    assert (list(header), repr(header[ours.keyword])) == ([ours.keyword], repr(ours.value))
    if not image.isascii() or "\x7f" in image:
        return  # astropy replaces such bytes, or refuses them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        card = fits.Card.fromstring(image)
        try:
            value = card.value
        except (fits.VerifyError, ValueError):
            return  # for astropy there is no value
        keyword = card.keyword
        if card.field_specifier is not None:
            return  # a record-valued card, which only astropy's WCS takes apart
    value = None if isinstance(value, fits.card.Undefined) else value
    assert (ours.keyword, repr(ours.value), ours.comment) == (keyword.upper(), repr(value), card.comment)


PIECES = st.lists(
    st.sampled_from(["'", "''", " ", "/", "= ", "&'", "ab", "A", "5", "T", "(1,2)", " / 'x'"]), max_size=10
)


@settings(max_examples=300)
@given(
    st.sampled_from(["KEY     = ", "KEY= ", "HIERARCH a= ", "HIERARCH = ", "COMMENT ", "HISTORY=", "A-B_C   = "]),
    PIECES,
    st.lists(st.tuples(st.sampled_from(["  ", " ", "", "= ", "=", "  '"]), PIECES), max_size=2),
)
@example("KEY= ", ["'", "ab", "'"], [("", ["-+'ab' '''"])])
@example("COMMENT ", ["ab"], [("  ", ["'", "ab", "'"])])
@example("HIERARCH = ", ["5"], [])
def test_quotes_and_continued_cards(start: str, first: list[str], more: list[tuple[str, list[str]]]) -> None:
    """Pieces that end strings, values and cards in places where they should not."""
    parts = [start + "".join(first), *("CONTINUE" + gap + "".join(rest) for gap, rest in more)]
    image = "".join(part[:80].ljust(80) for part in parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = fits.Header.fromstring(image)
        try:
            expected = astropy_cards(header)
        except (fits.VerifyError, ValueError):
            return  # for astropy there is no value
        if any(card.field_specifier is not None for card in header.cards):
            return
    # "KEY = 5": astropy leaves the blank at the end of the keyword, and finds the card without it.
    expected = [(keyword.strip(), value, comment) for keyword, value, comment in expected]
    assert repr([tuple(card) for card in Header(image).cards()]) == repr(expected)


def test_lookup_takes_the_first_of_duplicates() -> None:
    header = Header("".join(card.ljust(80) for card in ("A       = 1", "A       = 2", "a       = 3", "HISTORY x")))
    assert header["A"] == 1
    assert [card.value for card in header.cards()] == [1, 2, 3, "x"]
    assert "B" not in header
    assert header.get("B", 7) == 7
    with pytest.raises(KeyError):
        header["B"]


def test_bytes_outside_ascii_are_kept() -> None:
    text = "".join(card.ljust(80) for card in ("NAME    = 'caf\xe9'", "\xff\xfe", "X       = 5 / \xb5m"))
    header = Header(text)
    assert header["NAME"] == "caf\xe9"
    assert header["X"] == 5
    assert header.text == text


def test_continued_strings_keep_their_raw_text() -> None:
    long = "x" * 150
    text = str(fits.Card("LONG", long).image)
    header = Header(text + "A       = 1".ljust(80))
    assert header["LONG"] == long
    assert list(header.texts()) == [("LONG", text), ("A", "A       = 1".ljust(80))]


def test_integers_and_numbers_are_of_their_type() -> None:
    texts = (
        "N       = 5",
        "X       = 1.5",
        "T       = '5'",
        "L       = T",
        "C       = (1, 0)",
        "U       =",
        "I       = 1E999",
    )
    header = Header("".join(text.ljust(80) for text in texts))
    assert (header.integer("N"), header.integer("N", allowed=range(6)), header.integer("M", 7)) == (5, 5, 7)
    assert (header.number("N", 1), header.number("X", 1), header.number("M", 1)) == (5, 1.5, 1)
    for keyword in "XTLCUIM":
        with pytest.raises(CorruptError, match=f"{keyword} does not hold an integer") as caught:
            header.integer(keyword, path="a.fits", where="HDU 1")
        assert (caught.value.path, caught.value.where, caught.value.expected) == ("a.fits", "HDU 1", "an integer")
        assert caught.value.found == ("no such card" if keyword == "M" else repr(header[keyword]))
    for keyword in "TLCUI":
        with pytest.raises(CorruptError, match=f"{keyword} does not hold a number"):
            header.number(keyword, 1)
    with pytest.raises(CorruptError, match="cannot be") as caught:
        header.integer("N", allowed=range(5))
    assert (caught.value.expected, caught.value.found) == ("0 … 4", "5")
    with pytest.raises(CorruptError) as caught:
        header.integer("N", allowed={8: "u1", -32: ">f4"})
    assert caught.value.expected == [-32, 8]
