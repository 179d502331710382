"""Whatever copies images holds each plane against its stored checksum, and computes that once."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import wustore
from wustore.backends.proxy import CheckedReader
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError
from wustore.format import planes
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample, with_capsule


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a Zarr store of three images."""
    path = tmp_path / "a.zarr"
    source = with_capsule(sample("simple"))
    capsule = source.capsule()
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta, capsule=capsule))
    return path


@pytest.fixture
def swapped(store: Path) -> Path:
    """Return a Zarr store with a shard in the place of another one."""
    shutil.copy(store / "variance/c.0.0.0", store / "variance/c.1.0.0")
    return store


def append_into(swapped: Path) -> None:
    other = swapped.parent / "other.zarr"
    source = sample("simple")
    copy(source, backend_for_writing(str(other)).create(str(other), source.meta))
    try:
        wustore.append(other, swapped, duplicates=True)
    finally:
        with wustore.open_reader(other) as reader:
            assert_same(source, reader)
        shutil.rmtree(other)


def in_parts(swapped: Path) -> None:
    target = str(swapped.parent / "b.h5")
    wustore.plan(str(swapped), target, parts=1)
    try:
        wustore.part(target, 0)
    finally:
        shutil.rmtree(next(swapped.parent.glob(".b.h5*")))


COPIES = {
    "convert to Zarr": lambda path: wustore.convert(path, path.with_name("b.zarr")),
    "convert to HDF5": lambda path: wustore.convert(path, path.with_name("b.h5")),
    "convert to FITS": lambda path: wustore.convert(path, path.with_name("b.fits"), capsule=False),
    "save": lambda path: wustore.save(wustore.open(path), path.with_name("b.h5")),
    "save a selection": lambda path: wustore.save(wustore.open(path).select(images=[1]), path.with_name("b.h5")),
    "repack": lambda path: wustore.repack(path, profile="portable"),
    "drop": lambda path: wustore.drop(path, ["mask", "capsule"]),
    "append": append_into,
    "part": in_parts,
}


@pytest.mark.parametrize("name", COPIES)
def test_nothing_copies_a_swapped_shard(name: str, swapped: Path) -> None:
    before = {file: file.read_bytes() for file in swapped.rglob("*") if file.is_file()}
    with pytest.raises(CorruptError, match=r"variance.*image [01]|image [01].*variance"):
        COPIES[name](swapped)
    assert {file: file.read_bytes() for file in swapped.rglob("*") if file.is_file()} == before
    assert list(swapped.parent.iterdir()) == [swapped]


def test_other_images_are_read(swapped: Path) -> None:
    with wustore.open_reader(swapped) as reader:
        checked = CheckedReader(reader)
        assert checked.image(0).checksums == tuple(reader.checksums()[0])
        assert checked.image(1, ("science", "mask")).variance.size == 0
        with pytest.raises(CorruptError, match=r"variance, image 1"):
            list(checked.images())


@pytest.mark.parametrize("name", ["b.zarr", "b.h5", "b.zarr.zip"])
def test_each_checksum_is_computed_once(name: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[int] = Counter()
    original = planes.plane_checksum

    def counting(plane: np.ndarray | None) -> int:
        counted["planes"] += 1
        return original(plane)

    monkeypatch.setattr(planes, "plane_checksum", counting)
    wustore.convert(store, store.with_name(name))
    with wustore.open_reader(store) as reader:
        assert counted["planes"] == len(LAYERS) * reader.meta.n_images


def test_planes_are_compared_with_their_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sample("simple")
    sums = np.array([planes.plane_checksums(source.image(i)) for i in range(3)], np.uint32)
    sums[2, 1] ^= 1
    monkeypatch.setattr(type(source), "checksums", lambda self: sums)
    writer = backend_for_writing("b.zarr").create(str(tmp_path / "b.zarr"), source.meta)
    with pytest.raises(CorruptError, match="image 2, variance"):
        copy(source, writer)
    assert not list(tmp_path.iterdir())
