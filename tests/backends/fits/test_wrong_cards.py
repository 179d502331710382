"""Cards that decide how a file is read, with values of another type or that cannot be: errors of wustore only."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import fits_samples as samples
import fuzzing
import numpy as np
import pytest
from astropy.io import fits

from wustore import convert, errors
from wustore.backends.fits.hdu.header import BLOCK
from wustore.backends.fits.hdu.scan import scan
from wustore.backends.registry import open_reader

WRONG = ("'text'", "''", "T", "1.5", "-1", "0", "99", "(1.0, 0.0)", "1E999", "NaN", "", "9223372036854775808", "1" * 41)
"""Text, logical, real, complex, infinite, none and undefined values, and integers that do not fit."""

IMAGE = ("XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT", "EXTNAME", "BSCALE", "BZERO", "BLANK")
TABLE = ("TFIELDS", "THEAP", *(f"{key}{k}" for key in ("TTYPE", "TFORM", "TDIM", "TSCAL", "TZERO") for k in (1, 2)))
TILES = ("ZIMAGE", "ZCMPTYPE", "ZBITPIX", "ZNAXIS", "ZNAXIS1", "ZTILE1", "ZNAME1", "ZVAL1", "ZQUANTIZ", "ZDITHER0")
PACKED = ("ZTABLE", "ZNAXIS1", "ZNAXIS2", "ZTILELEN", "ZFORM1", "ZCTYP1", "TFIELDS", "TFORM1", "NAXIS1", "NAXIS2")
MEANING = ("NUMIMG", "NCON", "REPRJCTD", "REPFRAME", "BARY", "OBS_LAT", "CRVAL1", "WCSAXES", "CHECKSUM", "DATASUM")
CARDS = [
    *(("PRIMARY", key) for key in ("BITPIX", "NAXIS", *MEANING)),
    *(("IMG_META", key) for key in (*IMAGE[:8], *TABLE, "TUNIT1", "TNULL1", "ZTABLE")),
    *(("KBMOD_CONFIG", key) for key in PACKED),
    *(("SCI_0", key) for key in (*IMAGE, *TABLE, *TILES, "ZBLANK", "ZSCALE", "ZZERO", "NIND", "IND_0", "MJD")),
    *(("VAR_0", key) for key in (*IMAGE, "GROUPS")),
    *(("MSK_0", key) for key in (*IMAGE, "ZIMAGE")),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A WorkUnit of one image: tiles that are quantised and dithered, floats, scaled integers, and two tables."""
    table = samples.table_hdu("IMG_META", visit=np.arange(1), night=["first"])
    cells = np.empty(1, object)
    cells[0] = np.frombuffer(gzip.compress(b"17"), np.uint8)
    settings = fits.BinTableHDU.from_columns([fits.Column("repeated", "PB()", array=cells)], name="KBMOD_CONFIG")
    settings.header.update(ZTABLE=True, ZNAXIS1=2, ZNAXIS2=1, ZTILELEN=1, ZFORM1="2A", ZCTYP1="GZIP_1")
    _, variance, mask, psf = samples.image_hdus(0, shape=samples.NOISE.shape)
    science = samples.compressed("SCI_0", **samples.COMPRESSIONS["rice-dither-1"])
    science.header.update(MJD=60000.0, NIND=1, IND_0=0)
    path = tmp_path_factory.mktemp("whole") / "a.fits"
    samples.write(path, [samples.primary_hdu(1), table, settings, science, variance, mask, psf])
    return path.read_bytes()


