"""Threads: how many there are, and work that is spread over them; child processes that run no stranger's code.

What ``workers`` means, everywhere: the number of threads (or processes) that work at the same time, the calling one
included; None chooses (`worker_count`). Work inside of such a thread shares its part: two images that are read with
eight workers are decoded with four threads each, and with ``workers=1`` nothing runs but the calling thread.

All work runs in one pool for each process, whose threads live on between calls. Who hands out work takes part in it,
so nested calls cannot wait for each other.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from wustore.errors import UsageError

__all__ = [
    "Background",
    "available_cores",
    "command",
    "default_workers",
    "in_threads",
    "read_ahead",
    "safe_path",
    "sharing",
    "worker_count",
    "worth",
]

T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

BYTES_PER_WORKER = 1 << 21
"""Decoded bytes that are worth a thread of their own: 2 to 5 ms of decoding, where waking a thread takes 0.05 ms."""

_MOST_THREADS = 1024
"""Of the pool; a thread is started only when work waits and no thread does."""


class _Here(threading.local):
    """What the current thread may use."""

    share: int | None = None
    """Threads for work that is handed out here; None outside of the work of this module."""
    freed: deque[None] | None = None
    """One entry for each thread of the same `read_ahead` that has nothing left to do: `in_threads` may use it."""


_HERE = _Here()


@contextmanager
def sharing(share: int, freed: deque[None] | None = None) -> Iterator[None]:
    """Let work that is handed out meanwhile in this thread have at most so many threads, and those in ``freed``."""
    before, _HERE.share, _HERE.freed = (_HERE.share, _HERE.freed), share, freed
    try:
        yield
    finally:
        _HERE.share, _HERE.freed = before


# --- how many -----------------------------------------------------------------------------------------------


def _quota(groups: str, root: Path) -> float:
    """Return the smallest limit of processor time [cores] that control groups set; infinity without one.

    Parameters
    ----------
    groups
        Text of ``/proc/self/cgroup``.
    root
        Where the control groups are mounted.
    """
    limit = math.inf
    for line in groups.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in (root / controllers, root / "cpu") if controllers else (root, root / "unified"):
            place = top / path.strip("/")
            for folder in (place, *place.parents):
                limit = min(limit, _limit_of(folder))
                if folder == top:
                    break
    return limit


def _limit_of(folder: Path) -> float:
    """Return the limit of one control group [cores]: version 2 has one file, version 1 two."""
    try:
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except FileNotFoundError:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return math.inf
    return cores if cores > 0 else math.inf


@cache
def _cgroup_cores() -> float:
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        return math.inf
    return _quota(groups, Path("/sys/fs/cgroup"))


def available_cores() -> int:
    """Return the number of processors this process may use: its affinity, and the limit of its container."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)
    limit = _cgroup_cores()
    return count if limit >= count else max(1, math.ceil(limit))


def worker_count(workers: int | None = None, *, work: int | None = None) -> int:
    """Return how many threads to use: the one rule for what ``workers`` means.

    Parameters
    ----------
    workers
        As asked for. None chooses: all processors that are available here, but no more than the work is worth.
    work
        Decoded bytes that are to be read or written, if that is known.

    Raises
    ------
    UsageError
        If ``workers`` is not an integer above 0.
    """
    if workers is None:
        share = available_cores() if _HERE.share is None else _HERE.share
        return share if work is None else worth(share, work)
    if type(workers) is not int or workers < 1:
        raise UsageError("not a number of workers", where="workers", expected="an integer above 0", found=workers)
    return workers if _HERE.share is None else min(workers, _HERE.share)


