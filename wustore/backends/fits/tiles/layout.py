"""What the header of a tile-compressed image says, checked before anything is believed.

The keywords are those of section 10.1 of the FITS standard 4.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.tiles.dtypes import COLUMN_TYPES, NUMBERS, PIXEL_TYPES, UNSIGNED, column_format
from wustore.backends.fits.tiles.quantize import NO_DITHER, SUBTRACTIVE_DITHER_1, SUBTRACTIVE_DITHER_2
from wustore.backends.fits.tiles.rice import coder as rice
from wustore.errors import CorruptError, FormatError

__all__ = ["ALIASES", "COMPRESSED", "LOSSLESS", "UNCOMPRESSED", "Array", "Buffer", "Column", "Table", "TileLayout"]

#: How a tile is stored: in COMPRESSED_DATA, in GZIP_COMPRESSED_DATA, or in UNCOMPRESSED_DATA.
COMPRESSED, LOSSLESS, UNCOMPRESSED = 0, 1, 2

ALIASES = {"RICE_ONE": "RICE_1"}
_COMPRESSIONS = frozenset({"RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1", "PLIO_1", "NOCOMPRESS"})
_DITHERS = frozenset({NO_DITHER, SUBTRACTIVE_DITHER_1, SUBTRACTIVE_DITHER_2})
_LARGEST_AXIS = 2**31 - 1

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes
    ----------
    name
        TTYPEn, in capitals.
    offset
        First byte within a row.
    form
        The letter of TFORMn: P or Q for descriptors of variable-length arrays.
    element
        The type letter of the array's elements for P and Q, else `form`.
    repeat
        Elements per row.
    """

    name: str
    offset: int
    form: str
    element: str
    repeat: int

    @property
    def item_size(self) -> int:
        """Bytes of one element of a variable-length array; 0 if they are bits."""
        return 0 if self.element == "X" else np.dtype(COLUMN_TYPES[self.element]).itemsize


