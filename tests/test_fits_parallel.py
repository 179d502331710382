from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fits_samples as samples
import numpy as np
import pytest

import wustore
from wustore.backends.fits import FitsBackend
from wustore.errors import CorruptError
from wustore.fits import parallel, rice
from wustore.model import LAYERS

pytestmark = pytest.mark.skipif(not parallel.available(), reason="no shared memory by descriptor on this system")


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parallel, "_WORTHWHILE", 0)
    monkeypatch.setattr(parallel, "_FEWEST", 1)
    monkeypatch.setattr(parallel, "default_workers", lambda: 2)
    yield
    for thread in threading.enumerate():
        if thread.name == "wustore-helper":  # one that is just starting would not be told
            thread.join(60)
    parallel._leave_all()


def pixels(n_rows: int, n_pixels: int, kind: str = "i4") -> Any:
    rng = np.random.default_rng(n_rows * n_pixels)
    values = rng.normal(0, 90, (n_rows, n_pixels)).astype(kind)
    values[:, n_pixels // 3] = np.iinfo(kind).min
    return values


def helper() -> parallel._Helper:
    """Return an idle helper, started if need be."""
    processors = parallel._processors
    if not processors.helpers:
        with processors._changed:
            processors._ask_for_helper(1)
    deadline = time.monotonic() + 60
    while not processors.idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return processors.idle[0]


def elsewhere(task: Callable[[], Any]) -> Any:
    """Run a task by the only helper, as if another thread had been the last one to code something."""
    asked = []
    ask = parallel._Helper.ask

    def counted(self: parallel._Helper, *arguments: Any) -> bool:
        asked.append(self)
        return ask(self, *arguments)

    helper()
    parallel._processors._last = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel._Helper, "ask", counted)
        result = task()
    assert asked
    return result


@pytest.mark.parametrize("kind", ["i1", "i2", "i4"])
@pytest.mark.parametrize(("n_rows", "n_pixels"), [(1, 1), (7, 50), (64, 2048), (300, 33)])
def test_helpers_give_the_same_bytes_and_pixels(kind: str, n_rows: int, n_pixels: int) -> None:
    rows = pixels(n_rows, n_pixels, kind)
    expected = rice.encode_rows(rows, 32)
    assert elsewhere(lambda: parallel.encode_rows(rows, 32)) == expected
    assert elsewhere(lambda: parallel.encode_rows(rows[::-1], 16)) == rice.encode_rows(rows[::-1], 16)
    heap = np.frombuffer(b"before" + b"".join(expected) + b"after", np.uint8)
    ends = (np.cumsum([len(tile) for tile in expected]) + 6).tolist()
    starts = [6, *ends[:-1]]
    found = np.zeros_like(rows)
    elsewhere(lambda: parallel.decode_rows(heap, starts, ends, found, 32, range(n_rows)))
    assert (found == rows).all()


def test_damage_found_by_a_helper_is_the_same_error() -> None:
    rows = pixels(20, 200)
    tiles = rice.encode_rows(rows, 32)
    tiles[13] = tiles[13][:20]
    heap = np.frombuffer(b"".join(tiles), np.uint8)
    ends = np.cumsum([len(tile) for tile in tiles]).tolist()
    found = np.zeros_like(rows)
    with pytest.raises(CorruptError) as caught:
        elsewhere(lambda: parallel.decode_rows(heap, [0, *ends[:-1]], ends, found, 32, range(100, 120)))
    assert "tile 113" in str(caught.value)
    assert elsewhere(lambda: parallel.encode_rows(rows, 32)) == rice.encode_rows(rows, 32)


