"""Files that cfitsio's fpack and funpack made of WorkUnits: read as cfitsio and astropy read them, and given back."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import fits_samples as samples
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from fits_roundtrip import again
from memory import traced

from wustore.backends.fits.backend import FitsBackend
from wustore.backends.fits.hdu.compressed_table import unpacked_table
from wustore.backends.fits.hdu.header import Header
from wustore.backends.fits.hdu.table import read_table
from wustore.errors import CorruptError, FormatError, WuStoreError

pytestmark = pytest.mark.skipif(shutil.which("fpack") is None, reason="needs fpack of cfitsio")

SHAPE = (21, 35)
PREFIXES = {"science": "SCI", "variance": "VAR", "mask": "MSK", "psf": "PSF"}


def packed(path: Path, *options: str) -> Path:
    """Compress a file with fpack."""
    target = path.with_suffix(".fits.fz")
    subprocess.run(["fpack", *options, "-O", str(target), str(path)], check=True, capture_output=True)
    return target


def unpacked(path: Path) -> Path:
    """Uncompress a file with funpack."""
    target = path.with_name("funpacked.fits")
    subprocess.run(["funpack", "-O", str(target), str(path)], check=True, capture_output=True)
    return target


def plain(path: Path, kind: str, mask: str) -> Path:
    """Write a WorkUnit of plain images; floats have NaN, zeros and an outlier."""
    rng = np.random.default_rng(4)
    values = rng.normal(100, 8, SHAPE)
    if np.dtype(kind).kind == "f":
        values[3, 4:9], values[5], values[8, 3] = np.nan, 0, 1e7
    hdus = samples.image_hdus(0, shape=SHAPE)
    planes = [values.astype(kind), values.astype(kind), rng.integers(0, 90, SHAPE).astype(mask), np.full((5, 5), 0.04)]
    for hdu, plane in zip(hdus, planes, strict=True):
        hdu.data = plane
    return Path(samples.write(path, [samples.primary_hdu(1), *hdus]))


@pytest.mark.parametrize(
    ("kind", "mask", "options"),
    [
        ("f4", "u1", "-r -q 4"),
        ("f4", "i1", "-r -q0 -0.01 -w"),
        ("f8", "i2", "-r -qz77 16"),
        ("f8", "u1", "-r -q7 16 -t 35,16"),  # funpack itself loses NaN in narrower tiles
        ("f4", "i4", "-g -q 0"),
        ("f8", "u2", "-g2 -q0 8 -t 35,4"),
        ("f4", "u1", "-h -q0 4"),
        ("f4", "i2", "-h -s 2 -q 8 -w"),
        ("i2", "i1", "-p -t 10,10"),
        ("i4", "u4", "-r"),
        ("u1", "u1", "-g2 -w"),
        ("u2", "i4", "-h -t 35,21"),
    ],
)
def test_packed_images(kind: str, mask: str, options: str, tmp_path: Path) -> None:
    path = packed(plain(tmp_path / "a.fits", kind, mask), *options.split())
    again(path, tmp_path)
    with FitsBackend().open(str(path)) as reader, fits.open(path) as own, fits.open(unpacked(path)) as other:
        image = reader.image(0)
        for layer, prefix in PREFIXES.items():
            plane = image.layer(layer)
            assert plane is not None
            for hdus in (own, other):
                expected = np.asarray(hdus[f"{prefix}_0"].data)
                assert plane.dtype == expected.dtype.newbyteorder("=")
                np.testing.assert_array_equal(plane, expected)


def test_unpacked_again(tmp_path: Path) -> None:
    path = Path(samples.small(tmp_path / "a.fits", shape=(24, 40), compressed=True))
    again(unpacked(path), tmp_path)


# --- tables -------------------------------------------------------------------------------------------


def constituents(n_rows: int) -> fits.BinTableHDU:
    """Return a table with columns of every type that KBMOD writes, and some more."""
    rng = np.random.default_rng(1)
    numbers = rng.integers(-100, 100, n_rows)
    columns = {kind: numbers.astype(kind) for kind in ("i1", "i2", "i4", "i8", "f4", "f8", "c8", "c16")}
    columns |= {kind: (numbers + 100).astype(kind) for kind in ("u1", "u2", "u4", "u8")}
    columns |= {"flag": numbers > 0, "text": np.array([f"name {i}" * (i % 3) for i in range(n_rows)])}
    columns |= {"vector": rng.normal(size=(n_rows, 3)), "matrix": rng.integers(0, 9, (n_rows, 2, 2)).astype("i4")}
    return fits.BinTableHDU(Table(columns), name="IMG_META")


def with_table(path: Path, table: fits.BinTableHDU) -> Path:
    return Path(samples.write(path, [samples.primary_hdu(1, NCON=len(table.data)), table, *samples.image_hdus(0)]))


@pytest.mark.parametrize("rows", [None, 1, 7])
@pytest.mark.parametrize("method", [None, "GZIP_1", "GZIP_2", "RICE_1"])
def test_packed_tables(rows: int | None, method: str | None, tmp_path: Path) -> None:
    table = constituents(50)
    if rows is not None:
        table.header["FZTILELN"] = rows
    for k in range(1, len(table.columns) + 1) if method else ():
        table.header[f"FZALG{k}"] = method
    path = with_table(tmp_path / "a.fits", table)
    packed_path = packed(path, "-tableonly")
    again(packed_path, tmp_path)
    with FitsBackend().open(str(path)) as plain, FitsBackend().open(str(packed_path)) as reader:
        hdu = reader.files[0].scan.get("IMG_META")
        assert hdu is not None
        assert (hdu.header["ZTABLE"], hdu.header["ZTILELEN"]) == (True, rows or 50)
        expected, found = plain.meta.constituents.columns, reader.meta.constituents.columns
        assert [column.name for column in found] == [column.name for column in expected]
        for one, other in zip(expected, found, strict=True):
            assert (one.values.dtype, one.values.shape) == (other.values.dtype, other.values.shape)
            np.testing.assert_array_equal(one.values, other.values)


def test_packed_columns_of_variable_length_are_refused(tmp_path: Path) -> None:
    arrays = np.empty(30, dtype=object)
    arrays[:] = [np.arange(100 + i, dtype="i4") for i in range(30)]
    table = fits.BinTableHDU.from_columns(
        [fits.Column("visit", "K", array=np.arange(30)), fits.Column("links", "PJ()", array=arrays)], name="IMG_META"
    )
    path = packed(with_table(tmp_path / "a.fits", table), "-tableonly")
    with pytest.raises(FormatError, match=r"a\.fits\.fz.*IMG_META.*column links.*funpack"):
        FitsBackend().open(str(path))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Header, bytes]:
    """Header and data of a packed table."""
    table = constituents(50)
    table.header["FZTILELN"] = 20
    path = packed(with_table(tmp_path_factory.mktemp("table") / "a.fits", table), "-tableonly")
    with FitsBackend().open(str(path)) as reader:
        hdu = reader.files[0].scan.get("IMG_META")
        assert hdu is not None
        return hdu.header, bytes(reader.files[0].data[hdu.data_start : hdu.data_start + hdu.data_length])


def attempt(header: Header, data: bytes) -> None:
    text, body = unpacked_table(header, data, path="a.fits", where="HDU 1")
    read_table(text, body, path="a.fits", where="HDU 1")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ZNAXIS2", 10**9),
        ("ZNAXIS1", 10**9),
        ("ZNAXIS1", -1),
        ("ZTILELEN", 0),
        ("ZTILELEN", 1),
        ("NAXIS2", 2),
        ("THEAP", 10**12),
        ("TFIELDS", 10**6),
        ("ZFORM1", "'99999999D'"),
        ("ZFORM1", "'PJ'"),
        ("ZCTYP1", "'PLIO_1'"),
        ("ZCTYP5", "'RICE_1'"),
        ("TFORM1", "'16A'"),
    ],
)
def test_cards_that_cannot_be(stored: tuple[Header, bytes], keyword: str, value: object) -> None:
    header, data = stored
    with pytest.raises(FormatError) as caught:
        attempt(Header(f"{keyword:8}= {value!s:>20}".ljust(80) + header.text), data)
    assert caught.value.path == "a.fits"


def test_rows_without_bytes_take_no_memory(stored: tuple[Header, bytes]) -> None:
    """999 columns of nothing, in as many tiles as a table of the claimed size could have."""
    header, data = stored
    sizes = {"NAXIS1": 0, "NAXIS2": 10**9, "ZNAXIS1": 1, "ZNAXIS2": 1000 * len(data), "ZTILELEN": 1, "TFIELDS": 999}
    cards = [f"{key:8}= {value:>20}" for key, value in sizes.items()]
    cards += [f"{f'{key}{n}':8}= '0B      '" for n in range(1, 1000) for key in ("TFORM", "ZFORM")]
    bomb = Header("".join(text.ljust(80) for text in cards) + header.text)
    with traced() as peak:
        with pytest.raises(FormatError):
            attempt(bomb, data)
        assert peak.bytes < 1 << 24


def test_damaged_packed_tables(stored: tuple[Header, bytes]) -> None:
    header, data = stored
    rng = np.random.default_rng(0)
    n_found = 0
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(WuStoreError):
            attempt(header, bytes(changed))
            continue
        n_found += 1
    assert n_found > 200
    with pytest.raises(CorruptError):
        attempt(header, data[: len(data) // 2])
