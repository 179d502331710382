"""One image HDU: shape and dtype from the header, pixels and windows as astropy gives them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from wustore.backends.fits.hdu.image import Plane
from wustore.backends.fits.hdu.scan import scan
from wustore.errors import CorruptError, FormatError

RNG = np.random.default_rng(6)
FLOATS = RNG.normal(0, 5, (9, 14)).astype(np.float32)
COUNTS = RNG.integers(0, 200, (9, 14))
WINDOW = slice(2, 7), slice(3, 11)


def tiled(array: NDArray[Any], **options: Any) -> fits.CompImageHDU:
    return fits.CompImageHDU(array, compression_type="RICE_1", **options)


HDUS: dict[str, tuple[Any, tuple[int, int], str]] = {
    "float": (fits.ImageHDU(FLOATS), (1, 14), "none"),
    "integer": (fits.ImageHDU(COUNTS.astype(np.int32)), (1, 14), "none"),
    "unsigned": (fits.ImageHDU(COUNTS.astype(np.uint16)), (1, 14), "none"),
    "signed byte": (fits.ImageHDU((COUNTS - 100).astype(np.int8)), (1, 14), "none"),
    "tiles": (tiled(FLOATS, quantize_level=-0.01), (1, 14), "RICE_1"),
    "larger tiles": (tiled(COUNTS.astype(np.int16), tile_shape=(4, 5)), (4, 5), "RICE_1"),
}


def plane_of(hdu: Any, **cards: Any) -> tuple[Plane, bytes, NDArray[Any]]:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
        raw = buffer.getvalue()
        for keyword, value in cards.items():
            at = raw.index(keyword.ljust(8).encode())
            raw = raw[:at] + f"{keyword:8}= {value:>20}".ljust(80).encode() + raw[at + 80 :]
        plane = Plane(scan(raw, "a.fits").hdus[1], "a.fits")
        with fits.open(io.BytesIO(buffer.getvalue())) as hdus:
            return plane, raw, np.array(hdus[1].data)


@pytest.mark.parametrize("name", HDUS)
def test_pixels_and_windows_are_astropy_s(name: str) -> None:
    hdu, tile_shape, compression = HDUS[name]
    plane, raw, expected = plane_of(hdu)
    native = expected.astype(expected.dtype.newbyteorder("="))
    assert (plane.shape, plane.dtype, plane.tile_shape) == (native.shape, native.dtype, tile_shape)
    assert plane.compression == compression
    assert plane.read(raw).tobytes() == native.tobytes()
    assert plane.read(raw, *WINDOW).tobytes() == native[WINDOW].tobytes()
    out = np.zeros((5, 8), native.dtype)
    assert plane.read(raw, *WINDOW, out) is out
    assert out.tobytes() == native[WINDOW].tobytes()


@pytest.mark.parametrize("name", HDUS)
def test_a_window_asks_for_what_it_needs(name: str) -> None:
    """By ranges within the HDU; all other bytes are wrong there, and do no harm."""
    plane, raw, expected = plane_of(HDUS[name][0])
    asked = 0

    def fetch(ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        nonlocal asked
        asked += sum(stop - start for start, stop in ranges)
        return [raw[start:stop] for start, stop in ranges]

    found = plane.read_ranges(fetch, slice(2, 3), slice(0, 14))
    assert found.tobytes() == expected[2:3].astype(found.dtype).tobytes()
    assert 0 < asked < plane.hdu.data_length
    assert plane.n_decoded(slice(2, 3), slice(0, 14)) == 14 * plane.tile_shape[0]
    with pytest.raises(CorruptError, match="ends inside an HDU"):
        plane.read_ranges(lambda ranges: [b""] * len(ranges))


def test_scaled_pixels_are_decoded_as_a_whole() -> None:
    header = fits.ImageHDU(COUNTS.astype(np.int16)).header
    header.update(BSCALE=0.5, BZERO=10.0, BLANK=7)
    raw = (fits.PrimaryHDU().header.tostring() + header.tostring()).encode() + COUNTS.astype(">i2").tobytes().ljust(
        2880, b"\0"
    )
    plane = Plane(scan(raw, "a.fits").hdus[1], "a.fits")
    assert plane.dtype == np.float32
    assert plane.n_decoded(*WINDOW) == COUNTS.size
    expected = np.where(COUNTS == 7, np.nan, COUNTS * 0.5 + 10).astype(np.float32)
    assert np.array_equal(plane.read(raw, *WINDOW), expected[WINDOW], equal_nan=True)


@pytest.mark.parametrize(
    ("hdu", "cards", "error", "message"),
    [
        (fits.ImageHDU(FLOATS[0]), {}, FormatError, "not two dimensions"),
        (tiled(FLOATS, quantize_level=-0.01), {"ZNAXIS1": 2**31}, FormatError, "more than can be"),
        (fits.ImageHDU(FLOATS), {"NAXIS2": 0}, FormatError, "without pixels"),
        (fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])]), {}, FormatError, "should hold an image"),
    ],
)
def test_what_is_no_image(hdu: Any, cards: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plane_of(hdu, **cards)
