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

from wustore.errors import (
    BackendError,
    FidelityError,
    IncompleteError,
    StoreExistsError,
    StoreNotFoundError,
    UsageError,
    WuStoreError,
)

__all__ = ["DAMAGED", "DIFFERS", "INCOMPLETE", "OK", "USAGE", "exit_code", "guarded", "say"]

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


def say(message: str) -> None:
    """Write a line for people to standard error."""
    click.echo(message, err=True)


def guarded(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code; our errors and those of the system become one line each."""
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
            # Python flushes standard output once more at exit; nobody is there to read it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _NO_READER
        except (WuStoreError, OSError, MemoryError) as error:
            if debug:
                traceback.print_exc()
            say(f"wustore: error: {_text(error)}")
            return exit_code(error)
    return result if isinstance(result, int) else OK


def _text(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory ({error})" if str(error) else "out of memory"
    if isinstance(error, WuStoreError) or not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.strerror} [{error.filename}]" if error.filename else error.strerror


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
