"""One HDU as a recipe: what it takes, besides the pixels of a layer, to write its bytes again.

`record` finds the shortest recipe that works and proves it by running it; `rebuild` runs it. Whatever cannot be
regenerated is kept: differing tiles, differing bytes, or the whole data.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.hdu.header import BLOCK, Header
from wustore.backends.fits.hdu.scan import header_end
from wustore.backends.fits.tiles import (
    COMPRESSED,
    LOSSLESS,
    UNCOMPRESSED,
    TileLayout,
    differing_tiles,
    reencode_plane,
)
from wustore.backends.fits.tiles.dtypes import PIXEL_TYPES, big_endian_bytes, to_stored
from wustore.backends.fits.tiles.gzip import GzipParameters, recognise_gzip
from wustore.errors import CorruptError, WuStoreError

__all__ = ["Recipe", "rebuild", "record"]

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview

_MOST_PATCHES = 16
"""Up to one byte of this many may be patched; more, and keeping the data whole is as short."""

_TILE_COLUMNS = ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA", "UNCOMPRESSED_DATA")
_GZIP_HEADER = 10


@dataclass
class Recipe:
    """How to write one HDU.

    Attributes
    ----------
    control
        JSON: lengths, method and its small parameters.
    header
        The cards, without the blanks behind END that complete the block.
    blobs
        Bytes that the method needs, in the order in which it takes them.
    """

    control: dict[str, Any]
    header: bytes
    blobs: list[bytes] = field(default_factory=list)


class _Blobs:
    """Blobs being taken in order; a missing one is damage."""

    def __init__(self, blobs: list[bytes]) -> None:
        self._blobs = iter(blobs)

    def take(self) -> bytes:
        try:
            return next(self._blobs)
        except StopIteration:
            raise CorruptError("the FITS capsule is damaged", where="recipe", found="too few parts") from None


# --- columns of numbers -------------------------------------------------------------------------------


def _shuffled(values: Array) -> bytes:
    """Return little-endian bytes sorted by significance, which compress better."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return little.view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _unshuffled(data: bytes, kind: str) -> Array:
    dtype = np.dtype(kind).newbyteorder("<")
    columns = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(columns.T).view(dtype).reshape(-1).astype(dtype.newbyteorder("="))


def _pack(values: Array, blobs: list[bytes]) -> Any:
    """Append a column to the blobs; a constant one goes into the control (as hexadecimal bits)."""
    kind = values.dtype.newbyteorder("=").str[1:]
    if len(values) and (values.view(f"u{values.dtype.itemsize}") == values.view(f"u{values.dtype.itemsize}")[0]).all():
        return [kind, len(values), values[:1].astype(values.dtype.newbyteorder("<")).tobytes().hex()]
    blobs.append(_shuffled(values))
    return [kind]


def _unpack(entry: Any, blobs: _Blobs, longest: int) -> Array:
    kind = {"f8": "f8", "i8": "i8", "i4": "i4", "u1": "u1", "u2": "u2"}[entry[0]]
    if len(entry) == 1:
        return _unshuffled(blobs.take(), kind)
    if not 0 <= entry[1] <= longest:
        raise CorruptError("the FITS capsule is damaged", where="column", expected=longest, found=entry[1])
    value = np.frombuffer(bytes.fromhex(entry[2]), np.dtype(kind).newbyteorder("<"))
    return np.full(entry[1], value[0], kind)


