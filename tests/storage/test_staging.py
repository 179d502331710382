"""A target is whole, or as it was."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from wustore.errors import StoreExistsError, StoreNotFoundError, UsageError
from wustore.storage import locks
from wustore.storage import staging as atomic
from wustore.storage.staging import Staging, partial_path, sync_tree


def fill(path, text, *, directory):
    if directory:
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "file").write_text(text)
        (path / "zarr.json").write_text('{"wustore": 1}')
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
    monkeypatch.setattr(atomic, "_check", lambda *_: fill(tmp_path / "store", "other", directory=directory))
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


def dead_process():
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return int(gone.stdout)


def test_stale_stagings_go(tmp_path):
    """One whose lock nobody holds; without a lock one of a process of this machine that is gone."""
    name = "store[1]"

    def staged(machine, process, *, lock):
        path = tmp_path / f".{name}~{machine}~{process}-0123abcd{len(machine)}.wustore-partial"
        path.write_text("x")
        if lock:
            path.with_name(f"{path.name}-lock").touch()
        return path

    here, gone = locks.machine(), dead_process()
    stale = [staged(here, gone, lock=False), staged("another.host", 1, lock=True)]
    kept = [staged(here, os.getpid(), lock=False), staged("a.third.host", gone, lock=False)]
    orphan = tmp_path / f".{name}~{here}~{gone}-4567abcd.wustore-partial-lock"
    orphan.touch()
    writing = Staging(tmp_path / name)
    writing.path.touch()
    other = Staging(tmp_path / name)
    other.path.touch()
    assert not any(path.exists() for path in [*stale, orphan])
    assert all(path.exists() for path in [*kept, writing.path, other.path])
    writing.commit()
    other.abort()
    assert {path.name for path in tmp_path.iterdir()} == {name, *(path.name for path in kept)}


def test_a_staging_of_another_container_is_left_alone(tmp_path, monkeypatch):
    """Its process has a number that no process has here; its lock says that it lives."""
    monkeypatch.setattr(os, "getpid", dead_process)
    living = Staging(tmp_path / "store")
    living.path.touch()
    monkeypatch.undo()
    Staging(tmp_path / "store").abort()
    assert living.path.exists()
    living.commit()


def test_without_locks_of_the_file_system_processes_are_asked_for(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    living = Staging(tmp_path / "store")
    living.path.touch()
    dead = tmp_path / f".store~{locks.machine()}~{dead_process()}-0123abcd.wustore-partial"
    dead.touch()
    Staging(tmp_path / "store").abort()
    assert living.path.exists()
    assert not dead.exists()
    living.abort()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", ".wustore-journal", ".wustore-journal/lock", "science", "science/c.0.0.0"])
def test_links_at_known_names_are_refused(tmp_path, below):
    """Somebody else has put them where a conversion that can be resumed writes."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = tmp_path / ".store.wustore-partial" / below if below else tmp_path / ".store.wustore-partial"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="link"):
        Staging(tmp_path / "store", keep=True)
    assert not list(elsewhere.iterdir())


