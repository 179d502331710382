"""Encoding images as astropy does, and building tables again from decoded pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.tiles import quantize, rice
from wustore.backends.fits.tiles.decode import Table, stored_tile
from wustore.backends.fits.tiles.geometry import batches, blocks, follow, gather, window_of
from wustore.backends.fits.tiles.gzip import ASTROPY_HEADER, GzipParameters, gzip_like_astropy, gzip_with
from wustore.backends.fits.tiles.layout import (
    ALIASES,
    COMPRESSED,
    LOSSLESS,
    SCALAR_TYPES,
    UNCOMPRESSED,
    Array,
    Column,
    TileLayout,
)
from wustore.backends.fits.tiles.noise import relative_steps
from wustore.backends.fits.tiles.quantize import BLANK, NO_DITHER, SUBTRACTIVE_DITHER_1, SUBTRACTIVE_DITHER_2
from wustore.errors import UsageError

__all__ = ["EncodedPlane", "encode_plane", "reencode_plane"]


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
    heap: bytes
    column_formats: tuple[tuple[str, str], ...]

    @property
    def data(self) -> bytes:
        """The whole data of the HDU, without padding."""
        return self.table + self.heap

    @property
    def pcount(self) -> int:
        """PCOUNT: bytes of the heap."""
        return len(self.heap)


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
    2048 x 2048 pixels with KBMOD's defaults take 17 ms in one thread, and so in each of several
    (`wustore.backends.fits.tiles.rice_numba`); without numba 58, most of it in cfitsio's Rice coder (astropy 140).
    """
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    options: dict[str, Any] = {
        "compression_type": ALIASES.get(compression_type, compression_type),
        "quantize_level": quantize_level,
        "tile_shape": tile_shape,
        "quantize_method": quantize_method,
        "dither_seed": dither_seed,
    }
    if not _is_known(array, **options):
        return _encode_with_astropy(array, clock, hcomp_scale=hcomp_scale, hcomp_smooth=hcomp_smooth, **options)
    raw, layout = _layout_like_astropy(array, **options)
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
                    return _encode_with_astropy(array, clock, **options)
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
        streams = _encode_tiles(layout, integers if len(good) == len(numbers) else integers[good], clock)
        for place, stream in zip(good.tolist(), streams, strict=True):
            tiles[int(numbers[place])] = stream
        for place in np.flatnonzero(failed).tolist():
            tile = values[place]
            missing = np.isnan(tile)
            if missing.any():  # astropy loses which NaN it was
                tile = np.where(missing, tile.dtype.type(np.nan), tile)
            tiles[int(numbers[place])] = gzip_like_astropy(_big_endian(tile), clock)
    main = _main_table(layout, _lengths(tiles), kinds, scale, zero)
    return _encoded(layout, main, b"".join(tiles), has_blank=has_blank)


def _step(quantize_level: float) -> float:
    """Return the absolute step that a negative level asks for, in the precision that cfitsio keeps it in."""
    return float(-np.float32(quantize_level))


def _encoded(layout: TileLayout, main: bytes, heap: bytes, *, has_blank: bool) -> EncodedPlane:
    layout = replace(layout, heap_size=len(heap), zblank=BLANK if has_blank else None)
    return EncodedPlane(layout, main, heap, _column_formats(layout, main))


def _rows_of_floats(layout: TileLayout, raw: Array) -> Array | None:
    """Return the pixels as (tile, pixel) where they are floats for Rice, without dithering, in tiles of one shape."""
    if not layout.in_rice_loops or not raw.size:
        return None
    shape, numbers = next(batches(layout, window_of(layout), limit=raw.size))
    if len(numbers) != layout.n_tiles or not follow(layout, numbers, math.prod(shape)):
        return None
    return raw.reshape(layout.n_tiles, -1)


def _encode_rice_floats(raw: Array, layout: TileLayout, step: float) -> EncodedPlane | None:
    """Encode a plane in one go, where that can be done."""
    values = _rows_of_floats(layout, raw)
    found = None if values is None else rice.encode_floats(values, step, int(layout.parameter("BLOCKSIZE", 32)))
    if found is None:
        return None
    kinds, scale = np.zeros(layout.n_tiles, np.uint8), np.full(layout.n_tiles, step)
    main = _main_table(layout, found.sizes, kinds, scale, found.zero)
    return _encoded(layout, main, found.tiles, has_blank=found.has_blank)


