"""Compression around whole files: recognised at import, repeated at export."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import re
import zipfile
import zlib
from pathlib import Path

import pytest
from fits_roundtrip import again
from fits_samples import COMPRESSIONS, NOISE, compressed, image_hdus, primary_hdu, small, write
from in_memory import in_memory

import wustore
from wustore.backends.fits.backend import FitsBackend
from wustore.backends.fits.files import input as source
from wustore.backends.fits.files.container import describe_outer, repack_outer
from wustore.backends.fits.restored_files import OuterChangedWarning
from wustore.backends.memory import MemoryReader
from wustore.errors import CorruptError


def _flushed(data: bytes, level: int) -> bytes:
    engine = zlib.compressobj(level, zlib.DEFLATED, 31)
    parts = []
    for at in range(0, len(data), 2880 * 3):
        parts += [engine.compress(data[at : at + 2880 * 3]), engine.flush(zlib.Z_SYNC_FLUSH)]
    return b"".join([*parts, engine.flush()])


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", lambda data: gzip.compress(data, 9, mtime=12345)),
        (".gz", lambda data: gzip.compress(data, 4)),
        (".gz", lambda data: _flushed(data, 6)),
        (".bz2", lambda data: bz2.compress(data, 7)),
    ],
)
def test_whole_file_compression_is_exact(suffix: str, pack: object, tmp_path: Path) -> None:
    plain = Path(small(tmp_path / "a.fits")).read_bytes()
    path = tmp_path / f"b.fits{suffix}"
    path.write_bytes(pack(plain))  # type: ignore[operator]
    store = again(path, tmp_path)
    capsule = store.capsule()
    assert capsule is not None
    assert capsule.document["files"][0]["outer"]["exact"] is True
    assert capsule.document["files"][0]["sha256"] == hashlib.sha256(plain).hexdigest()


def test_unrecognised_compressor_says_so(tmp_path: Path) -> None:
    plain = Path(small(tmp_path / "a.fits")).read_bytes()
    engine = zlib.compressobj(9, zlib.DEFLATED, 31, 1, zlib.Z_RLE)
    path = tmp_path / "b.fits.gz"
    path.write_bytes(engine.compress(plain) + engine.flush())
    outer = describe_outer(str(path), "gzip", plain)
    assert outer is not None
    assert outer["exact"] is False


GNU_LIKE = zlib.compressobj(9, zlib.DEFLATED, 31, 1, zlib.Z_RLE)  # settings that are not looked for


@pytest.mark.parametrize("suffix", [".fits.gz", ".fits.zip", ".fits"])
def test_exports_warn_of_another_outer_file(suffix: str, tmp_path: Path) -> None:
    plain = Path(small(tmp_path / "a.fits")).read_bytes()
    path = tmp_path / f"b{suffix}"
    if suffix == ".fits.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("b.fits", plain)
    else:
        path.write_bytes((engine := GNU_LIKE.copy()).compress(plain) + engine.flush())
    wustore.convert(path, tmp_path / "b.zarr")
    (tmp_path / "new").mkdir()
    new = tmp_path / "new" / path.name
    with pytest.warns(OuterChangedWarning, match=rf"{re.escape(path.name)}: .* inside is the identical one"):
        wustore.convert(tmp_path / "b.zarr", new)
    assert bytes(source.load(str(new)).data) == plain
    wustore.convert(tmp_path / "b.zarr", tmp_path / "other.fits")  # asked for plain: nothing to warn of
    assert (tmp_path / "other.fits").read_bytes() == plain


@pytest.mark.parametrize("name", ["b.fits", "b.fits.gz"])
def test_a_file_comes_back_under_its_own_name(name: str, tmp_path: Path) -> None:
    """Compressed or not against what its name says; under another name it is what that says."""
    plain = Path(small(tmp_path / "a.fits")).read_bytes()
    content = gzip.compress(plain, 6, mtime=7) if name == "b.fits" else plain
    (tmp_path / name).write_bytes(content)
    wustore.convert(tmp_path / name, tmp_path / "b.zarr")
    (tmp_path / "new").mkdir()
    wustore.convert(tmp_path / "b.zarr", tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes() == content
    wustore.convert(tmp_path / "b.zarr", tmp_path / "new" / "c.fits")
    assert (tmp_path / "new" / "c.fits").read_bytes() == plain
    wustore.convert(tmp_path / "b.zarr", tmp_path / "new" / "c.fits.gz")
    assert (tmp_path / "new" / "c.fits.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_shards_come_back_compressed_or_not_as_they_were(tmp_path: Path) -> None:
    wustore.convert(small(tmp_path / "whole.fits", 3), tmp_path / "a.fits", format="sharded-fits", capsule=False)
    shard = tmp_path / "1_a.fits"
    shard.write_bytes(gzip.compress(shard.read_bytes(), 6, mtime=7))
    wustore.convert(tmp_path / "a.fits", tmp_path / "a.zarr")
    (tmp_path / "new").mkdir()
    wustore.convert(tmp_path / "a.zarr", tmp_path / "new" / "a.fits", format="sharded-fits")
    files = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert files == ["0_a.fits", "1_a.fits", "2_a.fits", "a.fits"]
    for file in files:
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_damaged_settings() -> None:
    with pytest.raises(CorruptError):
        repack_outer({"format": "gzip", "header": "zz", "flushes": "", "level": 9, "memory": 8}, b"x")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MemoryReader:
    path = tmp_path_factory.mktemp("store") / "a.fits"
    hdus = [primary_hdu(1)]
    image = image_hdus(0, shape=NOISE.shape)
    science = compressed("SCI_0", **COMPRESSIONS["rice"])
    write(path, [*hdus, science, compressed("VAR_0", **COMPRESSIONS["gzip-1"]), *image[2:]])
    with FitsBackend().open(str(path)) as reader:
        return in_memory(reader)
