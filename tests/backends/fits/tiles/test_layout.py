"""What the header must say of tiles."""

from __future__ import annotations

import numpy as np
import pytest
from tile_reference import tables

from wustore.backends.fits.tiles import TileLayout, decode_plane
from wustore.errors import FormatError

pytestmark = pytest.mark.usefixtures("coder")


SAMPLES = tables()


def test_missing_cards_are_named() -> None:
    cards, _ = SAMPLES[0]
    for keyword in ("ZCMPTYPE", "ZBITPIX", "ZNAXIS", "ZNAXIS1", "NAXIS1", "NAXIS2", "TFIELDS", "TFORM1"):
        rest = {key: value for key, value in cards.items() if key != keyword}
        with pytest.raises(FormatError, match=keyword):
            TileLayout.from_cards(rest)
    with pytest.raises(FormatError, match="COMPRESSED_DATA"):
        TileLayout.from_cards(cards | {"TTYPE1": "OTHER"})
    with pytest.raises(FormatError, match=r"ZBITPIX.*-32 or -64"):  # quantised integers: astropy and cfitsio differ
        TileLayout.from_cards(cards | {"ZBITPIX": 16})
    with pytest.raises(FormatError, match="BLOCKSIZE"):
        TileLayout.from_cards(cards | {"ZVAL1": 0})


def test_names_of_columns_in_any_case() -> None:
    cards, table = SAMPLES[0]
    small = {key: value.lower() if key.startswith("TTYPE") else value for key, value in cards.items()}
    expected = decode_plane(TileLayout.from_cards(cards), table)
    np.testing.assert_array_equal(decode_plane(TileLayout.from_cards(small), table), expected)