def _is_known(
    array: Array,
    *,
    compression_type: str,
    quantize_level: float,
    tile_shape: tuple[int, ...] | None,
    quantize_method: int,
    dither_seed: int,
) -> bool:
    """Tell whether the options are among those whose bytes this module makes itself."""
    kind = array.dtype
    if compression_type not in ("RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS") or array.size == 0 or array.ndim == 0:
        return False
    if tile_shape is not None and (len(tile_shape) != array.ndim or min(tile_shape) <= 0):
        return False
    if kind.kind in "iu":
        return not (compression_type == "RICE_1" and kind.itemsize == 8)
    if kind.str[1:] not in ("f4", "f8") or not math.isfinite(quantize_level):
        return False
    if quantize_level == 0 and compression_type == "RICE_1":  # astropy casts the floats to integers
        return False
    return quantize_method == -1 or (quantize_method in (1, 2) and 1 <= dither_seed <= 10000)


def _layout_like_astropy(
    array: Array,
    *,
    compression_type: str,
    quantize_level: float,
    tile_shape: tuple[int, ...] | None,
    quantize_method: int,
    dither_seed: int,
) -> tuple[Array, TileLayout]:
    """Return the pixels as they are stored, and the layout as far as it is known before encoding."""
    raw, bitpix, bzero = _to_stored(array)
    parameters: list[tuple[str, Any]] = []
    if compression_type == "RICE_1":
        parameters = [("BLOCKSIZE", 32), ("BYTEPIX", {8: 1, 16: 2}.get(bitpix, 4))]
    dither = NO_DITHER
    if bitpix < 0:
        parameters.append(("NOISEBIT", quantize_level))
        dither = {1: SUBTRACTIVE_DITHER_1, 2: SUBTRACTIVE_DITHER_2}.get(quantize_method, NO_DITHER)
    # The descriptors' width is astropy's and cfitsio's rule.
    descriptor = "Q" if array.nbytes > 2**32 else "P"
    columns, row_size = _columns_like_astropy(descriptor, quantised=bitpix < 0 and quantize_level != 0)
    layout = TileLayout(
        compression_type,
        bitpix,
        array.shape,
        tile_shape or (1,) * (array.ndim - 1) + array.shape[-1:],
        columns,
        row_size,
        n_rows=0,
        heap_start=0,
        heap_size=0,
        parameters=tuple(parameters),
        dither=dither,
        dither_seed=dither_seed if dither != NO_DITHER else 0,
        bzero=bzero,
    )
    return raw, replace(layout, n_rows=layout.n_tiles, heap_start=layout.n_tiles * row_size)


def _columns_like_astropy(descriptor: str, *, quantised: bool) -> tuple[tuple[Column, ...], int]:
    """Return the columns of astropy's tables and the width of a row."""
    width = 16 if descriptor == "Q" else 8
    columns = [Column("COMPRESSED_DATA", 0, descriptor, "B", 1)]
    if not quantised:
        return tuple(columns), width
    columns.append(Column("GZIP_COMPRESSED_DATA", width, descriptor, "B", 1))
    columns.append(Column("ZSCALE", 2 * width, "D", "D", 1))
    columns.append(Column("ZZERO", 2 * width + 8, "D", "D", 1))
    return tuple(columns), 2 * width + 16


def _to_stored(array: Array) -> tuple[Array, int, int]:
    """Return the pixels as FITS stores them, with BITPIX and BZERO."""
    kind = array.dtype
    if kind.kind == "f":
        return array, -8 * kind.itemsize, 0
    bits = 8 * kind.itemsize
    if kind == np.uint8 or (kind.kind == "i" and bits > 8):
        return array, bits, 0
    # Adding or subtracting half the range is flipping the highest bit.
    if kind == np.int8:
        return array.view(np.uint8) ^ np.uint8(128), 8, -128
    flipped = array ^ kind.type(1 << (bits - 1))
    return flipped.view(f"i{kind.itemsize}"), bits, 1 << (bits - 1)


def _from_final(layout: TileLayout, array: Array) -> Array:
    """Undo `_scale`: return the stored pixels of a decoded image."""
    final, way = layout.scaling()
    if array.dtype != final or array.shape != layout.shape:
        raise UsageError(
            "the array is not one that this layout decodes to",
            expected=f"{final} {layout.shape}",
            found=f"{array.dtype} {array.shape}",
        )
    array = np.ascontiguousarray(array)
    if way == "none":
        return array
    if way == "scaled":
        raise UsageError("pixels to which BSCALE, BZERO or BLANK were applied cannot be encoded again")
    return _to_stored(array)[0]


