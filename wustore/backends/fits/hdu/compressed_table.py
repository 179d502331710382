"""Tile-compressed binary tables, as ``fpack -table`` makes them, unpacked.

Format: FITS standard 4.0, section 10.3. The rows are cut into tiles, in each tile the bytes of every column
stand together, compressed, as one array of variable length. astropy reads such a table as what it is stored
in: rows of compressed bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.hdu.header import CARD, Header
from wustore.backends.fits.hdu.header_writer import card
from wustore.backends.fits.hdu.table import LONGEST_ROW, Field, fields_of
from wustore.backends.fits.tiles.gzip import MAXIMUM_RATIO, gunzip
from wustore.backends.fits.tiles.rice import coder as rice
from wustore.errors import CorruptError, FormatError

__all__ = ["unpacked_table"]

_BLOCK_SIZE = 32
"""Numbers per coding block of Rice-coded columns (section 10.4.1: a table has no card to say otherwise)."""

_RICE_TYPES = {"B": "u1", "I": "i2", "J": "i4"}
_ITEM_SIZES = {"I": 2, "J": 4, "K": 8, "E": 4, "D": 8}
"""Bytes of the numbers that GZIP_2 sorts by significance. Complex ones cfitsio leaves unsorted under that name."""


def unpacked_table(header: Header, data: bytes, *, path: str, where: str) -> tuple[Header, bytes]:
    """Return header and data of the table that a tile-compressed one was made of.

    Parameters
    ----------
    header, data
        Of the HDU; ``data`` without padding.

    Raises
    ------
    FormatError
        If a column has variable length, or is compressed in a way that the standard does not know.
    CorruptError
        If the compressed bytes are damaged, or the header promises what cannot be.
    """

    def integer(keyword: str, default: int | None = None) -> int:
        value = header.integer(keyword, default, path=path, where=where)
        if value < 0:
            raise CorruptError("a size is negative", path=path, where=f"{where}, card {keyword}", found=value)
        return value

    row_size, n_rows = integer("ZNAXIS1"), integer("ZNAXIS2")
    tile_rows = min(integer("ZTILELEN", n_rows), n_rows)
    size = row_size * n_rows
    if size > MAXIMUM_RATIO * len(data) or (size and tile_rows == 0) or row_size > LONGEST_ROW:
        raise CorruptError(
            "the header claims a table that its compressed data cannot hold",
            path=path,
            where=where,
            expected=f"at most {MAXIMUM_RATIO} times {len(data)} bytes, in tiles of 1 row or more",
            found=f"{size} bytes in tiles of {tile_rows} rows",
        )
    fields = fields_of(header, "ZFORM", row_size, path, where)
    n_tiles = -(-n_rows // tile_rows) if size else 0
    spans = _spans(header, data, fields, n_tiles, path, where)
    table = np.zeros((n_rows if size else 0, row_size), np.uint8)
    heap = np.frombuffer(data, np.uint8)
    for tile in range(n_tiles):
        rows = table[tile * tile_rows : (tile + 1) * tile_rows]
        for field in fields:
            if field.width == 0:
                continue
            start, end = spans[tile, field.number - 1].tolist()
            place = f"{where}, column {field.name}, tile {tile}"
            try:
                column = _column(header, field, heap, start, end, len(rows))
            except FormatError as error:
                error.path, error.where = path, place
                raise
            rows[:, field.start : field.start + field.width] = column.reshape(len(rows), field.width)
    return _unpacked_header(header, fields, row_size, n_rows), table.tobytes()


def _spans(header: Header, data: bytes, fields: list[Field], n_tiles: int, path: str, where: str) -> NDArray[np.int64]:
    """Return first and last byte, in the HDU's data, of each column of each tile: shape (n_tiles, n_columns, 2)."""
    row_size = header.integer("NAXIS1", path=path, where=where)
    n_rows = header.integer("NAXIS2", path=path, where=where)
    heap = header.integer("THEAP", row_size * n_rows, path=path, where=where)
    fits = n_rows >= n_tiles and 0 <= row_size <= LONGEST_ROW and row_size * n_rows <= len(data)
    if not fits or not 0 <= heap <= len(data):
        raise CorruptError(
            "a tile-compressed table is longer than its data",
            path=path,
            where=where,
            expected=f"{n_tiles} rows of {row_size} bytes and a heap, in {len(data)} bytes",
            found=f"{n_rows} rows, heap at {heap}",
        )
    cells = np.frombuffer(data, np.uint8, row_size * n_tiles).reshape(n_tiles, row_size)
    columns = fields_of(header, "TFORM", row_size, path, where)
    for stored in columns:
        if stored.code not in "PQ" or stored.repeat != 1:
            raise FormatError(
                "a column of a tile-compressed table holds no compressed bytes",
                path=path,
                where=f"{where}, column {stored.name}",
                expected="1PB or 1QB",
                found=header.get(f"TFORM{stored.number}"),
            )
    spans = np.zeros((n_tiles, len(fields), 2), np.int64)  # no larger than the rows, now that these hold descriptors
    for k, stored in enumerate(columns):
        kind = ">i8" if stored.code == "Q" else ">i4"
        pairs = np.ascontiguousarray(cells[:, stored.start : stored.start + stored.width]).view(kind).astype(np.int64)
        counts, starts = pairs[:, 0], pairs[:, 1]
        limit = len(data) - heap
        if ((counts < 0) | (starts < 0) | (counts > limit) | (starts > limit - np.minimum(counts, limit))).any():
            raise CorruptError(
                "a column lies outside the heap",
                path=path,
                where=f"{where}, column {stored.name}",
                expected=f"within {limit} bytes",
                found=pairs.tolist()[:3],
            )
        spans[:, k, 0] = starts + heap
        spans[:, k, 1] = starts + counts + heap
    return spans


