"""Metadata survive the way into a document and named arrays, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wustore.errors import CorruptError, FormatError
from wustore.format.document import arrays_of, document_of, meta_from
from wustore.format.planes import layers_of
from wustore.model.checksum import plane_checksum
from wustore.model.compare import meta_differences
from wustore.testing import SAMPLES, sample


def stored(meta):
    document = json.loads(json.dumps(document_of(meta), allow_nan=False))
    arrays = {spec.name: spec for spec in arrays_of(meta)}
    return document, arrays


def reopened(document, arrays):
    return meta_from(document, lambda name: arrays[name].data, path="here")


@pytest.mark.parametrize("name", list(SAMPLES))
def test_round_trip(name):
    meta = sample(name).meta
    document, arrays = stored(meta)
    back = reopened(document, arrays)
    assert not list(map(str, meta_differences(meta, back)))
    assert dict(back.source) == dict(meta.source)
    assert back.history == meta.history


@pytest.mark.parametrize("name", list(SAMPLES))
def test_array_names_are_safe(name):
    _, arrays = stored(sample(name).meta)
    assert len({n.lower() for n in arrays}) == len(arrays)
    for spec in arrays.values():
        assert len(spec.dims) == spec.data.ndim
        assert all(part.replace("_", "a").isalnum() for part in spec.name.split("/"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": "other"}, FormatError),
        ({"version": "1"}, CorruptError),
        ({"n_images": 5}, CorruptError),
        ({"layers": None}, CorruptError),
        ({"n_constituents": 99}, FormatError),
        ({"constituents": {"columns": [{"name": "x"}]}}, CorruptError),
        ({"configuration": {"a": {"$what": 1}}}, CorruptError),
    ],
)
def test_damaged_document(change, error):
    document, arrays = stored(sample("rich").meta)
    with pytest.raises(error) as caught:
        reopened(document | change, arrays)
    assert caught.value.path == "here"


def test_links_out_of_range():
    document, arrays = stored(sample("simple").meta)
    arrays["link_index"].data[0] = 17
    with pytest.raises(FormatError, match="constituent"):
        reopened(document, arrays)


def test_flags_are_described():
    layer = next(spec for spec in layers_of(sample("flags").meta) if spec.name == "mask")
    assert layer.attributes["flag_masks"] == [1, 16]
    assert layer.attributes["flag_meanings"] == "BAD EDGE"


def test_checksum_is_of_little_endian_values():
    plane = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert plane_checksum(plane) == plane_checksum(plane.astype(">f4")) == plane_checksum(np.asfortranarray(plane))
    assert plane_checksum(plane) != plane_checksum(-plane)
    assert plane_checksum(np.frombuffer(b"123456789", np.uint8).reshape(3, 3)) == 0xE3069283  # RFC 3720, B.4
