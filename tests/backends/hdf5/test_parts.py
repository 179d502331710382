"""Boxes and the parts of chunks that make them up."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.backends.hdf5.parts import parts_of


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=3), min_size=1, max_size=5
    ),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 13)),
)
def test_parts_make_up_the_boxes(sides: list[list[tuple[int, int]]], chunk: tuple[int, int, int]) -> None:
    values = np.arange(12**3).reshape(12, 12, 12)
    bounds = np.array([[sorted(axis) for axis in box] for box in sides], np.int64)
    grid = tuple(-(-12 // step) for step in chunk)
    parts, numbers = parts_of(bounds, chunk, grid)
    padded = np.full([n * step for n, step in zip(grid, chunk, strict=True)], -1)
    padded[:12, :12, :12] = values
    expected = [values[tuple(slice(*axis) for axis in box)].ravel() for box in bounds.tolist()]
    out = np.full(sum(box.size for box in expected), -2)
    touched = set()
    for k, source, target, nz, ny, nx, plane, row in parts.tolist():
        corner = [n * step for n, step in zip(np.unravel_index(numbers[k], grid), chunk, strict=True)]
        data = padded[tuple(slice(low, low + step) for low, step in zip(corner, chunk, strict=True))].ravel()
        touched.add(k)
        for z, y, x in np.ndindex(nz, ny, nx):
            out[target + z * plane + y * row + x] = data[source + (z * chunk[1] + y) * chunk[2] + x]
    assert out.tolist() == np.concatenate([*expected, []]).tolist()
    assert touched == set(range(numbers.size))
    assert (np.diff(numbers) > 0).all()