def _column(
    header: Header, field: Field, heap: NDArray[np.uint8], start: int, end: int, n_rows: int
) -> NDArray[np.uint8]:
    """Return the bytes of a column of a tile."""
    size = n_rows * field.width
    method = str(header.get(f"ZCTYP{field.number}", "GZIP_1")).strip()
    if field.code in "PQ" or method not in {"GZIP_1", "GZIP_2", "RICE_1"}:
        raise FormatError(
            "a compressed table has a column that is not understood",
            expected="a column of fixed length, by GZIP_1, GZIP_2 or RICE_1",
            found=f"{header.get(f'ZFORM{field.number}')} by {method}",
            hint="Unpack the file with cfitsio's funpack, and convert what comes out.",
        )
    if method == "RICE_1":
        kind = _RICE_TYPES.get(field.code)
        if kind is None:
            raise CorruptError("only integers are Rice-coded", expected="B, I or J", found=field.code)
        numbers = np.empty(size // np.dtype(kind).itemsize, kind)
        fewest, most = rice.size_limits(numbers.size, numbers.itemsize, _BLOCK_SIZE)
        if not fewest <= end - start <= most:
            raise CorruptError("a column has the wrong size", expected=f"{fewest} to {most} bytes", found=end - start)
        first, last, names = (np.array([number]) for number in (start, end, 0))
        rice.decode_rows(rice.Tiles(heap, first, last, names, _BLOCK_SIZE), [numbers])
        return numbers.astype(numbers.dtype.newbyteorder(">")).view(np.uint8)
    content = np.frombuffer(gunzip(heap[start:end].tobytes(), [size], 0), np.uint8)
    if method == "GZIP_2" and field.code in _ITEM_SIZES:
        content = np.ascontiguousarray(content.reshape(_ITEM_SIZES[field.code], -1).T)
    return content.reshape(-1)


def _unpacked_header(header: Header, fields: list[Field], row_size: int, n_rows: int) -> Header:
    changed: dict[str, int | str] = {"NAXIS1": row_size, "NAXIS2": n_rows, "PCOUNT": 0}
    changed |= {f"TFORM{field.number}": str(header[f"ZFORM{field.number}"]) for field in fields}
    text = header.text
    for keyword, value in changed.items():
        at = header.places.get(keyword)
        if at is not None:
            text = text[:at] + card(keyword, value) + text[at + CARD :]
    return Header(text)
