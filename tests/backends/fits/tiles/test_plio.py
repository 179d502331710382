"""PLIO: pixel lists decode and encode as cfitsio does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tile_reference import assert_same, by_astropy

from wustore.backends.fits.tiles import (
    TileLayout,
    decode_plane,
    encode_plane,
    reencode_plane,
)
from wustore.backends.fits.tiles.plio import decode_plio, encode_plio
from wustore.errors import CorruptError, UsageError

pytestmark = pytest.mark.usefixtures("coder")


quickly = settings(max_examples=60)


@quickly
@given(seed=st.integers(0, 2**32), n=st.integers(1, 9000), largest=st.sampled_from([1, 2, 300, 2**23, 2**24]))
def test_plio(seed: int, n: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    array = np.repeat(rng.integers(0, largest, n), rng.integers(1, 6, n))[None, :n].astype(np.int32)
    # astropy's encoder has memory for two words a pixel, and such pixels may take three.
    array = np.concatenate((array, np.zeros_like(array)), axis=1)
    cards, data, values = by_astropy(array, compression_type="PLIO_1")
    layout = TileLayout.from_cards(cards)
    assert_same(decode_plane(layout, data), values)
    assert reencode_plane(layout, values) == data


@pytest.mark.parametrize("largest", [2, 5000, 2**24])
@pytest.mark.parametrize("n", [1, 2, 3, 50, 4095, 9000])
def test_pixels_that_all_differ(n: int, largest: int) -> None:
    """cfitsio's encoder writes beyond its memory (its issue 136)."""
    line = np.random.default_rng(n).integers(0, largest, n).astype(np.int32)
    words = encode_plio(line)
    assert words[:7].tolist() == [0, 7, -100, words.size % 2**15, words.size // 2**15, 0, 0]
    assert np.array_equal(decode_plio(words, n, 0), line)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([(0, 9)], [9]),
        ([(1, 9)], [0x4009]),
        ([(1, 1)], [0x4001]),
        ([(3, 1)], [0x6002]),  # two more, and one pixel
        ([(0, 7), (3, 1)], [0x2002, 0x5008]),
        ([(0, 7), (3, 2), (0, 4)], [0x2002, 0x0007, 0x4002, 4]),
        ([(3, 2), (1, 1), (2, 5000)], [0x2002, 0x4002, 0x7002, 0x2001, 0x4FFF, 0x4000 + 905]),
        ([(5000, 1), (0, 4096)], [0x1000 + 904, 1, 0x4001, 0x0FFF, 1]),
        ([(-5, 3), (1, 2)], [3, 0x4002]),
    ],
)
def test_words(runs: list[tuple[int, int]], expected: list[int]) -> None:
    line = np.concatenate([np.full(count, value, np.int32) for value, count in runs])
    assert encode_plio(line)[7:].tolist() == expected


@pytest.mark.parametrize(
    "pixels",
    [np.array([[1, pixel, 3]], kind) for pixel in (-1, 2**24) for kind in (np.int32, np.int64)]
    + [np.zeros((2, 3), np.float32), np.array([[2**63]], np.uint64)],
)
def test_pixels_that_do_not_fit(pixels: NDArray[Any]) -> None:
    with pytest.raises(UsageError, match="PLIO does not hold these pixels"):
        encode_plane(pixels, "PLIO_1")


def test_short_pixel_lists() -> None:
    for words in ([0], [0, 7, -100], [0, 7, -100, 9, 0, 0, 0, 5000], [0, -5, -100, 2, 0]):
        with pytest.raises(CorruptError):
            decode_plio(np.array(words, np.int16), 10, 0)
