"""Copies work at as many images at a time as they were asked to."""

from __future__ import annotations

from pathlib import Path

import pytest

import wustore
from wustore.backends.memory import MemoryReader
from wustore.testing import sample


@pytest.mark.parametrize("name", ["a.zarr", "a.h5"])
def test_one_worker_is_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    together = [0, 0]
    original = MemoryReader.image

    def image(self: MemoryReader, i: int, *rest: object) -> object:
        together[0] += 1
        together[1] = max(together)
        try:
            return original(self, i, *rest)  # type: ignore[arg-type]
        finally:
            together[0] -= 1

    monkeypatch.setattr(MemoryReader, "image", image)
    work_unit = _work_unit()
    write = work_unit.to_zarr if name.endswith(".zarr") else work_unit.to_hdf5
    write(tmp_path / name, workers=1)
    assert together == [0, 1]


def _work_unit() -> wustore.WorkUnit:
    from wustore.work_unit import work_unit_from

    return work_unit_from(sample("simple"), lazy=False)