def _big_endian(pixels: Array) -> bytes:
    return pixels.astype(pixels.dtype.newbyteorder(">"), copy=False).tobytes()


def _encode_tiles(layout: TileLayout, values: Array, clock: int | None) -> list[bytes]:
    """Encode rows of pixels with one of the codecs that need no tile shape."""
    if layout.compression == "RICE_1":
        kind = f"i{int(layout.parameter('BYTEPIX', 4))}"
        return rice.encode_rows(values.astype(kind, copy=False), int(layout.parameter("BLOCKSIZE", 32)))
    return [
        tile if layout.compression == "NOCOMPRESS" else gzip_like_astropy(tile, clock)
        for tile in _plain_tiles(layout, values)
    ]


def _plain_tiles(layout: TileLayout, values: Array) -> Iterator[bytes]:
    """Yield the bytes of each tile as they are before gzip: big-endian, for GZIP_2 sorted by significance."""
    big = values.astype(values.dtype.newbyteorder(">"), copy=False)
    if layout.compression == "GZIP_2":
        planes = np.ascontiguousarray(big).view(np.uint8).reshape(*values.shape, values.dtype.itemsize)
        big = np.ascontiguousarray(planes.transpose(0, 2, 1))
    for tile in big:
        yield tile.tobytes()


def _lengths(tiles: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, tiles), np.int64, len(tiles))


