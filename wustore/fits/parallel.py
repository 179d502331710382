"""Rice tiles coded on several processors.

Each tile is a call of 10 to 20 microseconds: two threads that make such calls spend half their time handing the
interpreter lock to each other. So where several threads code tiles they ask helpers, processes that do nothing else,
and wait without the lock. All other work (quantising, masks, other codecs, files) is done in long calls without the
lock, for which threads will do.

Helpers are plain subprocesses, not `multiprocessing` ones, which would run the user's script again. They are started
when threads have waited for each other for a while, not for a process of one thread or for small files; until they
are ready one thread at a time codes here. They leave when they have had nothing to do for a while, or when this
process ends. What a helper cannot do (it was killed, the tiles are damaged) is done here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wustore.fits import rice
from wustore.fits.rice_helper import DONE, Arena, Request, exactly
from wustore.workers import default_workers

__all__ = ["available", "decode_rows", "encode_rows"]

_WORTHWHILE = 1 << 23
"""Pixels that had to wait before a helper is started: 0.1 s of one processor, about half of what starting one takes."""

_FEWEST = 1 << 17
"""Pixels that are worth a message: 1 ms of work, where message and copies take 0.1."""

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from wustore.fits import rice_helper; "
_START += "rice_helper.serve(int(sys.argv[1]))"


def available() -> bool:
    """Return whether this system can start helpers."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


class _Helper:
    """A process that codes tiles, and the memory it shares with this one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # where it fails to start the work is done without it
                pass_fds=[theirs.fileno()],
            )
        self.ready = False
        self._channel = ours
        self._memory: mmap.mmap | None = None

    def wait(self) -> None:
        """Return when it is ready; raise EOFError or OSError where it could not start."""
        exactly(self._channel, len(DONE))

    def arena(self, request: Request) -> tuple[Arena, list[int]]:
        """Return the shared memory for a request, and the descriptor to send where it is new."""
        end = request.places()[2]
        files: list[int] = []
        if self._memory is None or len(self._memory) < end:
            descriptor = os.memfd_create("wustore", os.MFD_CLOEXEC)
            try:
                os.ftruncate(descriptor, end)
                self._memory = mmap.mmap(descriptor, end)
            except BaseException:
                os.close(descriptor)
                raise
            files.append(descriptor)
        return Arena(self._memory, request), files

    def ask(self, request: Request, files: list[int]) -> bool:
        """Let it do what the arena holds; return whether it did.

        Raises
        ------
        EOFError, OSError
            Where the helper is gone.
        """
        try:
            if files:
                socket.send_fds(self._channel, [request.pack()], files)
            else:
                self._channel.sendall(request.pack())
        finally:
            for descriptor in files:
                os.close(descriptor)
        return exactly(self._channel, len(DONE)) == DONE

    def alive(self) -> bool:
        """Return whether it still runs."""
        return self.process.poll() is None

    def disown(self) -> None:
        """Take it for ended: it belongs to another process."""
        self.process.returncode = 0
        self._channel.close()

    def leave(self) -> None:
        """End it: it holds nothing that could be lost."""
        self.process.kill()
        self.process.wait()
        self._channel.close()
        self._memory = None


class _Processors:
    """What may code tiles: helpers, and where there are none, or only one thread, this process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy_here = False
        self._waited = 0
        self._starting = 0
        self._last = 0
        self.idle: list[_Helper] = []
        self.helpers: list[_Helper] = []

    def take(self, n_pixels: int) -> _Helper | None:
        """Wait for a processor: a helper, or None for this process, which is then the caller's until `give_back`.

        A thread that was also the last one is taken for the only one, and gets no helper.
        """
        asked = False
        thread = threading.get_ident()
        with self._changed:
            alone = thread == self._last
            self._last = thread
            while True:
                helper = None if alone and not self._busy_here else self._idle_one()
                if helper is not None:
                    return helper
                if not self._busy_here and (alone or not any(helper.ready for helper in self.helpers)):
                    self._busy_here = True
                    return None
                alone = False
                if not asked:
                    self._ask_for_helper(n_pixels)
                    asked = True
                self._changed.wait()

    def _idle_one(self) -> _Helper | None:
        while self.idle:
            helper = self.idle.pop()
            if helper.alive():
                return helper
            self._remove(helper)
        return None

    def give_back(self, helper: _Helper | None, *, gone: bool = False) -> None:
        """Let others have a processor."""
        with self._changed:
            if helper is None:
                self._busy_here = False
            elif gone or helper not in self.helpers:
                self._remove(helper)
            else:
                self.idle.append(helper)
            self._changed.notify()

    def _remove(self, helper: _Helper) -> None:
        if helper in self.helpers:
            self.helpers.remove(helper)
        helper.leave()

    def _ask_for_helper(self, n_pixels: int) -> None:
        self._waited += n_pixels
        n_helpers = max(len(self.helpers), self._starting)
        if self._waited >= _WORTHWHILE and n_helpers < default_workers():
            self._waited = 0
            self._starting += 1
            # Nobody waits for it: until it has started this process does the work.
            threading.Thread(target=self._start, name="wustore-helper", daemon=True).start()

    def _start(self) -> None:
        try:
            helper = _Helper()
        except OSError:
            return  # it stays counted as starting: it would not start the next time either
        with self._changed:
            self.helpers.append(helper)
        try:
            helper.wait()
            fails = False
        except (EOFError, OSError):
            fails = True
        with self._changed:
            if not fails or helper not in self.helpers:  # `leave_all` may have ended it
                self._starting -= 1
            helper.ready = not fails
        self.give_back(helper, gone=fails)

    def leave_all(self) -> None:
        """End all helpers."""
        with self._changed:
            helpers = self.helpers[:]
            self.helpers.clear()
            self.idle.clear()
        for helper in helpers:
            helper.leave()

    @contextlib.contextmanager
    def one(self, n_pixels: int) -> Iterator[_Helper | None]:
        """Have a processor for the length of a block; a helper on which the block fails is not used again."""
        helper = self.take(n_pixels)
        try:
            yield helper
        except BaseException:
            self.give_back(helper, gone=True)
            raise
        self.give_back(helper)


