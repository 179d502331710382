"""Encoding images as astropy does, and building tables again from decoded pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.tiles import quantize
from wustore.backends.fits.tiles.dtypes import COLUMN_TYPES, big_endian, to_stored
from wustore.backends.fits.tiles.geometry import batches, blocks, follow, gather, window_of
from wustore.backends.fits.tiles.gzip import gzip_like_astropy
from wustore.backends.fits.tiles.layout import (
    ALIASES,
    LOSSLESS,
    Array,
    Column,
    Table,
    TileLayout,
)
from wustore.backends.fits.tiles.plio import encode_plio, holdable
from wustore.backends.fits.tiles.quantize import (
    BLANK,
    NO_DITHER,
    SUBTRACTIVE_DITHER_1,
    SUBTRACTIVE_DITHER_2,
    relative_steps,
)
from wustore.backends.fits.tiles.rice import coder as rice

__all__ = ["EncodedPlane", "encode_plane"]


@dataclass(frozen=True)
class EncodedPlane:
    """A compressed image, and what its header must say.

    Attributes
    ----------
    layout
        The layout as a reader would find it.
    table, heap
        The data of the HDU: main table and heap, without padding.
    column_formats
        Name and TFORMn of each column, with the length of the longest array.
    """

    layout: TileLayout
    table: bytes
    heap: bytes | memoryview
    column_formats: tuple[tuple[str, str], ...]

    @property
    def data(self) -> bytes:
        """The whole data of the HDU, without padding."""
        return b"".join((self.table, self.heap))

    @property
    def pcount(self) -> int:
        """PCOUNT: bytes of the heap."""
        return len(self.heap)


class _Options(NamedTuple):
    """What `encode_plane` is asked for, as ``astropy.io.fits.CompImageHDU`` takes it."""

    compression_type: str
    quantize_level: float
    tile_shape: tuple[int, ...] | None
    quantize_method: int
    dither_seed: int


def encode_plane(
    array: Array,
    compression_type: str = "RICE_1",
    quantize_level: float = -0.01,
    *,
    tile_shape: tuple[int, ...] | None = None,
    quantize_method: int = -1,
    dither_seed: int = 0,
    hcomp_scale: float = 0,
    hcomp_smooth: int = 0,
    clock: int | None = None,
) -> EncodedPlane:
    """Compress an image exactly as ``astropy.io.fits.CompImageHDU`` writes it with the same arguments.

    Parameters
    ----------
    array
        The image. Integers may have any width and sign; floats are float32 or float64.
    compression_type
        RICE_1, GZIP_1, GZIP_2, HCOMPRESS_1, PLIO_1 or NOCOMPRESS.
    quantize_level
        Below 0 the absolute step; above 0 the fraction of the noise; 0 for no quantisation.
    tile_shape
        In numpy's order; rows by default (HCOMPRESS: astropy's choice).
    quantize_method
        -1 without dithering, 1 or 2 for the two subtractive ditherings.
    dither_seed
        1 to 10000, 0 for the clock, -1 for a check sum.
    hcomp_scale, hcomp_smooth
        Parameters of HCOMPRESS_1.
    clock
        Seconds since 1970 that gzip streams note, in place of the present time.

    Raises
    ------
    UsageError
        astropy refuses the combination.

    Notes
    -----
    2048 x 2048 pixels with KBMOD's defaults take 11 ms in one thread, and so in each of several
    (`wustore.backends.fits.tiles.rice.loops_numba`); without numba 58, most of it in cfitsio's Rice coder (astropy
    140).
    """
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    kind = ALIASES.get(compression_type, compression_type)
    array = holdable(array) if kind == "PLIO_1" else array
    options = _Options(kind, quantize_level, tile_shape, quantize_method, dither_seed)
    if not _is_known(array, options):
        hcomp = {"hcomp_scale": hcomp_scale, "hcomp_smooth": hcomp_smooth}
        return encode_with_astropy(array, clock, **hcomp, **options._asdict())
    raw, layout = _layout_like_astropy(array, options)
    if quantize_level < 0 and (encoded := _encode_rice_floats(raw, layout, _step(quantize_level))) is not None:
        return encoded
    n_tiles = layout.n_tiles
    tiles: list[bytes] = [b""] * n_tiles
    kinds = np.zeros(n_tiles, np.uint8)
    scale, zero = np.zeros(n_tiles), np.zeros(n_tiles)
    has_blank = False
    scratch: quantize.Scratch | None = None
    room: NDArray[np.int32] | None = None
    step = _step(quantize_level)
    for shape, numbers in batches(layout, window_of(layout)):
        values = gather(layout, raw, shape, numbers)
        integers: Array = values
        failed = np.zeros(len(numbers), np.bool_)
        if layout.quantised:
            if room is None or room.shape != values.shape:
                room = np.empty(values.shape, np.int32)
            integers = room
            for block in blocks(len(values), values.shape[1]):
                here = numbers[block]
                steps: float | NDArray[np.float64] | None = step
                if quantize_level > 0:
                    steps = relative_steps(values[block], quantize_level)
                if steps is None:
                    return encode_with_astropy(array, clock, **options._asdict())
                size = values[block].shape
                if scratch is None or scratch.shape[1] != size[1] or scratch.shape[0] < size[0]:
                    scratch = quantize.Scratch(size)
                rows = here + layout.dither_seed if layout.dither != NO_DITHER else None
                result = quantize.quantise(
                    values[block], steps, integers[block], dither=layout.dither, rows=rows, scratch=scratch
                )
                failed[block] = result.failed
                scale[here], zero[here], kinds[here] = result.scale, result.zero, result.failed * LOSSLESS
                has_blank |= result.has_blank
        good = np.flatnonzero(~failed)
        streams = encode_tiles(layout, integers if len(good) == len(numbers) else integers[good], clock)
        for place, stream in zip(good.tolist(), streams, strict=True):
            tiles[int(numbers[place])] = stream
        for place in np.flatnonzero(failed).tolist():
            tile = values[place]
            missing = np.isnan(tile)
            if missing.any():  # astropy loses which NaN it was
                tile = np.where(missing, tile.dtype.type(np.nan), tile)
            tiles[int(numbers[place])] = gzip_like_astropy(big_endian(tile).tobytes(), clock)
    main = main_table(layout, lengths(tiles), kinds, scale, zero)
    return _encoded(layout, main, b"".join(tiles), has_blank=has_blank)


def _step(quantize_level: float) -> float:
    """Return the absolute step that a negative level asks for, in the precision that cfitsio keeps it in."""
    return float(-np.float32(quantize_level))


def _encoded(layout: TileLayout, main: bytes, heap: bytes | memoryview, *, has_blank: bool) -> EncodedPlane:
    layout = replace(layout, heap_size=len(heap), zblank=BLANK if has_blank else None)
    return EncodedPlane(layout, main, heap, _column_formats(layout, main))


def rows_of_floats(layout: TileLayout, raw: Array) -> Array | None:
    """Return the pixels as (tile, pixel) if they are floats for Rice, without dithering, in tiles of one shape."""
    if not layout.in_rice_loops or not raw.size:
        return None
    shape, numbers = next(batches(layout, window_of(layout), limit=raw.size))
    if len(numbers) != layout.n_tiles or not follow(layout, numbers, math.prod(shape)):
        return None
    return raw.reshape(layout.n_tiles, -1)


def _encode_rice_floats(raw: Array, layout: TileLayout, step: float) -> EncodedPlane | None:
    """Encode a plane in one go, if that can be done."""
    values = rows_of_floats(layout, raw)
    found = None if values is None else rice.encode_floats(values, step, int(layout.parameter("BLOCKSIZE", 32)))
    if found is None:
        return None
    kinds, scale = np.zeros(layout.n_tiles, np.uint8), np.full(layout.n_tiles, step)
    main = main_table(layout, found.sizes, kinds, scale, found.zero)
    return _encoded(layout, main, found.tiles.data, has_blank=found.has_blank)


def _is_known(array: Array, options: _Options) -> bool:
    """Tell whether the options are among those whose bytes this module makes itself."""
    kind, method = array.dtype, options.compression_type
    if method not in ("RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS", "PLIO_1") or array.size == 0 or array.ndim == 0:
        return False
    if options.tile_shape is not None and (len(options.tile_shape) != array.ndim or min(options.tile_shape) <= 0):
        return False
    if method == "PLIO_1" and kind.kind == "u" and kind.itemsize > 1:  # astropy says that it cannot
        return False
    if kind.kind in "iu":
        return not (method == "RICE_1" and kind.itemsize == 8)
    if kind.str[1:] not in ("f4", "f8") or not math.isfinite(options.quantize_level):
        return False
    if options.quantize_level == 0 and method == "RICE_1":  # astropy casts the floats to integers
        return False
    return options.quantize_method == -1 or (options.quantize_method in (1, 2) and 1 <= options.dither_seed <= 10000)


def _layout_like_astropy(array: Array, options: _Options) -> tuple[Array, TileLayout]:
    """Return the pixels as they are stored, and the layout as far as it is known before encoding."""
    raw, bitpix, bzero = to_stored(array)
    parameters: list[tuple[str, Any]] = []
    if options.compression_type == "RICE_1":
        parameters = [("BLOCKSIZE", 32), ("BYTEPIX", {8: 1, 16: 2}.get(bitpix, 4))]
    dither = NO_DITHER
    if bitpix < 0:
        parameters.append(("NOISEBIT", options.quantize_level))
        dither = {1: SUBTRACTIVE_DITHER_1, 2: SUBTRACTIVE_DITHER_2}.get(options.quantize_method, NO_DITHER)
    # The descriptors' width is astropy's and cfitsio's rule.
    descriptor = "Q" if array.nbytes > 2**32 else "P"
    quantised = bitpix < 0 and options.quantize_level != 0
    columns, row_size = _columns_like_astropy(options.compression_type, descriptor, quantised=quantised)
    layout = TileLayout(
        options.compression_type,
        bitpix,
        array.shape,
        options.tile_shape or (1,) * (array.ndim - 1) + array.shape[-1:],
        columns,
        row_size,
        n_rows=0,
        heap_start=0,
        heap_size=0,
        parameters=tuple(parameters),
        dither=dither,
        dither_seed=options.dither_seed if dither != NO_DITHER else 0,
        bzero=bzero,
    )
    return raw, replace(layout, n_rows=layout.n_tiles, heap_start=layout.n_tiles * row_size)


def _columns_like_astropy(compression: str, descriptor: str, *, quantised: bool) -> tuple[tuple[Column, ...], int]:
    """Return the columns of astropy's tables and the width of a row."""
    width = 16 if descriptor == "Q" else 8
    element, size = ("I", 2) if compression == "PLIO_1" else ("B", 1)
    columns = [Column("COMPRESSED_DATA", 0, descriptor, element, size)]
    if not quantised:
        return tuple(columns), width
    columns.append(Column("GZIP_COMPRESSED_DATA", width, descriptor, "B", 1))
    columns.append(Column("ZSCALE", 2 * width, "D", "D", 1))
    columns.append(Column("ZZERO", 2 * width + 8, "D", "D", 1))
    return tuple(columns), 2 * width + 16


