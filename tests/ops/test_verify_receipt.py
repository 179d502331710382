"""A receipt proves later that a store, and what it gives back, is the same: every changed file is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import wustore
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, UsageError
from wustore.ops.copy import copy
from wustore.ops.verify import check_receipt, file_sums, make_receipt, read_receipt
from wustore.testing import sample


@pytest.fixture(params=["a.zarr", "a.h5", "a.zarr.zip", "a.fits"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a store that was made from a FITS file."""
    source = sample("simple")
    copy(source, backend_for_writing("night.fits").create(str(tmp_path / "night.fits"), source.meta))
    wustore.convert(tmp_path / "night.fits", tmp_path / request.param)
    return tmp_path / request.param


def receipt_of(store: Path) -> Path:
    with wustore.open_reader(store) as reader:
        receipt = make_receipt(reader)
    path = store.parent / "receipt.json"
    path.write_text(json.dumps(receipt))
    return path


def wrong(store: Path, receipt: Path) -> list[str]:
    with wustore.open_reader(store) as reader:
        return [problem.where for problem in check_receipt(read_receipt(receipt), reader)]


def test_receipt(store: Path) -> None:
    path = receipt_of(store)
    receipt = read_receipt(path)
    source = (store.parent / "night.fits").read_bytes()
    name = "a.fits" if store.suffix == ".fits" else "night.fits"
    expected = {"name": name, "size": len(source), "sha256": hashlib.sha256(source).hexdigest()}
    assert receipt["sources"] == [expected]
    assert receipt["exact_export"]
    assert receipt["images"] == 3
    assert not wrong(store, path)
    moved = store.with_name(f"moved-{store.name}")
    store.rename(moved)
    assert not wrong(moved, path)


def test_other_files_are_named(store: Path) -> None:
    path = receipt_of(store)
    if store.is_dir():
        (store / "science/c.1.0.0").unlink()
        (store / "new").write_bytes(b"x")
        assert wrong(store, path) == ["file new", "file science/c.1.0.0"]
    else:
        with store.open("ab") as file:
            file.write(bytes(2880))
        assert wrong(store, path)[0] == f"file {store.name}"


def test_every_bit_of_a_receipt_is_checked(store: Path) -> None:
    path = receipt_of(store)
    text = path.read_bytes()
    for at in range(0, 8 * len(text), 97):
        changed = bytearray(text)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(CorruptError):
            read_receipt(path)


def test_no_receipt_for_damage(tmp_path: Path) -> None:
    source = sample("simple")
    copy(source, backend_for_writing("a.zarr").create(str(tmp_path / "a.zarr"), source.meta))
    (tmp_path / "a.zarr/psf/c.2.0.0").unlink()
    with wustore.open_reader(tmp_path / "a.zarr") as reader, pytest.raises(CorruptError, match="image 2, psf"):
        make_receipt(reader)


def test_only_local_files() -> None:
    with pytest.raises(UsageError, match="only local"):
        list(file_sums(sample("simple")))
