"""Locks of the file system, and what they are taken from."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from zarr.storage import MemoryStore

from wustore.errors import UsageError
from wustore.storage import locks
from wustore.storage.locks import alone, lock_of, open_lock
from wustore.storage.zarr_store import StoreKeys

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


# --- claims ---------------------------------------------------------------------------------------------


@pytest.fixture
def claimed():
    """A store without file locks, and a function that gives its claim a writer, a machine and an age."""
    keys = StoreKeys(MemoryStore())

    def by(process: int, where: str | None = None, silent: float = 0) -> None:
        text = {"id": "x", "machine": where or locks.machine(), "process": process, "when": time.time() - silent}
        keys.set(locks.CLAIM, json.dumps(text).encode())

    return keys, by


def test_a_claim_keeps_others_away(claimed):
    keys, _ = claimed
    claim = locks.Claim(keys)
    claim.take()
    with pytest.raises(UsageError, match="another process is changing"):
        locks.Claim(keys).take()
    claim.renew(now=True)
    assert claim.is_held()
    claim.release()
    assert keys.get(locks.CLAIM) is None
    locks.Claim(keys).take()


def test_claims_that_were_left_are_taken(claimed):
    keys, by = claimed
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    by(1, "elsewhere", silent=locks._STALE / 2)
    with pytest.raises(UsageError, match="elsewhere"):
        locks.Claim(keys).take()
    for left in (lambda: by(1, "elsewhere", silent=locks._STALE * 2), lambda: by(ended.pid)):
        left()
        locks.Claim(keys).take()
    keys.set(locks.CLAIM, b"torn")
    locks.Claim(keys).take()


def test_who_has_lost_a_claim_stops(claimed, monkeypatch):
    keys, by = claimed
    monkeypatch.setattr(locks, "_RENEWED", 1e9)
    claim = locks.Claim(keys)
    claim.take()
    by(1, "elsewhere")
    claim.renew()  # not so long has gone
    with pytest.raises(UsageError, match="taken over"):
        claim.renew(now=True)
    claim.release()
    assert keys.get(locks.CLAIM) is not None  # that of the other one


def test_a_claim_that_cannot_be_keeps_nobody_away(claimed):
    """Times far ahead, as of a clock that jumped, and values of other kinds."""
    keys, by = claimed
    by(1, "elsewhere", silent=-locks._STALE - 10)
    locks.Claim(keys).take()
    by(10**30)
    locks.Claim(keys).take()
    good = {"machine": "m", "process": 1, "when": time.time()}
    for wrong in ({"machine": 5}, {"process": "1"}, {"when": float("nan")}, {"when": 10**400}, {"when": "x"}):
        keys.set(locks.CLAIM, json.dumps(good | wrong).encode())
        locks.Claim(keys).take()
    keys.set(locks.CLAIM, b"[" * 100_000)
    locks.Claim(keys).take()


def test_a_claim_that_is_left_is_free_and_says_so(claimed):
    keys, _ = claimed
    first, second = locks.Claim(keys), locks.Claim(keys)
    first.take()
    first.leave()
    assert not first.is_held()
    assert keys.get(locks.CLAIM) is not None
    second.take()
    assert (first.was_left, second.was_left) == (False, True)
