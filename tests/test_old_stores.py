"""Stores that earlier versions of the format wrote: read as they were told, and given back as the same FITS bytes."""

from __future__ import annotations

import gzip
import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import wustore
from wustore.ops.diff import differences
from wustore.ops.verify import problems

DATA = Path(__file__).parent / "data" / "stores"
STORES = sorted(str(path.relative_to(DATA)) for path in DATA.glob("*/*.zip"))
VERSIONS = sorted(path.name for path in DATA.iterdir() if path.is_dir() and path.name[0].isdigit())


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_stores", DATA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpacked(name: str, directory: Path) -> Path:
    with zipfile.ZipFile(DATA / name) as archive:
        archive.extractall(directory)
    return directory / Path(name).stem


@pytest.mark.parametrize("name", STORES)
def test_an_old_store_holds_what_it_held(name: str, tmp_path: Path, maker: ModuleType) -> None:
    store = unpacked(name, tmp_path)
    expected = json.loads((DATA / Path(name).parent / "told.json").read_text())[store.name]
    with wustore.open_reader(store) as reader:
        assert json.loads(json.dumps(maker.told(reader))) == expected
        assert [str(problem) for problem in problems(reader)] == []


@pytest.mark.parametrize("name", STORES)
def test_an_old_store_becomes_a_new_one(name: str, tmp_path: Path) -> None:
    store = unpacked(name, tmp_path)
    new = tmp_path / ("new.zarr" if store.suffix == ".h5" else "new.h5")
    wustore.convert(store, new)
    with wustore.open_reader(store) as old, wustore.open_reader(new) as reader:
        assert [str(found) for found in differences(old, reader)] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("store", ["night.zarr", "night.h5"])
def test_an_old_store_gives_the_fits_bytes_back(version: str, store: str, tmp_path: Path, maker: ModuleType) -> None:
    path = unpacked(f"{version}/{store}.zip", tmp_path)
    wustore.convert(path, tmp_path / "again.fits")
    assert (tmp_path / "again.fits").read_bytes() == gzip.decompress(maker.FITS.read_bytes())