def _main_table(
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
            _fill(cells, column, numbers[:, None], SCALAR_TYPES[column.form])
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


def _encode_with_astropy(array: Array, clock: int | None, **options: Any) -> EncodedPlane:
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


def reencode_plane(
    layout: TileLayout,
    array: Array,
    zscale: NDArray[np.float64] | None = None,
    zzero: NDArray[np.float64] | None = None,
    *,
    kinds: NDArray[np.uint8] | None = None,
    zblank: NDArray[np.int64] | None = None,
    gzip: GzipParameters | Mapping[int, GzipParameters] | None = None,
    kept: Mapping[int, bytes] | None = None,
    corrections: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> bytes:
    """Build the data of an HDU again from its decoded pixels.

    Parameters
    ----------
    layout
        The layout of the HDU.
    array
        What `decode_plane` returned.
    zscale, zzero
        ZSCALE and ZZERO of each tile, where the table has them.
    kinds
        How each tile is stored; by default `LOSSLESS` where ZSCALE is 0, else `COMPRESSED`.
    zblank
        The column ZBLANK, where the table has it.
    gzip
        Parameters of the gzip streams: one for all, or by tile number; by default astropy's with a clock of 0.
    kept
        Bytes of tiles that are known not to come out the same, by tile number.
    corrections
        Flat pixel indices and what to add there to the recovered integers, where several integers have the
        same value.

    Returns
    -------
    bytes
        Main table and heap. They equal the original's when the pixels determine the bytes: compare them.

    Raises
    ------
    UsageError
        The arrays do not fit the layout, or BSCALE, BZERO or BLANK were applied to the pixels.
    """
    raw = _from_final(layout, array)
    n_tiles = layout.n_tiles
    if layout.quantised and (zscale is None or zzero is None):
        raise UsageError("a quantised image needs its scales and zero points")
    if kinds is None:
        kinds = np.zeros(n_tiles, np.uint8)
        if zscale is not None:
            kinds[zscale == 0] = LOSSLESS
    if not kinds.any() and zblank is None and not kept and corrections is None:
        rebuilt = _reencode_rice_floats(layout, raw, zscale, zzero)
        if rebuilt is not None:
            return rebuilt
    tiles: list[bytes] = [b""] * n_tiles
    for number, stream in _tiles_again(layout, raw, zscale, zzero, kinds, zblank, gzip, kept or {}, corrections):
        tiles[number] = stream
    for number, stream in (kept or {}).items():
        tiles[number] = stream
    main = _main_table(layout, _lengths(tiles), kinds, zscale, zzero, zblank)
    return b"".join((main, bytes(layout.heap_start - len(main)), *tiles))


def _tiles_again(
    layout: TileLayout,
    raw: Array,
    scale: NDArray[np.float64] | None,
    zero: NDArray[np.float64] | None,
    kinds: NDArray[np.uint8],
    zblank: NDArray[np.int64] | None,
    gzip: GzipParameters | Mapping[int, GzipParameters] | None,
    left_out: Mapping[int, bytes],
    corrections: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each tile that is not left out; parameters as for `reencode_plane`."""
    fixes = None
    if corrections is not None:
        fixes = np.zeros(layout.shape, np.int64)
        fixes.reshape(-1)[corrections[0]] = corrections[1]
    for shape, numbers in batches(layout, window_of(layout)) if raw.size else ():
        values = gather(layout, raw, shape, numbers)
        wanted = np.array([number not in left_out for number in numbers.tolist()])
        good = np.flatnonzero((kinds[numbers] == COMPRESSED) & wanted)
        if good.size:
            chosen = numbers[good]
            pixels = values if len(good) == len(numbers) else values[good]
            if layout.quantised and layout.bitpix < 0:
                assert scale is not None
                assert zero is not None
                pixels = _integers_again(layout, pixels, chosen, scale, zero, zblank)
                if fixes is not None:
                    pixels += gather(layout, fixes, shape, chosen).astype(np.int32)
            yield from zip(chosen.tolist(), _encode_again(layout, pixels, shape, chosen, gzip), strict=True)
        for place in np.flatnonzero((kinds[numbers] != COMPRESSED) & wanted).tolist():
            number = int(numbers[place])
            content = _big_endian(values[place])
            yield number, content if kinds[number] == UNCOMPRESSED else _gzip_again(gzip, number, content)


def _integers_again(
    layout: TileLayout,
    values: Array,
    numbers: NDArray[np.int64],
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    zblank: NDArray[np.int64] | None,
) -> NDArray[np.int32]:
    """Recover the integers of quantised tiles, shape (tile, pixel)."""
    integers = np.empty(values.shape, np.int32)
    for block in blocks(*values.shape):
        here = numbers[block]
        blank = zblank[here] if zblank is not None else layout.zblank
        quantize.requantise(
            values[block],
            scale[here],
            zero[here],
            integers[block],
            blank=layout.blank if blank is None else blank,
            dither=layout.dither,
            rows=here + layout.dither_seed if layout.dither != NO_DITHER else None,
        )
    return integers


def _reencode_rice_floats(
    layout: TileLayout, raw: Array, scale: NDArray[np.float64] | None, zero: NDArray[np.float64] | None
) -> bytes | None:
    """Build the data of an HDU again in one go, where that can be done."""
    values = _rows_of_floats(layout, raw)
    if values is None or scale is None or zero is None:
        return None
    blank = layout.blank if layout.zblank is None else layout.zblank
    found = rice.encode_floats_again(values, scale, zero, blank, int(layout.parameter("BLOCKSIZE", 32)))
    if found is None:
        return None
    main = _main_table(layout, found.sizes, np.zeros(layout.n_tiles, np.uint8), scale, zero)
    return b"".join((main, bytes(layout.heap_start - len(main)), found.tiles))


def _gzip_again(gzip: GzipParameters | Mapping[int, GzipParameters] | None, number: int, content: bytes) -> bytes:
    parameters = gzip if gzip is None or isinstance(gzip, GzipParameters) else gzip.get(number)
    return gzip_with(parameters or GzipParameters(ASTROPY_HEADER), content)


def _encode_again(
    layout: TileLayout,
    pixels: Array,
    shape: tuple[int, ...],
    numbers: NDArray[np.int64],
    gzip: GzipParameters | Mapping[int, GzipParameters] | None,
) -> list[bytes]:
    """Encode rows of integers, with any of the codecs."""
    if layout.compression in ("RICE_1", "NOCOMPRESS"):
        return _encode_tiles(layout, pixels, None)
    if layout.compression in ("GZIP_1", "GZIP_2"):
        plain = _plain_tiles(layout, pixels)
        return [_gzip_again(gzip, number, tile) for number, tile in zip(numbers.tolist(), plain, strict=True)]
    options: dict[str, Any] = {}
    size: tuple[int, ...] = (1, math.prod(shape))
    if layout.compression == "HCOMPRESS_1":
        size = tuple(n for n in shape if n != 1)
        options = {"hcomp_scale": layout.parameter("SCALE", 0), "hcomp_smooth": layout.parameter("SMOOTH", 0)}
    image = pixels.astype(np.int32, copy=False).reshape(-1, size[-1])
    try:
        encoded = _encode_with_astropy(image, None, compression_type=layout.compression, tile_shape=size, **options)
    except UsageError:
        return [b""] * len(numbers)
    table = Table(encoded.layout, encoded.data)
    return [stored_tile(encoded.layout, table, i)[1] for i in range(len(numbers))]