def modes(path):
    return {p.relative_to(path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in [path, *path.rglob("*")]}


def test_permissions_of_what_is_replaced(tmp_path):
    for name, mode in (("store", 0o700), ("shared", 0o775)):
        target = tmp_path / name
        target.mkdir()
        (target / "zarr.json").write_text('{"wustore": 1}')
        (target / "zarr.json").chmod(mode & 0o666)
        target.chmod(mode)
        staging = Staging(target, overwrite=True)
        staging.make_directory()
        assert mode != 0o700 or stat.S_IMODE(staging.path.stat().st_mode) == 0o700  # private while it is written
        (staging.path / "science").mkdir()
        for file in ("zarr.json", "science/c.0.0.0"):
            (staging.path / file).write_text('{"wustore": 2}')
        staging.commit()
        assert modes(target) == {
            ".": mode,
            "science": mode,
            "zarr.json": mode & 0o666,
            "science/c.0.0.0": mode & 0o666,
        }


def test_permissions_of_a_file_that_is_replaced(tmp_path):
    target = tmp_path / "store"
    target.touch()
    target.chmod(0o600)
    staging = Staging(target, overwrite=True)
    staging.path.touch()
    staging.protect()
    assert stat.S_IMODE(staging.path.stat().st_mode) == 0o600
    staging.path.chmod(0o666)
    staging.commit()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with_directory = Staging(target, overwrite=True)
    with_directory.make_directory()
    with_directory.commit()
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


WRITER = """
import sys, itertools
from wustore.storage.staging import Staging
for n in itertools.count():
    staging = Staging(sys.argv[1], overwrite=True)
    staging.path.mkdir()
    (staging.path / "zarr.json").write_text('{"wustore": 1}')
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


def test_without_a_sync_of_the_whole_file_system(tmp_path, monkeypatch):
    for k in range(100):
        (tmp_path / str(k)).write_text("x")
    synced = []
    monkeypatch.setattr(atomic.sys, "platform", "other")
    monkeypatch.setattr(atomic, "sync", synced.append)
    sync_tree(tmp_path)
    assert len(synced) == 101
    assert synced[-1] == tmp_path


def test_many_files_are_removed_and_links_not_followed(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside" / "deep"
    for folder in (outside, inside):
        folder.mkdir(parents=True)
        for k in range(20):
            (folder / str(k)).write_text("")
    (inside / "to_a_folder").symlink_to(outside)
    (inside / "to_a_file").symlink_to(outside / "3")
    atomic.remove(tmp_path / "inside")
    assert not (tmp_path / "inside").exists()
    assert len([*outside.iterdir()]) == 20
    atomic.remove(tmp_path / "inside")


def test_what_cannot_be_removed_is_an_error(tmp_path, monkeypatch):
    for k in range(20):
        (tmp_path / str(k)).write_text("")
    unlink = os.unlink

    def refuse(name, *, dir_fd=None):
        if os.fspath(name).endswith("7"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(PermissionError):
        atomic.remove(tmp_path)
    assert (tmp_path / "7").exists()


def test_all_that_a_process_of_another_container_left_goes(tmp_path):
    """What has the name of a staging is its process's, too, as long as its lock says that it is gone."""
    name = "a~b.fits.gz"
    staging = tmp_path / f".{name}~another.host~1-0123abcd.wustore-partial"
    for end in ("", "-inner", "-lock"):
        staging.with_name(staging.name + end).touch()
    Staging(tmp_path / name).abort()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_what_is_set_aside_stays(tmp_path):
    staging = tmp_path / ".x.zarr~another.host~1-0123abcd.wustore-partial"
    aside, lock = (staging.with_name(staging.name + end) for end in ("-old", "-lock"))
    aside.mkdir()
    lock.touch()
    Staging(tmp_path / "x.zarr").abort()
    assert {left.path: left.kind for left in atomic.leftovers(tmp_path / "x.zarr")} == {aside: "set aside"}
    assert lock.exists()


def test_what_is_being_removed_is_locked(tmp_path, monkeypatch):
    """A process that is killed meanwhile leaves a lock that is free, also for other containers."""
    (tmp_path / "old").mkdir()
    seen = []

    def die(path):
        seen.extend(left.kind for left in atomic.leftovers(tmp_path / "x"))
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "remove", die)
    with pytest.raises(KeyboardInterrupt):
        atomic.retire(tmp_path / "old", tmp_path / "x")
    assert seen == ["in use", "in use"]


def test_names_that_are_no_stagings(tmp_path):
    here = locks.machine()
    for process in ("²", "9" * 60):
        (tmp_path / f".x~{here}~{process}-0.wustore-partial").touch()
    Staging(tmp_path / "x").abort()
    assert [entry.name for entry in tmp_path.iterdir()] == [f".x~{here}~²-0.wustore-partial"]
