"""The columns of a FITS binary table as numpy arrays.

Format: FITS standard 4.0, section 7.3. Values and dtypes equal those of `astropy.table.Table` over the
HDU's data, in native byte order. The rare kinds of columns (bits, variable length, scaled) are left to astropy.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.hdu.header import CARD, Header
from wustore.backends.fits.tiles.dtypes import COLUMN_TYPES, UNSIGNED, column_format, flipped
from wustore.errors import CorruptError
from wustore.model.quiet import quiet

__all__ = ["LONGEST_ROW", "Field", "TableColumn", "fields_of", "read_table"]


class TableColumn(NamedTuple):
    """One column.

    Attributes
    ----------
    name
        TTYPE.
    values
        Shape (n_rows, ...), native byte order.
    unit
        TUNIT, or None.
    """

    name: str
    values: NDArray[Any]
    unit: str | None


class Field(NamedTuple):
    """Where a column is in a row: its number, name, type code, elements, first byte and bytes."""

    number: int
    name: str
    code: str
    repeat: int
    start: int
    width: int


LONGEST_ROW = 1 << 40
"""Bytes. Without rows, a table fits into its data whatever its header states, but numpy has no such array."""


def read_table(header: Header, data: bytes | memoryview, *, path: str, where: str) -> list[TableColumn]:
    """Return the columns of a binary table.

    Parameters
    ----------
    header, data
        Of the HDU; ``data`` without padding.

    Raises
    ------
    CorruptError
        If the columns do not fit into the rows, or hold what cannot be.
    """
    row_size = header.integer("NAXIS1", path=path, where=where)
    n_rows = header.integer("NAXIS2", path=path, where=where)
    if min(row_size, n_rows) < 0 or row_size * n_rows > len(data) or row_size > LONGEST_ROW:
        raise CorruptError(
            "a table does not fit into its data",
            path=path,
            where=where,
            expected=f"{n_rows} rows of {row_size} bytes",
            found=f"{len(data)} bytes",
        )
    if row_size == 0:
        return []  # rows without bytes hold nothing, however many the header counts
    fields = fields_of(header, "TFORM", row_size, path, where)
    if any(_unusual(header, field, path, where) for field in fields):
        return _by_astropy(header, data, path, where)
    rows = np.frombuffer(data, dtype=np.uint8, count=row_size * n_rows).reshape(n_rows, row_size)
    return [
        TableColumn(field.name, _values(header, field, rows), _text(header.get(f"TUNIT{field.number}")))
        for field in fields
    ]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def fields_of(header: Header, keyword: str, row_size: int, path: str, where: str) -> list[Field]:
    """Return the columns of a row by their formats, the cards ``TFORMn`` or (of a compressed table) ``ZFORMn``.

    Raises
    ------
    CorruptError
        If a format is none of FITS, or they do not fit into the row.
    """
    n_fields = header.integer("TFIELDS", allowed=range(1000), path=path, where=where)
    fields, start = [], 0
    for number in range(1, n_fields + 1):
        text = header.get(f"{keyword}{number}")
        form = column_format(text)
        if form is None:
            raise CorruptError(f"{keyword}{number} is none of FITS", path=path, where=where, found=repr(text)[:80])
        name = header.get(f"TTYPE{number}")
        name = name if isinstance(name, str) else f"col{number}"
        fields.append(Field(number, name, form.code, form.repeat, start, form.width))
        start += form.width
    if start > row_size:
        raise CorruptError("the columns are wider than a row", path=path, where=where, expected=row_size, found=start)
    return fields


def _unusual(header: Header, field: Field, path: str, where: str) -> bool:
    if field.code in "XPQ":
        return True
    if field.code in "AL":
        return False
    scale = header.number(f"TSCAL{field.number}", 1, path=path, where=where)
    zero = header.number(f"TZERO{field.number}", 0, path=path, where=where)
    return scale != 1 or (zero != 0 and (_bits(field), zero) not in UNSIGNED)


def _bits(field: Field) -> int:
    """Return the bits of an integer; 0 for other types, which are not stored with an offset."""
    kind = np.dtype(COLUMN_TYPES[field.code])
    return 8 * kind.itemsize if kind.kind in "iu" else 0


_TDIM = re.compile(r"\s*\(\s*\d+(\s*,\s*\d+)*\s*\)\s*")


def _shape(header: Header, field: Field) -> tuple[int, ...]:
    """Return the shape of a cell that TDIM or the repeat count gives; for text that of its strings."""
    plain = (field.repeat,) if field.repeat != 1 or field.code == "A" else ()
    dim = header.get(f"TDIM{field.number}")
    if not isinstance(dim, str) or len(dim) > CARD or not _TDIM.fullmatch(dim):
        return plain
    shape = tuple(int(size) for size in reversed(re.findall(r"\d+", dim)))
    return shape if math.prod(shape) == field.repeat else plain


def _values(header: Header, field: Field, rows: NDArray[np.uint8]) -> NDArray[Any]:
    n_rows = len(rows)
    cells = np.ascontiguousarray(rows[:, field.start : field.start + field.width])
    if field.code == "A":
        return _strings(cells, _shape(header, field))
    shape = (n_rows, *_shape(header, field))
    if field.code == "L":
        true: NDArray[np.bool_] = cells == ord("T")
        return true.reshape(shape)
    kind = COLUMN_TYPES[field.code]
    raw = cells.view(kind).reshape(shape) if cells.size else np.empty(shape, kind)
    zero = int(header.number(f"TZERO{field.number}", 0))
    if zero == 0:
        return raw.astype(raw.dtype.newbyteorder("="))
    return flipped(raw).view(UNSIGNED[_bits(field), zero])


def _strings(cells: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return text; bytes if they are not ASCII. A NUL ends a string, blanks behind it do not count."""
    width = shape[-1]
    outer = (len(cells), *shape[:-1])
    if width == 0 or cells.size == 0:
        return np.zeros(outer, dtype=f"U{max(width, 1)}")
    text = cells.reshape(-1, width).copy()
    ended = np.logical_or.accumulate(text == 0, axis=1)
    text[ended] = 0
    strings: NDArray[Any] = np.char.rstrip(text.view(f"S{width}").reshape(outer), b" ").astype(f"S{width}")
    if cells.max() < 128:
        return strings.astype(f"U{width}")
    return strings


def _by_astropy(header: Header, data: bytes | memoryview, path: str, where: str) -> list[TableColumn]:
    from astropy.io import fits
    from astropy.table import Table

    text = header.text + "END".ljust(CARD)
    block = text.ljust(-(-len(text) // 2880) * 2880).encode("latin-1")
    try:
        with quiet():
            hdu = fits.BinTableHDU.fromstring(block + bytes(data) + bytes(-len(data) % 2880))
            table = Table(hdu.data)
            units = {column.name: column.unit for column in hdu.columns}
            return [
                TableColumn(name, np.array(table[name].astype(table[name].dtype.newbyteorder("="))), units.get(name))
                for name in table.colnames
            ]
    except Exception as error:  # whatever astropy stumbles over in a damaged table
        raise CorruptError(
            "a binary table cannot be read", path=path, where=where, found=f"{type(error).__name__}: {error}"[:200]
        ) from error
