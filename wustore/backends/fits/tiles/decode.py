"""Decoding tile-compressed images, a batch of tiles at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.tiles import quantize
from wustore.backends.fits.tiles.dtypes import COLUMN_TYPES, NUMBERS
from wustore.backends.fits.tiles.geometry import (
    Window,
    batch_size,
    batches,
    blocks,
    copy_tile,
    follow,
    place_of,
    stacked,
    tiled_axis,
    window_of,
)
from wustore.backends.fits.tiles.gzip import MAXIMUM_RATIO, gunzip
from wustore.backends.fits.tiles.layout import (
    COMPRESSED,
    LOSSLESS,
    UNCOMPRESSED,
    Array,
    Buffer,
    Table,
    TileLayout,
)
from wustore.backends.fits.tiles.plio import decode_plio
from wustore.backends.fits.tiles.quantize import NO_DITHER
from wustore.backends.fits.tiles.rice import coder as rice
from wustore.errors import CorruptError, FormatError, UsageError
from wustore.storage import buffers
from wustore.storage.threads import in_threads, worker_count

__all__ = ["decode_plane"]


@dataclass
class _Batch:
    """Tiles of one shape, decoded together.

    `integers` is (tile, pixel); rows that are in `lossless` instead hold no meaning. For images of floats that
    were not quantised `integers` is None and all tiles are in `lossless`.
    """

    numbers: NDArray[np.int64]
    integers: Array
    lossless: list[tuple[int, Array]]
    kinds: NDArray[np.uint8]


_UNSUSPICIOUS = 1 << 28
"""Bytes of an image. Larger ones whose data are less than a quarter of that are first decoded without being kept, so
that a small file that is damaged takes no more memory than its size justifies."""


class Decoder:
    """Decodes batches of tiles of one table."""

    def __init__(self, layout: TileLayout, table: Buffer) -> None:
        self.layout = layout
        self.table = Table(layout, table)
        self._work: NDArray[np.float64] | None = None
        self._room: Array | None = None

    @cached_property
    def scale(self) -> Array | None:
        """The column ZSCALE."""
        return self.table.scalars("ZSCALE")

    @cached_property
    def zero(self) -> Array | None:
        """The column ZZERO."""
        return self.table.scalars("ZZERO")

    @cached_property
    def _blank_column(self) -> Array | None:
        return self.table.scalars("ZBLANK")

    def batch(self, numbers: NDArray[np.int64], shape: tuple[int, ...], into: Array | None = None) -> _Batch:
        """Decode tiles as far as integers.

        Parameters
        ----------
        numbers
            Their rows in the table.
        into
            Where integers of the right type may be put. Those of a batch otherwise last until the next one.
        """
        n_pixels = math.prod(shape)
        spans = self.table.spans("COMPRESSED_DATA", numbers)
        assert spans is not None
        starts, ends = spans
        kinds = np.where(ends > starts, COMPRESSED, LOSSLESS).astype(np.uint8)
        lossless: list[tuple[int, Array]] = []
        if kinds.any():
            missing = np.flatnonzero(kinds)
            lossless, stored = self._lossless(numbers[missing], missing, n_pixels)
            kinds[missing] = stored
        present = np.flatnonzero(kinds == COMPRESSED)
        integers = self._compressed(numbers, starts, ends, present, shape, into)
        return _Batch(numbers, integers, lossless, kinds)

    def _lossless(
        self, numbers: NDArray[np.int64], places: NDArray[np.int64], n_pixels: int
    ) -> tuple[list[tuple[int, Array]], int]:
        """Decode tiles that have no compressed data, from whichever column replaces it."""
        is_float = self.layout.bitpix < 0
        spans = self.table.spans("GZIP_COMPRESSED_DATA", numbers)
        tiles: list[tuple[int, Array]] = []
        if spans is not None:
            for i, place in enumerate(places.tolist()):
                tile = self.table.heap[spans[0][i] : spans[1][i]].tobytes()
                content = gunzip(tile, _sizes(n_pixels), int(numbers[i]))
                tiles.append((place, _as_pixels(content, n_pixels, is_float=is_float)))
            return tiles, LOSSLESS
        spans = self.table.spans("UNCOMPRESSED_DATA", numbers)
        if spans is None:
            raise CorruptError("a tile has no data", where=f"tile {int(numbers[0])}")
        column = self.layout.column("UNCOMPRESSED_DATA")
        assert column is not None
        kind = np.dtype(COLUMN_TYPES[column.element] if column.element in NUMBERS else "u1")
        for i, place in enumerate(places.tolist()):
            tile = self.table.heap[spans[0][i] : spans[1][i]].tobytes()
            if len(tile) != n_pixels * kind.itemsize:
                raise _wrong_size(int(numbers[i]), [n_pixels * kind.itemsize], len(tile))
            tiles.append((place, np.frombuffer(tile, kind)))
        return tiles, UNCOMPRESSED

    def _compressed(
        self,
        numbers: NDArray[np.int64],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        present: NDArray[np.int64],
        shape: tuple[int, ...],
        into: Array | None,
    ) -> Array:
        layout, heap = self.layout, self.table.heap
        n_pixels = math.prod(shape)
        compression = layout.compression
        first, last, names = starts[present].tolist(), ends[present].tolist(), numbers[present].tolist()

        def room(kind: str) -> Array:
            wanted = np.dtype(kind)
            if into is not None and into.dtype == wanted:
                return into
            if self._room is None or self._room.dtype != wanted or self._room.shape != (len(numbers), n_pixels):
                self._room = np.empty((len(numbers), n_pixels), wanted)
            return self._room

        if compression == "RICE_1":
            coded = self._rice_tiles(numbers[present], starts[present], ends[present], n_pixels)
            integers = room({1: "u1", 2: "i2", 4: "i4"}[int(layout.parameter("BYTEPIX", 4))])
            rice.decode_rows(coded, integers if len(present) == len(numbers) else [integers[i] for i in present])
            return integers
        if compression == "PLIO_1":
            _check_sizes(names, ends[present] - starts[present], 6, None)
            integers = room("i4")
            for place, start, end, name in zip(present.tolist(), first, last, names, strict=True):
                words = np.frombuffer(heap[start : end - (end - start) % 2].tobytes(), ">i2")
                integers[place] = decode_plio(words.astype(np.int16), n_pixels, name)
            return integers
        if compression == "HCOMPRESS_1":
            from wustore.backends.fits.tiles.hcompress import decode_hcompress

            flat = tuple(size for size in shape if size != 1)
            if len(flat) != 2:
                raise FormatError("HCOMPRESS tiles must have two dimensions", found=shape)
            integers = room("i4")
            if len(present):
                tiles = [heap[start:end].tobytes() for start, end in zip(first, last, strict=True)]
                integers[present] = decode_hcompress(tiles, (flat[0], flat[1]), self._hcompress_parameters(), names)
            return integers
        return self._bytewise(first, last, present, names, n_pixels, room)

    def _rice_tiles(
        self, numbers: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64], n_pixels: int
    ) -> rice.Tiles:
        """Return tiles whose sizes are possible."""
        block_size, item_size = int(self.layout.parameter("BLOCKSIZE", 32)), int(self.layout.parameter("BYTEPIX", 4))
        _check_sizes(numbers.tolist(), ends - starts, *rice.size_limits(n_pixels, item_size, block_size))
        return rice.Tiles(self.table.heap, starts, ends, numbers, block_size)

    def _hcompress_parameters(self) -> list[tuple[str, Any]]:
        return [(key, value) for key, value in self.layout.parameters if key in ("SCALE", "SMOOTH")]

    def _bytewise(
        self, first: list[int], last: list[int], present: NDArray[np.int64], names: list[int], n_pixels: int, room: Any
    ) -> Array:
        """Decode tiles that hold the pixels' own bytes: GZIP_1, GZIP_2, NOCOMPRESS."""
        layout, heap = self.layout, self.table.heap
        is_float = layout.bitpix < 0 and not layout.quantised
        sizes = _sizes(n_pixels)
        if layout.compression != "NOCOMPRESS":
            _check_sizes(names, np.array(last) - np.array(first), -(-n_pixels // MAXIMUM_RATIO), None)
        integers: Array = room(layout.stored_dtype.str if is_float or layout.bitpix > 0 else "i4")
        for place, start, end, name in zip(present.tolist(), first, last, names, strict=True):
            tile = heap[start:end].tobytes()
            if layout.compression == "NOCOMPRESS":
                if len(tile) not in sizes:
                    raise _wrong_size(name, sizes, len(tile))
                pixels = _as_pixels(tile, n_pixels, is_float=is_float)
            else:
                content = gunzip(tile, sizes, name)
                if layout.compression == "GZIP_2":
                    content = np.frombuffer(content, np.uint8).reshape(-1, n_pixels).T.tobytes()
                pixels = _as_pixels(content, n_pixels, is_float=is_float)
            if pixels.dtype.itemsize > integers.dtype.itemsize and layout.quantised:
                integers = integers.astype(np.int64)
            integers[place] = pixels
        return integers

    def blanks(self, numbers: NDArray[np.int64]) -> int | NDArray[np.int64] | None:
        """Return the integer that means undefined, for these tiles."""
        if self._blank_column is not None:
            return self._blank_column[numbers].astype(np.int64)
        return self.layout.zblank if self.layout.zblank is not None else self.layout.blank

    def dither_rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the seed of each tile."""
        return numbers + self.layout.dither_seed

    def _factors(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return ZSCALE and ZZERO of these tiles."""
        assert self.scale is not None
        assert self.zero is not None
        return self.scale[numbers].astype(np.float64), self.zero[numbers].astype(np.float64)

    def _dequantise(self, numbers: NDArray[np.int64], integers: Array, out: Array) -> None:
        if self._work is None or self._work.shape[1] != out.shape[1] or len(self._work) < len(out):
            self._work = np.empty(out.shape)
        quantize.dequantise(
            integers,
            *self._factors(numbers),
            out,
            blank=self.blanks(numbers),
            dither=self.layout.dither,
            rows=self.dither_rows(numbers) if self.layout.dither != NO_DITHER else None,
            scratch=self._work[: len(out)],
        )

    def decode(self, numbers: NDArray[np.int64], shape: tuple[int, ...], out: Array) -> None:
        """Write the pixels of tiles to `out`.

        Parameters
        ----------
        numbers
            Their rows in the table.
        out
            C-contiguous, shape (tile, pixel) and the stored type.
        """
        fields = self.layout.rice_fields
        blank = self.layout.zblank if self.layout.zblank is not None else self.layout.blank
        if fields is not None and rice.decode_floats(self.table.bytes, fields, numbers, blank, out):
            return
        # One tile that the loops cannot decode costs its batch the speed, not the plane.
        step = batch_size(self.layout.compression, out.shape[1])
        if len(numbers) > step:
            for i in range(0, len(numbers), step):
                self.decode(numbers[i : i + step], shape, out[i : i + step])
        else:
            self._values(self.batch(numbers, shape, out), out)

    def _values(self, batch: _Batch, out: Array) -> None:
        """Write the pixels of a batch to `out`, of shape (tile, pixel) and the stored type."""
        layout = self.layout
        if layout.quantised and layout.bitpix < 0:
            if len(batch.lossless) < len(batch.numbers):
                if batch.lossless:
                    batch.integers[[place for place, _ in batch.lossless]] = 0
                for block in blocks(len(out), out.shape[1]):
                    self._dequantise(batch.numbers[block], batch.integers[block], out[block])
        else:
            if out is not batch.integers:
                with np.errstate(invalid="ignore"):
                    np.copyto(out, batch.integers, casting="unsafe")
            blank = self.blanks(batch.numbers)
            if blank is not None:
                is_blank = batch.integers == (blank if isinstance(blank, int) else blank[:, None])
                if layout.bitpix < 0:
                    np.copyto(out, np.nan, where=is_blank)
                else:
                    own = layout.integer_blank() if layout.zblank is None else layout.zblank
                    np.copyto(out, np.array(own).astype(out.dtype), where=is_blank)
        for place, pixels in batch.lossless:
            out[place] = pixels


def _sizes(n_pixels: int) -> list[int]:
    """Sizes that the bytes of a tile may have: 8 to 64-bit pixels."""
    return [n_pixels, 2 * n_pixels, 4 * n_pixels, 8 * n_pixels]


def _as_pixels(content: bytes, n_pixels: int, *, is_float: bool) -> Array:
    """View bytes as big-endian pixels of the type that their number implies."""
    width = len(content) // n_pixels
    kind = {1: "u1", 2: ">i2", 4: ">f4" if is_float else ">i4", 8: ">f8" if is_float else ">i8"}[width]
    return np.frombuffer(content, kind)


def _wrong_size(name: int, sizes: Sequence[int], found: int) -> CorruptError:
    return CorruptError(
        "a tile has the wrong size",
        where=f"tile {name}",
        expected=" or ".join(map(str, sizes)) + " bytes",
        found=f"{found} bytes",
    )


def _check_sizes(names: list[int], sizes: NDArray[np.int64], fewest: int, most: int | None) -> None:
    bad = sizes < fewest
    if most is not None:
        bad |= sizes > most
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        limits = f"at least {fewest} bytes" if most is None else f"from {fewest} to {most} bytes"
        raise CorruptError(
            "a tile cannot have this size", where=f"tile {names[i]}", expected=limits, found=f"{int(sizes[i])} bytes"
        )


def decode_plane(
    layout: TileLayout,
    table: Buffer,
    *,
    rows: slice | None = None,
    columns: slice | None = None,
    out: Array | None = None,
) -> Array:
    """Decode an image, or a window of it.

    Parameters
    ----------
    table
        The data of the HDU: main table, gap and heap; padding may follow.
    rows, columns
        The window, along the last axis but one and the last; all by default. Only the tiles that it touches are
        decoded.
    out
        C-contiguous array of the window's shape and of `layout.dtype` to decode into.

    Returns
    -------
    ndarray
        Native byte order, C-contiguous, bit for bit what astropy gives as ``.data``.

    Raises
    ------
    CorruptError
        The data is damaged.
    FormatError
        The header and the data cannot belong together.

    Notes
    -----
    2048 x 2048 pixels written with KBMOD's defaults take 12 ms in one thread, and so in each of several
    (`rice.loops_numba`). Without numba they take 40 ms, and threads gain nothing: cfitsio's coder is called a row at
    a time, and two threads would hand the interpreter lock to and fro.
    """
    window = window_of(layout, rows, columns)
    final, way = layout.scaling()
    stored = layout.stored_dtype
    decoder = Decoder(layout, table)
    if out is None:
        out = buffers.empty(window.shape, final)
    elif out.shape != window.shape or out.dtype != final or not out.flags.c_contiguous:
        raise UsageError(
            "the array to decode into does not fit",
            expected=f"C-contiguous {final} {window.shape}",
            found=f"{out.dtype} {out.shape}",
        )
    raw = out if way == "none" else np.empty(window.shape, stored)
    if raw.nbytes > _UNSUSPICIOUS + 4 * layout.data_size:
        for shape, numbers in batches(layout, window):  # before the memory of the image is touched
            decoder.decode(numbers, shape, np.empty((len(numbers), math.prod(shape)), stored))
    if raw.size:
        _decode_window(decoder, window, raw)
    if way != "none":
        _scale(layout, raw, out, way)
    return out


def heap_ranges(
    layout: TileLayout, table: Buffer, *, rows: slice | None = None, columns: slice | None = None
) -> list[tuple[int, int]]:
    """Return (start, stop) in the data of an HDU of the tiles that a window touches; parameters as `decode_plane`.

    Only the main table of ``table`` is looked at: the rest need not have been read yet.
    """
    content = Table(layout, table)
    ranges: list[tuple[int, int]] = []
    for _, numbers in batches(layout, window_of(layout, rows, columns)):
        for name in ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA"):
            spans = content.spans(name, numbers)
            if spans is not None:
                first, last = (part + layout.heap_start for part in spans)
                ranges += [(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True) if b > a]
    return ranges


def _decode_window(decoder: Decoder, window: Window, raw: Array) -> None:
    layout = decoder.layout
    tile_shape = stacked(layout)
    if tile_shape is not None and window.shape == layout.shape:
        numbers, rows = np.arange(layout.n_tiles), raw.reshape(layout.n_tiles, -1)
        # Only the compiled loops leave other threads alone.
        is_fast = layout.rice_fields is not None and rice.compiled_loops() is not None
        step = -(-layout.n_tiles // (worker_count(work=raw.nbytes) if is_fast else 1))
        if step == layout.n_tiles:
            decoder.decode(numbers, tile_shape, rows)
        else:  # a plane for several threads; each has working memory of its own
            parts = [slice(i, i + step) for i in range(0, layout.n_tiles, step)]
            in_threads(lambda part: copy.copy(decoder).decode(numbers[part], tile_shape, rows[part]), parts)
        return
    axis = tiled_axis(layout)
    whole = window.shape[axis + 1 :] == layout.shape[axis + 1 :] if axis is not None else False
    flat = raw.reshape(-1)
    # Tiles that follow one another in memory are decoded in place when the window cuts none of them.
    in_place = (
        whole
        and axis is not None
        and (window.shape[:axis] == layout.shape[:axis])
        and (axis == 0 or window.shape[axis] == layout.shape[axis])
    )
    origin = int(np.ravel_multi_index(window.start, layout.shape)) if in_place else 0
    for shape, numbers in batches(layout, window):
        n_pixels = math.prod(shape)
        target: Array | None = None
        if in_place:
            start = int(np.ravel_multi_index(place_of(layout, int(numbers[0])), layout.shape)) - origin
            stop = start + len(numbers) * n_pixels
            if start >= 0 and stop <= flat.size and follow(layout, numbers, n_pixels):
                target = flat[start:stop].reshape(len(numbers), n_pixels)
        if target is not None:
            decoder.decode(numbers, shape, target)
            continue
        values = np.empty((len(numbers), n_pixels), raw.dtype)
        decoder.decode(numbers, shape, values)
        for number, tile in zip(numbers.tolist(), values, strict=True):
            copy_tile(layout, window, number, tile.reshape(shape), raw)


def _scale(layout: TileLayout, raw: Array, out: Array, way: str) -> None:
    """Apply BZERO, BSCALE and BLANK as astropy does."""
    if way == "unsigned":
        np.copyto(out, raw, casting="unsafe")
        if out.dtype.kind == "u":
            out -= out.dtype.type(1 << (8 * out.dtype.itemsize - 1))
        else:
            out -= out.dtype.type(-128)
        return
    with np.errstate(all="ignore"):
        np.copyto(out, raw, casting="unsafe")
        if layout.bscale != 1:
            np.multiply(out, layout.bscale, out, casting="same_kind")
        if layout.bzero != 0:
            np.add(out, layout.bzero, out, casting="same_kind")
    # astropy 8 ignores a BLANK of 0.
    blank = layout.integer_blank()
    if blank:
        np.copyto(out, np.nan, where=raw == blank)
