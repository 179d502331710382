"""All small arrays as one: what comes back, and how little of a false one is believed."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from wustore.errors import CorruptError
from wustore.format import packed
from wustore.format.arrays import ArraySpec
from wustore.format.packed import pack, unpack
from wustore.model.compare import same_bits
from wustore.model.meta import object_array


def packed_bytes(table: Any, bodies: bytes) -> np.ndarray[Any, Any]:
    head = json.dumps(table).encode()
    return np.frombuffer(struct.pack("<Q", len(head)) + head + bodies, np.uint8)


def test_arrays_come_back() -> None:
    arrays = {
        "numbers": np.array([[1.5, np.nan], [-0.0, np.inf]]),
        "big-endian": np.arange(5, dtype=">i2"),
        "none": np.zeros((0, 3), np.uint8),
        "text": object_array(["a", "é\0", "\ud800", ""]).reshape(2, 2),
    }
    found = unpack(pack([ArraySpec(name, data, ("x",) * data.ndim) for name, data in arrays.items()]).data)
    assert list(found) == list(arrays)
    for name, data in arrays.items():
        assert same_bits(found[name], data.astype(data.dtype.newbyteorder("="))), name


@pytest.mark.parametrize(
    ("table", "bodies", "message"),
    [
        ({"a": ["<f8", [2], 0, 16], "b": ["<f8", [2], 0, 16]}, bytes(16), "overlap"),
        ({"a": ["<f8", [2], 8, 16]}, bytes(16), "not where it should be"),
        ({"a": ["<f8", [3], 0, 16]}, bytes(16), "reshape"),
        ({"a": ["text", [2], 0, 5]}, b'["x"]', "not as many"),
        ({"a": ["text", [1], 0, 3]}, b"[1]", "something else"),
        ({"a": ["text", [-1], 0, 5]}, b'["x"]', "not as many"),
        ({"a": ["|O", [1], 0, 8]}, bytes(8), "dtype"),
        ([1], b"", "values"),
    ],
)
def test_false_tables(table: Any, bodies: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        unpack(packed_bytes(table, bodies))


def test_arrays_do_not_share_what_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are counted over all arrays, before one of them is made, by what they were unpacked from."""
    monkeypatch.setattr(packed, "most_values", lambda stored: stored // 10)
    body = json.dumps(["x"] * 8).encode()
    table = {name: ["text", [8], k * len(body), len(body)] for k, name in enumerate("abc")}
    content = packed_bytes(table, 3 * body)
    assert len(unpack(content, 160)) == 3
    made: list[int] = []
    monkeypatch.setattr(packed, "object_array", lambda texts: made.append(1))
    with pytest.raises(CorruptError, match="too many texts"):
        unpack(content, 150)
    assert made == []
