"""Edits in place: nothing else changes, and nobody sees anything between old and new."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from zarr.storage import MemoryStore

import wustore
from wustore.backends.hdf5.filters.pipeline import Pipeline
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, StoreNotFoundError, UsageError, WuStoreError
from wustore.model.concat import appended
from wustore.model.meta import Column, ConstituentTable, Image
from wustore.ops import edit
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.storage.locks import alone, lock_of
from wustore.testing import assert_same, sample, with_capsule


def save(reader, path, **options):
    backend = backend_for_writing(str(path))
    copy(reader, backend.create(str(path), reader.meta, capsule=reader.capsule(), **options))
    return str(path)


STORES = pytest.mark.parametrize("suffix", [".zarr", ".h5"])


def chunks(path):
    """Return every chunk of a layer as it is stored; of Zarr the shards, with the time they were written at."""
    if path.endswith(".h5"):
        return hdf5_chunks(path)
    found = {}
    for layer in ("science", "variance", "mask", "psf"):
        for file in (Path(path) / layer).glob("c*"):
            found[f"{layer}/{file.name}"] = (file.stat().st_mtime_ns, file.read_bytes())
    return found


def hdf5_chunks(path):
    found = {}
    with h5py.File(path) as file:
        for layer in {"science", "variance", "mask", "psf"} & set(file):
            data = file[layer].id
            for k in range(data.get_num_chunks()):
                corner = data.get_chunk_info(k).chunk_offset
                found[f"{layer}/{corner}"] = data.read_direct_chunk(corner)
    return found


def joined(*readers):
    """Return several readers behind one another, as append should make them."""
    meta = readers[0].meta
    images = [readers[0].image(i) for i in range(meta.n_images)]
    for reader in readers[1:]:
        meta = appended(meta, reader.meta)
        images += [reader.image(i) for i in range(reader.meta.n_images)]
    return MemoryReader(meta, images)


@STORES
@pytest.mark.parametrize("kind", ["simple", "rich", "ragged", "missing", "dtypes", "flags", "bare"])
def test_append(tmp_path, kind, suffix):
    first, second, third = (sample(kind, seed) for seed in range(3))
    path = save(first, tmp_path / f"a{suffix}")
    others = [save(second, tmp_path / "b.h5"), save(third, tmp_path / "c.zarr")]
    before = chunks(path)
    early = wustore.open_reader(path)
    assert edit.append(path, others[0]) == second.meta.n_images
    assert edit.append(path, others[1]) == third.meta.n_images
    after = chunks(path)
    assert {key: after[key] for key in before} == before  # not one existing chunk was written again
    with wustore.open_reader(path) as reader:
        assert_same(joined(first, second, third), reader)
        assert [entry["action"] for entry in reader.meta.history[-2:]] == ["append", "append"]
        assert not list(reader.audit())
        assert reader.checksums().shape == (reader.meta.n_images, 4)
    assert early.meta.n_images == first.meta.n_images
    assert early.image(0).science.tobytes() == first.image(0).science.tobytes()
    early.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([f"a{suffix}", "b.h5", "c.zarr"])


@pytest.mark.parametrize("options", [{}, {"profile": "none"}, {"layout": "cutouts"}, {"chunks": (100, 110)}])
def test_append_to_hdf5_encodes_new_images_only(tmp_path, monkeypatch, options):
    """Chunks that are there are compared with their checksums; none but those of the new image is encoded."""
    encoded = []
    encode = Pipeline.encode_all

    def counted(self, plane, corners):
        if len(self.chunks) == 3:  # of a layer
            encoded.extend(corners)
        return encode(self, plane, corners)

    path = save(sample("chunked"), tmp_path / "a.h5", **options)
    other = save(sample("chunked", 1), tmp_path / "b.zarr")
    settings = wustore.open_reader(path).describe()
    before = chunks(path)
    monkeypatch.setattr(Pipeline, "encode_all", counted)
    edit.append(path, other)
    assert len(encoded) == len(before)  # as many new images as old ones
    after = chunks(path)
    assert len(after) == 2 * len(before)
    assert {key: after[key] for key in before} == before
    found = wustore.open_reader(path).describe()
    assert (found["profile"], found["layout"]) == (settings["profile"], settings["layout"])
    copy(joined(sample("chunked"), sample("chunked", 1)), writer_of(tmp_path / "whole.h5", options))
    assert chunks(str(tmp_path / "whole.h5")) == after


def writer_of(path, options):
    meta = joined(sample("chunked"), sample("chunked", 1)).meta
    return backend_for_writing(str(path)).create(str(path), meta, **options)


def test_damage_ends_an_append_to_hdf5(tmp_path):
    """It must not go into a new file as if it were whole."""
    path = save(sample("chunked"), tmp_path / "a.h5")
    with h5py.File(path) as file:
        info = file["science"].id.get_chunk_info(1)
    data = bytearray(Path(path).read_bytes())
    data[info.byte_offset + info.size // 2] ^= 1
    Path(path).write_bytes(data)
    other = save(sample("chunked", 1), tmp_path / "b.h5")
    with pytest.raises(CorruptError, match="image 0"):
        edit.append(path, other)
    assert Path(path).read_bytes() == data
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5", "b.h5"]


@STORES
def test_one_append_at_a_time(tmp_path, suffix):
    path = save(sample("simple"), tmp_path / f"a{suffix}")
    other = save(sample("simple", 1), tmp_path / "b.h5")
    lock = tmp_path / f".a{suffix}.wustore-lock" if suffix == ".h5" else Path(path) / ".wustore-lock"
    with alone(lock, path), pytest.raises(UsageError, match="another process"):
        edit.append(path, other)
    assert edit.append(path, other) == 3
    assert not lock.exists()


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".zarr.zip"])
def test_two_edits_at_a_time(tmp_path, suffix):
    """What is appended while a store is rewritten would be lost."""
    path = save(sample("simple"), tmp_path / f"a{suffix}")
    lock = lock_of(Path(path))
    with alone(lock, path):
        for act in (lambda: edit.repack(path, profile="none"), lambda: edit.drop(path, ["mask"])):
            with pytest.raises(UsageError, match="another process"):
                act()
    edit.drop(path, ["mask"])
    edit.repack(path, profile="none")
    assert not lock.exists()


def test_a_lock_of_the_next_process_stays(tmp_path):
    """A store that was exchanged may be locked again before who exchanged it gives back the lock of the old one."""
    path = save(sample("simple"), tmp_path / "a.zarr")
    lock = lock_of(Path(path))
    with alone(lock, path):
        Path(path).rename(tmp_path / "old")
        Path(path).mkdir()
        lock.touch()
    assert lock.exists()
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="another process"), alone(tmp_path / "gone" / "lock", path):
        pass


def test_file_systems_without_locks(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    path = save(sample("simple"), tmp_path / "a.h5")
    assert edit.append(path, save(sample("simple", 1), tmp_path / "b.h5")) == 3


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".zarr.zip"])
def test_edits_through_a_link(tmp_path, suffix):
    path, link = save(sample("simple"), tmp_path / f"a{suffix}"), tmp_path / f"link{suffix}"
    link.symlink_to(Path(path).name)
    images = 3
    if suffix != ".zarr.zip":
        images += edit.append(link, save(sample("simple", 1), tmp_path / "b.h5"))
    edit.repack(link, profile="none")
    edit.drop(link, ["mask"])
    assert link.is_symlink()
    with wustore.open_reader(path) as reader:
        assert reader.meta.n_images == images
        assert reader.describe()["profile"] == "none"
        assert not reader.meta.has_layer("mask")


def test_stores_elsewhere_are_rewritten(tmp_path):
    origin = save(sample("simple"), tmp_path / "origin.h5")
    for path in (f"memory://{tmp_path.name}/a.zarr", MemoryStore()):
        wustore.convert(origin, path)
        edit.repack(path, profile="none")
        edit.drop(path, ["psf"])
        with wustore.open_reader(path) as reader:
            assert reader.describe()["profile"] == "none"
            assert [entry["action"] for entry in reader.meta.history] == ["repack", "drop"]
            assert reader.image(2).science.tobytes() == sample("simple").image(2).science.tobytes()
    with pytest.raises(StoreNotFoundError):
        edit.repack(tmp_path / "a.zarr", profile="none")


@STORES
def test_append_several_at_once_and_pieces_of_columns(tmp_path, suffix):
    first = sample("simple")
    extra = ConstituentTable(
        3, (Column("filter", "plain", np.array(["g", "r", "long name"])), Column("n", "plain", np.arange(3)))
    )
    path = save(
        MemoryReader(replace(first.meta, constituents=extra), [first.image(i) for i in range(3)]),
        tmp_path / f"a{suffix}",
    )
    plain = save(sample("simple", 1), tmp_path / "b.zarr")
    assert edit.append(path, plain, plain, duplicates=True) == 6
    with wustore.open_reader(path) as reader:
        column = reader.meta.constituents.get("filter")
        assert column.values.tolist() == ["g", "r", "long name"] + [""] * 6
        assert column.mask.tolist() == [False] * 3 + [True] * 6
        assert reader.meta.links == tuple((i,) for i in range(9))


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not")
def test_plain_zarr_sees_the_new_store(tmp_path):
    import zarr

    path = save(sample("chunked"), tmp_path / "a.zarr")
    edit.append(path, save(sample("chunked", 1), tmp_path / "b.zarr"))
    for consolidated in (True, False):
        group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
        assert group["science"].shape == (6, 600, 530)
        assert group["time"].shape == (6,)
        assert np.asarray(group["science"][4]).tobytes() == sample("chunked", 1).image(1).science.tobytes()


@STORES
def test_capsule_goes_with_an_append(tmp_path, suffix):
    path = save(with_capsule(sample("ragged")), tmp_path / f"a{suffix}")
    other = save(sample("ragged", 1), tmp_path / "b.zarr")
    before = chunks(path)
    with pytest.raises(UsageError, match="ends the FITS reconstruction data"):
        edit.append(path, other, drop_capsule=False)
    with pytest.raises(edit.EditWarning, match="ends the FITS reconstruction data"):  # an error in tests
        edit.append(path, other)
    assert chunks(path) == before  # it comes before anything is written
    edit.append(path, other, drop_capsule=True)
    with wustore.open_reader(path) as reader:
        assert reader.capsule() is None
    if suffix == ".zarr":
        assert not (Path(path) / "fits").exists()
    else:
        with h5py.File(path) as file:
            assert "fits" not in file


@pytest.mark.parametrize("suffix", [".zarr.zip", ".fits"])
def test_formats_that_are_not_appended_to(tmp_path, suffix):
    path = save(sample("simple"), tmp_path / f"a{suffix}")
    before = Path(path).read_bytes()
    with pytest.raises(UsageError, match="not appended"):
        edit.append(path, save(sample("simple", 1), tmp_path / "b.h5"))
    assert Path(path).read_bytes() == before


@STORES
@pytest.mark.parametrize("change", ["wcs", "size", "dtype", "layer", "nothing"])
def test_refused_appends_change_nothing(tmp_path, change, suffix):
    first = sample("bare")
    path = save(first, tmp_path / f"a{suffix}")
    rng = np.random.default_rng(1)
    plane = rng.random((1, 4)).astype(np.float32)
    other = {
        "wcs": MemoryReader(replace(first.meta, wcs="CTYPE1  = 'RA---TAN'".ljust(80)), [first.image(0)]),
        "size": sample("simple"),
        "layer": None,
        "dtype": None,
    }.get(change, first)
    if change == "layer":
        image = Image(plane, plane, np.zeros((1, 4), np.int8))
        dtypes = {**first.meta.dtypes, "mask": (np.dtype(np.int8),)}
        other = MemoryReader(replace(first.meta, dtypes=dtypes), [image])
    if change == "dtype":
        image = Image(plane.astype(np.float64), plane)
        other = MemoryReader(replace(first.meta, dtypes={**first.meta.dtypes, "science": (np.dtype(float),)}), [image])
    sources = [] if change == "nothing" else [save(other, tmp_path / "b.zarr")]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError):
        edit.append(path, *sources)
    assert sorted(tmp_path.rglob("*")) == before
    with wustore.open_reader(path) as reader:
        assert_same(first, reader)


APPEND = """
import sys
from wustore.ops import edit
print("ready", flush=True)
edit.append(sys.argv[1], sys.argv[2], duplicates=True)
"""


def appends_and_kills(path, other, first, second, delays):
    """Append again and again, kill it after each delay: the store is the old or the new one each time."""
    images = 3
    for delay in delays:
        process = subprocess.Popen([sys.executable, "-c", APPEND, path, other], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        with wustore.open_reader(path) as reader:
            assert reader.meta.n_images in (images, images + 3)
            images = reader.meta.n_images
            last = (second if images > 3 else first).image(2)
            assert reader.image(images - 1).science.tobytes() == last.science.tobytes()
    edit.append(path, other, duplicates=True)  # an append that was not killed in time has added them
    with wustore.open_reader(path) as reader:
        assert_same(joined(first, *[second] * (images // 3)), reader)
        assert not list(reader.audit())


@STORES
def test_append_is_atomic_under_sigkill(tmp_path, suffix):
    first, second = sample("chunked"), sample("chunked", 1)
    path, other = save(first, tmp_path / f"a{suffix}"), save(second, tmp_path / "b.zarr")
    appends_and_kills(path, other, first, second, [0.04 * step for step in range(8)])
    assert sorted(entry.name for entry in tmp_path.glob("*")) == [f"a{suffix}", "b.zarr"]


@pytest.mark.slow
@STORES
def test_append_is_atomic_under_many_sigkills(tmp_path, suffix):
    first, second = sample("chunked"), sample("chunked", 1)
    path, other = save(first, tmp_path / f"a{suffix}"), save(second, tmp_path / "b.zarr")
    generator = random.Random(3)
    appends_and_kills(path, other, first, second, [generator.uniform(0, 0.4) for _ in range(25)])


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".zarr.zip"])
def test_repack(tmp_path, suffix):
    source = with_capsule(sample("rich"))
    path = save(source, tmp_path / f"a{suffix}")
    edit.repack(path, profile="none", layout="cutouts")
    with wustore.open_reader(path) as reader:
        assert_same(source, reader)
        assert reader.meta.history[-1]["action"] == "repack"
        assert reader.capsule() is not None
        assert reader.describe()["profile"] == "none"
        assert reader.describe()["layout"] == "cutouts"
    assert [entry.name for entry in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_repack_into_the_profile_it_has(tmp_path, suffix):
    """The filters of the new file are those that the open old one uses."""
    path = save(sample("chunked"), tmp_path / f"a{suffix}", profile="fast")
    edit.repack(path, profile="fast", layout="cutouts")
    with wustore.open_reader(path) as reader:
        assert reader.describe()["profile"] == "fast"
        assert_same(sample("chunked"), reader)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_repack_keeps_what_is_not_changed(tmp_path, suffix):
    path = save(sample("chunked"), tmp_path / f"a{suffix}", chunks=(100, 110))
    edit.repack(path, profile="none")
    with wustore.open_reader(path) as reader:
        chunks = reader.chunks("science")
        assert reader.describe()["profile"] == "none"
    edit.repack(path, layout="cutouts")
    with wustore.open_reader(path) as reader:
        assert reader.describe()["profile"] == "none"
        assert reader.describe()["layout"] == "cutouts"
        assert reader.chunks("science") != chunks
        assert_same(sample("chunked"), reader)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_drop(tmp_path, suffix):
    source = with_capsule(sample("simple"))
    path = save(source, tmp_path / f"a{suffix}", profile="none")
    with pytest.raises(edit.EditWarning, match="ends the FITS reconstruction data"):
        edit.drop(path, ["mask"])
    edit.drop(path, ["mask", "capsule"])
    with wustore.open_reader(path) as reader:
        assert not reader.meta.has_layer("mask")
        assert {d.where.split(" of ")[-1] for d in differences(source, reader)} >= {"mask"}
        assert reader.image(0).science.tobytes() == source.image(0).science.tobytes()
        assert reader.capsule() is None
        assert reader.describe()["profile"] == "none"
    with pytest.raises(UsageError, match="nothing of this name"):
        edit.drop(path, ["mask"])
    with pytest.raises(UsageError, match="cannot drop"):
        edit.drop(path, ["science"])


def test_drop_capsule_only(tmp_path):
    source = with_capsule(sample("simple"))
    path = save(source, tmp_path / "a.zarr")
    edit.drop(path, ["capsule"])
    with wustore.open_reader(path) as reader:
        assert reader.capsule() is None
        assert_same(source, reader)


def test_formats_that_are_not_edited(tmp_path):
    path = save(sample("simple"), tmp_path / "a.fits")
    for act in (lambda: edit.repack(path, profile="none"), lambda: edit.drop(path, ["mask"])):
        with pytest.raises(UsageError, match="in place"):
            act()


def test_unknown_profile_leaves_the_store(tmp_path):
    path = save(sample("simple"), tmp_path / "a.zarr")
    with pytest.raises(WuStoreError):
        edit.repack(path, profile="zap")
    with wustore.open_reader(path) as reader:
        assert_same(sample("simple"), reader)


def test_images_that_are_there_already(tmp_path):
    path = save(sample("simple"), tmp_path / "a.zarr")
    before = chunks(path)
    for sources in ([path], [save(sample("simple", 1), tmp_path / "b.h5")] * 2):
        with pytest.raises(UsageError, match="there already"):
            edit.append(path, *sources, duplicates=False)
        with pytest.raises(edit.EditWarning, match="there already"):
            edit.append(path, *sources)
        assert chunks(path) == before
    assert edit.append(path, path, duplicates=True) == 3
