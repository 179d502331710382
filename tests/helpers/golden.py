"""The golden stores in ``tests/data/stores``, unpacked."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "stores"
VERSIONS = sorted(path.name for path in DATA.iterdir() if path.is_dir() and path.name[0].isdigit())
STORES = sorted(str(path.relative_to(DATA)).removesuffix(".zip") for path in DATA.glob("*/*.zip"))
"""``version/name`` of every golden store."""
NEWEST = [name.removeprefix(f"{VERSIONS[-1]}/") for name in STORES if name.startswith(f"{VERSIONS[-1]}/")]


def module_at(path: Path) -> ModuleType:
    """Import a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = module_at(DATA / "make.py")
RECORDED: dict[str, Any] = json.loads((DATA / VERSIONS[-1] / "files.json").read_text())
"""Of the newest version: the sha256 of every file, and what they were made with."""


def unpacked(name: str, directory: Path) -> Path:
    """Unpack a golden store and return its path."""
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        archive.extractall(directory)
    return directory / Path(name).name


def content(name: str) -> dict[str, Any]:
    """Return what a golden store holds, as was recorded when it was made."""
    recorded: dict[str, Any] = json.loads((DATA / Path(name).parent / "content.json").read_text())
    store = Path(name).name
    found: dict[str, Any] = recorded.get(store) or recorded[store.partition(".")[0].partition("-")[0]]
    return found


def same_content(found: dict[str, Any], name: str) -> None:
    """Fail if what was read, as `make.py` describes it, is not what was recorded."""
    described = json.loads(json.dumps(MAKER.described(found)))
    expected = content(name)
    assert {key: described[key] for key in expected} == expected
