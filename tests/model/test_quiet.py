"""Warnings are silenced by one thread at a time."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import wustore
from wustore.model.quiet import quiet

OTHERS = {"model/quiet.py", "backends/pieces.py", "ops/verify.py"}
"""Where filters are changed: here, and around work of several threads, which end before the filters are put back."""


def test_overlapping_threads_put_the_filters_back() -> None:
    before, inside, done = warnings.filters, threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            inside.set()
        done.set()

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        assert not inside.wait(0.05)
        with quiet():
            pass
    assert done.wait(30)
    thread.join()
    assert warnings.filters is before


def test_nobody_else_changes_the_filters() -> None:
    top = Path(wustore.__file__).parent
    found = {
        file.relative_to(top).as_posix()
        for file in top.rglob("*.py")
        if any(word in file.read_text("utf-8") for word in ("catch_warnings", "simplefilter", "filterwarnings"))
    }
    assert {"model/quiet.py"} <= found
    assert found - {name for name in found if name.startswith("cli/")} <= OTHERS
