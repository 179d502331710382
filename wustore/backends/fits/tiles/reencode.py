"""Encoding a plane again exactly as it was encoded once, and what this takes: for the reconstruction of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.tiles import quantize
from wustore.backends.fits.tiles.decode import Decoder
from wustore.backends.fits.tiles.dtypes import big_endian, to_stored
from wustore.backends.fits.tiles.encode import (
    encode_tiles,
    encode_with_astropy,
    lengths,
    main_table,
    plain_tiles,
    rows_of_floats,
)
from wustore.backends.fits.tiles.geometry import (
    batches,
    blocks,
    copy_tile,
    gather,
    window_of,
)
from wustore.backends.fits.tiles.gzip import ASTROPY_HEADER, GzipParameters, gzip_with
from wustore.backends.fits.tiles.layout import (
    COMPRESSED,
    LOSSLESS,
    UNCOMPRESSED,
    Array,
    Buffer,
    Table,
    TileLayout,
)
from wustore.backends.fits.tiles.quantize import (
    NO_DITHER,
)
from wustore.backends.fits.tiles.rice import coder as rice
from wustore.errors import UsageError

__all__ = ["Integers", "decode_integers", "differing_tiles", "reencode_plane", "stored_tile", "tile_bytes"]


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
    return to_stored(array)[0]


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
) -> bytes | memoryview:
    """Build the data of an HDU again from its decoded pixels.

    Parameters
    ----------
    array
        What `decode_plane` returned.
    zscale, zzero
        ZSCALE and ZZERO of each tile, if the table has them.
    kinds
        How each tile is stored; by default `LOSSLESS` where ZSCALE is 0, else `COMPRESSED`.
    zblank
        The column ZBLANK, if the table has it.
    gzip
        Parameters of the gzip streams: one for all, or by tile number; by default astropy's with a clock of 0.
    kept
        Bytes of tiles that are known not to come out the same, by tile number.
    corrections
        Flat pixel indices and what to add there to the recovered integers, where several integers have the
        same value.

    Returns
    -------
    bytes or memoryview
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
    main = main_table(layout, lengths(tiles), kinds, zscale, zzero, zblank)
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
            content = big_endian(values[place]).tobytes()
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
) -> memoryview | None:
    """Build the data of an HDU again in one go, if that can be done: in place, a plane takes no copy."""
    values = rows_of_floats(layout, raw)
    if values is None or scale is None or zero is None:
        return None
    blank = layout.blank if layout.zblank is None else layout.zblank
    start = layout.heap_start
    found = rice.encode_floats_again(values, scale, zero, blank, int(layout.parameter("BLOCKSIZE", 32)), start)
    if found is None:
        return None
    main = main_table(layout, found.sizes, np.zeros(layout.n_tiles, np.uint8), scale, zero)
    found.tiles[: len(main)] = np.frombuffer(main, np.uint8)
    found.tiles[len(main) : start] = 0
    return found.tiles.data


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
    if layout.compression in ("RICE_1", "PLIO_1", "NOCOMPRESS"):
        return encode_tiles(layout, pixels, None)
    if layout.compression in ("GZIP_1", "GZIP_2"):
        plain = plain_tiles(layout, pixels)
        return [_gzip_again(gzip, number, tile) for number, tile in zip(numbers.tolist(), plain, strict=True)]
    size = tuple(n for n in shape if n != 1)
    options = {"hcomp_scale": layout.parameter("SCALE", 0), "hcomp_smooth": layout.parameter("SMOOTH", 0)}
    image = pixels.astype(np.int32, copy=False).reshape(-1, size[-1])
    try:
        encoded = encode_with_astropy(image, None, compression_type=layout.compression, tile_shape=size, **options)
    except UsageError:
        return [b""] * len(numbers)
    table = Table(encoded.layout, encoded.data)
    return [stored_tile(encoded.layout, table, i)[1] for i in range(len(numbers))]


@dataclass(frozen=True)
class Integers:
    """An image as its tiles hold it.

    Attributes
    ----------
    integers
        The stored integers, of the image's shape; 0 if a tile holds floats without quantisation.
    scale, zero
        ZSCALE and ZZERO of each tile, or None for an image of integers.
    kinds
        `COMPRESSED`, `LOSSLESS` or `UNCOMPRESSED` for each tile.
    """

    integers: Array
    scale: NDArray[np.float64] | None
    zero: NDArray[np.float64] | None
    kinds: NDArray[np.uint8]


def decode_integers(layout: TileLayout, table: Buffer) -> Integers:
    """Decode an image only as far as its stored integers.

    Raises
    ------
    UsageError
        The image has floats that are not quantised.
    CorruptError, FormatError
        As `decode_plane`.
    """
    if layout.bitpix < 0 and not layout.quantised:
        raise UsageError("the image holds floats that are not quantised: there are no integers")
    decoder = Decoder(layout, table)
    window = window_of(layout)
    integers = np.zeros(layout.shape, np.int32 if layout.bitpix < 0 else layout.stored_dtype)
    kinds = np.zeros(layout.n_tiles, np.uint8)
    for shape, numbers in batches(layout, window) if integers.size else ():
        batch = decoder.batch(numbers, shape)
        kinds[numbers] = batch.kinds
        if batch.integers.dtype.itemsize > integers.dtype.itemsize:
            integers = integers.astype(batch.integers.dtype)
        for place, pixels in batch.lossless:
            batch.integers[place] = 0 if layout.bitpix < 0 else pixels
        for number, tile in zip(numbers.tolist(), batch.integers, strict=True):
            copy_tile(layout, window, number, tile.reshape(shape), integers)
    scale = None if decoder.scale is None else decoder.scale.astype(np.float64)
    zero = None if decoder.zero is None else decoder.zero.astype(np.float64)
    return Integers(integers, scale, zero, kinds)


def tile_bytes(layout: TileLayout, table: Buffer, number: int) -> tuple[int, bytes]:
    """Return how a tile is stored (`COMPRESSED`, `LOSSLESS`, `UNCOMPRESSED`) and its bytes in the heap."""
    return stored_tile(layout, Table(layout, table), number)


def stored_tile(layout: TileLayout, table: Table, number: int) -> tuple[int, bytes]:
    """Do `tile_bytes` for a table that was read already."""
    names = ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA")
    for kind, name in enumerate(names):
        spans = table.spans(name, np.array([number]))
        if spans is not None and spans[1][0] > spans[0][0]:
            return kind, table.heap[spans[0][0] : spans[1][0]].tobytes()
    return COMPRESSED, b""


def differing_tiles(layout: TileLayout, original: Buffer, rebuilt: Buffer) -> list[int]:
    """Return the numbers of the tiles whose stored bytes differ between two tables of one layout.

    Parameters
    ----------
    layout
        The layout of `original`. `rebuilt` may have a heap of another size.
    """
    first = Table(layout, original)
    other = _resized(layout, rebuilt)
    second = Table(other, rebuilt)
    return [
        number
        for number in range(layout.n_tiles)
        if stored_tile(layout, first, number) != stored_tile(other, second, number)
    ]


def _resized(layout: TileLayout, table: Buffer) -> TileLayout:
    return replace(layout, heap_size=max(0, memoryview(table).nbytes - layout.heap_start))
