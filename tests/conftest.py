"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The corpus of files written by the real KBMOD, where it is beside the checkout."""
    path = Path(os.environ.get("WUSTORE_CORPUS", ROOT.parent / "shared" / "corpus"))
    if not (path / "INDEX.md").is_file():
        pytest.skip("the KBMOD corpus is not beside the checkout (set WUSTORE_CORPUS)")
    return path


@pytest.fixture(scope="session")
def data() -> Path:
    """The golden files in the repository."""
    return ROOT / "tests" / "data"
