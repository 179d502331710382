"""What a store holds twice must agree; what others put into it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wustore.backends.zarr.backend import ZarrBackend
from wustore.ops.copy import copy
from wustore.testing import sample


@pytest.fixture
def store(tmp_path: Path) -> Path:
    source = sample("rich")
    copy(source, ZarrBackend().create(str(tmp_path / "a.zarr"), source.meta))
    return tmp_path / "a.zarr"


def problems(path: Path) -> dict[str, str]:
    with ZarrBackend().open(str(path)) as reader:
        return dict(reader.audit())


def foreign(path: Path) -> set[str]:
    with ZarrBackend().open(str(path)) as reader:
        return set(reader.foreign())


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_nothing_to_say(store: Path) -> None:
    assert problems(store) == {}
    assert foreign(store) == set()


@pytest.mark.parametrize("name", ["science", "constituents", "constituents/visit", "packed"])
def test_documents(store: Path, name: str) -> None:
    """Each array's and group's own document is what the root says of it."""
    place, file = f"{name}/zarr.json", store / name / "zarr.json"
    whole = file.read_bytes()
    changed(file, lambda document: document["attributes"].update(note="mine"))
    assert "differs from the consolidated" in problems(store)[place]
    file.write_bytes(whole[:-1])
    assert "JSON" in problems(store)[place]
    file.unlink()
    assert problems(store) == {place: "the metadata document is missing"}


def test_small_arrays(store: Path) -> None:
    """The plain copies are those that the store is opened with."""
    other = sample("rich", 1)
    copy(other, ZarrBackend().create(str(store.parent / "other.zarr"), other.meta))
    for name in ("time", "constituents/visit", "checksum"):
        (chunk,) = (store / name).glob("c*")
        whole, swapped = chunk.read_bytes(), (store.parent / "other.zarr" / name / chunk.name).read_bytes()
        chunk.write_bytes(whole[:-1])
        assert f"array {name}" in problems(store)
        chunk.unlink()
        assert "missing" in problems(store)[f"array {name}"]
        chunk.write_bytes(swapped)
        assert (f"array {name}" in problems(store)) == (swapped != whole)
        chunk.write_bytes(whole)
    assert problems(store) == {}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda root: root.update(more=1), "zarr.json"),
        (lambda root: root["attributes"].update(Conventions="CF-1.0"), "zarr.json, attribute Conventions"),
        (lambda root: root["attributes"].update(zarr_conventions="none"), "zarr.json, attribute zarr_conventions"),
        (lambda root: root["consolidated_metadata"].update(kind="other"), "zarr.json, consolidated_metadata"),
    ],
)
def test_members_of_the_root(store: Path, change: Callable[[Any], Any], place: str) -> None:
    changed(store / "zarr.json", change)
    assert list(problems(store)) == [place]


def test_what_others_added(store: Path) -> None:
    for name in ("notes.txt", "science/c.0.0.0.bak", "mine/deep/zarr.json", "constituents/other/zarr.json"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for name in (".nfs0001", "science/.DS_Store", ".wustore-lock", "science/.c.0.0.0~half"):
        (store / name).write_text("of the system, or ours")
    changed(store / "zarr.json", lambda root: root["attributes"].update(note="mine"))
    changed(store / "science" / "zarr.json", lambda node: node["attributes"].update(note="mine"))
    assert foreign(store) == {
        "root attribute note",
        "attribute note of science",
        "group constituents/other",
        "group mine/deep",
        "file notes.txt",
        "file science/c.0.0.0.bak",
    }
