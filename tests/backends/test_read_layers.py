"""Boxes of several layers that are read together are those that each layer gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.backends.base import Index
from wustore.backends.proxy import ReaderProxy
from wustore.backends.registry import backend_for_writing, open_reader
from wustore.model.compare import same_bits
from wustore.ops.copy import copy
from wustore.stamps.view import View
from wustore.storage import threads
from wustore.testing import sample


@pytest.mark.parametrize("name", ["a.zarr", "a.h5", "a.fits", "ram:layers"])
@pytest.mark.parametrize("cores", [1, 4])
def test_boxes_of_several_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cores: int) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: cores)
    monkeypatch.setattr(threads, "BYTES_PER_WORKER", 1)
    path, source = name if ":" in name else str(tmp_path / name), sample("simple")
    copy(source, backend_for_writing(path).create(path, source.meta, overwrite=True))
    n_images, height, width = source.meta.layer_shape("science")
    half = width // 2
    wanted: list[tuple[str, list[Index], list[NDArray[Any]]]] = [("psf", [], [])]
    for layer in ("science", "mask", "variance"):
        boxes = [
            (slice(0, n_images), slice(1, height), slice(0, half)),
            (slice(1, 2), slice(0, height - 1), slice(half, half + (layer != "mask"))),
        ]
        room = np.empty((n_images + 1, height - 1, width), source.meta.layer_dtype(layer))
        wanted.append((layer, boxes, [room[:n_images, :, :half], room[n_images:, :, half : half + (layer != "mask")]]))
    with open_reader(path) as opened:
        for reader in (opened, ReaderProxy(opened), View(opened, [*range(n_images)])):
            for _, _, arrays in wanted:
                for array in arrays:
                    array[...] = 7
            reader.read_layers(wanted)
            for layer, boxes, arrays in wanted:
                for index, array in zip(boxes, arrays, strict=True):
                    expected = np.ascontiguousarray(source.read(layer, index))
                    assert same_bits(np.ascontiguousarray(array), expected), (layer, index)
