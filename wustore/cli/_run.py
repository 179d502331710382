"""How a command ends: exit codes, messages instead of tracebacks, signals.

====  =======================================================================================
code  meaning
====  =======================================================================================
0     done
1     the stores differ, a document is invalid, or an export could not be exact
2     usage: an argument is wrong, the source is not there, the target is, a package is missing
3     damaged or unreadable data, or the system refused (disk full, no permission)
4     an unfinished conversion
130   interrupted (SIGINT); 143 terminated (SIGTERM); 141 the reader of our output went away
====  =======================================================================================
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

import click

from wustore.cli._output import SETTINGS, say
from wustore.errors import (
    BackendError,
    FidelityError,
    IncompleteError,
    StoreExistsError,
    StoreNotFoundError,
    UsageError,
    WuStoreError,
)

__all__ = ["DAMAGED", "DIFFERS", "INCOMPLETE", "OK", "USAGE", "error_text", "exit_code", "guarded"]

OK, DIFFERS, USAGE, DAMAGED, INCOMPLETE = range(5)

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
_NO_READER = 128 + 13  # SIGPIPE, which Windows does not have

_CODES: tuple[tuple[type[WuStoreError], int], ...] = (
    (IncompleteError, INCOMPLETE),
    (FidelityError, DIFFERS),
    (BackendError, USAGE),
    (StoreExistsError, USAGE),
    (StoreNotFoundError, USAGE),
    (UsageError, USAGE),
)


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error ends the process with."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), DAMAGED)


def guarded(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code; our errors and those of the system become one line each."""
    _open_closed_streams()
    SETTINGS.reset()
    # Asked for here, because an error in a command's arguments comes before the option is read.
    words = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in words
    with _signals(), _plain_warnings():
        try:
            # Not command.main(): it would end with 1, which means something here, when our output is cut off.
            with command.make_context("wustore", words) as context:
                result = command.invoke(context)
            sys.stdout.flush()
        except click.exceptions.Exit as finished:
            return finished.exit_code
        except click.ClickException as error:
            error.show()
            return USAGE
        except (KeyboardInterrupt, click.Abort):
            say("wustore: interrupted")
            return _INTERRUPTED
        except BrokenPipeError:
            _give_up_output()
            return _NO_READER
        except (WuStoreError, OSError, MemoryError) as error:
            if debug:
                traceback.print_exc()
            say(f"wustore: error: {error_text(error)}")
            _give_up_output()
            return exit_code(error)
    return result if isinstance(result, int) else OK


_HINTS = {
    errno.ENOSPC: "Free some space, or write to another place.",
    errno.EDQUOT: "Free some space, or write to another place.",
    errno.EACCES: "Check the permissions of the path and of its directory.",
    errno.EPERM: "Check the permissions of the path and of its directory.",
    errno.EROFS: "Write to another place.",
    errno.ENOENT: "Check the name, and whether its directory exists.",
    errno.ENOTDIR: "There is a file in the place of a directory: check the path.",
    errno.EISDIR: "There is a directory in the place of a file: check the path.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), or use fewer --workers.",
}
"""What to do about an error of the system."""


def error_text(error: BaseException) -> str:
    """Return the one line that says what went wrong, where, and what to do about it."""
    if isinstance(error, MemoryError):
        what = f"out of memory ({error})" if str(error) else "out of memory"
        return f"{what}. Use fewer --workers, or --max-memory."
    if isinstance(error, WuStoreError) or not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    what = f"{error.strerror} [{error.filename}]" if error.filename else error.strerror
    hint = _HINTS.get(error.errno or 0)
    return f"{what}. {hint}" if hint else what


def _open_closed_streams() -> None:
    """Give standard streams that are closed (``>&-``) somewhere to go.

    Otherwise the next file that is opened would get the number of the stream, and with it what is written there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    # Names of files and stored texts may hold what is no character, or none that the terminal knows.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_output() -> None:
    """Send what standard output still holds nowhere, if it cannot be written: Python would try again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGTERM into an exception like SIGINT, so that writers clean up; ignore both while they do."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGTERM:
            raise SystemExit(_TERMINATED)
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us keeps the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as one line, without the source line they came from."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del category, filename, lineno, file, line
        say(f"wustore: warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
