"""Tile codecs that only astropy has, reached through its public `CompImageHDU`.

HCOMPRESS in both directions, and every combination of options that the vectorised encoder does not know. The C code
behind HCOMPRESS keeps its reading position in global variables while astropy has let go of the interpreter lock, so two
threads would corrupt one another: one lock guards every call.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from wustore.errors import CorruptError, FormatError, UsageError

__all__ = ["decode_hcompress", "encode_hdu", "hcompress_is_plausible"]

_LOCK = threading.Lock()
_BLOCK = 2880
_HCOMPRESS_MAGIC = b"\xdd\x99"
_HCOMPRESS_HEADER = 25
#: Tiles are 16 rows of an image and need a few hundred kilobytes; 4096 x 4096 pixels in one tile fit still.
_LARGEST_MARGIN = 1 << 29


def encode_hdu(array: NDArray[Any], **options: Any) -> tuple[dict[str, Any], bytes]:
    """Let astropy compress an image; return the cards of the table and its data without padding.

    Parameters
    ----------
    options
        Arguments of `astropy.io.fits.CompImageHDU`.

    Raises
    ------
    UsageError
        astropy refuses the combination.
    """
    buffer = io.BytesIO()
    try:
        with _LOCK:
            hdus = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(array, **options)])
            hdus.writeto(buffer)
    except (ValueError, TypeError, OverflowError, IndexError) as error:
        raise UsageError(f"astropy does not compress this image: {error}") from error
    raw = buffer.getvalue()
    header = fits.Header.fromfile(io.BytesIO(raw[_BLOCK:]), endcard=True, padding=True)
    start = _BLOCK + -(-len(header.tostring(padding=False)) // _BLOCK) * _BLOCK
    size = header["NAXIS1"] * header["NAXIS2"] + header["PCOUNT"]
    cards: dict[str, Any] = {}
    for card in header.cards:
        cards.setdefault(card.keyword, card.value)
    return cards, raw[start : start + size]


def hcompress_is_plausible(tile: bytes, shape: tuple[int, int]) -> bool:
    """Tell whether the header of an HCOMPRESS tile is one that the decoder can be trusted with."""
    if len(tile) < _HCOMPRESS_HEADER or tile[:2] != _HCOMPRESS_MAGIC:
        return False
    sizes = (int.from_bytes(tile[2:6], "big", signed=True), int.from_bytes(tile[6:10], "big", signed=True))
    return sizes == shape and max(tile[22:25]) <= 63


def decode_hcompress(
    tiles: Sequence[bytes], shape: tuple[int, int], parameters: Sequence[tuple[str, Any]], names: Sequence[int]
) -> NDArray[np.int32]:
    """Decode HCOMPRESS tiles of one shape; return them as (tile, pixel).

    Parameters
    ----------
    shape
        Rows and columns of each tile.
    parameters
        Names and values of ZNAMEi and ZVALi (SCALE, SMOOTH).

    Raises
    ------
    CorruptError
        A tile does not decode.
    FormatError
        A tile is too large.
    """
    height, width = shape
    heap = bytearray()
    descriptors = np.zeros((len(tiles), 2), ">i4")
    for i, (tile, name) in enumerate(zip(tiles, names, strict=True)):
        if not hcompress_is_plausible(tile, shape):
            raise CorruptError("the HCOMPRESS tile has no valid header", where=f"tile {name}")
        # The decoder reads on without looking for the end: let each tile go on into the next ones, as far as its
        # bit planes could ask for. A plane takes at most 6 bits for each node of a quadtree, 3 bits a pixel where
        # it is narrowest.
        margin = max(tile[22:25]) * (height * width // 2 + 64) + 64
        if margin > _LARGEST_MARGIN or len(heap) + len(tile) > _LARGEST_MARGIN:
            raise FormatError(
                "the HCOMPRESS tile is too large to be decoded safely",
                where=f"tile {name}",
                expected=f"working space of at most {_LARGEST_MARGIN} bytes",
                found=margin,
            )
        descriptors[i] = len(tile) + margin, len(heap)
        heap += tile
    heap += bytes(int(descriptors.sum(axis=1).max()) - len(heap))
    header = fits.Header()
    for keyword, value in (
        ("XTENSION", "BINTABLE"),
        ("BITPIX", 8),
        ("NAXIS", 2),
        ("NAXIS1", 8),
        ("NAXIS2", len(tiles)),
        ("PCOUNT", len(heap)),
        ("GCOUNT", 1),
        ("TFIELDS", 1),
        ("TTYPE1", "COMPRESSED_DATA"),
        ("TFORM1", f"1PB({len(heap)})"),
        ("ZIMAGE", True),
        ("ZCMPTYPE", "HCOMPRESS_1"),
        ("ZBITPIX", 32),
        ("ZNAXIS", 2),
        ("ZNAXIS1", width),
        ("ZNAXIS2", height * len(tiles)),
        ("ZTILE1", width),
        ("ZTILE2", height),
    ):
        header[keyword] = value
    for i, (keyword, value) in enumerate(parameters, 1):
        header[f"ZNAME{i}"] = keyword
        header[f"ZVAL{i}"] = value
    body = descriptors.tobytes() + heap
    body += bytes(-len(body) % _BLOCK)
    primary = fits.PrimaryHDU().header.tostring().encode()
    raw = primary + header.tostring().encode() + body
    try:
        with _LOCK, fits.open(io.BytesIO(raw)) as hdus:
            image = np.asarray(hdus[1].data)
    except Exception as error:
        raise CorruptError(
            "an HCOMPRESS tile does not decode", where=f"tiles {names[0]} to {names[-1]}", found=str(error)
        ) from error
    return np.ascontiguousarray(image, np.int32).reshape(len(tiles), height * width)
