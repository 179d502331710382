"""Files given back from reconstruction data: in the other form, and from stores that were changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from fits_samples import image_hdus, primary_hdu, small, write
from in_memory import in_memory

from wustore.backends.base import Backend, Reader
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.fits.capsule import meta_digest
from wustore.backends.fits.hdu.wustore_hdu import wustore_hdu
from wustore.backends.fits.restored_files import StoreChangedWarning
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.model.meta import Capsule
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.testing import assert_same, sample

SINGLE, SHARDED = FitsBackend(), ShardedFitsBackend()


def save(backend: Backend, source: Reader, path: Path, **options: object) -> Reader:
    copy(source, backend.create(str(path), source.meta, **options))
    return backend.open(str(path))


def imported(path: Path, backend: Backend = SINGLE) -> MemoryReader:
    with backend.open(str(path)) as reader:
        return in_memory(reader)


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


# --- numbers of cards -------------------------------------------------------------------------------------

NUMBERS = ["41", "-0", "10000000000000000000000000", "41.", "4.1D1", "T", "'41'"]
"""What a card may hold where a float is meant."""
QUANTITIES = ("BARY", "OBS_LAT", "OBS_LON", "OBS_ELEV", "GEO_0", "GEO_1")


def with_numbers(folder: Path, text: str, backend: Backend) -> list[Path]:
    """Write a file or set of which the primary header has each quantity as ``text``; return its files."""
    path = folder / "a.fits"
    folder.mkdir()
    save(backend, sample("simple"), path).close()
    data = path.read_bytes()
    cards = [data[at : at + 80] for at in range(0, data.index(b"END".ljust(80)), 80)]
    kept = [card for card in cards if card[:8].decode().strip() not in QUANTITIES]
    kept += [f"{keyword:8}= {text:>20}".ljust(80).encode() for keyword in QUANTITIES]
    header = b"".join([*kept, b"END".ljust(80)])
    old = 80 * (len(cards) + 1)
    path.write_bytes(header.ljust(-(-len(header) // 2880) * 2880) + data[old + -old % 2880 :])
    return sorted(folder.iterdir())


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize("backend", [SINGLE, SHARDED], ids=["file", "set"])
def test_numbers_of_cards_come_back_through_stores(backend: Backend, text: str, suffix: str, tmp_path: Path) -> None:
    files = with_numbers(tmp_path / "source", text, backend)
    archive, target = backend_for_writing(suffix), tmp_path / "target"
    target.mkdir()
    with backend.open(str(tmp_path / "source" / "a.fits")) as reader:
        copy(reader, archive.create(str(tmp_path / f"b{suffix}"), reader.meta, capsule=reader.capsule()), workers=1)
        with archive.open(str(tmp_path / f"b{suffix}")) as store:
            assert_same(reader, store)
            copy(store, backend.create(str(target / "a.fits"), store.meta, capsule=store.capsule()), workers=1)
    assert [file.name for file in sorted(target.iterdir())] == [file.name for file in files]
    assert [(target / file.name).read_bytes() for file in files] == [file.read_bytes() for file in files]


def test_a_distance_that_was_digested_as_an_integer(tmp_path: Path) -> None:
    """Early versions read a card without a point as an integer: their stores are to be given back as well."""
    [path] = with_numbers(tmp_path / "source", "41", SINGLE)
    store = imported(path)
    capsule = store.capsule()
    assert capsule is not None
    digest = meta_digest(replace(store.meta, barycentric_distance=41))
    assert digest != capsule.document["meta"]
    early = Capsule({**capsule.document, "meta": digest}, capsule.head)
    save(SINGLE, store, tmp_path / "b.fits", capsule=early).close()
    assert (tmp_path / "b.fits").read_bytes() == path.read_bytes()
    changed = replace(store.meta, barycentric_distance=42.0)
    with pytest.warns(StoreChangedWarning, match="metadata were changed"):
        SINGLE.create(str(tmp_path / "c.fits"), changed, capsule=early).abort()


def test_exact_metadata_that_were_digested_with_an_integer(tmp_path: Path) -> None:
    """The HDU of exact metadata belongs to the file, though what the file reads as was digested with an integer."""
    [path] = with_numbers(tmp_path / "source", "41", SINGLE)
    with SINGLE.open(str(path)) as reader:
        plain = reader.meta
    exact = replace(plain, times=plain.times + 1e-9)
    digest = meta_digest(replace(plain, barycentric_distance=41))
    path.write_bytes(path.read_bytes() + wustore_hdu(exact, digest))
    with SINGLE.open(str(path)) as reader:
        assert reader.meta.times.tolist() == exact.times.tolist()