def encode_tiles(layout: TileLayout, values: Array, clock: int | None) -> list[bytes]:
    """Encode rows of pixels with one of the codecs that need no tile shape."""
    if layout.compression == "RICE_1":
        kind = f"i{int(layout.parameter('BYTEPIX', 4))}"
        return rice.encode_rows(values.astype(kind, copy=False), int(layout.parameter("BLOCKSIZE", 32)))
    if layout.compression == "PLIO_1":
        return [encode_plio(line).astype(">i2").tobytes() for line in values]
    return [
        tile if layout.compression == "NOCOMPRESS" else gzip_like_astropy(tile, clock)
        for tile in plain_tiles(layout, values)
    ]


def plain_tiles(layout: TileLayout, values: Array) -> Iterator[bytes]:
    """Yield the bytes of each tile as they are before gzip: big-endian, for GZIP_2 sorted by significance."""
    big = values.astype(values.dtype.newbyteorder(">"), copy=False)
    if layout.compression == "GZIP_2":
        planes = np.ascontiguousarray(big).view(np.uint8).reshape(*values.shape, values.dtype.itemsize)
        big = np.ascontiguousarray(planes.transpose(0, 2, 1))
    for tile in big:
        yield tile.tobytes()


def lengths(tiles: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, tiles), np.int64, len(tiles))


