"""Parts of a store that are swapped, stale, missing, torn or of another store: never data, never copied."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import wustore
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, StoreReplacedError
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.testing import sample

SEEDS = [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 64))]


def changed() -> MemoryReader:
    """Return a WorkUnit with the same metadata as ``simple`` and other pixels: its state a day later, say."""
    source = sample("simple")
    images = [source.image(i) for i in range(source.meta.n_images)]
    for image in images:
        for layer in LAYERS:
            plane = image.layer(layer)
            plane[...] = plane[::-1, ::-1].copy()
    return MemoryReader(source.meta, images)


def save(reader, path):
    copy(reader, backend_for_writing(str(path)).create(str(path), reader.meta))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return a directory with stores of a WorkUnit, of the same one with other pixels, and of another one."""
    folder = tmp_path_factory.mktemp("parts")
    for suffix in ("zarr", "h5"):
        save(sample("simple"), folder / f"now.{suffix}")
        save(changed(), folder / f"stale.{suffix}")
        save(sample("simple", 7), folder / f"foreign.{suffix}")
    return folder


def must_be_found(path: Path, layer: str, i: int) -> None:
    """Check that an image whose part of a layer is wrong is never given or copied, and that the others are."""
    target = path.with_name(f"copy-of-{path.name}")
    height, width = sample("simple").meta.shape_of(layer, i)
    with wustore.open_reader(path) as reader:
        with pytest.raises((CorruptError, StoreReplacedError)):
            reader.image(i)
        with pytest.raises((CorruptError, StoreReplacedError)):
            reader.read(layer, (slice(i, i + 1), slice(0, height), slice(0, width)))
        other = (i + 1) % 3
        assert reader.image(other).science.tobytes() == sample("simple").image(other).science.tobytes()
    with pytest.raises((CorruptError, StoreReplacedError)):
        wustore.convert(path, target)
    assert not target.exists()
    assert [problem.where for problem in wustore.verify(path)] == [f"image {i}, {layer}"]


@pytest.mark.parametrize("seed", SEEDS)
def test_zarr(stores: Path, tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    path = tmp_path / "a.zarr"
    shutil.copytree(stores / "now.zarr", path)
    layer, i = choose.choice(LAYERS), choose.randrange(3)
    shard = path / layer / f"c.{i}.0.0"
    kind = ("swapped", "stale", "foreign", "missing", "torn", "other layer")[seed % 6]
    if kind == "swapped":
        shutil.copy(stores / "now.zarr" / layer / f"c.{(i + 1) % 3}.0.0", shard)
    elif kind == "other layer":
        shutil.copy(stores / "now.zarr" / ("science" if layer == "variance" else "variance") / f"c.{i}.0.0", shard)
    elif kind == "missing":
        shard.unlink()
    elif kind == "torn":
        shard.write_bytes(shard.read_bytes()[: choose.randrange(shard.stat().st_size)])
    else:
        shutil.copy(stores / f"{kind}.zarr" / layer / f"c.{i}.0.0", shard)
    must_be_found(path, layer, i)


@pytest.mark.parametrize("seed", SEEDS)
def test_hdf5(stores: Path, tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    path = tmp_path / "a.h5"
    shutil.copy(stores / "now.h5", path)
    layer, i = choose.choice(LAYERS), choose.randrange(3)
    kind = ("swapped", "stale", "foreign", "torn")[seed % 4]
    origin = stores / ("now.h5" if kind in {"swapped", "torn"} else f"{kind}.h5")
    with h5py.File(path, "r+") as file, h5py.File(origin) as other:
        source = (i + 1) % 3 if kind == "swapped" else i
        skipped, data = other[layer].id.read_direct_chunk((source, 0, 0))
        data = data[: choose.randrange(1, len(data))] if kind == "torn" else data
        file[layer].id.write_direct_chunk((i, 0, 0), data, skipped)
    must_be_found(path, layer, i)


def test_the_stores_differ(stores: Path) -> None:
    with wustore.open_reader(stores / "now.zarr") as now, wustore.open_reader(stores / "stale.zarr") as stale:
        for layer in LAYERS:
            assert not np.array_equal(now.image(1).layer(layer), stale.image(1).layer(layer), equal_nan=layer != "mask")
