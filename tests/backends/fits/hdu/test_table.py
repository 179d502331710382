"""Binary tables: equal to astropy's, and sizes that cannot be are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from wustore.backends.fits.hdu.header import Header
from wustore.backends.fits.hdu.header_writer import HeaderText
from wustore.backends.fits.hdu.scan import scan
from wustore.backends.fits.hdu.table import read_table
from wustore.errors import CorruptError


def of_astropy(table: Table) -> tuple[Header, bytes]:
    buffer = io.BytesIO()
    fits.BinTableHDU(table).writeto(buffer)
    hdu = scan(buffer.getvalue(), "x").hdus[1]
    return hdu.header, buffer.getvalue()[hdu.data_start : hdu.data_start + hdu.data_length]


def test_every_type_comes_back() -> None:
    table = Table()
    for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"):
        if kind != "i1":  # which astropy writes as logical values
            table[kind] = np.array([np.iinfo(kind).min, 0, np.iinfo(kind).max], kind)
    table["f4"] = np.array([1.5, np.nan, -0.0], np.float32)
    table["f8"] = np.array([1e300, -np.inf, 0.1])
    table["c8"] = np.array([1 + 2j, 0, -1j], np.complex64)
    table["flag"] = [True, False, True]
    table["text"] = ["a", "", "bcd"]
    table["vector"] = np.arange(6, dtype=np.uint16).reshape(3, 2)
    header, data = of_astropy(table)
    columns = read_table(header, data, path="x", where="y")
    assert [column.name for column in columns] == table.colnames
    for column in columns:
        expected = np.asarray(table[column.name])
        assert column.values.dtype == expected.dtype
        assert column.values.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("rows", "width"), [(-1, 4), (4, -1), (-(2**62), -1), (10**25, -1), (10**25, 4), (0, 2**63), (0, 10**25)]
)
def test_sizes_that_cannot_be(rows: int, width: int) -> None:
    cards = [("NAXIS1", width), ("NAXIS2", rows), ("TFIELDS", 1), ("TFORM1", "1J")]
    text = HeaderText(cards).block().decode().partition("END ")[0]
    with pytest.raises(CorruptError, match="does not fit"):
        read_table(Header(text), bytes(64), path="x", where="y")


@pytest.mark.parametrize("form", ["1A", "A", "4A", "4B", "1J"])
@pytest.mark.parametrize("dim", ["", "x", "()", "(0)", "(3,3)", "(" + "9" * 5000 + ")"])
def test_a_tdim_that_does_not_fit_says_nothing(form: str, dim: str) -> None:
    def read(*more: fits.Card) -> list[object]:
        cards = [("NAXIS1", 4), ("NAXIS2", 2), ("TFIELDS", 1), ("TTYPE1", "a"), ("TFORM1", form)]
        text = "".join(str(card) for card in (*(fits.Card(*card) for card in cards), *more))
        (column,) = read_table(Header(text), b"abcdefgh", path="x", where="y")
        return [column.values.dtype, column.values.tolist()]

    assert read(fits.Card("TDIM1", dim)) == read()


def test_a_format_longer_than_a_card_is_refused() -> None:
    cards = [("NAXIS1", 4), ("NAXIS2", 2), ("TFIELDS", 1), ("TFORM1", "9" * 5000 + "A")]
    text = "".join(str(fits.Card(*card)) for card in cards)
    with pytest.raises(CorruptError, match="TFORM1 is none of FITS"):
        read_table(Header(text), bytes(8), path="x", where="y")
