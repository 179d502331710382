"""A lazy layer answers subscripts as numpy does, and reads no more than it must."""

from __future__ import annotations

import pickle
import uuid

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wustore.backends.memory import MemoryBackend, MemoryReader
from wustore.ops.copy import copy
from wustore.stamps.layer import Layer
from wustore.storage.threads import read_ahead
from wustore.testing import sample


class Recording(MemoryReader):
    def __init__(self, source):
        super().__init__(source.meta, [source.image(i) for i in range(source.meta.n_images)])
        self.asked = []

    def read(self, layer, index, out=None):
        self.asked.append(index)
        return super().read(layer, index, out)


READER = Recording(sample("ragged"))
LAYER = Layer(READER, "science")
ARRAY = LAYER[...]

sizes = ARRAY.shape
part = lambda n: st.integers(-n, n - 1) | st.slices(n)  # noqa: E731
keys = st.one_of(
    st.tuples(part(sizes[0])),
    st.tuples(part(sizes[0]), part(sizes[1])),
    st.tuples(part(sizes[0]), part(sizes[1]), part(sizes[2])),
    st.tuples(st.just(...), part(sizes[2])),
    st.tuples(part(sizes[0]), st.just(...), part(sizes[2])),
    st.tuples(st.lists(st.integers(-sizes[0], sizes[0] - 1)), part(sizes[1]), part(sizes[2])),
)


@given(keys)
def test_as_numpy(key):
    # numpy broadcasts a list with integers beside it; the layer takes each axis by itself.
    listed = isinstance(key[0], list)
    expected = ARRAY[np.array(key[0], dtype=int)][(slice(None), *key[1:])] if listed else ARRAY[key]
    got = LAYER[key if len(key) > 1 else key[0]]
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert got.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_one_request_for_one_subscript():
    READER.asked.clear()
    LAYER[1:3, 5:200:7, 3]
    assert READER.asked == [(slice(1, 3), slice(5, 195), slice(3, 4))]


def test_empty_subscript_reads_nothing():
    READER.asked.clear()
    assert LAYER[2:2].shape == (0, *sizes[1:])
    assert READER.asked == []


@pytest.mark.parametrize(
    "key", [10, (0, 10**6), (0, 0, 0, 0), "a", (0, [1, 2]), (True,), 1.5, (..., ...), [[0, 1]], np.zeros(9, bool)]
)
def test_refused(key):
    with pytest.raises(IndexError):
        LAYER[key]


def test_boolean_index_on_time():
    chosen = np.array([True, False, False, True])
    assert LAYER[chosen, 2, 1:3].tobytes() == ARRAY[chosen, 2, 1:3].tobytes()


def test_array_protocol():
    assert np.asarray(LAYER).tobytes() == ARRAY.tobytes()
    assert np.asarray(LAYER, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copies"):
        np.array(LAYER, copy=False)


@pytest.fixture
def stored():
    path = f"ram:{uuid.uuid4().hex}"
    source = sample("simple")
    copy(source, MemoryBackend().create(path, source.meta))
    yield MemoryBackend().open(path)
    MemoryBackend().remove(path)


def test_pickles_by_address(stored):
    layer = Layer(stored, "variance")
    text = pickle.dumps(layer)
    assert len(text) < 1000
    assert pickle.loads(text)[1].tobytes() == layer[1].tobytes()


def test_dask(stored):
    layer = Layer(stored, "mask")
    array = layer.dask()
    assert array.chunks == ((1, 1, 1), (11,), (13,))
    with dask.config.set(scheduler="threads"):
        assert np.array_equal(array[:, 2:5].sum(axis=0).compute(), layer[:, 2:5].sum(axis=0))
    assert array.name == Layer(stored, "mask").dask().name
    assert array.name != Layer(stored, "science").dask().name
    assert dask.base.tokenize(layer) == dask.base.tokenize(Layer(stored, "mask"))


def test_read_ahead_is_bounded_and_ordered():
    started = []

    def fetch(i):
        started.append(i)
        return i * i

    stream = read_ahead(fetch, range(100), workers=3)
    first = [next(stream) for _ in range(5)]
    assert first == [(i, i * i) for i in range(5)]
    assert len(started) <= 5 + 4
    stream.close()


def test_read_ahead_raises_in_order():
    def fetch(i):
        if i == 2:
            raise OSError("no")
        return i

    stream = read_ahead(fetch, range(5), workers=2)
    assert next(stream)[0] == 0
    assert next(stream)[0] == 1
    with pytest.raises(OSError, match="no"):
        next(stream)


def test_layers_show_themselves():
    layer = Layer(sample("chunked"), "science")
    lines = repr(layer).splitlines()
    assert lines[0] == "Layer science, not read"
    assert "3 images, 600 rows, 530 columns" in lines[1]
    assert len(lines) == 6
    assert layer._repr_html_().count("data:image/png") == 1
