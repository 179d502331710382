"""A target is whole, or as it was."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from wustore.errors import StoreExistsError, StoreNotFoundError
from wustore.storage import staging as atomic
from wustore.storage.staging import Staging, partial_path, sync_tree


def fill(path, text, *, directory):
    if directory:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "file").write_text(text)
        (path / "zarr.json").write_text("{}")
    else:
        path.write_text(text)


def read(path):
    return (path / "deep" / "file").read_text() if path.is_dir() else path.read_text()


@pytest.fixture(params=["file", "directory"])
def directory(request):
    return request.param == "directory"


@pytest.fixture(params=["swap", "two steps"])
def way(request, monkeypatch):
    if request.param == "two steps":
        monkeypatch.setattr(atomic, "_swap", lambda a, b: False)


def test_commit(tmp_path, directory, way):
    target = tmp_path / "store"
    for text, overwrite in (("one", False), ("two", True)):
        staging = Staging(target, overwrite=overwrite)
        fill(staging.path, text, directory=directory)
        assert not target.exists() or read(target) == "one"
        staging.commit()
        assert read(target) == text
        assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_file_and_directory_replace_each_other(tmp_path, way):
    target = tmp_path / "store"
    for directory in (True, False, True):
        staging = Staging(target, overwrite=True)
        fill(staging.path, str(directory), directory=directory)
        staging.commit()
        assert read(target) == str(directory)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_existing(tmp_path):
    (tmp_path / "store").write_text("old")
    with pytest.raises(StoreExistsError, match="overwrite"):
        Staging(tmp_path / "store")
    with pytest.raises(StoreNotFoundError, match="directory"):
        Staging(tmp_path / "no" / "store")


def test_a_directory_of_something_else_is_never_replaced(tmp_path):
    target = tmp_path / "store"
    target.mkdir()
    Staging(target, overwrite=True)  # empty: nothing to lose
    (target / "thesis").write_text("years of work")
    with pytest.raises(StoreExistsError, match="thesis"):
        Staging(target, overwrite=True)
    staging = Staging(tmp_path / "other", overwrite=True)
    fill(staging.path, "new", directory=True)
    target.rename(tmp_path / "other")
    with pytest.raises(StoreExistsError, match="thesis"):
        staging.commit()
    assert (tmp_path / "other" / "thesis").read_text() == "years of work"


def test_appeared_meanwhile(tmp_path):
    staging = Staging(tmp_path / "store")
    staging.path.write_text("new")
    (tmp_path / "store").write_text("someone else's")
    with pytest.raises(StoreExistsError):
        staging.commit()
    assert (tmp_path / "store").read_text() == "someone else's"


@pytest.mark.parametrize("error", [None, errno.EINVAL])
def test_appeared_in_the_last_instant(tmp_path, directory, monkeypatch, error):
    """Of two conversions to one name the second does not replace the first one's file."""
    if error is not None:
        monkeypatch.setattr(atomic, "_rename", lambda *arguments, **keywords: error)  # as on a network
    staging = Staging(tmp_path / "store")
    fill(staging.path, "new", directory=directory)
    monkeypatch.setattr(staging, "_check", lambda: fill(tmp_path / "store", "other", directory=directory))
    with pytest.raises(StoreExistsError):
        staging.commit()
    assert read(tmp_path / "store") == "other"
    assert read(staging.path) == "new"


def test_errors_of_renaming(tmp_path):
    staging = Staging(tmp_path / "store")
    with pytest.raises(FileNotFoundError):
        atomic._rename_to_new(staging.path, staging.target)


def test_failed_second_step_puts_the_old_one_back(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_swap", lambda a, b: False)
    target = tmp_path / "store"
    fill(target, "old", directory=True)
    staging = Staging(target, overwrite=True)
    fill(staging.path, "new", directory=True)
    rename = type(target).rename

    def failing(self, other):
        if self == staging.path:
            raise OSError("the new one cannot move")
        return rename(self, other)

    monkeypatch.setattr(type(target), "rename", failing)
    with pytest.raises(OSError, match="cannot move"):
        staging.commit()
    assert read(target) == "old"


def test_abort(tmp_path, directory):
    staging = Staging(tmp_path / "store")
    fill(staging.path, "x", directory=directory)
    staging.abort()
    staging.abort()
    assert not list(tmp_path.iterdir())


def test_keep(tmp_path):
    staging = Staging(tmp_path / "store", keep=True)
    assert staging.path == partial_path(tmp_path / "store")
    staging.path.write_text("half")
    staging.abort()
    assert staging.path.exists()
    staging.abort(keep=False)
    assert not staging.path.exists()


def test_stale_stagings_of_dead_processes_go(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    name = "store[1]"
    dead = tmp_path / f".{name}~{socket.gethostname()}~{int(gone.stdout)}-0123abcd.wustore-partial"
    mine = tmp_path / f".{name}~{socket.gethostname()}~{os.getpid()}-0123abcd.wustore-partial"
    elsewhere = tmp_path / f".{name}~another.host~1-0123abcd.wustore-partial"
    for path in (dead, mine, elsewhere):
        path.write_text("x")
    Staging(tmp_path / name)
    assert not dead.exists()
    assert mine.exists()
    assert elsewhere.exists()


WRITER = """
import sys, itertools
from wustore.storage.staging import Staging
for n in itertools.count():
    staging = Staging(sys.argv[1], overwrite=True)
    staging.path.mkdir()
    (staging.path / "zarr.json").touch()
    for k in range(20):
        (staging.path / str(k)).write_text(str(n))
    staging.commit()
    print(n, flush=True)
"""


def test_sigkill_at_any_moment(tmp_path):
    """A process that keeps replacing a store is killed at 12 moments: the store is always one whole version."""
    target = tmp_path / "store"
    for round_ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
        process.stdout.readline()  # one version is there
        time.sleep(0.013 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        versions = {(target / str(k)).read_text() for k in range(20)}
        assert len(versions) == 1
    Staging(target, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_sync_of_many_files(tmp_path):
    for k in range(100):
        (tmp_path / str(k)).write_text("x")
    sync_tree(tmp_path)
