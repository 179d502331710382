"""Many boxes at once: the right values, exactly the chunks that are needed, each of them once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from chunked import Chunked
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.backends.boxes import read_boxes
from wustore.testing import sample

SOURCE = sample("chunked")
WHOLE = SOURCE.read("science", (slice(0, 3), slice(0, 600), slice(0, 530)))


def spans(size, longest):
    return st.integers(0, size - 1).flatmap(
        lambda a: st.integers(0, min(longest, size - a)).map(lambda n: slice(a, a + n))
    )


boxes = st.lists(st.tuples(spans(3, 3), spans(600, 90), spans(530, 90)), max_size=12)
chunk_shapes = st.sampled_from([(1, 256, 256), (1, 1, 530), (2, 64, 100), (1, 600, 530), (3, 7, 11)])


@settings(deadline=None, max_examples=60)
@given(boxes, chunk_shapes, st.sampled_from([1, 50_000, 10**9]), st.sampled_from([1, 3]))
def test_values_and_chunks(asked, chunk, read_bytes, workers):
    reader = Chunked(SOURCE, chunk)
    got = read_boxes(reader, "science", asked, read_bytes=read_bytes, workers=workers)
    assert len(got) == len(asked)
    for box, array in zip(asked, got, strict=True):
        assert array.flags.c_contiguous
        assert array.tobytes() == np.ascontiguousarray(WHOLE[box]).tobytes()
    needed = {cell for box in asked for cell in reader.cells(box)}
    assert reader.touched() == Counter(needed)


@settings(deadline=None, max_examples=30)
@given(boxes, st.sampled_from([256 * 256 * 4, 10**6]))
def test_reads_are_bounded(asked, read_bytes):
    reader = Chunked(SOURCE, (1, 64, 64))
    read_boxes(reader, "science", asked, read_bytes=read_bytes)
    sizes = [np.prod([part.stop - part.start for part in index]) * 4 for _, index in reader.asked]
    assert len(asked) == 1 or max(sizes, default=0) <= read_bytes


def test_neighbours_in_one_read():
    reader = Chunked(SOURCE, (1, 64, 64))
    reader.read_boxes("variance", [(slice(1, 2), slice(y, y + 3), slice(2, 200)) for y in range(0, 500, 2)])
    assert reader.asked == [("variance", (slice(1, 2), slice(0, 501), slice(2, 200)))]


def test_errors_come_through():
    class Broken(Chunked):
        def read(self, layer, index, out=None):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Broken(SOURCE, (1, 9, 9)).read_boxes("mask", [(slice(0, 1), slice(k, k + 1), slice(0, 1)) for k in range(50)])
