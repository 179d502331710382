"""A pseudo-terminal: commands run in it as in a user's window, and what the window then shows."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

_CONTROL = re.compile(
    r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|\x1b[=>]|[\r\n\b\x07]|[^\x1b\r\n\b\x07]+|\x1b"
)


class Screen:
    """What a terminal of a width shows of an output: carriage returns, moves up and erased lines are obeyed."""

    def __init__(self, columns=80):
        self.columns = columns
        self.lines = [[]]
        self.row = self.column = 0

    def feed(self, text):
        for match in _CONTROL.finditer(text):
            part = match[0]
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self._down()
            elif part == "\b":
                self.column = max(self.column - 1, 0)
            elif match[2]:
                self._control(match[1], match[2])
            elif part[0] not in "\x1b\x07":
                for letter in part:
                    self._put(letter)
        return self

    def _down(self):
        self.row += 1
        while len(self.lines) <= self.row:
            self.lines.append([])

    def _put(self, letter):
        if self.column == self.columns:
            self.column = 0
            self._down()
        line = self.lines[self.row]
        line += " " * (self.column + 1 - len(line))
        line[self.column] = letter
        self.column += 1

    def _control(self, number, letter):
        count = int(number) if number.isdigit() else 0
        line = self.lines[self.row]
        if letter == "A":
            self.row = max(self.row - max(count, 1), 0)
        elif letter == "C":
            self.column = min(self.column + max(count, 1), self.columns - 1)
        elif letter == "D":
            self.column = max(self.column - max(count, 1), 0)
        elif letter == "K" and count == 0:
            del line[self.column :]
        elif letter == "K":
            line[:] = []
        elif letter == "J" and count in {2, 3}:
            self.lines, self.row, self.column = [[]], 0, 0

    @property
    def text(self):
        """The lines, without blanks at their ends."""
        return "\n".join("".join(line).rstrip() for line in self.lines).strip("\n")


class Terminal:
    """A process whose standard streams are a terminal; ends with the ``with`` block.

    Its variables of the environment are few, as in a shell of somebody's own, and wustore is a command.
    """

    def __init__(self, words, directory, columns=80, environment=None):
        if os.name != "posix":
            pytest.skip("pseudo-terminals are those of POSIX")
        import fcntl
        import termios

        self.columns = columns
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        variables = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            **(environment or {}),
        }

        self.process = subprocess.Popen(
            words, cwd=directory, stdin=slave, stdout=slave, stderr=slave, env=variables, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.output, self._seen = "", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)

    def _read(self, seconds):
        """Read what is there; false at the end, or if nothing comes in time."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux says so when the other side is closed
            return False
        self.output += data.decode("utf-8", "replace")
        return bool(data)

    def type(self, text):
        """Press keys."""
        os.write(self._master, text.encode())

    def wait(self, pattern, seconds=60):
        """Read until a pattern is in what came since the last call, and return that."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.output[self._seen :])):
            is_over = not self._read(1) and (self.process.poll() is not None or time.monotonic() > end)
            assert not is_over, f"{pattern!r} never came; got {self.output[self._seen :]!r}"
        part = self.output[self._seen : self._seen + found.end()]
        self._seen += found.end()
        return part

    def end(self, seconds=120):
        """Read to the end and return the exit code."""
        until = time.monotonic() + seconds
        while self._read(max(until - time.monotonic(), 0)):
            pass
        return self.process.wait(timeout=60)

    @property
    def screen(self):
        """What the window shows of all that came."""
        return Screen(self.columns).feed(self.output).text


def in_terminal(words, directory, **options):
    """Run a command in a terminal; return its exit code, what the window shows, and what came."""
    with Terminal(words, directory, **options) as terminal:
        code = terminal.end()
        return code, terminal.screen, terminal.output
