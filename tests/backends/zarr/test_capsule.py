"""FITS reconstruction data in Zarr: pieces across chunks, and what does not fit together."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from zarr.storage import MemoryStore

from wustore.backends.zarr import capsule
from wustore.backends.zarr.capsule import CapsuleBytes, bound_spec, data_metadata, write_data
from wustore.errors import CorruptError
from wustore.storage.zarr_store import StoreKeys

PIECES = [b"head" * 10, b"", b"a" * 7, b"b" * 100, b"", b"c"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capsule, "_CHUNK", (16, 64))


def stored(separator: str = ".") -> tuple[StoreKeys, dict[str, Any], np.ndarray]:
    keys, total = StoreKeys(MemoryStore()), sum(map(len, PIECES))
    write_data(keys, total, iter(PIECES), separator)
    return keys, data_metadata(total, separator), bound_spec(map(len, PIECES)).data


@pytest.mark.parametrize("separator", [".", "/"])
def test_pieces_come_back(separator: str) -> None:
    keys, metadata, bounds = stored(separator)
    data = CapsuleBytes(keys, metadata, bounds, len(PIECES) - 1)
    for order in (range(6), (5, 0, 3, 3, 1)):
        assert [data.piece(k) for k in order] == [PIECES[k] for k in order]
    (length,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    assert sorted(keys.list("")) == sorted(f"fits/data/c{separator}{k}" for k in range(-(-148 // length)))


@pytest.mark.parametrize("total", [0, 1, 15, 16, 17, 1000, 10**6])
def test_chunks_are_equal_and_few(total: int) -> None:
    """Chunks grow before their number does, up to their largest size."""
    (length,) = data_metadata(total, ".")["chunk_grid"]["configuration"]["chunk_shape"]
    count = -(-total // length)
    assert 1 <= length <= 64
    assert length * count - total < max(count, 1)  # no chunk is shorter than the others by more than their number
    assert length >= 8 or total < 16


def test_one_request_for_pieces_that_share_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, metadata, bounds = stored()
    data = CapsuleBytes(keys, metadata, bounds, len(PIECES) - 1)
    asked: list[str] = []
    get = keys.get
    monkeypatch.setattr(keys, "get", lambda key: asked.append(key) or get(key))
    for k in range(6):
        data.piece(k)
    assert asked == [f"fits/data/c.{k}" for k in range(len(set(asked)))]


def test_what_does_not_fit_together() -> None:
    keys, metadata, bounds = stored()
    swapped = bounds.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    for wrong, array, n_images in (
        (metadata, bounds, 4),
        (metadata, bounds + 1, 5),
        (metadata, swapped, 5),
        (metadata, bounds.reshape(1, -1), 5),
        (metadata | {"shape": [149]}, bounds, 5),
        (metadata | {"data_type": "int8"}, bounds, 5),
        (metadata | {"codecs": metadata["codecs"][:1]}, bounds, 5),
        (metadata | {"chunk_grid": {}}, bounds, 5),
        (metadata | {"chunk_grid": {"configuration": {"chunk_shape": [0]}}}, bounds, 5),
    ):
        with pytest.raises(CorruptError, match="not stored as they have to be"):
            CapsuleBytes(keys, wrong, array, n_images)


def test_damage_has_its_place() -> None:
    keys, metadata, bounds = stored()
    (length,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    chunk = int(bounds[3]) // length
    key = f"fits/data/c.{chunk}"
    whole = keys.get(key)
    assert whole is not None
    for value in (b"", whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], None):
        if value is None:
            keys.delete(key)
        else:
            keys.set(key, value)
        data = CapsuleBytes(keys, metadata, bounds, len(PIECES) - 1)
        with pytest.raises(CorruptError, match=f"chunk {chunk}"):
            data.piece(3)
        assert [data.piece(k) for k in (0, 1)] == PIECES[:2]
    assert list(itertools.accumulate(map(len, PIECES), initial=0)) == bounds.tolist()


@pytest.mark.parametrize("kind", ["f8", "c16", "?", "U3", "O"])
def test_bounds_of_another_dtype(kind: str) -> None:
    keys, metadata, bounds = stored()
    with pytest.raises(CorruptError, match="not stored as they have to be"):
        CapsuleBytes(keys, metadata, bounds.astype(kind), len(PIECES) - 1)