def _multiples(scale: NDArray[np.float64], zero: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Return zero / scale if that is a whole number everywhere: cfitsio's quantiser makes it so."""
    used = scale != 0
    with np.errstate(all="ignore"):
        counts = np.where(used, np.rint(zero / np.where(used, scale, 1)), 0)
        if not (np.abs(counts) < 2**53).all():
            return None
        again = np.where(used, counts * scale, 0.0)
    if again.tobytes() != zero.tobytes():
        return None
    return counts.astype(np.int64)


# --- tiles --------------------------------------------------------------------------------------------


class _Table:
    """The main table of a tile-compressed image: which column holds each tile, and where."""

    def __init__(self, layout: TileLayout, data: Buffer) -> None:
        self.layout = layout
        self.data = memoryview(data)
        n = layout.n_tiles
        cells = np.frombuffer(self.data[: layout.row_size * n], np.uint8)
        self.cells = cells.reshape(n, layout.row_size)
        self.kinds = np.zeros(n, np.uint8)
        self.starts = np.zeros(n, np.int64)
        self.sizes = np.zeros(n, np.int64)
        for kind in (UNCOMPRESSED, LOSSLESS, COMPRESSED):
            column = layout.column(_TILE_COLUMNS[kind])
            if column is None:
                continue
            width = 8 if column.form == "Q" else 4
            pairs = self._column(column.offset, f">i{width}", 2).reshape(n, 2).astype(np.int64)
            held = pairs[:, 0] > 0
            if held.all():
                self.kinds[:], self.sizes, self.starts = kind, pairs[:, 0] * column.item_size, pairs[:, 1]
            elif held.any():
                self.kinds[held] = kind
                self.sizes[held] = pairs[held, 0] * column.item_size
                self.starts[held] = pairs[held, 1]
        self.starts = self.starts + layout.heap_start

    def _column(self, offset: int, kind: str, count: int = 1) -> Array:
        width = np.dtype(kind).itemsize * count
        return np.ascontiguousarray(self.cells[:, offset : offset + width]).view(kind).reshape(-1)

    def numbers(self, name: str) -> Array | None:
        column = self.layout.column(name)
        if column is None:
            return None
        kind = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}[column.form]
        values = self._column(column.offset, kind)
        return values.astype(np.float64 if column.form in "ED" else np.int64)

    def tile(self, number: int) -> bytes:
        start = int(self.starts[number])
        return bytes(self.data[start : start + int(self.sizes[number])])


def _default_kinds(scale: NDArray[np.float64] | None, n_tiles: int) -> NDArray[np.uint8]:
    kinds = np.zeros(n_tiles, np.uint8)
    if scale is not None:
        kinds[scale == 0] = LOSSLESS
    return kinds


def _gzip_parameters(
    table: _Table, streams: NDArray[np.int64]
) -> tuple[list[GzipParameters], NDArray[np.uint16]] | None:
    """Return the different parameters of gzip tiles, and which of them each has.

    The settings of zlib are found from the first tile; the wrapper's header, which carries the writer's
    clock, is taken from each.
    """
    found = next((p for number in streams[:3].tolist() if (p := recognise_gzip(table.tile(number)))), None)
    if found is None or len(found.header) != _GZIP_HEADER:
        return None
    headers: dict[bytes, int] = {}
    which = np.zeros(len(streams), np.uint16)
    for k, number in enumerate(streams.tolist()):
        start = int(table.starts[number])
        header = bytes(table.data[start : start + _GZIP_HEADER])
        which[k] = headers.setdefault(header, min(len(headers), 0xFFFF))
    settings = found.level, found.memory_level, found.strategy, found.window_bits
    return [GzipParameters(header, *settings) for header in headers], which


def _record_tiles(header: Header, data: Buffer, plane: Array) -> tuple[Any, list[bytes], Buffer] | None:
    """Return control, blobs and the regenerated data of a tile-compressed image; None if it does not work."""
    layout = TileLayout.from_cards(header)
    if layout.data_size > len(data):
        return None
    table = _Table(layout, data)
    blobs: list[bytes] = []
    control: dict[str, Any] = {}
    scale, zero, zblank = table.numbers("ZSCALE"), table.numbers("ZZERO"), table.numbers("ZBLANK")
    if scale is not None and zero is not None:
        control["scale"] = _pack(scale, blobs)
        counts = _multiples(scale, zero)
        if counts is None:
            control["zero"] = _pack(zero, blobs)
        else:
            small = np.abs(counts).max(initial=0) < 2**31
            control["steps"] = _pack(counts.astype(np.int32) if small else counts, blobs)
    if zblank is not None:
        control["zblank"] = _pack(zblank, blobs)
    kinds = table.kinds
    if (kinds != _default_kinds(scale, layout.n_tiles)).any():
        control["kinds"] = _pack(kinds, blobs)
    zipped = kinds == LOSSLESS
    if layout.compression in ("GZIP_1", "GZIP_2"):
        zipped = zipped | (kinds == COMPRESSED)
    streams = np.flatnonzero(zipped & (table.sizes > 0))
    gzip: dict[int, GzipParameters] | None = None
    if streams.size and (recognised := _gzip_parameters(table, streams)) is not None:
        parameters, which = recognised
        settings = parameters[0]
        control["gzip"] = [settings.level, settings.memory_level, settings.strategy, settings.window_bits]
        blobs.append(b"".join(p.header for p in parameters))
        control["headers"] = _pack(which, blobs)
        gzip = {int(n): parameters[k] for n, k in zip(streams.tolist(), which.tolist(), strict=True)}
    kept: dict[int, bytes] = {}
    arguments = (layout, plane, scale, zero)
    rebuilt = reencode_plane(*arguments, kinds=kinds, zblank=zblank, gzip=gzip)
    if not _equal(data, rebuilt):
        different = differing_tiles(layout, data, rebuilt)
        if different:
            kept = {number: table.tile(number) for number in different}
            numbers = np.array(different, np.int32)
            control["kept"] = _pack(numbers, blobs)
            control["sizes"] = _pack(np.array([len(kept[n]) for n in different], np.int32), blobs)
            blobs.append(b"".join(kept.values()))
            rebuilt = reencode_plane(*arguments, kinds=kinds, zblank=zblank, gzip=gzip, kept=kept)
    return control, blobs, rebuilt