@dataclass(frozen=True)
class TileLayout:
    """Everything that the header says about a tile-compressed image.

    Attributes
    ----------
    compression
        RICE_1, GZIP_1, GZIP_2, HCOMPRESS_1, PLIO_1 or NOCOMPRESS.
    bitpix
        ZBITPIX.
    shape, tile_shape
        In numpy's order: (y, x) for a plane.
    columns
        The columns of the table.
    row_size, n_rows
        NAXIS1 and NAXIS2 of the table.
    heap_start, heap_size
        THEAP, and the bytes from there to the end of the data.
    parameters
        Names (upper case) and values of ZNAMEi and ZVALi.
    dither
        ZQUANTIZ.
    dither_seed
        ZDITHER0.
    zblank, blank
        The cards ZBLANK and BLANK.
    bscale, bzero
        BSCALE and BZERO.
    """

    compression: str
    bitpix: int
    shape: tuple[int, ...]
    tile_shape: tuple[int, ...]
    columns: tuple[Column, ...]
    row_size: int
    n_rows: int
    heap_start: int
    heap_size: int
    parameters: tuple[tuple[str, Any], ...] = ()
    dither: str = NO_DITHER
    dither_seed: int = 0
    zblank: int | None = None
    blank: int | None = None
    bscale: float = 1
    bzero: float = 0

    @classmethod
    def from_cards(cls, cards: Mapping[str, object]) -> TileLayout:
        """Read the layout from a table's cards.

        Parameters
        ----------
        cards
            Keyword to value; of duplicate keywords the first one.

        Raises
        ------
        FormatError
            A card is missing, or has a value that cannot be.
        """
        name = cards.get("ZCMPTYPE")
        compression = ALIASES.get(str(name).strip(), str(name).strip())
        if compression not in _COMPRESSIONS:
            raise _bad_card("ZCMPTYPE", "one of " + ", ".join(sorted(_COMPRESSIONS)), name)
        bitpix = _integer(cards, "ZBITPIX", -64, 64)
        if bitpix not in PIXEL_TYPES:
            raise _bad_card("ZBITPIX", "one of 8, 16, 32, 64, -32, -64", bitpix)
        n_axes = _integer(cards, "ZNAXIS", 1, 999)
        axes = range(n_axes, 0, -1)
        shape = tuple(_integer(cards, f"ZNAXIS{i}", 0, _LARGEST_AXIS) for i in axes)
        # The standard's default is tiles of one row.
        tile_shape = tuple(
            _integer(cards, f"ZTILE{i}", 1, _LARGEST_AXIS, shape[-1] or 1 if i == 1 else 1) for i in axes
        )
        if math.prod(shape) > 2**62:
            raise _bad_card("ZNAXISn", "an image that a computer can hold", shape)
        row_size = _integer(cards, "NAXIS1", 0, 2**62)
        n_rows = _integer(cards, "NAXIS2", 0, 2**62)
        pcount = _integer(cards, "PCOUNT", 0, 2**62, 0)
        main = row_size * n_rows
        heap_start = _integer(cards, "THEAP", 0, 2**62, main)
        if not main <= heap_start <= main + pcount:
            raise _bad_card("THEAP", f"from {main} to {main + pcount}", heap_start)
        columns = _read_columns(cards, row_size)
        parameters: list[tuple[str, Any]] = []
        for i in range(1, 1000):
            key = cards.get(f"ZNAME{i}")
            if key is None:
                break
            value = cards.get(f"ZVAL{i}")
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise _bad_card(f"ZVAL{i}", "a number", value)
            parameters.append((str(key).strip().upper(), value))
        dither = cards.get("ZQUANTIZ")
        dither = NO_DITHER if dither is None else str(dither).strip()
        if dither not in _DITHERS and dither != "NONE":
            raise _bad_card("ZQUANTIZ", "one of " + ", ".join(sorted(_DITHERS)), dither)
        layout = cls(
            compression,
            bitpix,
            shape,
            tile_shape,
            columns,
            row_size,
            n_rows,
            heap_start,
            main + pcount - heap_start,
            tuple(parameters),
            dither,
            _integer(cards, "ZDITHER0", -(2**31), 2**31, 0),
            _optional_integer(cards, "ZBLANK"),
            _optional_integer(cards, "BLANK"),
            _number(cards, "BSCALE", 1),
            _number(cards, "BZERO", 0),
        )
        layout._check()
        return layout

    def _check(self) -> None:
        if self.column("COMPRESSED_DATA") is None:
            raise FormatError("the tile-compressed table has no column COMPRESSED_DATA")
        for name in ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA"):
            column = self.column(name)
            if column is not None and (column.form not in "PQ" or column.repeat != 1 or not column.item_size):
                raise _bad_card(f"TFORM of {name}", "1PB, 1PI, 1PJ or the same with Q", column.form + column.element)
        for name in ("ZSCALE", "ZZERO", "ZBLANK"):
            column = self.column(name)
            if column is not None and (column.form not in NUMBERS or column.repeat != 1):
                raise _bad_card(f"TFORM of {name}", "a single number", f"{column.repeat}{column.form}")
        if (self.column("ZSCALE") is None) != (self.column("ZZERO") is None):
            raise FormatError("the tile-compressed table has only one of the columns ZSCALE and ZZERO")
        if self.n_rows < self.n_tiles:
            raise _bad_card("NAXIS2", f"{self.n_tiles} rows, one per tile", self.n_rows)
        if self.compression == "RICE_1":
            block_size = self.parameter("BLOCKSIZE", 32)
            if block_size not in range(1, rice.MAXIMUM_BLOCK_SIZE + 1):
                raise _bad_card("ZVAL of BLOCKSIZE", f"from 1 to {rice.MAXIMUM_BLOCK_SIZE}", block_size)
            if self.parameter("BYTEPIX", 4) not in (1, 2, 4):
                raise _bad_card("ZVAL of BYTEPIX", "1, 2 or 4", self.parameter("BYTEPIX", 4))
        if self.quantised:
            self._check_quantised()

    def _check_quantised(self) -> None:
        if self.bitpix > 0:
            # astropy scales them all the same, cfitsio does not.
            raise _bad_card("ZBITPIX", "-32 or -64, as there are columns ZSCALE and ZZERO", self.bitpix)
        if self.dither == "NONE":
            raise _bad_card("ZQUANTIZ", "the method by which the pixels were quantised", self.dither)
        if self.dither != NO_DITHER and not 1 <= self.dither_seed <= 10000:
            raise _bad_card("ZDITHER0", "from 1 to 10000", self.dither_seed)

    def column(self, name: str) -> Column | None:
        """Return the column of this name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    def parameter(self, name: str, default: Any) -> Any:
        """Return a compression parameter (ZVALi of the ZNAMEi that has this name)."""
        return next((value for key, value in self.parameters if key == name), default)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(-(-size // tile) for size, tile in zip(self.shape, self.tile_shape, strict=True))

    @property
    def n_tiles(self) -> int:
        """Tiles of the image."""
        return math.prod(self.grid)

    @cached_property
    def quantised(self) -> bool:
        """Whether floats were turned into scaled integers."""
        return self.column("ZSCALE") is not None

    @cached_property
    def in_rice_loops(self) -> bool:
        """Whether `rice.loops_numba` knows it: floats quantised without dithering, Rice-coded as 4-byte integers."""
        quantised = self.quantised and self.bitpix < 0 and self.dither == NO_DITHER
        return quantised and self.compression == "RICE_1" and int(self.parameter("BYTEPIX", 4)) == 4

    @cached_property
    def rice_fields(self) -> rice.Fields | None:
        """Where `rice.loops_numba` finds the tiles; None if they are described in a way that it does not know."""
        data, scale, zero = (self.column(name) for name in ("COMPRESSED_DATA", "ZSCALE", "ZZERO"))
        if not self.in_rice_loops or data is None or scale is None or zero is None or self.column("ZBLANK") is not None:
            return None
        if (data.form, data.element, scale.form, zero.form) != ("P", "B", "D", "D"):
            return None
        block_size = int(self.parameter("BLOCKSIZE", 32))
        return rice.Fields(self.row_size, data.offset, scale.offset, zero.offset, self.heap_start, block_size)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The pixel type of ZBITPIX, before BZERO and BSCALE."""
        return np.dtype(PIXEL_TYPES[self.bitpix]).newbyteorder("=")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The pixel type of the decoded image."""
        return self.scaling()[0]

    @property
    def data_size(self) -> int:
        """Bytes of the HDU's data without padding."""
        return self.heap_start + self.heap_size

    def scaling(self) -> tuple[np.dtype[Any], str]:
        """Return the final pixel type and how to come to it: 'none', 'unsigned' or 'scaled'."""
        blank = self.integer_blank()
        if self.bscale == 1 and self.bzero == 0 and blank is None:
            return self.stored_dtype, "none"
        if self.bitpix < 0:
            return self.stored_dtype, "scaled"
        if self.bscale == 1 and (self.bitpix, self.bzero) in UNSIGNED:
            kind = np.dtype(UNSIGNED[self.bitpix, int(self.bzero)])
            return kind, "unsigned"
        return np.dtype("f8" if self.bitpix > 16 else "f4"), "scaled"

    def integer_blank(self) -> int | None:
        """BLANK as astropy takes it for an integer image."""
        if self.bitpix < 0:
            return None
        if self.blank is not None:
            return self.blank
        if self.zblank is not None:
            return self.zblank
        return -(1 << (self.bitpix - 1)) if self.column("ZBLANK") is not None else None


