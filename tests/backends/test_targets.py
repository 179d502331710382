"""Where chunks go: any box, from any chunks of it at a time."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.backends.targets import _runs, _spans, targets_of

CHUNK = (4, 3)
PLANE = np.arange(20 * 12).reshape(20, 12)
CHUNKS = PLANE.reshape(5, 4, 4, 3).swapaxes(1, 2).reshape(20, 4, 3)
"""The chunks of the plane by number: 5 rows of 4."""


@pytest.mark.parametrize("rows", [(0, 20), (4, 12), (3, 18), (5, 7), (6, 9), (8, 20)])
@pytest.mark.parametrize("columns", [(0, 12), (3, 9), (2, 12), (0, 10), (4, 5), (5, 7)])
def test_any_box_from_any_chunks_at_a_time(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    expected = PLANE[slice(*rows), slice(*columns)]
    for step in (1, 2, 3, 4, 7, 20):
        out = np.zeros((expected.shape[0] + 2, expected.shape[1] + 2), int)
        inside = out[1:-1, 1:-1]
        targets = [*targets_of(CHUNK, 4, rows, columns, inside)]
        numbers = [number for target in targets for number in range(target.first, target.stop)]
        assert len(numbers) == len({*numbers}), "no chunk twice"
        for first in range(0, 20, step):
            for target in targets:
                target.take(first, min(first + step, 20), CHUNKS[first : first + step])
        assert np.array_equal(inside, expected)
        inside[...] = 0
        assert not out.any(), "nothing outside"


def test_memory_without_gaps() -> None:
    """Whole chunks that fill whole rows of an array need no copy; others do."""
    out = np.zeros((12, 3), "f4")
    (target,) = targets_of(CHUNK, 1, (0, 12), (0, 3), out)
    memory = target.memory(1, 3, CHUNK, out.dtype)
    assert memory is not None
    memory[:] = 1
    assert np.array_equal(out, [[0] * 3] * 4 + [[1] * 3] * 8)
    assert target.memory(1, 4, CHUNK, out.dtype) is None, "one more chunk than it has"
    assert target.memory(1, 3, CHUNK, np.dtype("f8")) is None
    (edge, _) = targets_of(CHUNK, 1, (1, 8), (0, 3), np.zeros((7, 3), "f4"))
    assert edge.memory(0, 1, CHUNK, out.dtype) is None, "part of a chunk"
    for across, array in ((2, np.zeros((4, 6), "f4")), (1, np.zeros((4, 6), "f4")[:, :3])):
        (target,) = targets_of(CHUNK, across, (0, 4), (0, array.shape[1]), array)
        assert target.memory(0, across, CHUNK, out.dtype) is None, "gaps"


@pytest.mark.parametrize("rows", [(0, 5), (1, 4), (2, 3)])
@pytest.mark.parametrize("columns", [(0, 4), (1, 3), (3, 4)])
def test_whole_chunks_in_one_piece_each(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """An array of chunks is memory without gaps, as far as the chunks follow each other."""
    expected = CHUNKS.reshape(5, 4, *CHUNK)[slice(*rows), slice(*columns)]
    bounds = [(start * side, stop * side) for (start, stop), side in zip((rows, columns), CHUNK, strict=True)]
    for step in (1, 3, 20):
        out = np.zeros(expected.shape, int)
        targets = targets_of(CHUNK, 4, *bounds, out)
        assert len(targets) == (1 if columns == (0, 4) else rows[1] - rows[0])
        for first in range(0, 20, step):
            for target in targets:
                target.take(first, min(first + step, 20), CHUNKS[first : first + step])
        assert np.array_equal(out, expected)
        for target in targets:
            memory = target.memory(target.first, target.stop, CHUNK, out.dtype)
            assert memory is not None
            assert np.array_equal(memory.reshape(-1, *CHUNK), CHUNKS[target.first : target.stop])


@pytest.mark.parametrize("side", [1, 3, 7, 20])
def test_spans_of_a_range(side: int) -> None:
    for start in range(12):
        for stop in range(12):
            taken = [
                (k * side + source.start + n, target.start + (k - first) * (source.stop - source.start) + n)
                for first, count, target, source in _spans(start, stop, side)
                for k in range(first, first + count)
                for n in range(source.stop - source.start)
                if target.stop - target.start == count * (source.stop - source.start) and source.stop <= side
            ]
            assert taken == [(start + n, n) for n in range(stop - start)]


def test_runs_of_a_box() -> None:
    """Whole rows of chunks are one run, other rows one each, and chunks at the edges of the box, too."""
    whole, first, last = slice(0, 10), slice(4, 10), slice(0, 3)
    assert _runs((10, 10), 4, (0, 30), (0, 40)) == [(0, 3, 4, (slice(0, 30), slice(0, 40)), (whole, whole))]
    assert _runs((10, 10), 4, (4, 33), (10, 30)) == [
        (1, 1, 2, (slice(0, 6), slice(0, 20)), (first, whole)),
        (5, 1, 2, (slice(6, 16), slice(0, 20)), (whole, whole)),
        (9, 1, 2, (slice(16, 26), slice(0, 20)), (whole, whole)),
        (13, 1, 2, (slice(26, 29), slice(0, 20)), (last, whole)),
    ]
    assert _runs((10, 10), 2, (0, 20), (4, 13)) == [
        (0, 1, 1, (slice(0, 10), slice(0, 6)), (whole, first)),
        (2, 1, 1, (slice(10, 20), slice(0, 6)), (whole, first)),
        (1, 1, 1, (slice(0, 10), slice(6, 9)), (whole, last)),
        (3, 1, 1, (slice(10, 20), slice(6, 9)), (whole, last)),
    ]
    assert _runs((10, 10), 2, (5, 5), (0, 20)) == []