def _rebuild_tiles(header: Header, control: dict[str, Any], blobs: _Blobs, plane: Array) -> Buffer:
    layout = TileLayout.from_cards(header)
    n = layout.n_tiles
    if n > plane.size:
        raise CorruptError("the FITS capsule is damaged", where="tiles", expected=f"at most {plane.size}", found=n)
    scale = zero = zblank = kinds = gzip = None
    kept: dict[int, bytes] = {}
    if "scale" in control:
        scale = _unpack(control["scale"], blobs, n)
        if "steps" in control:
            with np.errstate(all="ignore"):
                zero = np.where(scale != 0, _unpack(control["steps"], blobs, n) * scale, 0.0)
        else:
            zero = _unpack(control["zero"], blobs, n)
    if "zblank" in control:
        zblank = _unpack(control["zblank"], blobs, n)
    if "kinds" in control:
        kinds = _unpack(control["kinds"], blobs, n)
    if "gzip" in control:
        headers = blobs.take()
        settings = [int(value) for value in control["gzip"]]
        parameters = [
            GzipParameters(headers[k : k + _GZIP_HEADER], *settings) for k in range(0, len(headers), _GZIP_HEADER)
        ]
        which = _unpack(control["headers"], blobs, n)
        known = _default_kinds(scale, n) if kinds is None else kinds
        zipped = known == LOSSLESS
        if layout.compression in ("GZIP_1", "GZIP_2"):
            zipped = zipped | (known == COMPRESSED)
        # Tiles without bytes (none is known to be written) have no entry; they come out as kept tiles.
        streams = np.flatnonzero(zipped)
        gzip = {int(s): parameters[int(k)] for s, k in zip(streams.tolist(), which.tolist(), strict=False)}
    if "kept" in control:
        numbers, sizes = _unpack(control["kept"], blobs, n), _unpack(control["sizes"], blobs, n)
        content = blobs.take()
        ends = np.cumsum(sizes, dtype=np.int64)
        kept = {
            int(k): content[int(end - size) : int(end)]
            for k, size, end in zip(numbers.tolist(), sizes.tolist(), ends.tolist(), strict=True)
        }
    return reencode_plane(layout, plane, scale, zero, kinds=kinds, zblank=zblank, gzip=gzip, kept=kept)


# --- plain images -------------------------------------------------------------------------------------


def _plain_data(header: Header, plane: Array) -> Buffer:
    """Return the data of an uncompressed image, as far as its pixels determine them."""
    bitpix = header.integer("BITPIX", allowed=PIXEL_TYPES)
    scale, zero = header.number("BSCALE", 1), header.number("BZERO", 0)
    if plane.dtype.kind != "f" or (scale, zero) == (1, 0):
        pixels, stored, offset = to_stored(np.ascontiguousarray(plane))
        if stored == bitpix and scale == 1 and zero == offset:
            return big_endian_bytes(pixels)
    # BSCALE, BZERO and BLANK were applied: undo them; what rounds to another number is patched afterwards.
    kind = np.dtype(PIXEL_TYPES[bitpix])
    with np.errstate(all="ignore"):
        numbers = (plane.astype(np.float64) - float(zero)) / float(scale)
        if kind.kind != "f":
            limits = np.iinfo(kind)
            blank = float(header.blank or 0)
            numbers = np.clip(np.where(np.isnan(numbers), blank, np.rint(numbers)), limits.min, limits.max)
        return numbers.astype(kind).tobytes()


# --- any HDU ------------------------------------------------------------------------------------------


_COMPARED = 1 << 23
"""Bytes compared at a time: most planes in one call, and little memory for the result."""


def _equal(data: Buffer, rebuilt: Buffer) -> bool:
    """Return whether bytes are the same; Python compares a memoryview one by one, 20 times as slowly."""
    if len(data) != len(rebuilt):
        return False
    words = len(data) // 8 * 8
    true, made = np.frombuffer(data, np.uint8), np.frombuffer(rebuilt, np.uint8)
    pieces = [
        (true[k : min(k + _COMPARED, words)], made[k : min(k + _COMPARED, words)]) for k in range(0, words, _COMPARED)
    ]
    same = all(np.array_equal(a.view(np.uint64), b.view(np.uint64)) for a, b in pieces)
    return same and np.array_equal(true[words:], made[words:])


