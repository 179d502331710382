"""The small arrays as one array of bytes: all come back, and what does not fit is an error."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from wustore.errors import CorruptError
from wustore.format import packed as packed_arrays
from wustore.format.arrays import ArraySpec
from wustore.format.packed import pack, unpack
from wustore.model.compare import same_bits
from wustore.model.meta import object_array

ARRAYS = {
    "a": np.arange(6, dtype=np.int16).reshape(2, 3),
    "b/c": np.array([np.nan, -0.0]),
    "texts": object_array(["é", "", "a\0b"]).reshape(3, 1),
    "none": np.zeros((0, 4), np.uint32),
}


def packed() -> np.ndarray:
    return pack(ArraySpec(name, data, ("x",) * data.ndim) for name, data in ARRAYS.items()).data


def with_table(**changes: object) -> np.ndarray:
    """Pack the arrays under a table in which entries were changed."""
    raw = packed().tobytes()
    (length,) = struct.unpack_from("<Q", raw)
    head = json.dumps(json.loads(raw[8 : 8 + length]) | changes).encode()
    return np.frombuffer(struct.pack("<Q", len(head)) + head + raw[8 + length :], np.uint8)


def test_arrays_come_back() -> None:
    found = unpack(packed())
    assert list(found) == list(ARRAYS)
    assert all(same_bits(found[name], data) for name, data in ARRAYS.items())
    assert unpack(with_table())["b/c"].tobytes() == ARRAYS["b/c"].tobytes()


def test_every_truncation_is_an_error() -> None:
    whole = packed()
    for size in range(len(whole)):
        with pytest.raises(CorruptError):
            unpack(whole[:size])


@pytest.mark.parametrize(
    "entry",
    [
        ["<i2", [2, 3], 0, 10],  # fewer bytes than values
        ["<i2", [2, 3], 10**9, 12],  # beyond the end
        ["<i2", [2, 3], -12, 12],
        ["<i2", [-1], 0, 12],
        ["O", [6], 0, 12],
        ["text", [6], 0, 12],
        ["<i2", [2, 3], 0],
        {"dtype": "<i2"},
        7,
    ],
)
def test_entries_that_do_not_fit(entry: object) -> None:
    with pytest.raises(CorruptError):
        unpack(with_table(a=entry))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": ["<i2", [6], 0, 12]}, "overlap"),
        ({"texts": ["text", [4], 28, 26]}, "not as many"),
    ],
)
def test_arrays_that_cannot_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        unpack(with_table(**changes))


def test_arrays_do_not_share_what_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are counted over all arrays, before one of them is made, by what they were unpacked from."""
    monkeypatch.setattr(packed_arrays, "most_values", lambda stored: stored // 10)
    texts = object_array(["x"] * 8)
    content = pack(ArraySpec(name, texts, ("x",)) for name in "abc").data
    assert len(unpack(content, 160)) == 3
    made: list[int] = []
    monkeypatch.setattr(packed_arrays, "object_array", lambda texts: made.append(1))
    with pytest.raises(CorruptError, match="too many texts"):
        unpack(content, 150)
    assert made == []
