"""Child processes find the modules of this one, and run nothing that lies in the current directory."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from wustore.storage.threads import command, safe_path

_SCRIPT = "open('RUN', 'w').close()\nraise SystemExit('a script of the user')\n"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, with scripts that have names of modules."""
    for name in ("json", "inspect", "base64", "random", "pickle", "numpy", "wustore"):
        (tmp_path / f"{name}.py").write_text(_SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command(beside: Path) -> None:
    done = subprocess.run(command("builtins", "print", "a", "b"), capture_output=True, text=True, check=True)
    assert done.stdout == "a b\n"
    listed = command("builtins", "print")
    assert str(beside) not in json.loads(listed[listed.index("-c") + 2])
    done = subprocess.run(command("wustore.model.select", "chosen_images"), capture_output=True, text=True, check=False)
    assert "chosen_images() missing" in done.stderr
    assert not (beside / "RUN").exists()


def test_workers_are_safe(beside: Path) -> None:
    with safe_path(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(len, "abc").result() == 3
    assert not (beside / "RUN").exists()
