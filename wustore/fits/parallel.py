"""Decoding the images of FITS files on several processors.

Rice-coded rows are short: two threads that decode them spend half their time handing the interpreter lock to
each other. So other processes decode too. They are plain subprocesses, not `multiprocessing` ones, which would
run the user's script again; an image comes back through memory that both processes map. A helper is started when
there is much to decode, stays for the next call and leaves when it has had nothing to do for a while, or
when this process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError
from wustore.fits import source
from wustore.fits.planes import Plane
from wustore.fits.scan import Buffer

__all__ = ["WORTHWHILE", "Engines", "Job", "available"]

WORTHWHILE = 1 << 25
"""Tile-compressed pixels from which helpers are used: 0.2 s of one processor, about what starting one takes."""

_IDLE = 20.0
"""Seconds without work after which a helper leaves."""

_LENGTH = struct.Struct(">Q")
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from wustore.fits import parallel; "
_START += "parallel.serve(int(sys.argv[1]))"


@dataclass(frozen=True)
class Job:
    """Planes of one file to decode.

    Attributes
    ----------
    path
        The file, not compressed as a whole.
    state
        Size, time and inode that it must still have.
    planes
        Layer to plane.
    """

    path: str
    state: tuple[int, int, int]
    planes: Mapping[str, Plane]

    def offsets(self) -> tuple[dict[str, int], int]:
        """Return where each plane goes in the shared memory, and its whole length."""
        offsets, end = {}, 0
        for layer, plane in self.planes.items():
            offsets[layer] = end
            end += -(-_size(plane) // mmap.PAGESIZE) * mmap.PAGESIZE
        return offsets, end


def _size(plane: Plane) -> int:
    height, width = plane.shape
    return int(height * width * plane.dtype.itemsize)


def decode_here(job: Job, data: Buffer) -> dict[str, NDArray[Any]]:
    """Decode in this process."""
    return {layer: plane.read(data) for layer, plane in job.planes.items()}


def available() -> bool:
    """Return whether this system can start helpers."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


# --- messages -----------------------------------------------------------------------------------------


def _send(channel: socket.socket, message: object, files: Sequence[int] = ()) -> None:
    body = pickle.dumps(message)
    head = _LENGTH.pack(len(body))
    if files:
        socket.send_fds(channel, [head], list(files))
    else:
        channel.sendall(head)
    channel.sendall(body)


def _receive(channel: socket.socket) -> tuple[Any, list[int]]:
    head, files, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    head += _exactly(channel, _LENGTH.size - len(head)) if head else b""
    if not head:
        raise EOFError
    return pickle.loads(_exactly(channel, _LENGTH.unpack(head)[0])), list(files)


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = channel.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


# --- the helper's side --------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Decode jobs that come through a socket until it closes, or until there was none for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that asked; it closes the socket
    channel = socket.socket(fileno=descriptor)
    channel.settimeout(_IDLE)
    arena: mmap.mmap | None = None
    at_hand: tuple[str, tuple[int, int, int]] | None = None
    data: Buffer = b""
    with channel, contextlib.suppress(EOFError, OSError):
        _send(channel, "ready")
        while True:
            job, files = _receive(channel)
            if files:
                arena = mmap.mmap(files[0], 0)
                os.close(files[0])
            try:
                if at_hand != (job.path, job.state):
                    data = _load(job)
                    at_hand = job.path, job.state
                assert arena is not None
                _fill(job, data, arena)
            except Exception as error:  # goes to the process that asked, whatever it is
                _send(channel, error)
            else:
                _send(channel, None)


def _load(job: Job) -> Buffer:
    data = source.load(job.path)
    if source.state_of(job.path) != job.state:
        raise CorruptError("the file was changed after it was opened", path=job.path, cure="Open it again.")
    return data


def _fill(job: Job, data: Buffer, arena: mmap.mmap) -> None:
    offsets, _ = job.offsets()
    for layer, plane in job.planes.items():
        plane.read(data, out=_view(arena, plane, offsets[layer]))


