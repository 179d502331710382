"""Planes encoded again give the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_reference import CLOCK, assert_same, by_astropy, plane, stopped

from wustore.backends.fits.tiles import (
    LOSSLESS,
    TileLayout,
    decode_integers,
    differing_tiles,
    quantize,
    reencode_plane,
    tile_bytes,
)
from wustore.backends.fits.tiles.gzip import GzipParameters, gzip_like_astropy
from wustore.backends.fits.tiles.layout import Table

pytestmark = pytest.mark.usefixtures("coder")


FLOAT_TYPES = ["RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS", "HCOMPRESS_1"]


quickly = settings(max_examples=60)


KINDS = ["noise", "bits", "constant", "huge", "wide", "denormal", "zeros", "infinite", "rows"]


@quickly
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    compression=st.sampled_from(FLOAT_TYPES),
    method=st.sampled_from([-1, 1, 2]),
    level=st.sampled_from([-0.01, 16.0, 0.0]),
)
def test_encoding_again(seed: int, kind: str, compression: str, method: int, level: float) -> None:
    if level == 0 and compression in ("RICE_1", "HCOMPRESS_1"):
        level = -0.01
    array = plane(seed, (12, 37), kind)
    cards, data, values = by_astropy(
        array, compression_type=compression, quantize_level=level, quantize_method=method, dither_seed=321
    )
    layout = TileLayout.from_cards(cards)
    data = stopped(layout, data)
    table = Table(layout, data)
    scale, zero = table.scalars("ZSCALE"), table.scalars("ZZERO")
    gzip_parameters = GzipParameters(gzip_like_astropy(b"", CLOCK)[:10])
    rebuilt = reencode_plane(layout, values, scale, zero, gzip=gzip_parameters)
    differing = differing_tiles(layout, data, rebuilt)
    assert (rebuilt == data) == (not differing)
    if kind in ("noise", "constant", "infinite", "rows") and method != 2:
        assert not differing
    kept = {number: tile_bytes(layout, data, number)[1] for number in differing}
    assert reencode_plane(layout, values, scale, zero, gzip=gzip_parameters, kept=kept) == data


def test_several_integers_with_one_value_need_corrections() -> None:
    array = np.full((3, 64), 1e6, np.float32) + np.arange(64, dtype=np.float32)
    array[:, 0] = 0
    cards, data, values = by_astropy(array, quantize_level=-0.001)
    layout = TileLayout.from_cards(cards)
    found = decode_integers(layout, data)
    assert found.scale is not None
    assert found.zero is not None
    rebuilt = reencode_plane(layout, values, found.scale, found.zero)
    guessed = np.empty(values.shape, np.int32)
    quantize.requantise(values, found.scale, found.zero, guessed)
    places = np.flatnonzero(guessed != found.integers)
    assert bool(len(places)) == (rebuilt != data)
    changes = (found.integers.astype(np.int64) - guessed).reshape(-1)[places]
    assert reencode_plane(layout, values, found.scale, found.zero, corrections=(places, changes)) == data


def test_integers_of_a_quantised_plane() -> None:
    array = plane(3, (10, 40), "rows")
    cards, data, values = by_astropy(array, quantize_level=-0.01)
    layout = TileLayout.from_cards(cards)
    found = decode_integers(layout, data)
    assert found.scale is not None
    assert found.zero is not None
    assert (found.kinds == np.where(found.scale == 0, LOSSLESS, 0)).all()
    floats = (found.integers * found.scale[:, None] + found.zero[:, None]).astype(np.float32)
    floats[found.integers == quantize.BLANK] = np.nan
    good = found.kinds == 0
    assert_same(floats[good], values[good])
