"""The keys of ``--json`` are those that docs/commands.md lists, whatever other options are given."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from pages import ROOT

from wustore.cli import COMMANDS, main
from wustore.cli.about import build


def documented():
    """Keys of each command, and of the objects inside as ``command key.key``."""
    found = {}
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    for name, rest, cell in re.findall(r"^\| `wustore (\w+)([^|]*)\| (.*) \|$", text, re.MULTILINE):
        found[name + (" unfinished" if "unfinished" in rest else "")] = set(re.findall(r"`(\w+)`", cell))
    for path, name, cell in re.findall(r"^\| `([\w.]+)` of `(\w+)`[^|]*\| (.*) \|$", text, re.MULTILINE):
        found[f"{name} {path}"] = set(re.findall(r"`(\w+)`", cell))
    return found


KEYS = documented()
OF_THE_FORMAT = {"zarr": {"profile", "layout"}, "hdf5": {"profile", "layout"}}
OF_THE_FORMAT["fits"] = {"layout", "files", "hdus", "science_compression"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores of one small night, a damaged one, one that lacks an image, and an unfinished conversion."""
    place = tmp_path_factory.mktemp("json")
    build().to_fits(str(place / "night.fits"))
    for target in ("night.zarr", "night.h5"):
        assert main(["convert", str(place / "night.fits"), str(place / target), "-q"]) == 0
    shutil.copytree(place / "night.zarr", place / "torn.zarr")
    shard = place / "torn.zarr" / "science" / "c.7.0.0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    assert main(["cutout", str(place / "night.zarr"), str(place / "few.h5"), "--images", "0-6", "-q"]) == 0
    assert main(["plan", str(place / "night.fits"), str(place / "half.h5"), "--parts", "2", "-q"]) == 0
    (place / ".gone.zarr.wustore-tmp-999999-aaaa").mkdir()
    return place


CASES = [
    ("info", ["night.zarr"], 0),
    ("info", ["night.h5"], 0),
    ("info", ["night.fits"], 0),
    ("info unfinished", ["half.h5"], 4),
    ("images", ["night.zarr"], 0),
    ("images", ["night.fits", "--no-pixels"], 0),
    ("header", ["night.zarr"], 0),
    ("header", ["night.fits", "--image", "1"], 0),
    ("convert", ["night.zarr", "new.h5", "--dry-run"], 0),
    ("convert", ["night.zarr", "new.fits", "--dry-run", "--workers", "1"], 0),
    ("index", ["night.fits", "--overwrite"], 0),
    ("diff", ["night.zarr", "night.h5"], 0),
    ("diff", ["night.zarr", "few.h5"], 1),
    ("diff", ["night.zarr", "few.h5", "--atol", "1", "--limit", "1"], 1),
    ("verify", ["night.zarr"], 0),
    ("verify", ["night.zarr", "--fits", "--against", "night.fits"], 0),
    ("verify", ["night.fits"], 0),
    ("verify", ["torn.zarr"], 3),
    ("repair", ["torn.zarr", "saved.zarr", "--overwrite"], 1),
    ("repair", ["night.zarr", "saved.zarr", "--overwrite"], 0),
    ("clean", [".", "--dry-run", "--unfinished"], 0),
    pytest.param("bench", ["night.zarr", "--images", "1", "--only", "none"], 0, marks=pytest.mark.slow),
    ("formats", [], 0),
    ("doctor", [], 0),
]


def objects(value):
    """The objects at a place: that one, those of a list, or those that are the values of an object."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
        return list(value.values())
    return [value] if value else []


@pytest.mark.parametrize(("case", "words", "code"), CASES, ids=str)
def test_keys_are_those_of_the_page(case, words, code, folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    command = case.split()[0]
    found, out, _ = run(command, *words, "--json", *(["--quiet"] if command in {"verify", "diff", "clean"} else []))
    assert found == code
    document = json.loads(out)
    rows = document if isinstance(document, list) else [document]
    assert rows
    expected = KEYS[case]
    if case == "info":
        expected = expected - set().union(*OF_THE_FORMAT.values()) | OF_THE_FORMAT[document["format"]]
    for row in rows:
        assert set(row) == expected
    check_objects(command, rows)


def check_objects(command, rows):
    for case, keys in KEYS.items():
        name, _, path = case.partition(" ")
        if name != command or case.endswith("unfinished") or not path:
            continue
        values = rows
        for key in path.split("."):
            values = [item for value in values if value.get(key) for item in objects(value[key])]
        for value in values:
            more = set(value) - keys
            assert keys <= set(value), case
            assert not more or path == "layers", case


def test_plan_index_and_receipt(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    assert set(json.loads(run("plan", "night.fits", "planned.h5", "--parts", "3")[1])) == KEYS["plan"]
    (folder / "to_index").mkdir()
    shutil.copy("night.fits", folder / "to_index")
    assert set(json.loads(run("index", "to_index/night.fits", "--json")[1])) == KEYS["index"]
    assert run("checksum", "night.zarr", "--receipt", "receipt.json")[0] == 0
    document = json.loads((folder / "receipt.json").read_text())
    assert set(document) == KEYS["checksum"]
    check_objects("checksum", [document])


def test_objects_inside_are_there(folder, run, monkeypatch):
    # So that none of the comparisons above is one of nothing.
    monkeypatch.chdir(folder)
    document = json.loads(run("info", "night.zarr", "--json")[1])
    for path in ("times", "field", "configuration", "layers", "capsule"):
        assert objects(document[path]), path
    assert document["capsule"]["files"]
    assert json.loads(run("diff", "night.zarr", "few.h5", "--json")[1])["differences"]
    assert json.loads(run("verify", "torn.zarr", "--json")[1])["problems"]


def test_every_command_with_json_is_on_the_page():
    from wustore.cli import cli

    for name in COMMANDS:
        command = cli.get_command(None, name)
        if any("--json" in parameter.opts for parameter in command.params):
            assert name in KEYS, name
