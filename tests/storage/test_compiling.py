"""When compiled loops are imported."""

from __future__ import annotations

from wustore.storage.compiling import Loops


def test_imported_once_there_is_enough_work() -> None:
    import json

    loops = Loops("json", 100)
    assert loops.get(60) is None
    assert loops.get() is None
    assert loops.done == 60
    assert loops.get(40) is json
    assert loops.get() is json


def test_a_module_that_is_not_there() -> None:
    loops = Loops("wustore.no_such_module", 1)
    assert loops.get(1) is None
    assert loops.is_missing
