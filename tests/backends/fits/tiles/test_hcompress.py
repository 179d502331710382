"""Codecs that only astropy has: which tiles are handed to its C code, and what it does not take."""

from __future__ import annotations

import numpy as np
import pytest
from tile_reference import by_astropy

from wustore.backends.fits.tiles import TileLayout
from wustore.backends.fits.tiles.hcompress import decode_hcompress, encode_hdu, hcompress_is_plausible
from wustore.backends.fits.tiles.layout import Table
from wustore.errors import CorruptError, FormatError, UsageError

COUNTS = np.random.default_rng(2).integers(0, 500, (16, 24)).astype(np.int32)
SHAPE = 8, 24


def tiles_of() -> list[bytes]:
    cards, data, _ = by_astropy(COUNTS, compression_type="HCOMPRESS_1", tile_shape=SHAPE)
    layout = TileLayout.from_cards(cards)
    table = Table(layout, data)
    spans = table.spans("COMPRESSED_DATA", np.arange(layout.n_tiles))
    assert spans is not None
    return [table.heap[start:end].tobytes() for start, end in zip(*spans, strict=True)]


def test_tiles_decode_to_what_was_encoded() -> None:
    tiles = tiles_of()
    assert len(tiles) == 2
    assert all(hcompress_is_plausible(tile, SHAPE) for tile in tiles)
    assert np.array_equal(decode_hcompress(tiles, SHAPE, [], [0, 1]).reshape(COUNTS.shape), COUNTS)
    assert np.array_equal(decode_hcompress(tiles[::-1], SHAPE, [], [1, 0])[1], COUNTS[:8].ravel())


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 0), (5, 9), (9, 25), (2, 128), (22, 64), (23, 255)],
    ids=["magic", "rows", "columns", "negative", "bit planes", "more bit planes"],
)
def test_headers_that_are_not_trusted(place: int, value: int) -> None:
    good = tiles_of()[0]
    bad = good[:place] + bytes([value]) + good[place + 1 :]
    assert not hcompress_is_plausible(bad, SHAPE)
    with pytest.raises(CorruptError, match="no valid header") as raised:
        decode_hcompress([good, bad], SHAPE, [], [4, 7])
    assert raised.value.where == "tile 7"


def test_a_cut_header_and_another_shape() -> None:
    good = tiles_of()[0]
    assert not hcompress_is_plausible(good[:24], SHAPE)
    assert not hcompress_is_plausible(good, (24, 8))


def test_a_tile_that_could_ask_for_too_much_memory() -> None:
    side = 1 << 13
    head = b"\xdd\x99" + side.to_bytes(4, "big") * 2 + bytes(12) + bytes([63] * 3)
    with pytest.raises(FormatError, match="too large to be decoded safely"):
        decode_hcompress([head], (side, side), [], [0])


def test_what_astropy_does_not_compress() -> None:
    cards, data = encode_hdu(COUNTS, compression_type="HCOMPRESS_1", tile_shape=SHAPE)
    assert cards["ZCMPTYPE"] == "HCOMPRESS_1"
    assert len(data) == cards["NAXIS1"] * cards["NAXIS2"] + cards["PCOUNT"]
    with pytest.raises(UsageError, match="astropy does not compress this image"):
        encode_hdu(COUNTS, compression_type="HCOMPRESS_1", tile_shape=(1, 24))
