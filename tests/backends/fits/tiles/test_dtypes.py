"""Numbers as FITS stores them, against astropy."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits

from wustore.backends.fits.tiles.dtypes import PIXEL_TYPES, UNSIGNED, big_endian, column_format, flipped, to_stored
from wustore.errors import UsageError


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_pixels_are_stored_as_astropy_stores_them(kind: str) -> None:
    if kind[0] == "f":
        array = np.array([[1.5, np.nan, -0.0, np.inf]], kind)
    else:
        array = np.array([[np.iinfo(kind).min, 0, 1, np.iinfo(kind).max]], kind)
    stored, bitpix, zero = to_stored(array)
    assert stored.dtype == np.dtype(PIXEL_TYPES[bitpix]).newbyteorder("=")
    buffer = io.BytesIO()
    fits.PrimaryHDU(array).writeto(buffer)
    raw = buffer.getvalue()
    header = fits.Header.fromstring(raw[:2880])
    assert (header["BITPIX"], header.get("BZERO", 0)) == (bitpix, zero)
    assert raw[2880 : 2880 + array.nbytes] == big_endian(stored).tobytes()
    if zero:
        assert UNSIGNED[bitpix, zero] == kind
        assert np.array_equal(flipped(stored).view(kind), array)


@pytest.mark.parametrize("kind", ["f2", "c8", "?", "U3"])
def test_dtypes_that_fits_does_not_have(kind: str) -> None:
    with pytest.raises(UsageError, match="FITS has no image of this dtype"):
        to_stored(np.zeros((1, 1), kind))


@pytest.mark.parametrize(
    ("text", "repeat", "code", "element", "width"),
    [
        ("E", 1, "E", "", 4),
        ("3D", 3, "D", "", 24),
        ("0J", 0, "J", "", 0),
        ("12A", 12, "A", "", 12),
        ("9X", 9, "X", "", 2),
        ("1PB(1800)", 1, "P", "B", 8),
        ("QE", 1, "Q", "E", 16),
        (" 2M", 2, "M", "", 32),
    ],
)
def test_formats_of_columns(text: str, repeat: int, code: str, element: str, width: int) -> None:
    found = column_format(text)
    assert found is not None
    assert (found.repeat, found.code, found.element, found.width) == (repeat, code, element, width)


@pytest.mark.parametrize("text", ["", "Z", "3", "-1E", None, 4])
def test_what_is_no_format(text: object) -> None:
    assert column_format(text) is None
