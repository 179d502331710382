"""Metadata documents, arrays of one chunk, and the checksums of the root document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numcodecs import Zstd

from wustore.backends.zarr.backend import ZarrBackend
from wustore.backends.zarr.filters.decode import DamagedChunk, with_crc
from wustore.backends.zarr.metadata import (
    chunk_key,
    decode_small,
    document_checksum,
    encode_small,
    is_node_name,
    packed_checksum,
    separator_of,
    small_metadata,
    to_json,
)
from wustore.errors import CorruptError
from wustore.format.arrays import ArraySpec
from wustore.model.meta import object_array
from wustore.ops.copy import copy
from wustore.testing import sample


def spec(data: np.ndarray) -> ArraySpec:
    return ArraySpec("x", data, tuple(f"d{k}" for k in range(data.ndim)))


@pytest.mark.parametrize(
    "data",
    [
        np.arange(6, dtype="i8").reshape(2, 3),
        np.array([np.nan, -0.0, np.inf]),
        np.array([True, False]),
        object_array(["", "é", "a" * 300]),
        np.empty((0, 4), "f4"),
    ],
    ids=["numbers", "floats", "booleans", "text", "empty"],
)
def test_an_array_of_one_chunk(data: np.ndarray) -> None:
    metadata, raw = small_metadata(spec(data)), encode_small(data)
    found = decode_small(metadata, raw)
    assert found is not None
    assert (found.dtype, found.shape, found.tolist().__repr__()) == (data.dtype, data.shape, data.tolist().__repr__())
    if raw is not None:
        flipped = bytes([raw[0] ^ 1]) + raw[1:]
        for damaged in (None, b"", raw[:-1], flipped):
            with pytest.raises(DamagedChunk):
                decode_small(metadata, damaged)


def test_texts_that_are_none_under_a_right_checksum() -> None:
    """Cut and changed at every byte, as whoever can compute a checksum may: a text, or our error."""
    texts = object_array(["", "é", "abc"])
    metadata, raw = small_metadata(spec(texts)), encode_small(texts)
    assert raw is not None
    stored = Zstd().decode(raw[:-4])
    forged = [stored[:n] for n in range(len(stored))] + [stored + b"x"]
    forged += [
        stored[:n] + bytes([value]) + stored[n + 1 :] for n in range(len(stored)) for value in (0, 1, 0x80, 0xFF)
    ]
    refused = 0
    for content in forged:
        try:
            found = decode_small(metadata, with_crc(bytes(Zstd().encode(content))))
        except DamagedChunk:
            refused += 1
        else:
            assert found is not None
            assert [type(text) for text in found] == [str] * 3
    assert refused > len(stored) * 3


def test_what_others_chunk_is_left_to_zarr() -> None:
    metadata = small_metadata(spec(np.arange(6)))
    metadata["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": [3]}}
    assert decode_small(metadata, b"") is None


@pytest.mark.parametrize("separator", ["\0", "\ud800", "", "..", "/../", 7, None, ["."]])
def test_separators_that_are_none(separator: object) -> None:
    """They would make names of any kind, also of what is elsewhere."""
    node = {"chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}}}
    with pytest.raises(CorruptError, match="separator"):
        separator_of(node)


def test_separators() -> None:
    assert [separator_of(node) for node in ({}, {"chunk_key_encoding": 1}, {"chunk_key_encoding": {}})] == ["/"] * 3
    for separator in "./":
        assert separator_of(small_metadata(spec(np.arange(2)), separator)) == separator


@pytest.mark.parametrize("attributes", [1, None, True])
def test_attributes_that_are_none(attributes: object) -> None:
    """zarr-python is asked, and refuses them."""
    texts = object_array(["a"])
    assert decode_small(small_metadata(spec(texts)) | {"attributes": attributes}, encode_small(texts)) is None


def test_keys_and_json() -> None:
    assert chunk_key("science", (3, 0, 0)) == "science/c.3.0.0"
    assert chunk_key("time", (0,), "/") == "time/c/0"
    assert to_json({"b": 1, "a": [None]}) == b'{"b":1,"a":[null]}'


def test_checksums() -> None:
    """They depend on the content, not on the order of keys or on themselves."""
    checksum = document_checksum({"a": 1, "b": "é"})
    assert checksum == document_checksum({"crc32c": "00000000", "b": "é", "a": 1})
    assert checksum != document_checksum({"a": 2, "b": "é"})
    assert packed_checksum(np.frombuffer(b"123456789", np.uint8)) == "e3069283"  # the check value of CRC-32C


@pytest.mark.parametrize("name", ["a\ud800b", "a\0b", "../outside", "/absolute", "a//b", "a/./b", ""])
def test_names_that_lead_out_of_the_store(tmp_path: Path, name: str) -> None:
    """Their documents would be looked for there, or nowhere: the store is refused when it is opened."""
    assert not is_node_name(name)
    path = tmp_path / "x.zarr"
    source = sample("simple")
    copy(source, ZarrBackend().create(str(path), source.meta))
    root = json.loads((path / "zarr.json").read_text())
    nodes = root["consolidated_metadata"]["metadata"]
    nodes[name] = nodes["time"]
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(CorruptError, match="no array or group can have"):
        ZarrBackend().open(str(path))


def test_names_of_nodes() -> None:
    assert all(map(is_node_name, ["time", "constituents/visit", "fits/data", "é/a.b", "..a"]))
