"""A few of the faults of ``faults.py``: the whole number takes half an hour."""

from __future__ import annotations

import json

import faults
import pytest

pytestmark = pytest.mark.skipif(bool(faults.available()), reason=faults.available())


def check(*words: int) -> None:
    ended = faults.start(*map(str, words), timeout=900)
    assert ended.stdout, ended.stderr
    result = json.loads(ended.stdout)
    assert result["wrong"] == []
    assert sum(result["done"].values()) == sum(words[:4])
    assert ended.returncode == 0, ended.stderr


def test_a_few_of_each() -> None:
    check(6, 4, 4, 1, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [(45, 0, 0, 12, 1), (0, 90, 0, 0, 2), (0, 0, 45, 0, 3)], ids=["kills", "errors", "room"]
)
def test_every_writer_and_edit(words: tuple[int, ...]) -> None:
    check(*words)
