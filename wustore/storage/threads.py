"""How many workers there are, and work that is done ahead in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["default_workers", "read_ahead"]

T = TypeVar("T")


def default_workers() -> int:
    """Return the number of processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)


def read_ahead(
    fetch: Callable[[int], T], indices: Iterable[int], workers: int | None = None
) -> Generator[tuple[int, T], None, None]:
    """Yield (i, fetch(i)) in order, with a bounded number of calls ahead in threads.

    Parameters
    ----------
    fetch
        Thread-safe function of an image index.
    indices
        The indices, in the order wanted.
    workers
        Number of threads, the number of processors by default; 1 fetches in the calling thread.
    """
    workers = default_workers() if workers is None else max(workers, 1)
    if workers == 1:
        for i in indices:
            yield i, fetch(i)
        return
    pending: deque[tuple[int, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="wustore-read")
    try:
        for i in indices:
            pending.append((i, pool.submit(fetch, i)))
            if len(pending) > workers:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()
    except GeneratorExit:
        # An abandoned generator may be collected in any thread, even inside the start of another one with the
        # locks of `threading` held: waiting there would never end.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
