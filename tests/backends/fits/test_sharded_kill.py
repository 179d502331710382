"""A process is killed while it replaces a sharded set: afterwards it is the old set or the new one, never a mixture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wustore
from wustore.backends.registry import backend_named
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample

_KILLED = """
import os, pathlib, sys
left = int(sys.argv[3])
original = pathlib.Path.rename
def rename(self, target):
    global left
    if "wustore-partial" in f"{self}{target}":
        left -= 1
        if left < 0:
            os._exit(9)
    return original(self, target)
pathlib.Path.rename = rename
import wustore
wustore.convert(sys.argv[1], sys.argv[2], format="sharded-fits", capsule=False, overwrite=True)
"""


def save(kind: str, path: Path, name: str) -> None:
    reader = sample(kind)
    copy(reader, backend_named(name).create(str(path), reader.meta))


@pytest.mark.parametrize("kinds", [("simple", "ragged"), ("ragged", "simple")])
@pytest.mark.parametrize("moves", [1, 5, *(pytest.param(moves, marks=pytest.mark.slow) for moves in (0, 2, 4, 7, 8))])
def test_killed_while_a_set_is_replaced(tmp_path: Path, kinds: tuple[str, str], moves: int) -> None:
    old, new = kinds
    target = tmp_path / "set.fits"
    save(old, target, "sharded-fits")
    save(new, tmp_path / "new.zarr", "zarr")
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, tmp_path / "new.zarr", target, str(moves)]
    assert subprocess.run(command, check=False).returncode == 9
    writer = backend_named("sharded-fits").create(str(target), sample("simple").meta, overwrite=True)
    writer.abort()
    with wustore.open_reader(target, format="sharded-fits") as reader:
        whole = new if reader.meta.n_images == sample(new).meta.n_images else old
        assert_same(sample(whole), reader)
    shards = sample(whole).meta.n_images
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name[0] != ".") == sorted(
        ["new.zarr", "set.fits", *(f"{i}_set.fits" for i in range(shards))]
    )
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".set.fits~")]