def with_card(whole: bytes, name: str, keyword: str, value: str | None) -> bytes:
    """Return a file with a card changed, added, or (None) taken out; ``value`` is what follows the equals sign."""
    hdu = scan(whole, "a.fits").get(name)
    assert hdu is not None
    text = hdu.header.text
    at = hdu.header.places.get(keyword, len(text))
    new = "" if value is None else f"{keyword:8}= {value:>20}".ljust(80)[:80]
    text = text[:at] + new + text[at + 80 :] + "END".ljust(80)
    block = text.ljust(-(-len(text) // BLOCK) * BLOCK).encode("latin-1")
    return whole[: hdu.header_start] + block + whole[hdu.data_start :]


def test_the_file_is_whole(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(whole)
    with open_reader(path) as reader:
        assert reader.meta.configuration == {"repeated": 17}
        assert not list(reader.audit())
    assert fuzzing.use(path, tmp_path) == "used"


@pytest.mark.parametrize(("name", "keyword"), CARDS)
def test_wrong_values_of_cards(whole: bytes, name: str, keyword: str, tmp_path: Path) -> None:
    path, ended = tmp_path / "a.fits", set()
    for value in (*WRONG, f"{2:20d} \xa6\xfd junk", None):
        path.write_bytes(with_card(whole, name, keyword, value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ended.add(fuzzing.use(path, tmp_path))
    known = {kind for kind in errors.__all__ if issubclass(getattr(errors, kind), errors.WuStoreError)}
    assert ended <= known | {"used"}


@pytest.mark.parametrize(
    ("name", "keyword", "value"),
    [
        *(("VAR_0", "BITPIX", value) for value in ("'text'", "T", "7", "-32.0", f"{-32:20d} \xa6\xfd junk", None)),
        *(
            ("VAR_0", keyword, value)
            for keyword in ("BSCALE", "BZERO")
            for value in ("'1'", "T", "(1, 0)", "", "1E999")
        ),
        *(("IMG_META", "TFIELDS", value) for value in ("'2'", "-1", "1000", None)),
        *(("IMG_META", keyword, value) for keyword in ("TSCAL1", "TZERO1") for value in ("'1'", "T", "(1, 0)")),
        *(("SCI_0", "ZBITPIX", value) for value in ("'text'", "T", "7", None)),
    ],
)
def test_errors_say_which_card(whole: bytes, name: str, keyword: str, value: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(with_card(whole, name, keyword, value))
    with pytest.raises(errors.CorruptError, match=keyword) as caught:
        open_reader(path)
    assert caught.value.path == str(path)
    assert name in str(caught.value.where)
    assert caught.value.expected is not None
    assert caught.value.found is not None


@pytest.mark.parametrize(("scale", "zero"), [("1", "0"), ("1.0", "0.0"), ("2", "3"), ("2.0", "3.0"), ("0.5", "-1")])
def test_scales_may_be_integers(whole: bytes, scale: str, zero: str, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes(with_card(with_card(whole, "MSK_0", "BSCALE", scale), "MSK_0", "BZERO", zero))
    with fits.open(path) as hdus:
        expected = np.array(hdus["MSK_0"].data)
    with open_reader(path) as reader:
        mask = reader.image(0).mask
    assert mask is not None
    assert mask.dtype == expected.dtype.newbyteorder("=")
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("scale", ["1", "0.5"])
@pytest.mark.parametrize("value", ["0", "T", "'0'", "'x'", "1.0", "(1, 0)", "-9999999999999999999999", ""])
def test_blanks_are_those_of_astropy(whole: bytes, value: str, scale: str, tmp_path: Path) -> None:
    """A BLANK that is no integer says nothing: astropy warns, and reads the pixels as they are."""
    path = tmp_path / "a.fits"
    path.write_bytes(with_card(with_card(whole, "MSK_0", "BLANK", value), "MSK_0", "BSCALE", scale))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path) as hdus:
                expected = np.array(hdus["MSK_0"].data)
    except (OverflowError, ValueError):  # astropy fails with it
        with pytest.raises(errors.WuStoreError), open_reader(path) as reader:
            reader.image(0)
        return
    with open_reader(path) as reader:
        mask = reader.image(0).mask
    assert mask is not None
    assert mask.dtype == expected.dtype.newbyteorder("=")
    assert mask.tobytes() == expected.astype(mask.dtype).tobytes()
    convert(path, tmp_path / "a.zarr")
    convert(tmp_path / "a.zarr", tmp_path / "again.fits")
    assert (tmp_path / "again.fits").read_bytes() == path.read_bytes()
