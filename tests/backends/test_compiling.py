"""When compiled loops are imported."""

from __future__ import annotations

import pytest

from wustore.backends import compiling
from wustore.backends.compiling import Loops


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
