"""Threads: what `workers` means, order, errors, nesting, and limits of containers; child processes."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import threading
import weakref
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from wustore.errors import UsageError
from wustore.storage import threads
from wustore.storage.threads import (
    Background,
    available_cores,
    command,
    in_threads,
    read_ahead,
    safe_path,
    sharing,
    worker_count,
)


class Meeting:
    """Counts how many threads are in its work at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, i: int) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.002)
        with self.lock:
            self.now -= 1
        return i * i


@pytest.mark.parametrize("workers", [0, -1, True, 1.0, "2"])
def test_what_is_not_a_number_of_workers_is_refused(workers):
    with pytest.raises(UsageError, match="workers"):
        worker_count(workers)


def test_the_default_follows_the_cores_and_the_work():
    cores = available_cores()
    assert worker_count() == worker_count(None, work=1 << 40) == cores
    assert worker_count(None, work=100) == 1
    assert worker_count(7, work=100) == 7  # asked for


def test_one_rule_also_for_work_inside_of_a_worker():
    assert in_threads(lambda _: worker_count(), range(2), 8) == [4, 4]
    assert in_threads(lambda _: worker_count(100), range(3), 8) == [2, 2, 2]
    assert in_threads(lambda _: worker_count(100), [0], 8) == [8]  # a single item leaves all to what is inside
    assert in_threads(lambda _: worker_count(100), range(3), 1) == [1, 1, 1]
    assert [count for _, count in read_ahead(lambda _: worker_count(), range(2), 8)] == [4, 4]
    assert [count for _, count in read_ahead(lambda _: worker_count(5), range(2), 1)] == [1, 1]
    assert worker_count(100) == 100


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_no_more_threads_than_workers(workers):
    for function in (in_threads, lambda *a: [value for _, value in read_ahead(*a)]):
        meeting = Meeting()
        assert function(meeting, range(20), workers) == [i * i for i in range(20)]
        assert meeting.most <= workers


def test_one_worker_is_the_calling_thread():
    here = threading.get_ident()
    assert in_threads(lambda _: threading.get_ident(), range(3), 1) == [here] * 3
    assert [found for _, found in read_ahead(lambda _: threading.get_ident(), range(3), 1)] == [here] * 3


def test_frames_of_a_thread_begin_with_room():
    """CPython takes 16 KiB for them at a time; each call at the end of such a piece takes and gives memory."""
    for kind in (threads._Batch, threads._Ahead):
        assert kind._work.__code__.co_stacksize * 8 > 16384


