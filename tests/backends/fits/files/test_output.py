"""How files appear: all of a set or none, old ones put back, compressed ones readable."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest
from astropy.io import fits

from wustore.backends.base import Backend, Reader
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.errors import StoreExistsError
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample

SINGLE, SHARDED = FitsBackend(), ShardedFitsBackend()


def save(backend: Backend, source: Reader, path: Path, **options: object) -> Reader:
    copy(source, backend.create(str(path), source.meta, **options))
    return backend.open(str(path))


def test_zip(tmp_path: Path) -> None:
    source = sample("simple")
    with save(SINGLE, source, tmp_path / "a.fits.zip") as reader:
        assert_same(source, reader)
    assert zipfile.ZipFile(tmp_path / "a.fits.zip").namelist() == ["a.fits"]


def test_fewer_shards_leave_none_behind(tmp_path: Path) -> None:
    save(SHARDED, sample("ragged"), tmp_path / "wu.fits").close()
    (tmp_path / "9_wu.fits").write_bytes(b"stale")
    (tmp_path / "9_other.fits").write_bytes(b"not ours")
    save(SHARDED, sample("bare"), tmp_path / "wu.fits", overwrite=True).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0_wu.fits", "9_other.fits", "wu.fits"]


def test_shards_without_primary_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "1_wu.fits").write_bytes(b"old")
    with pytest.raises(StoreExistsError):
        SHARDED.create(str(tmp_path / "wu.fits"), sample("simple").meta)
    assert [p.name for p in tmp_path.iterdir()] == ["1_wu.fits"]


def test_failed_commit_restores_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(SHARDED, sample("ragged"), tmp_path / "wu.fits").close()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "0_wu.fits" and ".wustore-partial" in str(self.parent) and "-old" not in str(self.parent):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    writer = SHARDED.create(str(tmp_path / "wu.fits"), sample("simple").meta, overwrite=True)
    for i in range(3):
        writer.write(i, sample("simple").image(i))
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"):
        writer.commit()
    monkeypatch.undo()
    writer.abort()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_gz_of_canonical_is_readable(tmp_path: Path) -> None:
    save(SINGLE, sample("simple"), tmp_path / "a.fits.gz").close()
    raw = gzip.decompress((tmp_path / "a.fits.gz").read_bytes())
    with fits.open(io.BytesIO(raw)) as hdus:
        assert hdus[0].header["NUMIMG"] == 3
