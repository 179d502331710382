"""The table of constituent images keeps everything in the model, and KBMOD's columns in FITS."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.time import Time
from astropy.wcs import WCS

from wustore.compat.image_metadata import (
    constituents_to_hdu,
    constituents_to_table,
    create_image_metadata,
    hdu_to_constituents,
    hdu_to_image_metadata_table,
    image_metadata_table_to_hdu,
    table_to_constituents,
)
from wustore.compat.wcs import wcs_fits_equal
from wustore.errors import FormatError


def a_wcs(ra: float = 10.0) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, -10.0 / 3]
    wcs.wcs.cd = np.array([[-1 / 3e4, 1e-9], [1e-9, 1 / 3e4]])
    wcs.pixel_shape = (30, 20)
    return wcs


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.fixture
def table() -> Table:
    table = Table(meta={"survey": "night 1", "n": 3})
    table["Filter"] = np.array(["g", "r", ""])
    table["filter"] = np.array([b"\xff\x01", b"a", b""])
    table["i8"] = np.array([-7, 3, 0], dtype=np.int8)
    table["f16"] = np.array([1.5, np.nan, -0.0], dtype=np.float16)
    table["u64"] = np.array([2**64 - 1, 0, 1], dtype=np.uint64)
    table["c"] = np.array([1 + 2j, 0, -1j])
    table["when"] = np.array(["2024-01-01", "2024-01-02", "NaT"], dtype="datetime64[s]")
    table["vector"] = np.arange(6.0).reshape(3, 2)
    table["degrees"] = Column([1.0, 2.0, 3.0], unit="deg", description="an angle", format="%.3f", meta={"a": 1})
    table["masked"] = MaskedColumn([1, 2, 3], mask=[False, True, False])
    table["mixed"] = Column(objects(None, 1.5, "x"), dtype=object)
    table["nested"] = Column(objects({"a": (1, [2])}, [1, 2], [3, 4]), dtype=object)
    table["wcs"] = Column(objects(None, a_wcs(), a_wcs(11.0)), dtype=object)
    table["odd"] = Column(objects(a_wcs(), 5, True), dtype=object)
    return table


def test_model_and_back_is_exact(table: Table) -> None:
    back = constituents_to_table(table_to_constituents(table))
    assert back.colnames == table.colnames
    assert back.meta == table.meta
    for name in table.colnames:
        old, new = table[name], back[name]
        assert type(old) is type(new)
        assert old.dtype == new.dtype, name
        assert (old.unit, old.description, old.format, old.meta) == (new.unit, new.description, new.format, new.meta)
        for a, b in zip(old, new, strict=True):
            if isinstance(a, WCS):
                assert wcs_fits_equal(a, b)
            else:
                assert repr(a) == repr(b), name
    assert back["masked"].mask.tolist() == [False, True, False]
    assert back["masked"].data.data.tolist() == [1, 2, 3]


def test_big_endian_columns_become_native() -> None:
    back = table_to_constituents(Table({"x": np.array([1, 2], dtype=">i4")}))
    assert back.columns[0].values.dtype == np.dtype("int32")
    assert back.columns[0].values.dtype.isnative


def test_equal_wcs_is_one_object(table: Table) -> None:
    wcs = a_wcs()
    back = constituents_to_table(table_to_constituents(Table({"w": objects(wcs, a_wcs(), wcs)})))
    assert back["w"][0] is back["w"][1] is back["w"][2]


def test_a_foreign_object_is_named(table: Table) -> None:
    table["bad"] = Column(objects(1, object(), 2), dtype=object)
    with pytest.raises(FormatError, match=r"'bad', row 1"):
        table_to_constituents(table)


def through_fits(hdu: fits.BinTableHDU) -> fits.BinTableHDU:
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    return fits.open(io.BytesIO(buffer.getvalue()))[1]


def test_columns_that_mean_more_than_their_numbers() -> None:
    kept = table_to_constituents(QTable({"q": [1.0, 2.0] * u.km}))
    assert (kept.columns[0].unit, kept.columns[0].values.tolist()) == ("km", [1.0, 2.0])
    for column in (Time([60000.0], format="mjd", scale="tai"), SkyCoord([1.0], [2.0], unit="deg")):
        with pytest.raises(FormatError, match="column 'c'"):
            table_to_constituents(Table({"c": column}))


def test_kbmod_hdu(table: Table) -> None:
    table.remove_columns(["odd", "Filter"])
    with pytest.warns(UserWarning, match="'i8': KBMOD writes int8 as logical values"):
        hdu = through_fits(image_metadata_table_to_hdu(table, "IMG_META"))
    assert hdu.name == "IMG_META"
    assert hdu.columns["i8"].format == "L"
    back = hdu_to_image_metadata_table(hdu)
    assert back.colnames == table.colnames
    assert back["i8"].tolist() == [True, True, False]
    assert back["u64"].tolist() == [2**64 - 1, 0, 1]
    assert back["wcs"][0] is None
    assert wcs_fits_equal(back["wcs"][2], hdu_to_image_metadata_table(hdu)["wcs"][2])
    assert back["mixed"].tolist() == ["None", "1.5", "x"]
    assert str(back["degrees"].unit) == "deg"


def test_columns_of_none_are_left_out_of_fits() -> None:
    table = create_image_metadata(2, Table({"visit": [1, 2]}))
    hdu = image_metadata_table_to_hdu(table)
    assert hdu.columns.names == ["visit"]


def test_text_beyond_ascii_is_escaped_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="'name'"):
        hdu = image_metadata_table_to_hdu(Table({"name": ["caf\u00e9", "x"]}))
    assert hdu.data["name"].tolist() == ["caf\\xe9", "x"]


def test_empty_columns_of_2024() -> None:
    hdu = fits.BinTableHDU(Table({"_EMPTY_ebd_wcs": [0, 0], "visit": [5, 6]}))
    back = hdu_to_constituents(through_fits(hdu))
    assert [column.name for column in back.columns] == ["ebd_wcs", "visit"]
    assert back.columns[0].values.tolist() == [None, None]


def test_a_broken_wcs_cell_is_refused() -> None:
    with pytest.raises(FormatError, match="WCS"):
        hdu_to_constituents(through_fits(fits.BinTableHDU(Table({"_WCSSTR_per_image_wcs": ["{nonsense"]}))))


def test_create_image_metadata() -> None:
    table = create_image_metadata(3, Table({"visit": [1, 2, 3], "data_loc": ["a", "b", "c"]}, meta={"k": 1}))
    assert table.colnames == ["data_loc", "ebd_wcs", "geocentric_distance", "per_image_wcs", "visit"]
    assert table["ebd_wcs"].tolist() == [None] * 3
    assert table["data_loc"].tolist() == ["a", "b", "c"]
    assert table.meta == {"k": 1}
    with pytest.raises(FormatError, match="expected 2; found 3"):
        create_image_metadata(2, table)
    with pytest.raises(FormatError):
        create_image_metadata(0)


@pytest.mark.parametrize("pattern", ["head/b_*/*.fits", "head/c_*/*.fits", "head/j_meta/*.fits"])
def test_corpus_tables_are_written_as_kbmod_writes_them(corpus, pattern: str) -> None:
    paths = sorted(corpus.glob(pattern))
    compared = 0
    for path in paths:
        with fits.open(path) as hdus:
            if "IMG_META" not in hdus:
                continue
            hdu = hdus["IMG_META"]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                again = constituents_to_hdu(hdu_to_constituents(hdu), "IMG_META")
            buffer = io.BytesIO()
            fits.HDUList([fits.PrimaryHDU(), again]).writeto(buffer)
            place = hdu.fileinfo()
            start, stop = place["hdrLoc"], place["datLoc"] + place["datSpan"]
            assert buffer.getvalue()[2880:] == path.read_bytes()[start:stop], path
            compared += 1
    assert compared
