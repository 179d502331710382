"""Tile-compressed images (ZIMAGE binary tables), decoded and encoded a plane at a time.

Nothing here reads or writes files: functions take the bytes of one HDU and arrays. The format is section 10 of the
FITS standard 4.0; decoded values equal those of `astropy.io.fits.CompImageHDU.data` bit for bit, encoded bytes
equal those that astropy writes.

Tiles are handled in batches whose working copies stay in the second-level cache: arithmetic on a whole
plane at once costs three times as much, a tile at a time ten times as much.
"""

from __future__ import annotations

from wustore.backends.fits.tiles.decode import decode_plane, heap_ranges
from wustore.backends.fits.tiles.encode import EncodedPlane, encode_plane
from wustore.backends.fits.tiles.geometry import TileCount, count_tiles
from wustore.backends.fits.tiles.layout import COMPRESSED, LOSSLESS, UNCOMPRESSED, Column, TileLayout
from wustore.backends.fits.tiles.reencode import Integers, decode_integers, differing_tiles, reencode_plane, tile_bytes

__all__ = [
    "COMPRESSED",
    "LOSSLESS",
    "UNCOMPRESSED",
    "Column",
    "EncodedPlane",
    "Integers",
    "TileCount",
    "TileLayout",
    "count_tiles",
    "decode_integers",
    "decode_plane",
    "differing_tiles",
    "encode_plane",
    "heap_ranges",
    "reencode_plane",
    "tile_bytes",
]
