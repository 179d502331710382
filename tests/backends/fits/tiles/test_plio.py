"""PLIO: pixel lists decode as cfitsio decodes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tile_reference import assert_same, by_astropy

from wustore.backends.fits.tiles import (
    TileLayout,
    decode_plane,
    reencode_plane,
)
from wustore.backends.fits.tiles.plio import decode_plio
from wustore.errors import CorruptError

pytestmark = pytest.mark.usefixtures("coder")


quickly = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@quickly
@given(seed=st.integers(0, 2**32), n=st.integers(1, 9000), largest=st.sampled_from([1, 2, 300, 2**23]))
def test_plio(seed: int, n: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    array = np.repeat(rng.integers(0, largest, n), rng.integers(1, 6, n))[None, :n].astype(np.int32)
    cards, data, values = by_astropy(array, compression_type="PLIO_1")
    layout = TileLayout.from_cards(cards)
    assert_same(decode_plane(layout, data), values)
    assert reencode_plane(layout, values) == data


def test_short_pixel_lists() -> None:
    for words in ([0], [0, 7, -100], [0, 7, -100, 9, 0, 0, 0, 5000], [0, -5, -100, 2, 0]):
        with pytest.raises(CorruptError):
            decode_plio(np.array(words, np.int16), 10, 0)
