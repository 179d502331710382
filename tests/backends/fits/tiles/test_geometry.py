"""Where the tiles of an image lie, against an image of numbered pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_reference import by_astropy

from wustore.backends.fits.tiles import TileLayout
from wustore.backends.fits.tiles.geometry import (
    batches,
    blocks,
    copy_tile,
    count_tiles,
    follow,
    gather,
    place_of,
    tiled_axis,
    window_of,
)
from wustore.errors import UsageError

IMAGE = np.arange(11 * 17, dtype=np.int32).reshape(11, 17)
LAYOUTS = {
    shape: TileLayout.from_cards(by_astropy(IMAGE, compression_type="GZIP_1", tile_shape=shape)[0])
    for shape in ((1, 17), (4, 17), (4, 5), (1, 6), (11, 17))
}
AXES: dict[Any, int | None] = {(1, 17): 0, (4, 17): 0, (4, 5): None, (1, 6): 1, (11, 17): 0}


def bounds(size: int) -> st.SearchStrategy[slice]:
    return st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda pair: slice(min(pair), max(pair)))


@settings(max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), bounds(11), bounds(17), st.integers(1, 60))
def test_the_tiles_of_a_window_make_it_up(shape: tuple[int, int], rows: slice, columns: slice, limit: int) -> None:
    """Each tile comes once, in batches of one shape that keep the limit, and no tile comes that is not needed."""
    layout = LAYOUTS[shape]
    window = window_of(layout, rows, columns)
    out, seen, pixels = np.full(window.shape, -1, np.int32), [], 0
    for tile_shape, numbers in batches(layout, window, limit=limit):
        assert len(numbers) == 1 or len(numbers) * math.prod(tile_shape) <= limit
        tiles = gather(layout, IMAGE, tile_shape, numbers)
        for number, tile in zip(numbers.tolist(), tiles, strict=True):
            before = out.copy()
            copy_tile(layout, window, number, tile.reshape(tile_shape), out)
            assert not np.array_equal(before, out)
        seen += numbers.tolist()
        pixels += tiles.size
    assert np.array_equal(out, IMAGE[rows, columns])
    if out.size:
        cost = count_tiles(layout, rows, columns)
        assert (cost.tiles, cost.pixels) == (len(set(seen)), pixels) == (len(seen), pixels)


@pytest.mark.parametrize("shape", LAYOUTS)
def test_tiles_that_follow_one_another(shape: tuple[int, int]) -> None:
    layout = LAYOUTS[shape]
    assert tiled_axis(layout) == AXES[shape]
    firsts = [IMAGE[place_of(layout, number)] for number in range(layout.n_tiles)]
    assert firsts == sorted(firsts) or AXES[shape] is None
    size = math.prod(layout.tile_shape)
    for first in range(layout.n_tiles - 1):
        side_by_side = firsts[first + 1] - firsts[first] == size
        assert follow(layout, np.array([first, first + 1]), size) == side_by_side
    assert not follow(layout, np.array([0, 2]), size)


def test_windows_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="no step"):
        window_of(LAYOUTS[4, 5], slice(0, 8, 2))
    assert window_of(LAYOUTS[4, 5], slice(5, 2), slice(3, 4)).shape == (0, 1)


def test_blocks_stay_within_the_cache() -> None:
    assert [(part.start, part.stop) for part in blocks(5, 30_000)] == [(0, 2), (2, 4), (4, 5)]
    assert len(list(blocks(3, 1 << 20))) == 3
