"""Silence: the filters of warnings belong to the process, so one thread at a time changes them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

_LOCK = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of other packages.

    Two threads that do this on their own, one after the other and back in another order, would leave all warnings
    ignored. What is called meanwhile must not wait for other threads that do this.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
