"""Locks of the file system, and what they are taken from."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from wustore.errors import UsageError
from wustore.storage import locks
from wustore.storage.locks import alone, lock_of, open_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no locks of POSIX")


def test_one_at_a_time(tmp_path: Path) -> None:
    lock = lock_of(tmp_path)
    with alone(lock, "store"):
        assert lock.exists()
        with pytest.raises(UsageError, match="another process"), alone(lock, "store"):
            pass
    assert not lock.exists()
    with alone(lock, "store"):
        pass


def test_places(tmp_path: Path) -> None:
    assert lock_of(tmp_path) == tmp_path / ".wustore-lock"
    assert lock_of(tmp_path / "night.h5") == tmp_path / ".night.h5.wustore-lock"


def test_a_link_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="link"), alone(lock, "store"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(UsageError, match="regular"):
        open_lock(tmp_path / "lock")


def test_without_namespaces_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    locks.machine.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        assert locks.machine() == socket.gethostname()
    locks.machine.cache_clear()
    assert locks.machine().startswith(socket.gethostname())
