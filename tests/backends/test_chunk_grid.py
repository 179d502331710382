"""The grid of chunks: which cells boxes touch, and rectangles that cover them."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.backends.chunk_grid import chunks_touched, regular_grid

SHAPE = (5, 60, 53)


def spans(size):
    return st.integers(0, size - 1).flatmap(lambda a: st.integers(a + 1, size).map(lambda b: (a, b)))


@settings(max_examples=100)
@given(
    st.lists(st.tuples(spans(60), spans(53)), min_size=1, max_size=12),
    st.sampled_from([(1, 16, 16), (2, 1, 53), (3, 7, 11), (1, 60, 53), (1, 100, 100), (1, 1, 1)]),
)
def test_rectangles_cover_the_cells_of_boxes_once(boxes, chunks):
    """Of the outermost cells no more than boxes cover."""
    grid = regular_grid(SHAPE, chunks)
    height, width = (64, 64) if chunks == (1, 1, 1) else chunks[1:]
    expected = np.zeros(SHAPE[1:], int)
    for (top, bottom), (left, right) in boxes:
        expected[
            top // height * height : -(-bottom // height) * height, left // width * width : -(-right // width) * width
        ] = 1
    bounds = np.array(boxes).reshape(-1, 4).T
    top, bottom, left, right = bounds[0].min(), bounds[1].max(), bounds[2].min(), bounds[3].max()
    within = np.zeros_like(expected)
    within[top:bottom, left:right] = 1
    expected *= within
    covered = np.zeros(SHAPE[1:], int)
    hull, rectangles = grid.cover(*bounds)
    for rows, columns in rectangles:
        covered[rows, columns] += 1
    assert np.array_equal(covered, expected)
    assert hull == (top, bottom, left, right)


def test_images_share_rows_of_chunks():
    assert regular_grid(SHAPE, (2, 7, 9)).slabs.tolist() == [0, 0, 1, 1, 2]
    assert regular_grid(SHAPE, (1, 1, 1)).rows.tolist() == [0, 60]


def test_neighbours_are_one_rectangle():
    grid = regular_grid(SHAPE, (1, 10, 10))
    needed = np.zeros((6, 6), bool)
    needed[1:4, 2:5] = needed[5, 0] = True
    assert sorted(grid.rectangles(needed), key=str) == [
        (slice(10, 40), slice(20, 50)),
        (slice(50, 60), slice(0, 10)),
    ]


@given(st.lists(st.tuples(spans(5), spans(60), spans(53)), max_size=5), st.sampled_from([(1, 16, 16), (2, 1, 53)]))
def test_the_chunks_that_boxes_touch(bounds, chunk):
    boxes = [tuple(slice(*span) for span in box) for box in bounds]
    touched = [
        {
            tuple(k // side for k, side in zip(place, chunk, strict=True))
            for place in product(*(range(*span) for span in box))
        }
        for box in bounds
    ]
    assert chunks_touched(boxes, chunk) == sum(map(len, touched))
