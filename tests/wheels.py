"""Say for which systems and Pythons wheels of all core dependencies exist: ``python tests/wheels.py [PYTHON...]``.

It asks the package index through pip and downloads as little as pip can do with; a combination takes up to a minute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PLATFORMS = {
    "Linux x86-64": ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
    "Linux arm64": ["manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"],
    "macOS arm64": [f"macosx_{version}_0_arm64" for version in (14, 13, 12, 11)],
    "Windows x86-64": ["win_amd64"],
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def missing(platforms: list[str], python: str) -> str:
    """Return what pip says is missing, nothing if all dependencies have wheels."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
                *("--only-binary=:all:", "--target", folder, "--python-version", python),
                *(part for platform in platforms for part in ("--platform", platform)),
                *project["dependencies"],
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else (errors or ["ERROR: pip failed"])[-1]


if __name__ == "__main__":
    failed = 0
    for wanted in sys.argv[1:] or PYTHONS:
        for name, tags in PLATFORMS.items():
            problem = missing(tags, wanted)
            failed += bool(problem)
            print(f"{wanted:5} {name:15} {problem or 'ok'}", flush=True)
    sys.exit(bool(failed))
