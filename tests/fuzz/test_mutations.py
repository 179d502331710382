"""Bounded fuzzing: seeded mutations of everything that is read, which raise only what is allowed."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from pathlib import Path

import fuzzing
import pytest

ROUNDS = 12


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seeds")


@pytest.mark.parametrize("name", list(fuzzing.TARGETS))
def test_only_allowed_exceptions(name: str, seeds: Path, tmp_path: Path) -> None:
    ended: Counter[str] = Counter()
    for seed in range(ROUNDS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = fuzzing.TARGETS[name](seeds, tmp_path, random.Random(f"{name} {seed}"))
            ended[fuzzing.use(path, tmp_path)] += 1
    assert sum(ended.values()) == ROUNDS
