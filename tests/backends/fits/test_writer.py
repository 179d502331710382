"""The FITS backends as archive formats, and how files appear."""

from __future__ import annotations

import gzip
import io
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from astropy.io import fits
from fits_samples import image_hdus, primary_hdu, small, write
from in_memory import in_memory

from wustore.backends.base import Backend, Reader
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.fits.hdu.wustore_hdu import NAME, read_wustore_hdu
from wustore.backends.fits.restore import StoreChangedWarning
from wustore.backends.fits.writer import FitsLossWarning
from wustore.backends.memory import MemoryReader
from wustore.errors import CorruptError, StoreExistsError, UsageError
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.testing import BackendConformance, assert_same, sample

SINGLE, SHARDED = FitsBackend(), ShardedFitsBackend()


class TestFits(BackendConformance):
    backend: ClassVar[Backend] = SINGLE
    suffix = ".fits"
    keeps_capsule = False


class TestFitsGz(BackendConformance):
    backend: ClassVar[Backend] = SINGLE
    suffix = ".fits.gz"
    keeps_capsule = False


class TestShardedFits(BackendConformance):
    backend: ClassVar[Backend] = SHARDED
    suffix = ".fits"
    keeps_capsule = False


def save(backend: Backend, source: Reader, path: Path, **options: object) -> Reader:
    copy(source, backend.create(str(path), source.meta, **options))
    return backend.open(str(path))


def imported(path: Path, backend: Backend = SINGLE) -> MemoryReader:
    with backend.open(str(path)) as reader:
        return in_memory(reader)


# --- the HDU of our own -------------------------------------------------------------------------------


