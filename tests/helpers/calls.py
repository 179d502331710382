"""How much of a piece of work is Python, and compiled loops whose state no other test decides."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from wustore.backends.compiling import Loops

__all__ = ["calls_of", "loops_of"]


def calls_of(function: Callable[[], Any]) -> int:
    """Return how many calls of functions of Python and C it takes, in this thread, to call a function.

    Garbage is collected before and not meanwhile: what other tests left has finalizers of its own.
    """
    found = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal found
        found += event in {"call", "c_call"}

    gc.collect()
    gc.disable()
    try:
        sys.setprofile(note)
        try:
            function()
        finally:
            sys.setprofile(None)
    finally:
        gc.enable()
    return found - 2  # the function itself, and the end of counting


def loops_of(module: str, *, compiled: bool) -> Loops:
    """Return loops of wustore that are used from the first call on, or never; skip if there is no numba."""
    loops = Loops(f"wustore.{module}", 0 if compiled else 1 << 60)
    if compiled and loops.get(1) is None:
        pytest.skip("there is no numba for this Python")
    return loops
