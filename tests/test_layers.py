"""The structure of the package: imports point down, there is no circle, and the tree is the map in docs/design.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import wustore

PACKAGE = Path(wustore.__file__).parent
ROOT = Path(__file__).resolve().parents[1]

LAYERS: list[set[str]] = [
    {"cli"},
    {"api", "work_unit", "store_view", "xarray", "kbmod", "testing", "configuration"},
    {"ops"},
    {"stamps"},
    {"backends"},
    {"compat"},
    {"format", "storage"},
    {"model"},
    {"errors", "_version"},
]
"""From top to bottom. A module imports from its own part and from lower layers; parts of one layer are independent,
but for the modules at the top of the package, which may know each other."""

TOP = LAYERS[1]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert len(found) > 100
    return found


MODULES = modules()


def imports(name: str, *, lazy: bool = True) -> Iterator[str]:
    """Yield the modules of the package that a module imports, for types too; inside functions only if ``lazy``."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    inner = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in inner and not lazy:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "wustore":
            below = (node.module or "").partition(".")[2]
            for alias in node.names:
                inside = f"{below}.{alias.name}".lstrip(".")
                yield inside if inside in MODULES else below
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("wustore."))


def level(part: str) -> int:
    return next(k for k, names in enumerate(LAYERS) if part in names)


def upward(name: str, others: Iterator[str]) -> list[str]:
    part = name.partition(".")[0]
    if part in {"", "__main__"}:
        return []
    wrong = []
    for other in others:
        target = other.partition(".")[0]
        if target in {part, ""}:
            continue
        same_level_ok = part in TOP and target in TOP
        if level(target) < level(part) or (level(target) == level(part) and not same_level_ok):
            wrong.append(f"{name} imports {other}")
    return wrong


def test_imports_point_down() -> None:
    assert [line for name in MODULES for line in upward(name, imports(name))] == []


def test_an_import_against_the_layers_is_found() -> None:
    assert upward("model.meta", iter(["storage.staging"])) == ["model.meta imports storage.staging"]
    assert upward("format.packed", iter(["storage.stores"])) == ["format.packed imports storage.stores"]
    assert upward("ops.copy", iter(["backends.base"])) == []


@pytest.mark.parametrize("kind", ["zarr", "hdf5", "fits"])
def test_formats_do_not_know_each_other(kind: str) -> None:
    others = tuple(f"backends.{other}." for other in ("zarr", "hdf5", "fits") if other != kind)
    mine = [name for name in MODULES if name.startswith(f"backends.{kind}.")]
    assert mine
    assert [(name, other) for name in mine for other in imports(name) if other.startswith(others)] == []


def test_fits_folders_are_layers() -> None:
    order = {"files": 0, "hdu": 1, "tiles": 2}
    for folder, rank in order.items():
        for name in MODULES:
            if not name.startswith(f"backends.fits.{folder}"):
                continue
            for other in imports(name):
                if other.startswith("backends.fits."):
                    below = order.get(other.split(".")[2], -1)
                    assert below >= rank, f"{name} imports {other}"


def test_there_is_no_import_circle() -> None:
    graph = {name: {other for other in imports(name) if other != name} for name in MODULES if name}
    for names in graph.values():
        names.discard("")
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            visit(other, [*path, name])
        done.add(name)

    for name in graph:
        visit(name, [])


def test_sizes_are_those_that_the_design_states() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    # A wheel carries schemas/ inside the package.
    top = [path for path in PACKAGE.iterdir() if path.name not in {"__pycache__", "schemas"}]
    assert len(top) <= 20
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]:
        if folder != PACKAGE:
            assert len([*folder.glob("*.py")]) <= 13, folder
    for name, path in MODULES.items():
        if len(path.read_text("utf-8").splitlines()) > 500:
            assert f"`{path.relative_to(PACKAGE)}` is longer" in text, f"{name}: docs/design.md does not say why"


def test_the_map_in_the_design_is_the_tree() -> None:
    text = (ROOT / "docs" / "design.md").read_text("utf-8")
    block = next(part for part in re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S) if part.startswith("wustore/"))
    assert len(block.splitlines()) <= 50
    listed = set()
    folders: list[str] = []
    for line in block.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.partition("|")[0].split()
        folders = folders[: depth - 1]
        if names[0].endswith("/"):
            folders.append(names.pop(0).rstrip("/"))
        listed |= {".".join([*folders, name]) for name in names}
    there = {name for name, path in MODULES.items() if path.stem != "__init__" and name}
    assert listed == there