def worth(workers: int, work: int) -> int:
    """Return how many of some threads are worth it for so many decoded bytes: with more it would take longer."""
    return max(1, min(workers, work // BYTES_PER_WORKER))


def default_workers() -> int:
    """Return `worker_count` for work of unknown size."""
    return worker_count()


# --- the pool -----------------------------------------------------------------------------------------------


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # threads do not survive a fork
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="wustore")


_ROOM = 1 << 13
"""Words of a frame that takes an own piece of the interpreter's stack, with as many left for the frames above it."""


def _roomy(function: F) -> F:
    """Let what a function calls find room for its frames.

    CPython takes the stack of a thread in pieces of 16 KiB from the system, and gives a piece back when its first frame
    ends. If a piece happens to end where a loop calls something, each call maps and unmaps memory with the interpreter
    lock held, while other threads wait for the memory of the process: 60 times for an image that is converted.
    """
    plain: Any = function
    plain.__code__ = plain.__code__.replace(co_stacksize=_ROOM)
    return function


class _Batch(Generic[T, R]):
    """Items that several threads take one after the other.

    Parameters
    ----------
    function, items
        What is called, and with what.
    share
        Threads that each call may use.
    freed
        One entry for each thread more that may be used; others may be added meanwhile.
    """

    def __init__(
        self, function: Callable[[T], R], items: Sequence[T], share: int, freed: deque[None] | None = None
    ) -> None:
        self._function = function
        self._items = items
        self._share = share
        self._freed: deque[None] = deque() if freed is None else freed
        self._futures: list[Future[None]] = []
        self._todo = deque(range(len(items)))
        self._errors: list[tuple[int, BaseException]] = []
        self.results: list[Any] = [None] * len(items)

    @_roomy
    def _work(self, share: int) -> None:
        with sharing(share):
            while True:
                try:
                    k = self._todo.popleft()
                except IndexError:
                    return
                try:
                    if self._freed and self._todo:
                        self._hand_over()
                    self.results[k] = self._function(self._items[k])
                except BaseException as error:
                    self._todo.clear()
                    self._errors.append((k, error))
                    return

    def _hand_over(self) -> None:
        """Let another thread work in the place of one that has nothing left to do elsewhere."""
        freed = self._freed
        try:
            freed.pop()
        except IndexError:
            return
        future = _pool(os.getpid()).submit(self._work, 1)
        self._futures.append(future)
        future.add_done_callback(lambda _: freed.append(None))

    def run(self, helpers: int) -> list[R]:
        """Do all items with so many more threads; raise the error of the first that has one."""
        self._futures = [_pool(os.getpid()).submit(self._work, self._share) for _ in range(helpers)]
        try:
            self._work(self._share)
        finally:
            self._todo.clear()  # after an interrupt nothing new begins
            for future in self._futures:  # grows meanwhile: a thread that hands over is there before the one it starts
                if not future.cancel():
                    wait([future])
        if self._errors:
            # Items are taken in order, so that those before the one that failed have been done.
            raise min(self._errors, key=lambda found: found[0])[1]
        return self.results


def in_threads(function: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> list[R]:
    """Return ``[function(item) for item in items]``, done by up to ``workers`` threads.

    Raises
    ------
    UsageError
        If ``workers`` is not an integer above 0.
    """
    items = items if isinstance(items, list) else list(items)
    allowed, count = worker_count(workers), len(items)
    count = count if count < allowed else allowed
    if count <= 1 and (_HERE.freed is None or len(items) <= 1):
        before, _HERE.share = _HERE.share, allowed  # without the calls of `sharing`: chunks are decoded here
        try:
            return [function(item) for item in items]
        finally:
            _HERE.share = before
    return _Batch(function, items, max(1, allowed // max(count, 1)), _HERE.freed).run(count - 1)


class _Ahead(Generic[T]):
    """Calls for items that several threads take in order, as far as the caller lets them.

    A thread that finds nothing to take ends and leaves a place; who adds an item starts another one in it. So nobody
    waits for a lock, and each call is one message to the caller. Once the last item has been taken, the threads that
    ended are there for what the others hand out by `in_threads`.
    """

    def __init__(self, fetch: Callable[[int], T], items: Sequence[int], share: int, window: int) -> None:
        self._fetch = fetch
        self._items = items
        self._share = share
        self._places: deque[None] = deque()
        self._freed: deque[None] = deque()
        self._futures: list[Future[None]] = []
        self._added = min(window, len(items))
        self.todo = deque(range(self._added))
        self.done: SimpleQueue[tuple[int, tuple[T | None, BaseException | None]]] = SimpleQueue()

    @_roomy
    def _work(self) -> None:
        with sharing(self._share, self._freed):
            while True:
                try:
                    k = self.todo.popleft()
                except IndexError:
                    self._places.append(None)
                    if not self.todo:
                        if self._added == len(self._items):
                            self._freed.extend([None] * self._share)
                        return
                    try:  # what was added this instant: if the place is still free it is taken back
                        self._places.pop()
                    except IndexError:
                        return
                    continue
                try:
                    self.done.put((k, (self._fetch(self._items[k]), None)))
                except BaseException as error:
                    self.done.put((k, (None, error)))

    def start(self, threads: int) -> None:
        """Let so many threads take items."""
        self._futures = [future for future in self._futures if not future.done()]
        self._futures += [_pool(os.getpid()).submit(self._work) for _ in range(threads)]

    def add(self, k: int) -> None:
        """Let item ``k`` be taken, too."""
        self._added = k + 1
        self.todo.append(k)
        try:
            self._places.pop()
        except IndexError:
            return
        self.start(1)

    def stop(self, *, waiting: bool) -> None:
        """Begin nothing new; wait for what has begun."""
        self.todo.clear()
        left = [future for future in self._futures if not future.cancel()]
        if waiting:
            wait(left)


def read_ahead(
    fetch: Callable[[int], T], indices: Iterable[int], workers: int | None = None, *, ahead: int | None = None
) -> Generator[tuple[int, T], None, None]:
    """Yield (i, fetch(i)) in order, with a bounded number of calls ahead in threads.

    Parameters
    ----------
    fetch
        Thread-safe function of an image index.
    indices
        The indices, in the order wanted.
    workers
        As for `worker_count`; with 1 each call is made in the calling thread when its result is asked for.
    ahead
        Results that may wait for an earlier one, which the threads need to stay busy when calls take different times;
        half as many as workers by default, at least one.

    Raises
    ------
    UsageError
        If ``workers`` is not an integer above 0.
    """
    allowed = worker_count(workers)
    items = indices if isinstance(indices, Sequence) else list(indices)
    count = min(allowed, len(items))
    share = max(1, allowed // max(count, 1))
    if count <= 1:

        def call(i: int) -> T:
            with sharing(share):
                return fetch(i)

        for i in items:
            yield i, call(i)
        return
    window = count + (max(1, count // 2) if ahead is None else ahead)
    calls = _Ahead(fetch, items, share, window)
    ready: dict[int, tuple[T | None, BaseException | None]] = {}
    try:
        calls.start(count)
        for k, i in enumerate(items):
            while k not in ready:
                ready.update([calls.done.get()])
            if ready[k][1] is not None:
                raise ready.pop(k)[1]  # type: ignore[misc]
            yield i, ready.pop(k)[0]  # type: ignore[misc]
            if k + window < len(items):
                calls.add(k + window)
    except BaseException as error:
        # An abandoned generator may be collected in any thread, even inside the start of another one with the
        # locks of `threading` held: waiting there would never end.
        calls.stop(waiting=not isinstance(error, GeneratorExit))
        raise


class Background:
    """Threads that do what they are given while the caller goes on: one, which does it in order, or several."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._name = name
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._calls: list[Future[None]] = []

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Do ``function(*arguments)`` later."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=f"wustore-{self._name}")
        self._calls.append(self._pool.submit(function, *arguments))

    def is_busy(self) -> bool:
        """Return whether something is not done yet."""
        return not all(call.done() for call in self._calls)

    def settle(self) -> None:
        """Wait until all is done and end the thread; raise the first error."""
        pool, self._pool = self._pool, None
        calls, self._calls = self._calls, []
        if pool is not None:
            pool.shutdown()
        for call in calls:
            call.result()


# --- child processes ------------------------------------------------------------------------------------
#
# Python looks for modules in the current directory first if it is started with ``-c``, and so do the workers that
# `multiprocessing` spawns. A script in the directory of the data that has the name of a module would be run.

_OWN = Path(__file__).resolve().parents[2]
"""Where this package was found."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "import importlib; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])"
)


def _search_path() -> list[str]:
    """Return where this process finds modules, without the current directory."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        here = None
    return [entry for entry in sys.path if entry and (Path(entry).resolve() != here or here == _OWN)]


def command(module: str, function: str, *arguments: str) -> list[str]:
    """Return the command that calls a function with texts in another Python, with the modules of this one."""
    return [
        sys.executable,
        "-I",
        "-W",
        "ignore",
        "-c",
        _START,
        json.dumps(_search_path()),
        module,
        function,
        *arguments,
    ]


@contextmanager
def safe_path() -> Iterator[None]:
    """Let Pythons that are started meanwhile not look into the current directory."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONSAFEPATH", None)
        else:
            os.environ["PYTHONSAFEPATH"] = before
