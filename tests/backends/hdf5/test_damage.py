"""Damaged HDF5 stores: found, named, never read as data; and writers that die."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from wustore.backends.base import Reader
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.errors import CorruptError, FormatError, StoreReplacedError, WuStoreError
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.testing import assert_same, sample, with_capsule


def make(path: Path, kind: str = "chunked", **options) -> str:
    source = with_capsule(sample(kind))
    copy(source, Hdf5Backend().create(str(path), source.meta, capsule=source.capsule(), **options))
    return str(path)


def read_all(reader: Reader) -> list[bytes]:
    """Return everything that can be read, as bytes."""
    found = [reader.checksums().tobytes()]
    capsule = reader.capsule()
    found += [capsule.head, repr(sorted(capsule.document.items())).encode()]
    for i in range(reader.meta.n_images):
        image = reader.image(i)
        found += [b"" if image.layer(name) is None else image.layer(name).tobytes() for name in LAYERS]
        found.append(reader.image_capsule(i) or b"")
    return found


def chunk_of(path: str, layer: str, k: int):
    with h5py.File(path) as file:
        return file[layer].id.get_chunk_info(k)


def overwrite(path: str, place: int, data: bytes) -> None:
    with open(path, "r+b") as file:  # noqa: PTH123
        file.seek(place)
        file.write(data)


@pytest.mark.parametrize("profile", ["portable", "fast", "none"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_changed_byte_in_any_chunk(tmp_path, layer, profile):
    path = make(tmp_path / "a.h5", profile=profile)
    info = chunk_of(path, layer, 1)
    image = info.chunk_offset[0]
    original = Path(path).read_bytes()[info.byte_offset : info.byte_offset + info.size]
    for k in {0, 1, info.size // 2, info.size - 1}:
        overwrite(path, info.byte_offset + k, bytes([original[k] ^ 4]))
        with Hdf5Backend().open(path) as reader:
            with pytest.raises(CorruptError, match=f"{layer}, image {image}, chunk at") as caught:
                reader.image(image)
            assert path in str(caught.value)
            other = (image + 1) % 3  # what is whole stays readable
            if layer != "psf":
                assert reader.image(other).science.shape == (600, 530)
        overwrite(path, info.byte_offset + k, original[k : k + 1])


def test_a_flipped_bit_anywhere_changes_no_value(tmp_path):
    """Every 97th byte of the file, one bit each: found, or where it does not matter."""
    path = make(tmp_path / "a.h5", "rich")
    good = Path(path).read_bytes()
    with Hdf5Backend().open(path) as reference:
        expected = read_all(reference)
        for k in range(0, len(good), 97):
            damaged = bytearray(good)
            damaged[k] ^= 1 << k % 8
            other = tmp_path / "b.h5"
            other.write_bytes(damaged)
            try:
                with Hdf5Backend().open(str(other)) as reader:
                    assert read_all(reader) == expected, k
                    assert not list(differences(reference, reader, workers=1)), k
            except (WuStoreError, OSError, MemoryError):
                pass


def test_damaged_text_keeps_nobody_waiting(tmp_path):
    """Damage in the heap of variable-length text can make the HDF5 library loop: opening never looks there."""
    path = make(tmp_path / "a.h5", "rich")
    data = bytearray(Path(path).read_bytes())
    place = -1
    while (place := data.find(b"GCOL", place + 1)) >= 0:
        data[place + 16 : place + 48] = bytes(32)
    Path(path).write_bytes(data)
    with Hdf5Backend().open(path) as reader:
        assert reader.meta.constituents.n_rows == 7
        assert read_all(reader)


def test_truncated_anywhere(tmp_path):
    path = make(tmp_path / "a.h5", "rich")
    good = Path(path).read_bytes()
    other = tmp_path / "b.h5"
    for size in [0, 1, 7, 8, 40, *range(100, len(good), 997), len(good) - 1]:
        other.write_bytes(good[:size])
        with pytest.raises(FormatError):
            Hdf5Backend().open(str(other)).close()


def test_shortened_while_open(tmp_path):
    path = make(tmp_path / "a.h5")
    with Hdf5Backend().open(path) as reader:
        reader.chunks("science")
        reader.read("science", (slice(0, 1), slice(0, 1), slice(0, 1)))
        os.truncate(path, chunk_of(path, "science", 3).byte_offset + 10)
        with pytest.raises(StoreReplacedError):
            reader.read("science", (slice(0, 3), slice(0, 600), slice(0, 530)))


def test_missing_chunk(tmp_path):
    """HDF5 itself gives the fill value for a chunk that is not there."""
    path = make(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        old = file["science"]
        chunks = old.chunks
        new = file.create_dataset(
            "new", old.shape, old.dtype, chunks=chunks, shuffle=True, compression=1, fletcher32=True, fillvalue=np.nan
        )
        for k in range(old.id.get_num_chunks()):
            place = old.id.get_chunk_info(k).chunk_offset
            if place != (1, chunks[1], 0):
                skipped, data = old.id.read_direct_chunk(place)
                new.id.write_direct_chunk(place, data, skipped)
        del file["science"]
        file.move("new", "science")
        assert np.isnan(file["science"][1, chunks[1] :, : chunks[2]]).all()
    with Hdf5Backend().open(path) as reader:
        reader.image(0)
        with pytest.raises(CorruptError, match=r"a chunk is missing \[.*science, image 1, chunk at"):
            reader.image(1)


def test_false_shape_takes_no_memory(tmp_path):
    path = make(tmp_path / "a.h5", "simple")
    with h5py.File(path, "r+") as file:
        del file["science"]
        file.create_dataset("science", (3, 2**30, 2**30), "f4", chunks=(1, 8, 8))
        del file["packed"], file["image_shape"]
        file["image_shape"] = np.full((3, 2), 2**30, np.int32)
    with Hdf5Backend().open(path) as reader, pytest.raises(CorruptError, match="no storage"):
        reader.read("science", (slice(0, 1), slice(0, 1), slice(0, 1)))


@pytest.mark.parametrize(
    "name", ["time", "image_shape", "link_start", "constituents/visit", "constituents/per_image_wcs"]
)
def test_missing_array(tmp_path, name):
    path = make(tmp_path / "a.h5", "rich")
    with h5py.File(path, "r+") as file:
        del file[name]
    with Hdf5Backend().open(path) as reader:  # what is packed is whole; verify finds the copy missing
        assert name in str([*reader.audit()])
    with h5py.File(path, "r+") as file:
        del file["packed"]
    with pytest.raises(CorruptError, match=name):
        Hdf5Backend().open(path)


@pytest.mark.parametrize("name", ["science", "psf", "checksum", "fits/data", "fits/bound"])
def test_missing_large_array(tmp_path, name):
    path = make(tmp_path / "a.h5", "rich")
    with h5py.File(path, "r+") as file:
        del file[name]
    with Hdf5Backend().open(path) as reader, pytest.raises(CorruptError, match=name):
        read_all(reader)


@pytest.mark.parametrize("layer", ["science", "mask"])
def test_wrong_shape_or_dtype(tmp_path, layer):
    path = make(tmp_path / "a.h5", "simple")
    for data in (np.zeros((3, 11, 12), "f4"), np.zeros((3, 11, 13), "c8"), np.array(1)):
        with h5py.File(path, "r+") as file:
            del file[layer]
            file[layer] = data
        with Hdf5Backend().open(path) as reader, pytest.raises(CorruptError, match=layer):
            reader.image(0)


def test_a_group_in_place_of_an_array(tmp_path):
    path = make(tmp_path / "a.h5", "simple")
    with h5py.File(path, "r+") as file:
        del file["science"]
        file.create_group("science")
    with Hdf5Backend().open(path) as reader, pytest.raises(CorruptError, match="science"):
        reader.image(0)


def test_changed_document_and_text(tmp_path):
    path = make(tmp_path / "a.h5", "rich")
    with h5py.File(path, "r+") as file:
        text = file.attrs["wustore"]
        file.attrs["wustore"] = text.replace('"n_images": 4', '"n_images": 5')
    with Hdf5Backend().open(path) as reader:
        assert "root attribute" in str([*reader.audit()])
    with h5py.File(path, "r+") as file:  # who edits the copies takes the packed ones away
        del file["packed"]
    with pytest.raises(CorruptError, match="sha256"):
        Hdf5Backend().open(path)
    with h5py.File(path, "r+") as file:
        file.attrs["wustore"] = text
        file["constituents/data_loc"][0] = "elsewhere"
    with pytest.raises(CorruptError, match="crc32c"):
        Hdf5Backend().open(path)
    with h5py.File(path, "r+") as file:  # the hint that the message names
        del file["constituents/data_loc"].attrs["crc32c"]
    with Hdf5Backend().open(path) as reader:
        assert reader.meta.constituents.columns[0].values[0] == "elsewhere"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "wustore"}', '{"format": "wustore", "version": "1.0"}']
)
def test_strange_documents(tmp_path, text):
    path = make(tmp_path / "a.h5", "simple")
    with h5py.File(path, "r+") as file:
        del file["packed"], file.attrs["wustore_sha256"]
        file.attrs["wustore"] = text
    with pytest.raises(FormatError):
        Hdf5Backend().open(path)


WRITE_AND_DIE = """
import os, signal, sys
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.testing import sample
source = sample("ragged")
writer = Hdf5Backend().create(sys.argv[1], source.meta, overwrite=True)
for i in range(int(sys.argv[2])):
    writer.write(i, source.image(i))
