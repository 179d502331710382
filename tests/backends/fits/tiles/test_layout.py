"""What the header must say of tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tile_reference import by_astropy

from wustore.backends.fits.tiles import TileLayout, decode_plane
from wustore.errors import FormatError

pytestmark = pytest.mark.usefixtures("coder")


RNG = np.random.default_rng(8)


NOISE = RNG.normal(0, 5, (24, 40)).astype(np.float32)


NOISE[3, 4] = np.nan


NOISE[7] = np.inf


COUNTS = RNG.integers(0, 200, (24, 40))


OPTIONS: list[tuple[Any, dict[str, Any]]] = [
    (NOISE, {"compression_type": "RICE_1", "quantize_level": -0.01}),
    (NOISE, {"compression_type": "RICE_1", "quantize_level": 16, "quantize_method": 2, "dither_seed": 5}),
    (COUNTS.astype("u1"), {"compression_type": "RICE_1"}),
    (COUNTS.astype("i2"), {"compression_type": "RICE_1", "tile_shape": (7, 9)}),
    (NOISE, {"compression_type": "GZIP_1", "quantize_level": -0.01}),
    (NOISE, {"compression_type": "GZIP_2", "quantize_level": 0}),
    (NOISE, {"compression_type": "NOCOMPRESS", "quantize_level": 0}),
    (NOISE, {"compression_type": "HCOMPRESS_1", "quantize_level": -0.01}),
    (COUNTS.astype("i4"), {"compression_type": "PLIO_1"}),
]


SAMPLES = [by_astropy(array, **options)[:2] for array, options in OPTIONS]


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
