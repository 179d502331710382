"""Rice-coded tiles: how large they can be, where they lie, and ends that come too early."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.backends.fits.tiles.rice import coder as rice
from wustore.errors import CorruptError

BLOCK = 32


def rows(kind: str, n: int = 100) -> NDArray[np.integer]:
    limits, rng = np.iinfo(kind), np.random.default_rng(4)
    return np.stack(
        [
            np.zeros(n, kind),
            np.full(n, limits.max, kind),
            np.resize(np.array([limits.min, limits.max], kind), n),
            rng.integers(limits.min, limits.max, n, kind, endpoint=True),
            rng.normal(100, 3, n).astype(kind),
        ]
    )


def tiles_of(coded: list[bytes], gap: int = 0) -> rice.Tiles:
    heap = np.frombuffer(b"".join(tile + bytes(gap) for tile in coded), np.uint8)
    sizes = np.array([len(tile) for tile in coded])
    ends = np.cumsum(sizes + gap) - gap
    return rice.Tiles(heap, ends - sizes, ends, np.arange(len(coded)) + 10, BLOCK)


@pytest.mark.parametrize("kind", ["u1", "i2", "i4"])
@pytest.mark.parametrize("gap", [0, 3, 100_000])
def test_what_was_coded_comes_back_and_keeps_the_limits(kind: str, gap: int) -> None:
    values = rows(kind)
    coded = rice.encode_rows(values, BLOCK)
    fewest, most = rice.size_limits(values.shape[1], values.itemsize, BLOCK)
    assert min(map(len, coded)) == fewest  # zeros
    assert fewest < max(map(len, coded)) <= most
    found = np.zeros_like(values)
    rice.decode_rows(tiles_of(coded, gap), found)
    assert np.array_equal(found, values)


@pytest.mark.parametrize("kind", ["u1", "i2", "i4"])
def test_a_tile_that_ends_early_is_named(kind: str) -> None:
    """However much of the next tile follows it."""
    values = rows(kind)
    coded = rice.encode_rows(values, BLOCK)
    whole = tiles_of(coded)
    ends = whole.ends.copy()
    ends[3] -= 8
    cut = rice.Tiles(whole.heap, whole.starts, ends, whole.names, BLOCK)
    with pytest.raises(CorruptError, match="does not decode") as raised:
        rice.decode_rows(cut, np.zeros_like(values))
    assert raised.value.where == "tile 13"


def test_tiles_far_apart_are_not_copied_in_one_piece() -> None:
    coded = rice.encode_rows(rows("i4"), BLOCK)
    near, far = tiles_of(coded, 3), tiles_of(coded, 1 << 20)
    copied = near.copied(8)
    assert copied is not None
    memory, (starts, ends) = copied
    assert [memory[a:b].tobytes() for a, b in zip(starts, ends, strict=True)] == coded
    assert memory[-8:].tolist() == [255] * 8
    assert far.copied(8) is None
    padded = near.padded(0)
    assert padded is not None
    assert padded[0] is near.heap  # it goes on that far
