"""Header text holds every number of a WCS, and KBMOD's forms are KBMOD's."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, DistortionLookupTable, Sip
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.compat.wcs import (
    append_wcs_to_hdu_header,
    calc_ecliptic_angle,
    deserialize_wcs,
    extract_wcs_from_hdu_header,
    kbmod_header_cards,
    kbmod_json_to_text,
    make_fake_wcs,
    serialize_wcs,
    sky_to_pixel,
    text_to_kbmod_json,
    wcs_fits_equal,
)
from wustore.errors import FidelityError, FormatError
from wustore.format.wcs import text_to_wcs, wcs_to_text

OFFSETS = np.array([[0.0, 0.0], [13.0, -7.0], [250.0, 320.0], [-90.0, 41.0]])


def made(projection: str = "TAN", form: str = "cd") -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{projection}", f"DEC--{projection}"]
    wcs.wcs.crval = [150.0 + 1 / 3, -10.0 / 3]
    wcs.wcs.crpix = [1024.0 / 3, 2048.0 / 7]
    matrix = np.array([[-1 / 3e4, 2e-17], [1 / 7e9, 1 / 3e4]])
    if form == "cd":
        wcs.wcs.cd = matrix
    elif form == "pc":
        wcs.wcs.pc = matrix * 1e4
        wcs.wcs.cdelt = [1e-4 / 3, 1e-4 / 7]
    else:
        wcs.wcs.crota = [0.0, 10.0 / 3]
        wcs.wcs.cdelt = [-1 / 7e3, 1 / 7e3]
    return wcs


def assert_same_bits(a: WCS, b: WCS) -> None:
    points = a.wcs.crpix + OFFSETS
    np.testing.assert_array_equal(a.all_pix2world(points, 1), b.all_pix2world(points, 1))
    assert a.wcs.crval.tobytes() == b.wcs.crval.tobytes()
    assert a.wcs.crpix.tobytes() == b.wcs.crpix.tobytes()
    assert a.wcs.get_pc().tobytes() == b.wcs.get_pc().tobytes()
    assert a.wcs.has_cd() == b.wcs.has_cd()
    assert a.pixel_shape == b.pixel_shape


@pytest.mark.parametrize("form", ["cd", "pc", "crota"])
@pytest.mark.parametrize("projection", ["TAN", "TAN-SIP", "SIN", "ZEA", "STG", "CAR"])
def test_text_and_back_keeps_every_bit(projection: str, form: str) -> None:
    wcs = made(projection, form)
    wcs.pixel_shape = (300, 200)
    text = wcs_to_text(wcs)
    assert len(text) % 80 == 0
    back = text_to_wcs(text)
    assert_same_bits(wcs, back)
    assert wcs_to_text(back) == text


def test_to_header_alone_would_round() -> None:
    wcs = made()
    rounded = WCS(wcs.to_header(relax=True))
    assert rounded.wcs.crval[0] != wcs.wcs.crval[0]


def test_without_a_size() -> None:
    back = text_to_wcs(wcs_to_text(made()))
    assert back.pixel_shape is None


@settings(max_examples=60)
@given(
    crval=st.tuples(st.floats(0, 359.9), st.floats(-89, 89)),
    crpix=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
    scale=st.floats(1e-6, 1e-3),
    shear=st.floats(-1e-4, 1e-4),
)
def test_any_numbers_survive(
    crval: tuple[float, float], crpix: tuple[float, float], scale: float, shear: float
) -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = crval, crpix
    wcs.wcs.cd = [[-scale, shear / 10 * scale], [0.0, scale]]
    back = text_to_wcs(wcs_to_text(wcs))
    assert back.wcs.crval.tolist() == list(crval)
    assert back.wcs.crpix.tolist() == list(crpix)
    assert back.wcs.cd.tolist() == wcs.wcs.cd.tolist()


def test_sip() -> None:
    rng = np.random.default_rng(1)
    wcs = made("TAN-SIP")
    inside = np.add.outer(range(4), range(4)) <= 3
    a, b, ap, bp = (np.where(inside, rng.normal(0, 1e-7, (4, 4)), 0.0) for _ in range(4))
    wcs.sip = Sip(a, b, ap, bp, wcs.wcs.crpix)
    back = text_to_wcs(wcs_to_text(wcs))
    assert_same_bits(wcs, back)
    for name in ("a", "b", "ap", "bp"):
        np.testing.assert_array_equal(getattr(wcs.sip, name), getattr(back.sip, name))


def test_sip_terms_beyond_the_order_are_refused() -> None:
    wcs = made("TAN-SIP")
    full = np.full((3, 3), 1e-7)
    wcs.sip = Sip(full, full, None, None, wcs.wcs.crpix)
    with pytest.raises(FidelityError, match="sip"):
        wcs_to_text(wcs)


@pytest.mark.parametrize("used", [False, True])
def test_tpv_coefficients(used: bool) -> None:
    wcs = made("TPV", "pc")
    # Once wcslib has used the coefficients it gives back 14 digits: these have no more.
    coefficients = [(1, 1, 1.0003), (2, 1, 1.0001428), (1, 4, 3.1e-6)]
    if not used:
        coefficients[0] = (1, 1, 1.0 + 1 / 3e3)
    wcs.wcs.set_pv(coefficients)
    other = copy.deepcopy(wcs)
    if used:
        wcs.wcs.set()
    back = text_to_wcs(wcs_to_text(wcs))
    assert_same_bits(other, back)


def test_lost_tpv_digits_are_said() -> None:
    wcs = made("TPV", "pc")
    wcs.wcs.pc, wcs.wcs.cdelt = np.eye(2), [0.01, 0.01]  # wide enough for the last digits to show
    wcs.wcs.set_pv([(1, 1, 1.0 + 1 / 3e3), (2, 1, 1.0 + 1 / 7e3)])
    wcs.wcs.set()
    with pytest.warns(UserWarning, match="1e-14"):
        text = wcs_to_text(wcs)
    points = wcs.wcs.crpix + OFFSETS
    np.testing.assert_allclose(wcs.all_pix2world(points, 1), text_to_wcs(text).all_pix2world(points, 1), rtol=1e-13)


def test_lookup_tables_travel_in_the_text() -> None:
    rng = np.random.default_rng(2)
    wcs = made()
    wcs.cpdis1 = DistortionLookupTable(rng.normal(size=(20, 30)).astype("f4"), (1, 2), (3.5, 1 / 3), (10, 11))
    wcs.det2im2 = DistortionLookupTable(rng.normal(size=(5, 4)).astype("f4"), (1, 1), (1, 1), (100, 100))
    back = text_to_wcs(wcs_to_text(wcs))
    assert_same_bits(wcs, back)
    np.testing.assert_array_equal(wcs.cpdis1.data, back.cpdis1.data)
    assert back.cpdis2 is None
    np.testing.assert_array_equal(wcs.det2im2.data, back.det2im2.data)


def test_alternate_and_dates_and_poles() -> None:
    wcs = made("TAN", "pc")
    wcs.wcs.alt = "B"
    wcs.wcs.lonpole = 123.456789012345678
    wcs.wcs.mjdobs = 59000 + 1 / 3
    wcs.wcs.mjdref = [51544.0, 0.5 + 1 / 3e5]
    wcs.wcs.obsgeo = [1 / 3, 2 / 3, 4 / 3, 0.1, 0.2, 0.3]
    wcs.wcs.name = "it's a name"
    back = text_to_wcs(wcs_to_text(wcs))
    assert back.wcs.alt == "B"
    assert back.wcs.name == "it's a name"
    for name in ("lonpole", "mjdobs"):
        assert getattr(back.wcs, name) == getattr(wcs.wcs, name)
    assert back.wcs.mjdref.tolist() == wcs.wcs.mjdref.tolist()
    assert back.wcs.obsgeo.tolist() == wcs.wcs.obsgeo.tolist()


def test_text_of_a_header_is_given_back_unless_the_wcs_changed() -> None:
    wcs = made()
    text = wcs_to_text(wcs)
    spaced = text.replace("CRVAL1  =", "CRVAL1  =  ")[:80]
    assert wcs_to_text(text_to_wcs(text)) == text
    changed = text_to_wcs(text)
    changed.wcs.crval = [1.0, 2.0]
    assert text_to_wcs(wcs_to_text(changed)).wcs.crval.tolist() == [1.0, 2.0]
    assert text_to_wcs(text).wcs.crval.tolist() == wcs.wcs.crval.tolist()
    assert len(spaced) == 80


@pytest.mark.parametrize(
    "cards",
    [
        ["A_ORDER =                    3"],
        ["CTYPE1  = 'RA---TAN'", "CTYPE2  = 'DEC--CAR'"],
        ["WCSAXES =             99999999"],  # ends the process in wcslib
        ["A_9_9   = 'NAXES: 2'"],  # so does this
        ["NAXIS   =             99999999"],
        ["A_ORDER =                 9999", "B_ORDER =                 9999"],  # 1.6 GB
        ["WCSAXES =                    3", "CD1_1   = 1.0", "CD2_2   = 1.0", "CTYPE1  = 'RA---TPV'", "PV1_1   = '1'"],
        ["WUCPDIS1= 'not JSON'", "CTYPE1  = 'RA---TAN'", "CTYPE2  = 'DEC--TAN'"],
    ],
)
def test_nonsense_gives_a_typed_error(cards: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormatError, match="does not describe a WCS"):
            text_to_wcs("".join(card.ljust(80) for card in cards))


def test_text_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(FormatError):
        text_to_wcs("CRVAL1  = '\u00e9'".ljust(80))


def test_dimm_gives_the_size() -> None:
    header = fits.Header()
    append_wcs_to_hdu_header(text_to_wcs(wcs_to_text(made())), header)
    assert "DIMM1" not in header
    wcs = made()
    wcs.array_shape = (200, 300)
    append_wcs_to_hdu_header(wcs, header)
    assert (header["DIMM1"], header["DIMM2"]) == (300, 200)
    assert extract_wcs_from_hdu_header(header).array_shape == (200, 300)
    assert text_to_wcs(header.tostring(padding=False, endcard=False)).array_shape == (200, 300)
    assert [key for key, _ in kbmod_header_cards(wcs)][:3] == ["DIMM1", "DIMM2", "WCSAXES"]


def test_a_header_without_wcs() -> None:
    assert extract_wcs_from_hdu_header(fits.Header()) is None
    append_wcs_to_hdu_header(None, header := fits.Header())
    assert len(header) == 0


def test_kbmod_json() -> None:
    wcs = made("TAN-SIP")
    wcs.pixel_shape = (300, 200)
    stored = serialize_wcs(wcs)
    expected = dict(wcs.to_header(relax=True)) | {"NAXIS1": 300, "NAXIS2": 200}
    assert json.loads(stored) == expected
    assert text_to_kbmod_json(kbmod_json_to_text(stored)) == stored
    assert wcs_fits_equal(deserialize_wcs(stored), wcs)
    assert (serialize_wcs(None), deserialize_wcs(""), deserialize_wcs("None")) == ("", None, None)


def test_kbmod_json_without_a_size_reads_back_without() -> None:
    stored = serialize_wcs(made())
    assert json.loads(stored)["NAXIS1"] == 0
    assert deserialize_wcs(stored).pixel_shape is None


@pytest.mark.parametrize("text", ["{", "[1]", '{"CRVAL1": [1]}', '{"CTYPE1": "\u00e9"}', '{"CRVAL1": NaN}'])
def test_bad_kbmod_json(text: str) -> None:
    with pytest.raises(FormatError):
        kbmod_json_to_text(text)


def test_fits_equality() -> None:
    a, b = made(), made()
    assert wcs_fits_equal(a, b)
    assert wcs_fits_equal(None, None)
    assert not wcs_fits_equal(a, None)
    b.array_shape = (3, 4)
    assert not wcs_fits_equal(a, b)


def test_fake_wcs_and_ecliptic() -> None:
    wcs = make_fake_wcs(200.0, -10.0, 100, 60, 1e-4)
    assert wcs.array_shape == (100, 60)
    assert wcs.wcs.crval.tolist() == [200.0, -10.0]
    angle = calc_ecliptic_angle(wcs, (30, 50))
    # Both axes of the fake WCS grow with the pixels; near the equinox the ecliptic falls with right ascension.
    assert -np.pi / 2 < angle < 0


def test_corpus_headers(corpus) -> None:
    for path in sorted(corpus.glob("written/*/input.json")):
        cases = json.loads(path.read_text())
        for text in [cases["global_wcs"], *(cases["per_image_wcs"] or [])]:
            if text:
                wcs = WCS(fits.Header.fromstring(text))
                assert_same_bits(wcs, text_to_wcs(wcs_to_text(wcs)))
                assert_same_bits(wcs, text_to_wcs(text))


def test_sky_to_pixel_gives_nan_where_a_distortion_cannot_be_inverted() -> None:
    """astropy's ``world_to_pixel`` gives the place where its inversion gave up instead."""
    wcs = made()
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    terms = np.zeros((4, 4))
    terms[2, 0] = 4e-3
    wcs.sip = Sip(terms, terms.T.copy(), None, None, wcs.wcs.crpix)
    inside, outside = wcs.all_pix2world([[330.0, 290.0]], 0)[0], wcs.wcs.crval + 3.0
    coords = SkyCoord([[inside[0], outside[0]]], [[inside[1], outside[1]]], unit="deg")
    pixels = sky_to_pixel(coords, wcs)
    assert pixels.shape == (1, 2, 2)
    np.testing.assert_allclose(pixels[0, 0], [330.0, 290.0], atol=1e-3)
    assert np.isnan(pixels[0, 1]).all()
    assert sky_to_pixel(coords[0, 0], wcs).tolist() == pixels[0, 0].tolist()