def main_table(
    layout: TileLayout,
    lengths: NDArray[np.int64],
    kinds: NDArray[np.uint8],
    scale: NDArray[np.float64] | None,
    zero: NDArray[np.float64] | None,
    zblank: NDArray[np.int64] | None = None,
) -> bytes:
    """Return the main table for tiles that lie as every known writer puts them: one after another, in table order."""
    starts = np.cumsum(lengths) - lengths
    main = np.zeros((layout.n_rows, layout.row_size), np.uint8)
    cells = main[: len(lengths)]
    for kind, name in enumerate(("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA")):
        column = layout.column(name)
        if column is None:
            continue
        here = (kinds == kind) & (lengths > 0)
        pairs = np.stack((np.where(here, lengths // column.item_size, 0), np.where(here, starts, 0)), axis=1)
        _fill(cells, column, pairs, ">i8" if column.form == "Q" else ">i4")
    for name, numbers in (("ZSCALE", scale), ("ZZERO", zero), ("ZBLANK", zblank)):
        column = layout.column(name)
        if column is not None and numbers is not None:
            _fill(cells, column, numbers[:, None], COLUMN_TYPES[column.form])
    return main.tobytes()


def _fill(cells: NDArray[np.uint8], column: Column, values: Array, kind: str) -> None:
    raw = np.ascontiguousarray(values.astype(kind)).view(np.uint8)
    cells[:, column.offset : column.offset + raw.shape[1]] = raw


def _column_formats(layout: TileLayout, main: bytes) -> tuple[tuple[str, str], ...]:
    cells = np.frombuffer(main, np.uint8).reshape(layout.n_rows, layout.row_size)
    formats = []
    for column in layout.columns:
        if column.form in "PQ":
            width = 8 if column.form == "Q" else 4
            counts = np.ascontiguousarray(cells[:, column.offset : column.offset + width]).view(f">i{width}")
            formats.append((column.name, f"1{column.form}{column.element}({int(counts.max(initial=0))})"))
        else:
            formats.append((column.name, f"1{column.form}"))
    return tuple(formats)


def encode_with_astropy(array: Array, clock: int | None, **options: Any) -> EncodedPlane:
    from wustore.backends.fits.tiles.hcompress import encode_hdu

    cards, data = encode_hdu(array, **options)
    layout = TileLayout.from_cards(cards)
    if clock is not None:
        data = _with_clock(layout, data, clock)
    formats = tuple(
        (str(cards[f"TTYPE{i}"]), str(cards[f"TFORM{i}"]).strip()) for i in range(1, len(layout.columns) + 1)
    )
    return EncodedPlane(layout, data[: layout.heap_start], data[layout.heap_start :], formats)


def _with_clock(layout: TileLayout, data: bytes, clock: int) -> bytes:
    """Replace the clock in every gzip stream."""
    changed = bytearray(data)
    table = Table(layout, data)
    numbers = np.arange(layout.n_tiles)
    columns = ["GZIP_COMPRESSED_DATA"]
    if layout.compression in ("GZIP_1", "GZIP_2"):
        columns.append("COMPRESSED_DATA")
    for name in columns:
        spans = table.spans(name, numbers)
        if spans is not None:
            for start, end in zip(spans[0].tolist(), spans[1].tolist(), strict=True):
                if end > start:
                    place = layout.heap_start + start + 4
                    changed[place : place + 4] = clock.to_bytes(4, "little")
    return bytes(changed)
