"""What is whole is saved, what is lost is listed; leftovers of dead processes go, those of living ones stay."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wustore
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, UsageError
from wustore.ops.copy import copy
from wustore.ops.repair import clean, repair
from wustore.storage.staging import Staging, partial_path
from wustore.testing import assert_same, sample, with_capsule


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Return a store with a shard of another image, and one that is torn."""
    source = with_capsule(sample("ragged"))
    path = tmp_path / "a.zarr"
    copy(source, backend_for_writing("a.zarr").create(str(path), source.meta, capsule=source.capsule()))
    shutil.copy(path / "science/c.0.0.0", path / "science/c.1.0.0")
    (path / "mask/c.3.0.0").write_bytes(b"torn")
    return path


@pytest.mark.parametrize("name", ["b.zarr", "b.h5"])
def test_whole_images_are_saved(damaged: Path, name: str) -> None:
    before = {file: file.read_bytes() for file in damaged.rglob("*") if file.is_file()}
    lost = repair(damaged, damaged.with_name(name))
    assert [problem.where for problem in lost] == ["image 1", "image 3", "capsule"]
    assert not wustore.verify(damaged.with_name(name))
    with wustore.open_reader(damaged.with_name(name)) as reader:
        assert reader.meta.times.tolist() == sample("ragged").meta.times[[0, 2]].tolist()
        assert reader.image(1).science.tobytes() == sample("ragged").image(2).science.tobytes()
        assert reader.meta.history[-1]["lost"] == ["image 1", "image 3", "capsule"]
    assert {file: file.read_bytes() for file in damaged.rglob("*") if file.is_file()} == before


def test_a_whole_store_is_copied_with_its_capsule(damaged: Path) -> None:
    source = with_capsule(sample("ragged"))
    whole = damaged.with_name("whole.zarr")
    copy(source, backend_for_writing("a.zarr").create(str(whole), source.meta, capsule=source.capsule()))
    assert repair(whole, damaged.with_name("b.h5")) == []
    with wustore.open_reader(damaged.with_name("b.h5")) as reader:
        assert_same(source, reader)
        assert reader.capsule() is not None


def test_nothing_whole(damaged: Path) -> None:
    for shard in damaged.glob("variance/c.*"):
        shard.unlink()
    with pytest.raises(CorruptError, match="no image"):
        repair(damaged, damaged.with_name("c.zarr"))
    assert not damaged.with_name("c.zarr").exists()
    with pytest.raises(UsageError, match="same"):
        repair(damaged, damaged, overwrite=True)


def test_clean_finishes_an_append(tmp_path: Path) -> None:
    """Killed after the root was replaced: the store has the new images, its arrays' documents are old."""
    path = tmp_path / "a.zarr"
    for seed, target in enumerate((path, tmp_path / "b.zarr")):
        source = sample("simple", seed)
        copy(source, backend_for_writing("a.zarr").create(str(target), source.meta))
    before = {key: key.read_bytes() for key in path.glob("*/zarr.json")}
    wustore.append(path, tmp_path / "b.zarr")
    after = {key: key.read_bytes() for key in before}
    for key, text in before.items():
        key.write_bytes(text)
    found = list(wustore.verify(path))
    assert {str(tmp_path / "a.zarr" / problem.where) for problem in found} == {
        str(key) for key in before if before[key] != after[key]
    }
    assert all("wustore clean" in problem.what for problem in found)
    assert [one.removed for one in clean(path, dry_run=True)] == [False] * len(found)
    assert {one.leftover.kind for one in clean(tmp_path)} == {"outdated"}
    assert {key: key.read_bytes() for key in before} == after
    assert not list(wustore.verify(path))
    assert not clean(tmp_path)


def test_clean_keeps_documents_that_are_damaged(tmp_path: Path) -> None:
    """Which of two copies is right cannot be known: only what an append leaves is replaced."""
    path = tmp_path / "a.zarr"
    source = sample("simple")
    copy(source, backend_for_writing("a.zarr").create(str(path), source.meta))
    place = path / "science" / "zarr.json"
    damaged = place.read_bytes().replace(b"float32", b"float64")
    place.write_bytes(damaged)
    assert not clean(path)
    assert place.read_bytes() == damaged
    assert [problem.where for problem in wustore.verify(path)] == ["science/zarr.json"]


def test_clean(damaged: Path, tmp_path: Path) -> None:
    script = "from wustore.storage.staging import Staging; import os, sys; s = Staging(sys.argv[1]); "
    script += "open(s.path, 'w').close(); print(s.path.name, flush=True); os._exit(9)"
    command = [sys.executable, "-c", script, str(tmp_path / "x.h5")]
    dead = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    living = Staging(tmp_path / "x.h5")
    living.path.touch()
    partial_path(tmp_path / "y.h5").mkdir()
    (tmp_path / ".z.fits~host~1-2.wustore-partial-old").mkdir()
    (tmp_path / ".mine").touch()
    planned = {one.leftover.path.name: one.leftover.kind for one in clean(tmp_path, dry_run=True)}
    assert planned.get(dead, "abandoned") == "abandoned"
    assert planned[living.path.name] == "in use"
    assert planned[".y.h5.wustore-partial"] == "unfinished"
    assert planned[".z.fits~host~1-2.wustore-partial-old"] == "in use"  # nothing is known of its process
    assert ".mine" not in planned
    clean(tmp_path / "y.h5", unfinished=True)
    clean(tmp_path)
    left = {entry.name for entry in tmp_path.iterdir()}
    assert dead not in left
    assert ".y.h5.wustore-partial" not in left
    assert {living.path.name, ".z.fits~host~1-2.wustore-partial-old", ".mine", "a.zarr"} <= left
    living.abort()
    with pytest.raises(UsageError, match="local"):
        clean("memory://x")
