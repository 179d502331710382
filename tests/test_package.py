"""The package says the same of itself in every place."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from wustore import __version__
from wustore.format.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_version() -> None:
    citation = yaml.safe_load((ROOT / "docs" / "CITATION.cff").read_text("utf-8"))
    changelog = re.findall(r"^## (\S+)", (ROOT / "docs" / "changelog.md").read_text("utf-8"), re.MULTILINE)
    assert PROJECT["version"] == citation["version"] == changelog[0] == __version__
    assert __version__.split(".")[0] == VERSION.split(".")[0]


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "docs" / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"message", "title", "authors", "type", "license"}
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_classifiers() -> None:
    pythons = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))
    oldest = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    assert oldest is not None
    assert [int(minor) for minor in pythons] == list(range(int(oldest[1]), int(pythons[-1]) + 1))
    assert "Development Status :: 5 - Production/Stable" in PROJECT["classifiers"]
