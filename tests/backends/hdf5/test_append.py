"""Appending to a file: stored chunks are copied as they are, and only into a file that can take the new images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest

from wustore.backends.hdf5.append import append_images
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.hdf5.filters.pipeline import Pipeline
from wustore.backends.hdf5.reader import Hdf5Reader
from wustore.backends.memory import MemoryReader
from wustore.errors import CorruptError, UsageError
from wustore.ops.copy import copy
from wustore.testing import sample


def save(path: Path, source: MemoryReader, **options: Any) -> str:
    copy(source, Hdf5Backend().create(str(path), source.meta, **options))
    return str(path)


def chunks_of(path: str, layer: str = "science") -> list[bytes]:
    with h5py.File(path) as file:
        dataset = file[layer]
        corners = sorted(dataset.id.get_chunk_info(k).chunk_offset for k in range(dataset.id.get_num_chunks()))
        return [dataset.id.read_direct_chunk(corner)[1] for corner in corners]


def append(path: str, *sources: MemoryReader) -> int:
    return append_images(path, sources, lambda count: {"operation": "append", "images": count})


@pytest.mark.parametrize("options", [{}, {"chunks": (100, 300)}, {"layout": "cutouts", "profile": "none"}])
def test_stored_chunks_are_not_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    old, new = sample("chunked"), sample("chunked", seed=1)
    path = save(tmp_path / "a.h5", old, **options)
    before, other = chunks_of(path), chunks_of(save(tmp_path / "b.h5", new, **options))
    encoded: list[Any] = []
    encode = Pipeline.encode_all
    monkeypatch.setattr(
        Pipeline, "encode_all", lambda self, plane, corners: encoded.extend(corners) or encode(self, plane, corners)
    )
    assert append(path, new) == 3
    assert chunks_of(path) == before + other
    with Hdf5Reader(path) as reader:
        layers = [layer for layer in ("science", "variance", "mask", "psf") if reader.meta.has_layer(layer)]
        per_image = sum(len(chunks_of(path, layer)) for layer in layers) // 6
        assert reader.meta.history[-1]["images"] == 3
    assert len(encoded) == 3 * per_image


def test_a_damaged_image_is_not_certified(tmp_path: Path) -> None:
    """Two chunks change places: nothing is appended, and the file is the old one, byte for byte."""
    path = save(tmp_path / "a.h5", sample("chunked"))
    with h5py.File(path, "r+") as file:
        science = file["science"].id
        corners = [science.get_chunk_info(k).chunk_offset for k in (0, 1)]
        stored = [science.read_direct_chunk(corner) for corner in corners]
        for corner, (skipped, data) in zip(corners, reversed(stored), strict=True):
            science.write_direct_chunk(corner, data, skipped)
    before = Path(path).read_bytes()
    with pytest.raises(CorruptError, match="does not belong here"):
        append(path, sample("chunked", seed=1))
    assert Path(path).read_bytes() == before


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", sample("simple"))
    before = Path(path).read_bytes()
    with pytest.raises(UsageError, match="larger than the store's arrays"):
        append(path, sample("chunked"))
    assert Path(path).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")] == ["a.h5"]