def _patches(data: Buffer, rebuilt: Buffer) -> tuple[Array, bytes] | None:
    """Return positions and true bytes if the two differ; None if they are too many."""
    if len(rebuilt) != len(data):
        return None
    true = np.frombuffer(data, np.uint8)
    positions = np.flatnonzero(true != np.frombuffer(rebuilt, np.uint8))
    if len(positions) * _MOST_PATCHES > len(data):
        return None
    return positions, true[positions].tobytes()


def record(header: Header, head: bytes, data: Buffer, data_length: int, plane: Array | None) -> Recipe:
    """Find the recipe of an HDU and prove it.

    Parameters
    ----------
    head
        The bytes of the header, padding included.
    data
        The bytes of the data, padding included.
    data_length
        Bytes without the padding.
    plane
        The pixels that will be at hand when it is rebuilt; None if the HDU holds no layer.
    """
    true = memoryview(data)[:data_length]
    text = head.rstrip(b" ")
    if -len(text) % BLOCK != len(head) - len(text):
        text = head
    control: dict[str, Any] = {"header": len(head), "data": data_length, "all": len(head) + len(data)}
    recipe = Recipe(control, text)
    made = None if plane is None else _regenerated(header, true, plane)
    if made is None:
        control["method"] = "kept"
        recipe.blobs.append(bytes(true))
    else:
        control["method"], parameters, blobs, rebuilt = made
        if parameters:
            control["with"] = parameters
        recipe.blobs += blobs
        if not _equal(true, rebuilt):
            patches = _patches(true, rebuilt)
            if patches is None:
                control["method"] = "kept"
                control.pop("with", None)
                recipe.blobs = [bytes(true)]
            else:
                steps = np.diff(patches[0], prepend=0)
                control["patch"] = _pack(steps.astype(np.int64), recipe.blobs)
                recipe.blobs.append(patches[1])
    tail = bytes(memoryview(data)[data_length:])
    if tail.strip(b"\0"):
        control["tail"] = True
        recipe.blobs.append(tail)
    control["crc"] = zlib.crc32(data, zlib.crc32(head))
    return recipe


def _regenerated(header: Header, true: memoryview, plane: Array) -> tuple[str, Any, list[bytes], Buffer] | None:
    try:
        if header.get("ZIMAGE") is True:
            tiled = _record_tiles(header, true, plane)
            return None if tiled is None else ("tiles", *tiled)
        return "plain", None, [], _plain_data(header, plane)
    except (WuStoreError, ArithmeticError, ValueError, LookupError, TypeError):
        return None  # not a form that can be regenerated: the data is kept


def rebuild(recipe: Recipe, plane: Array | None) -> bytes:
    """Return the bytes of the HDU, padding included.

    Raises
    ------
    CorruptError
        The recipe is damaged.
    """
    control, blobs = recipe.control, _Blobs(recipe.blobs)
    missing = control["header"] - len(recipe.header)
    if not 0 <= missing < BLOCK:
        raise CorruptError("the FITS capsule is damaged", where="header", found=missing)
    head = recipe.header + b" " * missing
    end = header_end(head, 0, len(head))  # what follows the END card is no card, whatever it looks like
    if end < 0:
        raise CorruptError("the FITS capsule is damaged", where="header", expected="END")
    header = Header(head[:end].decode("latin-1"))
    method, parameters = control["method"], control.get("with", {})
    data: Buffer
    if method == "kept":
        data = blobs.take()
    elif plane is None:
        raise CorruptError("the FITS capsule needs a layer that the store does not have", where=method)
    elif method == "tiles":
        data = _rebuild_tiles(header, parameters, blobs, plane)
    elif method == "plain":
        data = _plain_data(header, plane)
    else:
        raise CorruptError("the FITS capsule is damaged", where="recipe", found=method)
    if "patch" in control:
        changed = np.frombuffer(bytearray(data), np.uint8)
        positions = np.cumsum(_unpack(control["patch"], blobs, len(data)))
        changed[positions] = np.frombuffer(blobs.take(), np.uint8)
        data = changed.tobytes()
    behind = control["all"] - control["header"] - len(data)
    tail = blobs.take() if control.get("tail") else bytes(max(0, min(behind, BLOCK)))
    return b"".join((head, data, tail))
