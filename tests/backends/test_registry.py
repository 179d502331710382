"""A package outside wustore can add a format: it conforms, and is found once it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(HERE))

from wustore_npz import NpzBackend  # noqa: E402

from wustore.testing import BackendConformance  # noqa: E402


class TestNpz(BackendConformance):
    backend = NpzBackend()
    suffix = ".npz"
    keeps_capsule = False


SCRIPT = """
import sys, wustore
from wustore.backends.registry import backend_named, format_names
from wustore.testing import assert_same, sample
assert "npz" in format_names()
from wustore.ops.copy import copy
source = sample("rich")
copy(source, backend_named("memory").create("ram:x", source.meta))
wustore.convert("ram:x", "night.npz")
wustore.convert("night.npz", "ram:y")
assert wustore.open_reader("night.npz").format == "npz"
assert_same(source, wustore.open_reader("ram:y"))
print("used")
"""


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip to install the example package")
def test_installed_and_used(tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site)]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "wheel_builder.py", "wustore_npz.py"):
        (source / name).write_bytes((HERE / name).read_bytes())
    subprocess.run([*install, str(source)], check=True, cwd=tmp_path, capture_output=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.stdout.strip() == "used", result.stderr