def test_plain_layout_where_it_is_enough(tmp_path: Path) -> None:
    save(SINGLE, sample("simple"), tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        assert NAME not in hdus


def test_edited_file_goes_by_its_plain_layout(tmp_path: Path) -> None:
    save(SINGLE, sample("flags"), tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        assert NAME in hdus
        hdus["SCI_1"].header["MJD"] = 7.5
        hdus.writeto(tmp_path / "b.fits")
    with SINGLE.open(str(tmp_path / "b.fits")) as reader:
        assert reader.meta.times[1] == 7.5
        assert not reader.meta.mask_flags


def test_damaged_hdu(tmp_path: Path) -> None:
    save(SINGLE, sample("rich"), tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        data = hdus[NAME].data.tobytes()
    meta, _ = read_wustore_hdu(data)
    assert meta.constituents.n_rows == 7
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptError):
            read_wustore_hdu(bytes(changed))
    with pytest.raises(CorruptError):
        read_wustore_hdu(data[:100])


def test_others_read_the_archive(tmp_path: Path) -> None:
    """What KBMOD reads is there under its names, with the same pixels masked."""
    source = sample("missing")
    save(SINGLE, source, tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        assert hdus[0].header["NUMIMG"] == 3
        for i in range(3):
            image = source.image(i)
            assert hdus[f"SCI_{i}"].data.tobytes() == image.science.astype(">f4").tobytes() or np.array_equal(
                hdus[f"SCI_{i}"].data, image.science, equal_nan=True
            )
            assert hdus[f"SCI_{i}"].header["NIND"] == 1
            assert (image.mask is None) == (f"MSK_{i}" not in hdus)
            assert hdus[f"PSF_{i}"].data.shape == ((1, 1) if image.psf is None else image.psf.shape)


# --- options ------------------------------------------------------------------------------------------


def test_kbmod_mode_warns_and_lossless_does_not(tmp_path: Path) -> None:
    images = [replace(im, variance=np.full((11, 13), 1e-4, np.float32)) for im in map(sample("simple").image, range(3))]
    source = MemoryReader(sample("simple").meta, images)
    with pytest.warns(FitsLossWarning, match=r"VAR_0: the quantisation step 0\.01 is 100 times its median"):
        save(SINGLE, source, tmp_path / "a.fits", mode="kbmod").close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with save(SINGLE, source, tmp_path / "b.fits", lossless=True) as reader:
            assert_same(source, reader)
    with fits.open(tmp_path / "b.fits", disable_image_compression=True) as hdus:
        assert hdus["SCI_0"].header["ZCMPTYPE"] == "GZIP_2"


def test_wrong_options(tmp_path: Path) -> None:
    meta = sample("simple").meta
    for wrong in ({"mode": "x"}, {"compression_type": "LZW"}, {"lossless": True, "quantize_level": 4}):
        with pytest.raises(UsageError):
            SINGLE.create(str(tmp_path / "a.fits"), meta, **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_same_input_same_bytes(tmp_path: Path) -> None:
    source = sample("simple")
    for name, workers in (("a.fits", 1), ("b.fits", 4)):
        save(SINGLE, source, tmp_path / name, workers=workers).close()
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_zip(tmp_path: Path) -> None:
    source = sample("simple")
    with save(SINGLE, source, tmp_path / "a.fits.zip") as reader:
        assert_same(source, reader)
    assert zipfile.ZipFile(tmp_path / "a.fits.zip").namelist() == ["a.fits"]


# --- one form into the other --------------------------------------------------------------------------


def headers(path: Path, n_images: int, *, sharded: bool) -> dict[str, str]:
    found = {}
    for name in [path.name, *(f"{i}_{path.name}" for i in range(n_images) if sharded)]:
        with fits.open(path.with_name(name), disable_image_compression=True) as hdus:
            for k, hdu in enumerate(hdus):
                if hdu.name != "PRIMARY" or (k == 0 and name == path.name):
                    found[hdu.name] = hdu.header.tostring()
    return found


def test_single_to_sharded_and_back(tmp_path: Path) -> None:
    foreign = fits.ImageHDU(np.arange(5), name="FOREIGN")
    foreign.header["HISTORY"] = "kept"
    original = Path(
        write(tmp_path / "a.fits", [primary_hdu(2), *image_hdus(0, compressed=True), *image_hdus(1), foreign])
    )
    store = imported(original)
    shards = tmp_path / "b.fits"
    with save(SHARDED, store, shards, capsule=store.capsule()) as reader:
        assert not list(differences(store, reader))
    expected = headers(original, 2, sharded=False)
    assert headers(shards, 2, sharded=True) == expected
    store = imported(shards, SHARDED)
    with save(SINGLE, store, tmp_path / "c.fits", capsule=store.capsule()) as reader:
        assert not list(differences(store, reader))
    assert headers(tmp_path / "c.fits", 2, sharded=False) == expected


def test_plain_primary_of_a_shard_becomes_an_extension(tmp_path: Path) -> None:
    source = sample("simple")
    save(SHARDED, source, tmp_path / "a.fits").close()
    store = imported(tmp_path / "a.fits", SHARDED)
    with save(SINGLE, store, tmp_path / "b.fits", capsule=store.capsule()) as reader:
        assert not list(differences(store, reader))
    with fits.open(tmp_path / "b.fits") as hdus:
        hdus.verify("exception")
        assert hdus["SCI_0"].header["XTENSION"] == "IMAGE"
        assert hdus["SCI_0"].header["NIND"] == 1


# --- a store changed since its import -------------------------------------------------------------------


@pytest.mark.parametrize("backend", [SINGLE, SHARDED])
@pytest.mark.parametrize("imported_from", [SINGLE, SHARDED])
def test_changed_pixels(backend: Backend, imported_from: Backend, tmp_path: Path) -> None:
    save(imported_from, sample("chunked"), tmp_path / "a.fits").close()
    store = imported(tmp_path / "a.fits", imported_from)
    images = [store.image(i) for i in range(3)]
    images[1].science[5, 5] += 1
    changed = in_memory(store, images)
    with (
        pytest.warns(StoreChangedWarning, match="pixels of image 1"),
        save(backend, changed, tmp_path / "b.fits", capsule=changed.capsule()) as reader,
    ):
        assert_same(changed, reader)


@pytest.mark.parametrize("backend", [SINGLE, SHARDED])
@pytest.mark.parametrize("imported_from", [SINGLE, SHARDED])
def test_changed_pixels_after_later_images(backend: Backend, imported_from: Backend, tmp_path: Path) -> None:
    save(imported_from, sample("chunked"), tmp_path / "a.fits").close()
    store = imported(tmp_path / "a.fits", imported_from)
    images = [store.image(i) for i in range(3)]
    images[1].science[5, 5] += 1

    def write_backwards() -> None:
        with backend.create(str(tmp_path / "b.fits"), store.meta, capsule=store.capsule(), workers=1) as writer:
            for i in (2, 1, 0):
                writer.write(i, images[i], store.image_capsule(i))
            writer.commit()

    with pytest.warns(StoreChangedWarning, match="pixels of image 1"):
        write_backwards()
    with backend.open(str(tmp_path / "b.fits")) as reader:
        assert_same(MemoryReader(store.meta, images), reader)


def test_changed_metadata(tmp_path: Path) -> None:
    store = imported(Path(small(tmp_path / "a.fits")))
    changed = in_memory(store, meta=replace(store.meta, reprojected=True))
    with (
        pytest.warns(StoreChangedWarning, match="metadata"),
        save(SINGLE, changed, tmp_path / "b.fits", capsule=changed.capsule()) as reader,
    ):
        assert_same(changed, reader)


# --- how files appear ---------------------------------------------------------------------------------


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


def test_images_out_of_order_need_no_memory(tmp_path: Path) -> None:
    """Images that come early wait in a file, and end up in order."""
    source = sample("chunked")
    writer = SINGLE.create(str(tmp_path / "a.fits"), source.meta, workers=1)
    for i in (2, 1, 0):
        writer.write(i, source.image(i))
    writer.commit()
    save(SINGLE, source, tmp_path / "b.fits").close()
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_an_image_twice(tmp_path: Path) -> None:
    source = sample("simple")
    with SINGLE.create(str(tmp_path / "a.fits"), source.meta) as writer:
        writer.write(0, source.image(0))
        with pytest.raises(UsageError):
            writer.write(0, source.image(0))
        writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_gz_of_canonical_is_readable(tmp_path: Path) -> None:
    save(SINGLE, sample("simple"), tmp_path / "a.fits.gz").close()
    raw = gzip.decompress((tmp_path / "a.fits.gz").read_bytes())
    with fits.open(io.BytesIO(raw)) as hdus:
        assert hdus[0].header["NUMIMG"] == 3