def _bad_card(keyword: str, expected: object, found: object) -> FormatError:
    return FormatError(
        "a card of the tile-compressed image has an impossible value",
        where=keyword,
        expected=expected,
        found=repr(found),
    )


def _integer(cards: Mapping[str, object], keyword: str, low: int, high: int, default: int | None = None) -> int:
    value = cards.get(keyword)
    if value is None and default is not None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _bad_card(keyword, f"an integer from {low} to {high}", value)
    return value


def _optional_integer(cards: Mapping[str, object], keyword: str) -> int | None:
    return None if cards.get(keyword) is None else _integer(cards, keyword, -(2**63), 2**63 - 1)


def _number(cards: Mapping[str, object], keyword: str, default: float) -> float:
    value = cards.get(keyword)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad_card(keyword, "a number", value)
    return value


def _read_columns(cards: Mapping[str, object], row_size: int) -> tuple[Column, ...]:
    columns = []
    offset = 0
    for i in range(1, _integer(cards, "TFIELDS", 1, 999) + 1):
        form = column_format(cards.get(f"TFORM{i}"))
        if form is None or (form.code in "PQ" and not form.element):
            raise _bad_card(f"TFORM{i}", "a column format", cards.get(f"TFORM{i}"))
        name = str(cards.get(f"TTYPE{i}", "")).strip().upper()  # their case means nothing (section 7.3.2)
        columns.append(Column(name, offset, form.code, form.element if form.code in "PQ" else form.code, form.repeat))
        offset += form.width
        for keyword in (f"TSCAL{i}", f"TZERO{i}"):
            if name in ("ZSCALE", "ZZERO", "ZBLANK") and cards.get(keyword) is not None:
                raise _bad_card(keyword, "no scaling of a column of parameters", cards[keyword])
    if offset != row_size:
        raise _bad_card("NAXIS1", f"{offset}, the width of the columns", row_size)
    return tuple(columns)


