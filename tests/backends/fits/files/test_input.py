"""Compressed files are unpacked once, and damage in them is found."""

from __future__ import annotations

import bz2
import gzip
import pickle
import zipfile
from pathlib import Path
from typing import Any

import fits_samples as samples
import numpy as np
import pytest

from wustore.backends.fits.backend import FitsBackend
from wustore.backends.fits.files import input as source
from wustore.backends.fits.reader import FitsReader
from wustore.backends.registry import open_reader
from wustore.errors import FormatError
from wustore.model.meta import LAYERS, Image


def open_any(path: Any) -> FitsReader:
    reader = open_reader(path)
    assert isinstance(reader, FitsReader)
    return reader


def all_bits(reader: Any) -> list[bytes]:
    return [plane.tobytes() for _, image in reader.images() for plane in planes_of(image)]


def planes_of(image: Image) -> list[np.ndarray[Any, Any]]:
    return [plane for layer in LAYERS if (plane := image.layer(layer)) is not None]


def packed(folder: Path, data: bytes) -> list[Path]:
    (folder / "x.fits.gz").write_bytes(gzip.compress(data))
    half = len(data) // 2
    members = gzip.compress(data[:half]) + gzip.compress(data[half:]) + bytes(100)
    (folder / "members.fits.gz").write_bytes(members)
    (folder / "x.fits.bz2").write_bytes(bz2.compress(data))
    with zipfile.ZipFile(folder / "x.fits.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.fits", data)
    return sorted(folder.glob("*.fits.*"))


@pytest.mark.parametrize("limit", [1 << 26, 1000])
def test_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(source, "_IN_MEMORY", limit)
    plain = Path(samples.small(tmp_path / "plain.fits"))
    expected = all_bits(open_any(plain))
    for path in packed(tmp_path, plain.read_bytes()):
        reader = open_any(path)
        assert reader.format == "fits"
        assert all_bits(reader) == expected
        assert source.load(str(path)).compression in {"gzip", "bzip2", "zip"}
        assert all_bits(pickle.loads(pickle.dumps(reader))) == expected


def test_damaged_packed_files(tmp_path: Path) -> None:
    plain = Path(samples.small(tmp_path / "plain.fits"))
    for path in packed(tmp_path, plain.read_bytes()):
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(50) + whole[250:], whole[:12]):
            path.write_bytes(damaged)
            with pytest.raises(FormatError) as caught:
                FitsBackend().open(str(path))
            assert caught.value.path == str(path)


def test_a_zip_file_with_two_files(tmp_path: Path) -> None:
    path = tmp_path / "x.fits.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.fits", b"a")
        archive.writestr("b.fits", b"b")
    with pytest.raises(FormatError, match="one FITS file"):
        FitsBackend().open(str(path))
