"""When compiled loops are imported, and how their machine code is kept."""

from __future__ import annotations

import importlib
import inspect
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.backends import compiling
from wustore.backends.compiling import Loops

ROOT = Path(__file__).resolve().parents[2]


def test_imported_once_there_is_enough_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr(compiling, "_IF_IMPORTED", 1)
    loops = Loops("json", 100)
    assert loops.get(60) is None
    assert loops.get(ahead=30) is None
    assert loops.done == 60
    assert loops.get(40) is json
    assert loops.get() is json


def test_imported_before_the_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr(compiling, "_IF_IMPORTED", 1)
    loops = Loops("json", 100)
    assert loops.get(60) is None
    assert loops.get(ahead=40) is json
    assert loops.done == 60


def test_sooner_if_numba_is_there() -> None:
    import json

    pytest.importorskip("numba")
    loops = Loops("json", 320)
    assert loops.get(9) is None
    assert loops.get(1) is json


def test_a_module_that_is_not_there() -> None:
    loops = Loops("wustore.no_such_module", 1)
    assert loops.get(1) is None
    assert loops.is_missing


# --- machine code that is kept -------------------------------------------------------------------------


def total(values: NDArray[Any]) -> float:
    found = 0.0
    for value in values:
        found += value
    return found


KINDS = ("f4", "i4", "f8")


@pytest.fixture
def numba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return numba, which keeps machine code below a folder of the test."""
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "code"))
    return numba


def totals(*kinds: str) -> tuple[list[float], int]:
    """Add up values of these types as a new process would; return the sums, and how often code was there."""
    made: Any = compiling.compiled(entry=True)(total)
    sums = [made(np.arange(4, dtype=kind)) for kind in kinds]
    return sums, sum(made.__wrapped__.stats.cache_hits.values())


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_machine_code_is_kept_for_each_type(numba: Any, tmp_path: Path) -> None:
    assert totals(*KINDS) == ([6, 6, 6], 0)
    assert totals(*reversed(KINDS)) == ([6, 6, 6], 3)
    assert [path.suffix for path in kept(tmp_path)] == [".nbc"] * 3


def test_files_of_processes_that_compile_at_the_same_time_are_of_different_types(
    numba: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None saw the others' files; numba's own names would be the same ones."""
    for kind in KINDS:
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / kind))
        assert totals(kind) == ([6], 0)
    found = [path.relative_to(tmp_path / path.relative_to(tmp_path).parts[0]) for path in kept(tmp_path)]
    assert len(set(found)) == len(found) == 3
    for kind in KINDS:
        shutil.copytree(tmp_path / kind, tmp_path / "all", dirs_exist_ok=True)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "all"))
    assert totals(*KINDS) == ([6, 6, 6], 3)


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "of another type", "a folder"])
def test_damaged_machine_code_is_made_again(numba: Any, tmp_path: Path, damage: str) -> None:
    totals("i4", "f4")
    first, second = kept(tmp_path)
    content = first.read_bytes()
    middle = len(content) // 2
    if damage == "a folder":
        first.unlink()
        first.mkdir()
    else:
        first.write_bytes(
            {
                "empty": b"",
                "short": content[:middle],
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "of another type": second.read_bytes(),
            }[damage]
        )
    assert totals("i4", "f4") == ([6, 6], 1)
    assert totals("i4", "f4") == ([6, 6], 1 if damage == "a folder" else 2)
    assert kept(tmp_path) == [second] if damage == "a folder" else [first, second]


def test_changed_sources_are_compiled(numba: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals("i4")
    monkeypatch.setattr(compiling, "_sources", lambda module: "changed")
    assert totals("i4") == ([6], 0)
    assert totals("i4") == ([6], 1)


def test_code_is_of_its_module_of_what_that_compiles_in_and_of_constants(numba: Any) -> None:
    importlib.import_module("wustore.backends.hdf5.filters.deflate_numba")
    found = dict(compiling._sources_of("wustore.backends.hdf5.filters.deflate_numba", set()))
    assert found.keys() >= {
        f"wustore.backends.{name}"
        for name in ("hdf5.filters.deflate_numba", "hdf5.filters.loops_numba", "bytes_numba", "compiling")
    } | {"wustore.backends.hdf5.filters.deflate_encoder"}
    assert "wustore.backends.registry" not in found
    for name, text in found.items():
        assert text == inspect.getsource(importlib.import_module(name))


@pytest.mark.parametrize("module", sorted(ROOT.glob("wustore/**/*_numba.py")), ids=lambda path: path.stem)
def test_every_loop_that_python_calls_keeps_its_code_so(numba: Any, module: Path) -> None:
    """Whatever numba's version: its inner class has another name some day."""
    loops = importlib.import_module(".".join(module.relative_to(ROOT).with_suffix("").parts))
    for value in vars(loops).values():
        made = getattr(value, "__wrapped__", None)
        if hasattr(made, "py_func"):
            assert isinstance(made._cache._cache_file, compiling._CodeFiles)


def test_code_is_forgotten(numba: Any, tmp_path: Path) -> None:
    made: Any = compiling.compiled(entry=True)(total)
    made(np.arange(4))
    made.__wrapped__._cache.flush()
    assert kept(tmp_path) == []
