"""Stores that each version of the format wrote: read as recorded, given back as the same FITS bytes, written again."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import golden
import pytest

import wustore
from wustore.format.version import VERSION
from wustore.ops.diff import differences
from wustore.ops.verify import problems

NIGHTS = [name for name in golden.STORES if "/night" in name]


def test_this_version_is_among_them() -> None:
    assert golden.VERSIONS[-1] == VERSION, "write the stores of a new version with tests/data/stores/make.py"
    assert sorted(golden.MAKER.STORES) == golden.NEWEST


@pytest.mark.parametrize("name", golden.STORES)
def test_a_golden_store_holds_what_it_held(name: str, tmp_path: Path) -> None:
    with wustore.open_reader(golden.unpacked(name, tmp_path)) as reader:
        golden.same_content(golden.MAKER.content_of(reader), name)
        assert [str(problem) for problem in problems(reader)] == []


@pytest.mark.parametrize("name", golden.STORES)
def test_a_golden_store_becomes_a_new_one(name: str, tmp_path: Path) -> None:
    store = golden.unpacked(name, tmp_path)
    new = tmp_path / ("new.zarr" if store.suffix == ".h5" else "new.h5")
    wustore.convert(store, new)
    with wustore.open_reader(store) as old, wustore.open_reader(new) as reader:
        assert [str(found) for found in differences(old, reader)] == []


@pytest.mark.parametrize("name", NIGHTS)
def test_a_golden_store_gives_the_fits_bytes_back(name: str, tmp_path: Path) -> None:
    wustore.convert(golden.unpacked(name, tmp_path), tmp_path / "again.fits")
    assert (tmp_path / "again.fits").read_bytes() == gzip.decompress(golden.MAKER.FITS.read_bytes())


class TestFiles:
    @pytest.mark.parametrize("name", golden.NEWEST)
    def test_have_the_recorded_sha256(self, name: str, tmp_path: Path) -> None:
        golden.unpacked(f"{golden.VERSIONS[-1]}/{name}", tmp_path)
        assert golden.MAKER.files_of(tmp_path, name) == golden.RECORDED["stores"][name]

    def test_come_from_the_recorded_fits(self) -> None:
        fits = gzip.decompress(golden.MAKER.FITS.read_bytes())
        assert hashlib.sha256(fits).hexdigest() == golden.RECORDED["perimage.fits"]

    def test_are_written_with_the_same_bytes_again(self, tmp_path: Path) -> None:
        """In every Python: but compressors of other versions may choose other bytes for the same values."""
        expected = golden.RECORDED["stores"]
        folders = [tmp_path / "a"]
        if golden.MAKER.libraries() != golden.RECORDED["libraries"]:
            folders.append(tmp_path / "b")
        found = []
        for folder in folders:
            folder.mkdir()
            golden.MAKER.write(folder)
            found.append({name: golden.MAKER.files_of(folder, name) for name in golden.NEWEST})
        assert found[0] == (expected if len(found) == 1 else found[1])
