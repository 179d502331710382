"""Rice-coded tiles: coded by compiled loops, or by cfitsio."""

from __future__ import annotations

from wustore.backends.fits.tiles.rice.coder import (
    MAXIMUM_BLOCK_SIZE,
    Encoded,
    Fields,
    Tiles,
    compiled_loops,
    decode_floats,
    decode_rows,
    encode_floats,
    encode_floats_again,
    encode_rows,
    room_for,
    size_limits,
)

__all__ = [
    "MAXIMUM_BLOCK_SIZE",
    "Encoded",
    "Fields",
    "Tiles",
    "compiled_loops",
    "decode_floats",
    "decode_rows",
    "encode_floats",
    "encode_floats_again",
    "encode_rows",
    "room_for",
    "size_limits",
]
