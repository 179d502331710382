"""Copies work at as many images at a time as they were asked to, and hand over all that they read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_memory import in_memory

import wustore
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.model.meta import Column, ConstituentTable, object_array
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample


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


@pytest.mark.parametrize("ending", ["zarr", "zarr.zip", "h5", "fits"])
@pytest.mark.parametrize("text", ["a\ud800b", "/data/\udcff.fits"], ids=["lone surrogate", "name that is no text"])
def test_text_that_utf8_cannot_hold(tmp_path: Path, ending: str, text: str) -> None:
    """It is stored escaped, in every format, comes back as it was, and goes on into the others."""
    source = sample("simple")
    n = source.meta.n_images
    columns = (Column("data_loc", "plain", np.array([text] * n)), Column("note", "json", object_array([text] * n)))
    source = in_memory(source, meta=replace(source.meta, constituents=ConstituentTable(n, columns)))
    path = tmp_path / f"a.{ending}"
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta))
    for target in ("b.zarr", "b.h5"):
        wustore.convert(path, tmp_path / target, overwrite=True)
        assert not wustore.verify(tmp_path / target)
        with wustore.open_reader(tmp_path / target) as reader:
            assert_same(source, reader)
            assert not list(reader.foreign())