def test_a_killed_helper_is_done_without() -> None:
    rows = pixels(30, 500)
    first = helper()
    os.kill(first.process.pid, signal.SIGSTOP)  # it still counts as alive when it is taken
    killer = threading.Timer(0.3, os.kill, (first.process.pid, signal.SIGKILL))
    killer.start()
    assert elsewhere(lambda: parallel.encode_rows(rows, 32)) == rice.encode_rows(rows, 32)
    killer.join()
    assert first.process.returncode == -signal.SIGKILL
    assert parallel._processors.helpers == []
    assert elsewhere(lambda: parallel.encode_rows(rows, 32)) == rice.encode_rows(rows, 32)  # by another one


def test_an_interrupted_request_ends_its_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pixels(30, 500)
    process = helper().process

    def interrupted(channel: Any, count: int) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "exactly", interrupted)
        with pytest.raises(KeyboardInterrupt):
            elsewhere(lambda: parallel.encode_rows(rows, 32))
    assert process.returncode == -signal.SIGKILL
    assert parallel.encode_rows(rows, 32) == rice.encode_rows(rows, 32)  # this process was given back


def test_many_threads() -> None:
    sizes = [(5 + k % 40, 10 + 7 * k % 900) for k in range(60)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda size: parallel.encode_rows(pixels(*size), 32), sizes))
    assert found == [rice.encode_rows(pixels(*size), 32) for size in sizes]
    assert len(parallel._processors.helpers) <= 2


def test_one_thread_starts_no_helper() -> None:
    for _ in range(3):
        parallel.encode_rows(pixels(40, 400), 32)
    assert parallel._processors.helpers == []


def shared_descriptors() -> int:
    links = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sum("memfd:wustore" in link for link in links)


def test_no_descriptor_is_left() -> None:
    process = helper().process
    for n_rows in (10, 100, 400):
        elsewhere(lambda n_rows=n_rows: parallel.encode_rows(pixels(n_rows, 300), 32))
    assert shared_descriptors() == 1
    parallel._leave_all()
    assert shared_descriptors() == 0
    assert process.poll() is not None


def test_files_read_and_written_in_parallel_are_the_same(tmp_path: Path) -> None:
    path = samples.small(tmp_path / "wu.fits", 6, shape=(60, 50), compressed=True)

    def bits(workers: int) -> list[tuple[int, list[bytes]]]:
        return [
            (i, [plane.tobytes() for layer in LAYERS if (plane := image.layer(layer)) is not None])
            for i, image in FitsBackend().open(path).images(workers=workers)
        ]

    expected = bits(1)
    helper()
    assert bits(2) == expected
    for workers in (1, 2):
        wustore.convert(path, tmp_path / f"{workers}.zarr", workers=workers)
        wustore.convert(tmp_path / f"{workers}.zarr", tmp_path / f"{workers}.fits", workers=workers)
        assert (tmp_path / f"{workers}.fits").read_bytes() == Path(path).read_bytes()


def test_the_end_of_a_process_leaves_no_helper(tmp_path: Path) -> None:
    script = (
        "import threading, time, numpy as np\n"
        "from wustore.fits import parallel\n"
        "parallel._WORTHWHILE = parallel._FEWEST = 0\n"
        "parallel.default_workers = lambda: 2\n"
        "rows = np.arange(3000, dtype=np.int32).reshape(30, 100)\n"
        "with parallel._processors.one(1):\n"
        "    threading.Thread(target=parallel.encode_rows, args=(rows, 32)).start()\n"
        "    while not parallel._processors.helpers: time.sleep(0.01)\n"
        "    print(parallel._processors.helpers[0].process.pid)\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    assert not Path(f"/proc/{run.stdout.strip()}").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_leaves_the_helper_to_its_parent() -> None:
    rows = pixels(30, 500)
    process = helper().process
    child = os.fork()
    if child == 0:
        try:
            fine = parallel._processors.helpers == [] and len(parallel.encode_rows(rows, 32)) == 30
            os._exit(0 if fine else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert process.poll() is None
    assert elsewhere(lambda: parallel.encode_rows(rows, 32)) == rice.encode_rows(rows, 32)
