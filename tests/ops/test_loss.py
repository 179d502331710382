"""Options that lose values are refused; agreed to, what each layer lost is said in numbers."""

from __future__ import annotations

import warnings
from math import isfinite
from pathlib import Path

import numpy as np
import pytest

import wustore
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_named
from wustore.errors import UsageError
from wustore.ops import plans
from wustore.ops.copy import LossWarning, copy
from wustore.ops.diff import LayerLoss, losses
from wustore.testing import sample

LOSSY = [{"quantize_level": -0.5}, {"compression_type": "RICE_1"}, {"mode": "kbmod"}]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path, reader = str(tmp_path / "a.zarr"), sample("simple")
    copy(reader, backend_named("zarr").create(path, reader.meta))
    return path


@pytest.mark.parametrize("options", LOSSY)
def test_refused(source: str, tmp_path: Path, options: dict) -> None:
    target = tmp_path / "b.fits"
    acts = [
        lambda: wustore.convert(source, target, **options),
        lambda: wustore.convert(source, target, resume=True, **options),
        lambda: wustore.convert(source, target, format="sharded-fits", **options),
        lambda: wustore.save(wustore.open(source), target, **options),
        lambda: plans.plan(source, str(target), **options),
    ]
    for act in acts:
        with pytest.raises(UsageError, match="lose values"):
            act()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("options", [{"compression_type": "GZIP_1"}, {"quantize_level": 0}, {"lossless": True}])
def test_nothing_lost(source: str, tmp_path: Path, options: dict) -> None:
    assert wustore.convert(source, tmp_path / "b.fits", lossy=True, **options) == []
    assert wustore.diff(source, tmp_path / "b.fits") == []


@pytest.mark.parametrize("resume", [False, True])
def test_said_in_numbers(source: str, tmp_path: Path, resume: bool) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = wustore.convert(source, tmp_path / "b.fits", lossy=True, resume=resume, quantize_level=-0.5)
    with wustore.open_reader(source) as a, wustore.open_reader(tmp_path / "b.fits") as b:
        pairs = [(a.image(i).science.ravel().tolist(), b.image(i).science.ravel().tolist()) for i in range(3)]
    changed = [(x, y) for old, new in pairs for x, y in zip(old, new, strict=True) if x != y and (x == x or y == y)]
    science = next(loss for loss in found if loss.layer == "science")
    assert science.changed == len(changed)
    assert science.largest == max(abs(x - y) for x, y in changed if isfinite(x) and isfinite(y))
    assert science.lost == sum(isfinite(x) and not isfinite(y) for x, y in changed)
    texts = [str(one.message) for one in said if issubclass(one.category, LossWarning)]
    assert len(texts) == len(found)
    assert f"science: {science.changed} of " in texts[0]


def test_losses() -> None:
    source = sample("simple")
    images = [source.image(i) for i in range(3)]
    images[1].science[0, 0] = np.nan
    images[2].variance[0, 0] += 2
    assert losses(source, source) == []
    found = {loss.layer: loss for loss in losses(source, MemoryReader(source.meta, images))}
    size = sum(int(source.image(i).science.size) for i in range(3))
    assert found["science"] == LayerLoss("science", size, 1, 0.0, 1, 0)
    assert found["variance"] == LayerLoss("variance", size, 1, 2.0, 0, 0)
    assert "1 lost" in str(found["science"])