_processors = _Processors()


def _forget() -> None:
    """Give up the helpers in a forked child: they belong to its parent."""
    global _processors  # noqa: PLW0603 - another thread of the parent may have held its lock
    for helper in _processors.helpers:
        helper.disown()
    _processors = _Processors()


@atexit.register
def _leave_all() -> None:
    _processors.leave_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _alone(n_pixels: int) -> bool:
    return n_pixels < _FEWEST or not available() or default_workers() < 2


def encode_rows(rows: NDArray[np.integer], block_size: int) -> list[bytes]:
    """Do `rice.encode_rows` on whichever processor is free."""
    if _alone(rows.size):
        return rice.encode_rows(rows, block_size)
    try:
        with _processors.one(rows.size) as helper:
            if helper is None:
                return rice.encode_rows(rows, block_size)
            n_rows, n_pixels = rows.shape
            n_bytes = n_rows * rice.room_for(n_pixels, rows.dtype.itemsize, block_size)
            request = Request(True, rows.dtype.str.encode(), n_rows, n_pixels, block_size, n_bytes)
            arena, files = helper.arena(request)
            arena.pixels[...] = rows
            if helper.ask(request, files):
                first, last = arena.spans.tolist()
                tiles = arena.tiles[: last[-1]].tobytes()
                return [tiles[start:end] for start, end in zip(first, last, strict=True)]
    except (EOFError, OSError):
        pass  # it is gone
    return rice.encode_rows(rows, block_size)


def decode_rows(
    heap: NDArray[np.uint8],
    starts: Sequence[int],
    ends: Sequence[int],
    rows: Sequence[NDArray[np.integer]] | NDArray[np.integer],
    block_size: int,
    names: Sequence[int],
) -> None:
    """Do `rice.decode_rows` on whichever processor is free.

    Raises
    ------
    CorruptError
        A tile ends before its last pixel.
    """
    low, high = min(starts, default=0), max(ends, default=0)
    if not isinstance(rows, np.ndarray) or _alone(rows.size) or high - low > 2 * rows.nbytes:
        rice.decode_rows(heap, starts, ends, rows, block_size, names)
        return
    try:
        with _processors.one(rows.size) as helper:
            if helper is None:
                rice.decode_rows(heap, starts, ends, rows, block_size, names)
                return
            n_rows, n_pixels = rows.shape
            request = Request(False, rows.dtype.str.encode(), n_rows, n_pixels, block_size, high - low)
            arena, files = helper.arena(request)
            arena.tiles[...] = heap[low:high]
            np.subtract((starts, ends), low, out=arena.spans)
            if helper.ask(request, files):
                rows[...] = arena.pixels
                return
    except (EOFError, OSError):
        pass  # it is gone
    rice.decode_rows(heap, starts, ends, rows, block_size, names)
