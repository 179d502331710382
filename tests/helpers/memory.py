"""How much memory code takes, as `tracemalloc` counts it: numpy's arrays with it, touched or not."""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Peak:
    """The most bytes at a time since tracing began, or since `again`."""

    @property
    def bytes(self) -> int:
        return tracemalloc.get_traced_memory()[1]

    def again(self) -> None:
        tracemalloc.reset_peak()


@contextmanager
def traced() -> Iterator[Peak]:
    """Trace memory.

    Python before 3.12.9 and 3.13.2 crashes if tracing ends while another thread takes memory without the interpreter
    lock (issue 128679), as zlib does: zarr-python's threads still decode chunks after one of them was an error.
    """
    tracemalloc.start()
    try:
        yield Peak()
    finally:
        while _is_somebody_at_work():
            time.sleep(0.001)
        tracemalloc.stop()


def _is_somebody_at_work() -> bool:
    here = threading.get_ident()
    return any(_is_at_work(frame) for thread, frame in sys._current_frames().items() if thread != here)


def _is_at_work(frame: FrameType) -> bool:
    """Return whether a thread of a pool or an event loop does something else than wait for work."""
    names = [frame.f_code.co_name]
    above: FrameType | None = frame
    while above := above.f_back:
        names.append(above.f_code.co_name)
    return names[0] not in {"_worker", "select"} and not {"_worker", "_run_once"}.isdisjoint(names)
