"""The digest of a whole file: every bit counts, and HDF5 takes no notice of it."""

from __future__ import annotations

import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from wustore.backends.hdf5 import integrity
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.errors import CorruptError, WuStoreError
from wustore.ops.copy import copy
from wustore.ops.verify import problems
from wustore.testing import assert_same, sample, with_capsule


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(integrity, "_BLOCK", 1 << 12)
    source = with_capsule(sample("rich"))
    copy(source, Hdf5Backend().create(str(tmp_path / "a.h5"), source.meta, capsule=source.capsule()))
    return tmp_path / "a.h5"


def found(path: Path) -> list[tuple[str, str]]:
    """Return what the digest of a file says of it."""
    with Hdf5Backend().open(str(path)) as reader:
        return list(integrity.changed_blocks(reader._raw))


def test_every_bit_counts(path: Path) -> None:
    """Where the file opens nevertheless, the digest names the part."""
    good = path.read_bytes()
    assert found(path) == []
    rng = random.Random(1)
    named = 0
    for _ in range(200):
        bit = rng.randrange(8 * len(good))
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert len(found(path)) == 1
            named += 1
        except WuStoreError:
            continue
    assert named > 100


def test_other_programs_take_no_notice(path: Path) -> None:
    before = path.read_bytes()
    with h5py.File(path) as file:
        assert file["science"].shape[0] == 4
    assert path.read_bytes() == before


def test_none_after_a_change_by_another_program(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["mine"] = np.arange(1000)
    assert found(path) == []
    with Hdf5Backend().open(str(path)) as reader:
        assert_same(with_capsule(sample("rich")), reader)
        assert [problem for problem in problems(reader) if problem.kind == "damaged"] == []


def test_none_in_older_files(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"WUDIGEST")])
    assert found(path) == []


@pytest.mark.parametrize("left", [1, 9, 20, 30, -1])
def test_cut_within_the_digest(path: Path, left: int) -> None:
    data = path.read_bytes()
    start = data.rindex(b"WUDIGEST")
    path.write_bytes(data[: start + left] if left > 0 else data[:left])
    with pytest.raises(CorruptError, match="truncated"):
        Hdf5Backend().open(str(path))


def test_something_else_behind_the_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"WUDIGEST")] + b"something else")
    assert [place for place, _ in found(path)] == ["digest of the file"]
