"""Shards: what is read and decoded for a plane or boxes, and how much of it is Python."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path

import numpy as np
import pytest

import wustore
from wustore.backends.base import Reader
from wustore.backends.zarr.backend import ZarrBackend
from wustore.backends.zarr.shards import _parts
from wustore.ops.copy import copy
from wustore.store_view import reader_of


def night() -> Reader:
    """Return two images of 512 x 512 with noise and a mask."""
    science = (np.round(np.random.default_rng(2).normal(0, 5, (2, 512, 512)) / 0.01) * 0.01).astype("f4")
    science[:, 10:40, 20:60] = np.nan
    stack = wustore.ImageStack(times=[60000.0, 60001.0], sci=list(science), var=list(25 + 0 * science))
    with pytest.warns(UserWarning, match="WCS"):
        return reader_of(wustore.WorkUnit(stack, wustore.SearchConfiguration()))


def calls(path: Path) -> int:
    """Return the Python-level calls of reading an image when everything is warm."""
    with ZarrBackend().open(str(path), workers=1) as reader:
        reader.image(0)
        profile = cProfile.Profile()
        profile.enable()
        reader.image(1)
        profile.disable()
    return int(pstats.Stats(profile).total_calls)


def write(path: Path, **options: object) -> Path:
    source = night()
    copy(source, ZarrBackend().create(str(path), source.meta, **options))
    return path


@pytest.mark.parametrize("profile", ["compact", "none", "portable"])
def test_python_per_plane_and_not_per_chunk(tmp_path: Path, profile: str) -> None:
    """Work that only one thread at a time can do bounds how reading scales: counted, so the same on any machine."""
    few = calls(write(tmp_path / "few.zarr", profile=profile, chunks=[64, 64]))
    many = calls(write(tmp_path / "many.zarr", profile=profile, chunks=[32, 32]))
    assert few <= 700, "64 chunks a plane, as the default layout cuts 2048 x 2048"
    assert many - few <= 3 * 3 * (256 - 64), "three calls for each further chunk of three layers"


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("chunks", [[512, 512], [128, 512], [100, 90], [64, 64]])
def test_every_cut_gives_the_same_image(tmp_path: Path, chunks: list[int], workers: int) -> None:
    path = write(tmp_path / "x.zarr", chunks=chunks)
    with ZarrBackend().open(str(path), workers=workers) as reader:
        image = reader.image(1)
        assert image.science.tobytes() == night().image(1).science.tobytes()
        box = reader.read("science", (slice(0, 2), slice(95, 307), slice(0, 512)))
        assert box[1].tobytes() == image.science[95:307].tobytes()


@pytest.mark.parametrize("side", [1, 3, 7, 20])
def test_parts_of_a_range(side: int) -> None:
    for start in range(12):
        for stop in range(12):
            taken = [
                (k * side + source.start + n, target.start + n)
                for k, target, source in _parts(start, stop, side)
                for n in range(source.stop - source.start)
                if target.stop - target.start == source.stop - source.start and source.stop <= side
            ]
            assert taken == [(start + n, n) for n in range(stop - start)]
