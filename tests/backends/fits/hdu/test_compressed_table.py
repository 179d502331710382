"""Tables as ``fpack -table`` makes them, made here by the standard's words (section 10.3)."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np
import pytest

from wustore.backends.fits.hdu.compressed_table import unpacked_table
from wustore.backends.fits.hdu.header import Header
from wustore.backends.fits.hdu.header_writer import card
from wustore.backends.fits.hdu.table import read_table
from wustore.backends.fits.tiles.rice import coder as rice
from wustore.errors import CorruptError, FormatError

N = 5
FLOATS = np.array([1.5, np.nan, -0.0, 1e30, 2.0], ">f4")
NUMBERS = np.array([[1, 2], [3, -4], [5, 6], [7, 8], [9, 2**31 - 1]], ">i4")
BYTES = np.array([0, 255, 3, 4, 5], "u1")
COLUMNS: list[tuple[str, Any, str]] = [("1E", FLOATS, "GZIP_2"), ("2J", NUMBERS, "RICE_1"), ("1B", BYTES, "GZIP_1")]
TILE = 3


def packed_column(form: str, part: np.ndarray[Any, Any], method: str) -> bytes:
    if method == "RICE_1":
        return rice.encode_rows(part.astype(part.dtype.newbyteorder("=")).reshape(1, -1), 32)[0]
    raw = part.tobytes()
    if method == "GZIP_2":
        raw = np.frombuffer(raw, np.uint8).reshape(-1, part.dtype.itemsize).T.tobytes()
    return gzip.compress(raw)


def made(**changes: Any) -> tuple[Header, bytes]:
    rows, heap = [], b""
    for start in range(0, N, TILE):
        row = []
        for form, values, method in COLUMNS:
            packed = packed_column(form, values[start : start + TILE], method)
            row += [len(packed), len(heap)]
            heap += packed
        rows.append(row)
    table = np.array(rows, ">i4").tobytes()
    cards: dict[str, Any] = {"XTENSION": "BINTABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 24, "NAXIS2": len(rows)}
    cards |= {"PCOUNT": len(heap), "GCOUNT": 1, "TFIELDS": 3, "ZTABLE": True, "ZNAXIS1": 13, "ZNAXIS2": N}
    cards |= {"ZPCOUNT": 0, "ZTILELEN": TILE}
    for k, (form, _, method) in enumerate(COLUMNS, 1):
        cards |= {f"TTYPE{k}": f"c{k}", f"TFORM{k}": "1PB(99)", f"ZFORM{k}": form, f"ZCTYP{k}": method}
    cards |= changes
    return Header("".join(card(keyword, value) for keyword, value in cards.items())), table + heap


def test_columns_of_every_method_come_back() -> None:
    header, data = unpacked_table(*made(), path="a.fits", where="HDU 1")
    assert (header["NAXIS1"], header["NAXIS2"], header["PCOUNT"]) == (13, N, 0)
    assert [header[f"TFORM{k}"] for k in (1, 2, 3)] == ["1E", "2J", "1B"]
    found = [column.values for column in read_table(header, data, path="a.fits", where="HDU 1")]
    for values, (_, expected, _) in zip(found, COLUMNS, strict=True):
        assert np.asarray(values).astype(expected.dtype).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ZNAXIS2": 10**9}, CorruptError, "cannot hold"),
        ({"ZTILELEN": 0}, CorruptError, "cannot hold"),
        ({"ZNAXIS1": -1}, CorruptError, "negative"),
        ({"ZNAXIS1": 2**63, "ZNAXIS2": 0}, CorruptError, "cannot hold"),
        ({"NAXIS2": 10**6}, CorruptError, "longer than its data"),
        ({"NAXIS1": -4}, CorruptError, "longer than its data"),
        ({"NAXIS1": 2**63, "NAXIS2": 0, "ZNAXIS2": 0}, CorruptError, "longer than its data"),
        ({"THEAP": 10**6}, CorruptError, "longer than its data"),
        ({"TFORM2": "2J"}, FormatError, "holds no compressed bytes"),
        ({"ZCTYP1": "RICE_1"}, CorruptError, "only integers are Rice-coded"),
        ({"ZCTYP1": "LZ4"}, FormatError, "not understood"),
        ({"ZCTYP3": "RICE_1"}, CorruptError, "wrong size"),
    ],
)
def test_headers_that_promise_what_cannot_be(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unpacked_table(*made(**changes), path="a.fits", where="HDU 1")


def test_columns_outside_of_the_heap() -> None:
    header, data = made()
    for place, value in ((0, 10**6), (0, -1), (4, 10**6), (4, -1)):
        bad = data[:place] + value.to_bytes(4, "big", signed=True) + data[place + 4 :]
        with pytest.raises(CorruptError, match="outside the heap") as raised:
            unpacked_table(header, bad, path="a.fits", where="HDU 1")
        assert raised.value.where == "HDU 1, column c1"


@pytest.mark.parametrize("rows", [0, 2**62, 10**25])
def test_rows_without_bytes_take_no_memory(rows: int) -> None:
    changes = {"TFIELDS": 0, "NAXIS1": 0, "NAXIS2": rows, "ZNAXIS1": 0, "ZNAXIS2": rows, "THEAP": 0}
    header, data = unpacked_table(*made(**changes), path="a.fits", where="HDU 1")
    assert data == b""
    assert read_table(header, data, path="a.fits", where="HDU 1") == []


@pytest.mark.parametrize("form", ["1J" + "x" * 67, "1J'", "1J\xe9"])
def test_formats_that_no_card_can_have(form: str) -> None:
    header, data = made()
    changed = Header(header.text + f"ZFORM4  = '{form.replace(chr(39), chr(39) * 2)}'"[:80].ljust(80))
    with pytest.raises(CorruptError, match="ZFORM4 is none of FITS"):
        unpacked_table(Header(changed.text.replace(card("TFIELDS", 3), card("TFIELDS", 4))), data, path="a", where="b")