if sys.argv[3] == "sync":
    import wustore.storage.staging
    wustore.storage.staging.sync_tree = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    writer.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", [(0, "-"), (2, "-"), (4, "-"), (4, "sync")])
def test_a_killed_writer_leaves_the_old_store(tmp_path, moment):
    path = make(tmp_path / "a.h5", "simple")
    command = [sys.executable, "-c", WRITE_AND_DIE, path, *map(str, moment)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    source = sample("simple")
    with Hdf5Backend().open(path) as reader:
        assert_same(source, reader)
    make(tmp_path / "a.h5", "ragged", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]  # what the dead one left is gone


@pytest.mark.parametrize("name", ["science", "time", "fits/data", "fits/bound", "chunk_checksum", "packed"])
def test_arrays_of_another_shape_or_type(tmp_path, name):
    whole = make(tmp_path / "whole.h5", "simple")
    with h5py.File(whole) as file:
        data = file[name][()]
    empty = h5py.Empty(data.dtype)
    others = [
        empty,
        data[None],
        data[..., None],
        data.ravel(),
        data[..., :0],
        data[:1].ravel()[0],
        np.full(data.shape, 1j),
    ]
    with Hdf5Backend().open(whole) as reader:
        expected = read_all(reader)
    for k, other in enumerate(others):
        path = tmp_path / f"{k}.h5"
        shutil.copy(whole, path)
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = other
        if other is not empty and (other.shape, other.dtype) == (data.shape, data.dtype):
            continue
        with contextlib.suppress(WuStoreError), Hdf5Backend().open(str(path)) as reader:
            list(reader.audit())
            assert read_all(reader) == expected


def test_capsule_bounds_out_of_order_without_a_sign(tmp_path):
    """Differences of unsigned numbers are never negative."""
    path = make(tmp_path / "a.h5", "simple")
    with h5py.File(path, "r+") as file:
        bounds = file["fits/bound"][()]
        assert len(bounds) > 3
        bounds[1], bounds[2] = bounds[-1], 0
        del file["fits/bound"]
        file["fits/bound"] = bounds.astype("u8")
    with Hdf5Backend().open(path) as reader, pytest.raises(CorruptError, match="bounds of the capsule"):
        reader.image_capsule(0)
