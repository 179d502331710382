"""What wustore writes is its own, and what others add is named."""

from __future__ import annotations

import h5py
import pytest
import zarr

import wustore
from wustore.backends.registry import backend_for_writing
from wustore.errors import UsageError
from wustore.format.content import foreign_content, own_content
from wustore.ops.copy import copy
from wustore.testing import sample, with_capsule

KINDS = ["simple", "rich", "ragged", "missing", "dtypes", "flags", "bare"]


def save(kind, path):
    source = with_capsule(sample(kind))
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta, capsule=source.capsule()))
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".zarr.zip"])
def test_nothing_of_a_new_store_is_foreign(tmp_path, kind, suffix):
    path = save(kind, tmp_path / f"a{suffix}")
    with wustore.open_reader(path) as reader:
        assert not list(reader.foreign())
    if suffix != ".zarr.zip":
        wustore.append(path, path, drop_capsule=True, duplicates=True)
        with wustore.open_reader(path) as reader:
            assert not list(reader.foreign())


def add_to_zarr(path):
    group = zarr.open_group(path, mode="r+")
    group.create_array("candidates", shape=(5,), dtype="i8")
    group.create_group("notes/deep")
    group["science"].attrs["BUNIT"] = "adu"
    group.attrs["note"] = "checked"


def add_to_hdf5(path):
    with h5py.File(path, "r+") as file:
        file["candidates"] = [1]
        file.create_group("notes/deep")
        file["science"].attrs["BUNIT"] = "adu"
        file.attrs["note"] = "checked"


@pytest.mark.filterwarnings("ignore:Numcodecs codecs")
@pytest.mark.parametrize(("suffix", "add"), [(".zarr", add_to_zarr), (".h5", add_to_hdf5)])
def test_what_others_added_is_named_and_kept(tmp_path, suffix, add):
    path = save("simple", tmp_path / f"a{suffix}")
    add(path)
    expected = ["root attribute note", "array candidates", "group notes", "attribute BUNIT of science"]
    with wustore.open_reader(path) as reader:
        assert list(reader.foreign()) == expected
    acts = [
        lambda: wustore.append(path, path, drop_capsule=True, duplicates=True),
        lambda: wustore.repack(path, profile="none"),
        lambda: wustore.drop(path, ["capsule"]),
    ]
    for act in acts:
        with pytest.raises(UsageError, match="BUNIT of science"):
            act()
    with wustore.open_reader(path) as reader:
        assert list(reader.foreign()) == expected


def test_files_beside_the_arrays(tmp_path):
    path = save("simple", tmp_path / "a.zarr")
    for name in ("README", "science/mine", "fits/note.txt", ".DS_Store", "science/.c.0~host~1-2"):
        (tmp_path / "a.zarr" / name).write_bytes(b"x")
    with wustore.open_reader(path) as reader:
        assert set(reader.foreign()) == {"file README", "file science/mine", "file fits/note.txt"}


def test_links_are_foreign(tmp_path):
    path = save("simple", tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["again"] = h5py.SoftLink("/science")
    with wustore.open_reader(path) as reader:
        assert list(reader.foreign()) == ["link again"]


def test_what_is_below_goes_with_it():
    own = own_content(sample("simple").meta)
    stored = [("a/b", "array", ["x"]), ("a", "group", []), ("ab", "array", []), ("science", "array", ["CLASS"])]
    assert list(foreign_content(own, stored, ["CLASS"])) == ["group a", "array ab"]
