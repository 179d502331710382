"""What becomes of stores of other versions of the format: an invented 1.1, an invented 2.0, and 0.1.0."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

import wustore
from wustore.backends.fits.restored_files import StoreChangedWarning
from wustore.backends.registry import backend_for_writing
from wustore.backends.zarr.metadata import document_checksum
from wustore.cli import main
from wustore.errors import CorruptError, UsageError, VersionError
from wustore.format.version import VERSION
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.ops.edit import migrate
from wustore.ops.verify import problems
from wustore.storage.zip import pack_directory
from wustore.testing import sample

STORES = Path(__file__).parent / "data" / "stores"
OLD = ["night.zarr", "night.h5", "rich.zarr", "rich.h5", "flags.zarr"]
CONTAINERS = [".zarr", ".zarr.zip", ".h5"]

LATER = {"text": "ÄΩ", "values": [1, 2.5, None, {"$kind": [True]}]}
"""What an invented version 1.1 adds, at every place where it may."""


def change_document(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the root document of a store, as another program would."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            document = json.loads(file.attrs["wustore"])
            change(document)
            file.attrs["wustore"] = json.dumps(document)
            del file["packed"], file.attrs["wustore_sha256"]
        return
    if path.suffix == ".zip":
        directory = path.with_suffix(".unpacked")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(directory)
        change_document(directory, change)
        path.unlink()
        pack_directory(directory, path, without=".journal/")
        return
    root = json.loads((path / "zarr.json").read_text())
    document = root["attributes"]["wustore"]
    change(document)
    document["crc32c"] = document_checksum(document)
    (path / "zarr.json").write_text(json.dumps(root))


def to_1_1(document: dict[str, Any]) -> None:
    document["version"] = "1.1"
    for holder in (
        document,
        document["layers"]["science"],
        document["constituents"],
        document["constituents"]["columns"][-1],
        document["observatory"],
    ):
        holder["later"] = LATER


def made(path: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    source = sample("rich")
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta))
    if change is not None:
        change_document(path, change)
    return path


def additions(path: Path) -> Any:
    with wustore.open_reader(path) as reader:
        assert [str(problem) for problem in problems(reader)] == []
        return reader.meta.additions


@pytest.mark.parametrize("suffix", CONTAINERS)
class TestLaterMinorVersion:
    def test_is_read(self, tmp_path: Path, suffix: str) -> None:
        path = made(tmp_path / f"a{suffix}", to_1_1)
        assert len(additions(path)) == 6
        with wustore.open_reader(path) as reader:
            found = {difference.where for difference in differences(reader, sample("rich"))}
        assert found == {"additions"}
        assert wustore.open(path).im_stack.num_times == 4

    @pytest.mark.parametrize("target", [*CONTAINERS, ".fits"])
    def test_copies_keep_what_it_added(self, tmp_path: Path, suffix: str, target: str) -> None:
        path = made(tmp_path / f"a{suffix}", to_1_1)
        wustore.convert(path, tmp_path / f"b{target}")
        assert additions(tmp_path / f"b{target}") == additions(path)
        wustore.convert(tmp_path / f"b{target}", tmp_path / "again.zarr", resume=True)
        document = json.loads((tmp_path / "again.zarr" / "zarr.json").read_text())["attributes"]["wustore"]
        assert document["version"] == "1.1"
        assert document["constituents"]["columns"][-1]["later"] == LATER

    def test_so_do_saving_and_repacking(self, tmp_path: Path, suffix: str) -> None:
        path = made(tmp_path / f"a{suffix}", to_1_1)
        before = additions(path)
        wustore.save(wustore.open(path), tmp_path / "b.zarr")
        wustore.repack(path, profile="portable", layout="cutouts")
        assert additions(tmp_path / "b.zarr") == additions(path) == before

    def test_edits_of_the_content_refuse(self, tmp_path: Path, suffix: str) -> None:
        path = made(tmp_path / f"a{suffix}", to_1_1)
        with pytest.raises(UsageError, match=r"key layers\.science\.later of the document"):
            wustore.drop(path, ["mask"])
        if suffix != ".zarr.zip":
            with pytest.raises(UsageError, match="key later of the document"):
                wustore.append(path, path, drop_capsule=True, duplicates=True)

    def test_parts_of_it_have_none(self, tmp_path: Path, suffix: str) -> None:
        path = made(tmp_path / f"a{suffix}", to_1_1)
        wustore.save(wustore.open(path).cutout(0, 0, 8, 8), tmp_path / "b.zarr")
        wustore.save(wustore.open(path).select(images=[0]), tmp_path / "c.zarr")
        assert not additions(tmp_path / "b.zarr")
        assert not additions(tmp_path / "c.zarr")

    @pytest.mark.filterwarnings("ignore:Numcodecs codecs")
    def test_arrays_that_it_added_stop_a_copy(self, tmp_path: Path, suffix: str) -> None:
        path = made(tmp_path / f"a{suffix}", to_1_1)
        if suffix == ".h5":
            with h5py.File(path, "r+") as file:
                file["weight"] = [1.0]
        else:
            import zarr

            directory = path.with_suffix(".unpacked") if suffix == ".zarr.zip" else path
            zarr.open_group(directory, mode="r+").create_array("weight", shape=1, dtype="f4")
            if suffix == ".zarr.zip":
                path.unlink()
                pack_directory(directory, path, without=".journal/")
        with pytest.raises(VersionError) as caught:
            wustore.convert(path, tmp_path / "b.zarr")
        assert all(text in str(caught.value) for text in ("1.0", "1.1", "weight"))
        with pytest.raises(VersionError):
            wustore.convert(path, tmp_path / "b.zarr", resume=True)
        assert not (tmp_path / "b.zarr").exists()
        with pytest.raises(UsageError, match="weight"):
            wustore.repack(path, profile="none")


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_another_major_version_is_refused(tmp_path: Path, suffix: str) -> None:
    path = made(tmp_path / f"a{suffix}", lambda document: document.update(version="2.0", layers=None))
    calls = (wustore.open, wustore.open_reader, lambda path: wustore.convert(path, tmp_path / "b.zarr"))
    for call in (*calls, lambda path: wustore.repack(path, profile="none"), migrate):
        with pytest.raises(VersionError, match=r"1\.0.*2\.0"):
            call(path)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_capsule_of_another_encoding_is_carried(tmp_path: Path, suffix: str) -> None:
    fits = tmp_path / "night.fits"
    fits.write_bytes(gzip.decompress((STORES.parent / "fits" / "2026-01" / "perimage.fits.gz").read_bytes()))
    path = tmp_path / f"a{suffix}"
    wustore.convert(fits, path)
    change_document(path, lambda document: document["capsule"].update(encoding=2))
    wustore.convert(path, tmp_path / "b.zarr")
    with wustore.open_reader(path) as old, wustore.open_reader(tmp_path / "b.zarr") as new:
        assert dict(old.capsule().document) == dict(new.capsule().document)
        assert [old.image_capsule(i) for i in range(3)] == [new.image_capsule(i) for i in range(3)]
    with pytest.warns(StoreChangedWarning, match="encoding 2"):
        wustore.convert(path, tmp_path / "b.fits")


class TestMigrate:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Callable[[str], Path]:
        def unpacked(name: str) -> Path:
            with zipfile.ZipFile(STORES / "0.1.0" / f"{name}.zip") as archive:
                archive.extractall(tmp_path / "old")
            return tmp_path / "old" / name

        return unpacked

    def version(self, path: Any) -> Any:
        with wustore.open_reader(path) as reader:
            assert [str(problem) for problem in problems(reader)] == []
            return reader.document()["version"], [edit["action"] for edit in reader.meta.history][-1:]

    @pytest.mark.parametrize("name", OLD)
    def test_in_place(self, old: Callable[[str], Path], tmp_path: Path, name: str) -> None:
        path = old(name)
        wustore.convert(path, tmp_path / "before.zarr")
        with wustore.open_reader(path) as reader:
            options = reader.describe()
        assert migrate(path) is True
        assert self.version(path) == (VERSION, ["migrate"])
        with wustore.open_reader(path) as reader, wustore.open_reader(tmp_path / "before.zarr") as before:
            assert [str(found) for found in differences(reader, before)] == []
            assert {key: reader.describe()[key] for key in ("profile", "layout", "capsule")} == {
                key: options[key] for key in ("profile", "layout", "capsule")
            }
        assert migrate(path) is False
        assert [entry.name for entry in path.parent.iterdir()] == [name]

    @pytest.mark.parametrize("suffix", CONTAINERS)
    def test_to_another_place(self, old: Callable[[str], Path], tmp_path: Path, suffix: str, capsys: Any) -> None:
        path, new = old("night.zarr"), tmp_path / f"new{suffix}"
        assert main(["migrate", str(path), str(new)]) == 0
        assert self.version(new) == (VERSION, ["migrate"])
        with wustore.open_reader(path) as reader:
            assert reader.document()["version"] == "0.1.0"
        wustore.convert(new, tmp_path / "again.fits")
        fits = STORES.parent / "fits" / "2026-01" / "perimage.fits.gz"
        assert (tmp_path / "again.fits").read_bytes() == gzip.decompress(fits.read_bytes())
        capsys.readouterr()
        assert main(["migrate", str(new)]) == 0
        assert capsys.readouterr().err.strip() == f"{new}: already {VERSION}"

    def test_to_and_from_a_store_object(self, old: Callable[[str], Path]) -> None:
        from zarr.storage import MemoryStore

        store = MemoryStore()
        assert migrate(old("rich.zarr"), store) is True
        assert self.version(store) == (VERSION, ["migrate"])
        assert migrate(store) is False

    def test_what_has_no_version(self, tmp_path: Path) -> None:
        path = made(tmp_path / "a.fits")
        with pytest.raises(UsageError, match="no versions"):
            migrate(path)

    def test_a_new_store_that_differs_does_not_appear(
        self, old: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = old("flags.zarr")
        before = {entry: entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}
        monkeypatch.setattr("wustore.ops.edit.differences", lambda a, b: iter(["image 0: other"]))
        with pytest.raises(CorruptError, match="image 0"):
            migrate(path)
        kept = {e: e.read_bytes() for e in path.rglob("*") if e.is_file() and e.name != ".wustore-lock"}
        assert kept == before
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