def test_nested_calls_do_not_wait_for_each_other():
    def outer(i: int) -> list[int]:
        return in_threads(lambda k: i * k, range(50), 8)

    assert in_threads(outer, range(30), 8) == [[i * k for k in range(50)] for i in range(30)]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_error_of_the_first_item_that_fails_is_raised(workers):
    def fail(i: int) -> int:
        if i in {5, 6, 11}:
            raise LookupError(i)
        return i

    with pytest.raises(LookupError) as found:
        in_threads(fail, range(20), workers)
    assert found.value.args == (5,)
    ahead = read_ahead(fail, range(20), workers)
    assert [next(ahead)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(LookupError) as found:
        next(ahead)
    assert found.value.args == (5,)


def test_after_an_error_no_thread_is_at_work_any_more():
    meeting = Meeting()

    def fail(i: int) -> int:
        if i == 3:
            raise LookupError
        return meeting(i)

    with pytest.raises(LookupError):
        in_threads(fail, range(1000), 4)
    assert meeting.now == 0
    ahead = read_ahead(meeting, range(1000), 4)
    next(ahead)
    with pytest.raises(KeyError):
        ahead.throw(KeyError())
    assert meeting.now == 0


@pytest.mark.parametrize(("workers", "ahead", "most"), [(2, None, 3), (8, None, 12), (4, 0, 4), (3, 10, 13)])
def test_so_many_results_wait_for_an_earlier_one(workers, ahead, most):
    begun, first = [], threading.Event()

    def fetch(i: int) -> int:
        begun.append(i)
        if len(begun) == most:
            first.set()
        if i == 0:
            first.wait(60)
        return i

    results = read_ahead(fetch, range(40), workers, ahead=ahead)
    assert next(results) == (0, 0)
    assert first.is_set()
    assert sorted(begun) == list(range(most)), "while the first result is in use"
    assert [i for i, _ in results] == list(range(1, 40))
    assert sorted(begun) == list(range(40))


@pytest.mark.parametrize(("workers", "n"), [(2, 1), (2, 3), (3, 4)])
def test_threads_without_an_item_help_with_the_last_ones(workers, n):
    seen, meeting = set(), Meeting()

    def work(k: int) -> int:
        seen.add(threading.get_ident())
        if len(seen) < workers:
            threading.Event().wait(0.06)
        return meeting(k)

    def fetch(i: int) -> list[int]:
        return in_threads(work if i == n - 1 else meeting, range(1000 if i == n - 1 else 2))

    found = [values for _, values in read_ahead(fetch, range(n), workers)]
    assert found[-1] == [k * k for k in range(1000)]
    assert (len(seen), meeting.most) == (workers, workers)


def test_an_error_in_what_is_shared_with_threads_without_an_item():
    def fail(k: int) -> int:
        threading.Event().wait(0.01)
        if k in {7, 9}:
            raise LookupError(k)
        return k

    for found in range(2):
        with pytest.raises(LookupError) as error:
            [*read_ahead(lambda i: i if i == 0 else in_threads(fail, range(12)), range(1 + found, 3), 2)]
        assert error.value.args == (7,)


class LatePool(ThreadPoolExecutor):
    """A thread of it hears late of the one to which it handed work."""

    def submit(self, function, /, *arguments):
        future = super().submit(function, *arguments)
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait(0.1)
        return future


def test_nobody_goes_on_while_a_thread_that_was_handed_work_is_busy(monkeypatch):
    def work(k: int) -> int:  # the caller takes 0 and hands 1 over, whose thread hands 2 over
        threading.Event().wait(0.4 if k == 2 else 0.05)
        return k

    with LatePool(8) as pool:
        monkeypatch.setattr(threads, "_pool", lambda process: pool)
        with sharing(1, deque([None] * 2)):
            assert in_threads(work, range(4), 1) == [0, 1, 2, 3]


def test_an_error_when_work_is_handed_over_is_raised(monkeypatch):
    class NoThread(ThreadPoolExecutor):
        def submit(self, function, /, *arguments):
            raise RuntimeError("can't start new thread")

    with NoThread(1) as pool:
        monkeypatch.setattr(threads, "_pool", lambda process: pool)
        with sharing(1, deque([None])), pytest.raises(RuntimeError, match="new thread"):
            in_threads(str, range(5), 1)


def test_results_are_not_kept():
    class Result:
        """Something that can be watched."""

    watched = []
    for _, result in read_ahead(lambda _: Result(), range(30), 3):
        watched.append(weakref.ref(result))
        del result
        assert [watch() is None for watch in watched] == [True] * len(watched)


def test_an_abandoned_generator_begins_nothing_new():
    seen = []
    ahead = read_ahead(seen.append, iter(range(1000)), 2)
    next(ahead)
    del ahead
    gc.collect()
    in_threads(lambda _: None, range(8), 4)  # what had begun is over
    assert 1 <= len(seen) <= 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    in_threads(abs, range(8), 4)
    child = os.fork()
    if child == 0:
        wrong = 1
        try:  # whatever happens, this process does not go on with the other tests
            wrong = in_threads(abs, range(8), 4) != [*range(8)]
        finally:
            os._exit(wrong)
    assert os.waitpid(child, 0)[1] == 0


V2 = "0::/jobs/this\n"
V1 = "5:memory:/jobs/this\n4:cpu,cpuacct:/jobs/this\n"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        (V2, {"jobs/this/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"jobs/this/cpu.max": "max 100000\n", "jobs/cpu.max": "400000 100000\n"}, 4),
        (V2, {"cpu.max": "50000 100000\n"}, 0.5),  # the path is that of the host, the files are the container's
        (V2, {"unified/jobs/cpu.max": "300000 100000\n"}, 3),
        (V2, {"jobs/this/cpu.max": "nonsense\n"}, float("inf")),
        (V2, {}, float("inf")),
        (V1, {"cpu/jobs/this/cpu.cfs_quota_us": "200000", "cpu/jobs/this/cpu.cfs_period_us": "100000"}, 2),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, float("inf")),
        ("", {}, float("inf")),
    ],
)
def test_limits_of_control_groups(tmp_path, groups, files, limit):
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert threads._quota(groups, tmp_path) == limit


def test_a_container_with_less_than_a_core_has_one(monkeypatch):
    monkeypatch.setattr(threads, "_cgroup_cores", lambda: 0.5)
    assert available_cores() == 1
    monkeypatch.setattr(threads, "_cgroup_cores", lambda: float("inf"))
    assert available_cores() >= 1


@pytest.mark.parametrize("threads", [1, 3])
def test_work_in_the_background(threads):
    done = []
    behind = Background("test", threads)
    assert not behind.is_busy()
    for i in range(5):
        behind.start(done.append, i)
    behind.settle()
    assert (done if threads == 1 else sorted(done)) == [*range(5)]
    assert not behind.is_busy()
    behind.start({}.pop, 1)
    behind.start(done.append, 5)
    with pytest.raises(KeyError):
        behind.settle()
    assert done[-1] == 5
    behind.settle()  # the error has been told


# --- child processes: they find our modules, and run nothing that lies in the current directory ---

_SCRIPT = "open('RUN', 'w').close()\nraise SystemExit('a script of the user')\n"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, with scripts that have names of modules."""
    for name in ("json", "inspect", "base64", "random", "pickle", "numpy", "wustore"):
        (tmp_path / f"{name}.py").write_text(_SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command(beside: Path) -> None:
    done = subprocess.run(command("builtins", "print", "a", "b"), capture_output=True, text=True, check=True)
    assert done.stdout == "a b\n"
    listed = command("builtins", "print")
    assert str(beside) not in json.loads(listed[listed.index("-c") + 2])
    done = subprocess.run(command("wustore.model.select", "chosen_images"), capture_output=True, text=True, check=False)
    assert "chosen_images() missing" in done.stderr
    assert not (beside / "RUN").exists()


def test_workers_are_safe(beside: Path) -> None:
    with safe_path(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(len, "abc").result() == 3
    assert not (beside / "RUN").exists()