#: A plane may be at most this many times larger than its compressed bytes, plus `_FREE_BYTES`. The densest
#: code is that of PLIO (one 2-byte word for 4095 pixels of 4 bytes, 8190); gzip reaches 1032, Rice 205.
_LARGEST_RATIO = 8192


_FREE_BYTES = 1 << 26


class Table:
    """The columns of a table as arrays, and its heap."""

    def __init__(self, layout: TileLayout, table: Buffer) -> None:
        raw = np.frombuffer(table, np.uint8)
        if raw.size < layout.data_size:
            raise CorruptError(
                "the table is cut short", expected=f"{layout.data_size} bytes", found=f"{raw.size} bytes"
            )
        stored = math.prod(layout.shape) * layout.stored_dtype.itemsize
        if stored > _LARGEST_RATIO * layout.data_size + _FREE_BYTES:
            raise FormatError(
                "the header claims an image that its compressed data cannot hold",
                expected=f"at most {_LARGEST_RATIO} times {layout.data_size} bytes",
                found=f"{stored} bytes",
            )
        self.layout = layout
        self.bytes = raw[: layout.data_size]
        self.heap = raw[layout.heap_start : layout.data_size]
        self._main = raw[: layout.row_size * layout.n_rows].reshape(layout.n_rows, layout.row_size)[: layout.n_tiles]

    def scalars(self, name: str) -> Array | None:
        """Return a column of numbers in native byte order, or None."""
        column = self.layout.column(name)
        if column is None:
            return None
        kind = np.dtype(COLUMN_TYPES[column.form])
        cells = np.ascontiguousarray(self._main[:, column.offset : column.offset + kind.itemsize])
        return cells.view(kind)[:, 0].astype(kind.newbyteorder("="))

    def spans(self, name: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Return first and last byte in the heap of the arrays of these rows, checked; None without the column."""
        column = self.layout.column(name)
        if column is None:
            return None
        kind = np.dtype(">i8" if column.form == "Q" else ">i4")
        cells = np.ascontiguousarray(self._main[rows, column.offset : column.offset + 2 * kind.itemsize])
        pairs = cells.view(kind).astype(np.int64)
        counts, starts = pairs[:, 0], pairs[:, 1]
        size = self.heap.size
        # Compared before they are multiplied: nothing here can overflow.
        bad = (counts < 0) | (starts < 0) | (counts > size // column.item_size)
        counts = np.where(bad, 0, counts) * column.item_size
        bad |= (counts > 0) & (starts > size - counts)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise CorruptError(
                "a tile lies outside the heap",
                where=f"{name}, tile {int(rows[first])}",
                expected=f"within {size} bytes",
                found=f"{int(pairs[first, 0])} elements at {int(pairs[first, 1])}",
            )
        starts = np.where(counts == 0, 0, starts)
        return starts, starts + counts
