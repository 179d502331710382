"""Estimates are measured the way that the conversion goes."""

from __future__ import annotations

import pytest

import wustore
from wustore.cli.about import build
from wustore.ops import estimate as module
from wustore.ops.estimate import estimate


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("estimate")
    build().to_fits(str(place / "night.fits"))
    wustore.convert(place / "night.fits", place / "night.zarr")
    return place / "night.zarr"


def test_files_that_come_back_are_measured_as_they_come_back(store, tmp_path, monkeypatch):
    made = []
    real = module.copy_images

    def count(reader, writer, *, indices, workers):
        made.append((type(writer).__name__, list(indices)))
        real(reader, writer, indices=indices, workers=workers)

    monkeypatch.setattr(module, "copy_images", count)
    monkeypatch.setattr(module, "_measured", None)  # the way of a store without reconstruction data
    with wustore.open_reader(store) as reader:
        found = estimate(reader, str(tmp_path / "again.fits"), workers=1)
    assert made == [("PieceWriter", [0]), ("PieceWriter", [4])]
    assert found.target_bytes == (store.parent / "night.fits").stat().st_size
    assert found.target_files == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_time_is_that_of_all_images_and_of_hashing(store, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(module, "_restoring_seconds", lambda *_: [5.0, 2.0])
    monkeypatch.setattr(module, "_hash_seconds", lambda size: size / 1e6)
    monkeypatch.setattr(module, "default_workers", lambda: 2)
    with wustore.open_reader(store) as reader:
        found = estimate(reader, str(tmp_path / "again.fits"), workers=workers)
    # Loading once, hashing, and eight images: two workers are 1.8 times as fast.
    assert found.seconds == pytest.approx(3 + found.target_bytes / 1e6 + 16 / (1 if workers == 1 else 1.8))
