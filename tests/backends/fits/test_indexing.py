"""Making indexes: what is refused, and that nothing appears half."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import wustore
from wustore.backends.fits import indexing
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, OtherFormatError, StoreExistsError, StoreNotFoundError, UsageError
from wustore.ops.copy import copy
from wustore.testing import sample


@pytest.fixture
def night(tmp_path: Path) -> Path:
    path = tmp_path / "night.fits"
    source = sample("simple")
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta), workers=1)
    return path


def test_sizes_and_progress(night: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = wustore.index(night, progress=lambda done, total: seen.append((done, total)))
    n = sample("simple").meta.n_images
    assert made == (f"{night}.wuindex", Path(f"{night}.wuindex").stat().st_size, n, 1, night.stat().st_size)
    assert seen[-1] == (n, n)


def test_an_index_that_is_there_stays(night: Path) -> None:
    wustore.index(night)
    before = Path(f"{night}.wuindex").read_bytes()
    Path(f"{night}.wuindex").write_bytes(b"mine")
    with pytest.raises(StoreExistsError):
        wustore.index(night)
    assert Path(f"{night}.wuindex").read_bytes() == b"mine"
    wustore.index(night, overwrite=True)
    assert Path(f"{night}.wuindex").read_bytes() == before


def test_what_cannot_be_indexed(night: Path, tmp_path: Path) -> None:
    packed = tmp_path / "night.fits.gz"
    packed.write_bytes(gzip.compress(night.read_bytes()))
    with pytest.raises(UsageError, match="compressed as a whole"):
        wustore.index(packed)
    wustore.convert(night, tmp_path / "night.h5")
    with pytest.raises(OtherFormatError):
        wustore.index(tmp_path / "night.h5")
    with pytest.raises(StoreNotFoundError):
        wustore.index(tmp_path / "nothing.fits")
    for wrong in ("ram:night",):
        with pytest.raises(UsageError):
            wustore.index(wrong)
    with pytest.raises(UsageError, match="URL"):
        wustore.index(night, "memory://x/night.fits.wuindex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["night.fits", "night.fits.gz", "night.h5"]


def test_what_is_behind_the_last_hdu_is_held_to_a_limit(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with night.open("ab") as file:
        file.write(b"?" * 5000)
    wustore.index(night)
    with wustore.open_reader(f"{night}.wuindex") as reader:
        assert reader.meta.n_images == sample("simple").meta.n_images
    monkeypatch.setattr(indexing, "_MOST_TRAILING", 4999)
    with pytest.raises(CorruptError, match="behind its last HDU"):
        wustore.index(night, overwrite=True)


def test_an_index_that_gives_other_metadata_is_not_written(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "meta_digest", lambda meta: object())
    with pytest.raises(CorruptError, match="does not give the metadata"):
        wustore.index(night)
    assert [path.name for path in night.parent.iterdir()] == ["night.fits"]