def _view(arena: mmap.mmap, plane: Plane, offset: int) -> NDArray[Any]:
    height, width = plane.shape
    return np.frombuffer(arena, plane.dtype, height * width, offset).reshape(height, width)


# --- this side ----------------------------------------------------------------------------------------


class _Helper:
    """A process that decodes, and the memory it shares with this one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._channel = ours
        self._arena: mmap.mmap | None = None

    def wait(self) -> None:
        """Return when it is ready; raise EOFError or OSError where it could not start."""
        _receive(self._channel)

    def decode(self, job: Job) -> dict[str, NDArray[Any]]:
        """Let it decode a job.

        Raises
        ------
        EOFError, OSError
            Where the helper is gone: the job is still to be done.
        WuStoreError
            What decoding raised there.
        """
        offsets, length = job.offsets()
        files: list[int] = []
        if self._arena is None or len(self._arena) < length:
            descriptor = os.memfd_create("wustore", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, length)
            self._arena = mmap.mmap(descriptor, length)
            files = [descriptor]
        try:
            _send(self._channel, job, files)
        finally:
            for descriptor in files:
                os.close(descriptor)
        reply, _ = _receive(self._channel)
        if reply is not None:
            raise reply
        return {layer: np.array(_view(self._arena, plane, offsets[layer])) for layer, plane in job.planes.items()}

    def alive(self) -> bool:
        """Return whether it still runs."""
        return self._process.poll() is None

    def disown(self) -> None:
        """Take it for ended: it belongs to another process."""
        self._process.returncode = 0

    def leave(self) -> None:
        """Let it end."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)


_lock = threading.Lock()
_idle: list[_Helper] = []


def _forget() -> None:
    """Give up the helpers in a forked child: they belong to its parent."""
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    for helper in _idle:
        helper.disown()
    _idle.clear()


@atexit.register
def _leave_all() -> None:
    with _lock:
        helpers = _idle[:]
        _idle.clear()
    for helper in helpers:
        helper.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _take_idle() -> _Helper | None:
    while True:
        with _lock:
            helper = _idle.pop() if _idle else None
        if helper is None or helper.alive():
            return helper
        helper.leave()


def _put_back(helper: _Helper) -> None:
    with _lock:
        _idle.append(helper)


class Engines:
    """The processors that decode for one call: this process's own, and helpers that join when they have started.

    Parameters
    ----------
    n_workers
        Processors to use, this one included. `decode` is to be called from so many threads.
    """

    def __init__(self, n_workers: int) -> None:
        self._free: queue.SimpleQueue[_Helper | None] = queue.SimpleQueue()
        self._free.put(None)  # this process
        self._closed = False
        self._guard = threading.Lock()
        for _ in range(n_workers - 1):
            helper = _take_idle()
            if helper is not None:
                self._free.put(helper)
            else:
                # Nobody waits for it: until it has started the others do the work.
                threading.Thread(target=self._start, name="wustore-helper", daemon=True).start()

    def _start(self) -> None:
        try:
            helper = _Helper()
            helper.wait()
        except (EOFError, OSError):
            return  # the work is done without it
        self._release(helper)

    def _release(self, engine: _Helper | None) -> None:
        with self._guard:
            if self._closed and engine is not None:
                _put_back(engine)
            else:
                self._free.put(engine)

    def decode(self, job: Job, data: Callable[[], Buffer]) -> dict[str, NDArray[Any]]:
        """Decode a job on whichever processor is free.

        Parameters
        ----------
        job
            What to decode.
        data
            Function giving the bytes of its file.
        """
        engine = self._free.get()
        back = engine
        try:
            if engine is not None:
                try:
                    return engine.decode(job)
                except (EOFError, ConnectionError):
                    back = None  # it is gone; this thread's turn
                    engine.leave()
            return decode_here(job, data())
        finally:
            if engine is None or back is not None:
                self._release(back)

    def close(self) -> None:
        """Keep the helpers for the next call. Threads that still wait finish on this process's processor."""
        with self._guard:
            self._closed = True
            engines = []
            with contextlib.suppress(queue.Empty):
                while True:
                    engines.append(self._free.get_nowait())
        for engine in engines:
            self._release(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
