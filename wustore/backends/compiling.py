"""Loops that numba compiles: how they are compiled, and whether a process has enough work to import them.

Importing numba takes 0.3 s, and compiling some seconds, once for each installation. So small work is done without it,
and all work is if numba is not installed. Every loop has a slower equivalent that gives the same bytes.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["Loops", "addresses_of", "compiled", "inlined"]

F = TypeVar("F", bound=Callable[..., Any])

_IF_IMPORTED = 32
"""Importing a module of loops takes 20 ms if another one has imported numba."""


class Loops:
    """A module of compiled loops, imported when a process has enough work for it.

    Parameters
    ----------
    module
        Name of the module; it imports numba.
    worthwhile
        Amount of work, in any unit, from which on the module is imported; a small part of it if numba is there already.

    Attributes
    ----------
    is_missing
        Whether it cannot be imported.
    """

    def __init__(self, module: str, worthwhile: int) -> None:
        self.module: ModuleType | None = None
        self.is_missing = False
        self.done = 0
        self._name = module
        self._worthwhile = worthwhile
        self._lock = threading.Lock()

    def get(self, amount: int = 0, ahead: int = 0) -> ModuleType | None:
        """Return the module, or None if so much more work is better done without it.

        Parameters
        ----------
        amount
            What the caller is to do, with the loops or without. 0 if another function does the work when the loops
            are not there: that one counts it.
        ahead
            What is to be done soon by calls that count it themselves.
        """
        if self.module is not None or self.is_missing:
            return self.module
        self.done += amount  # threads may lose a little of it, which is no harm
        needed = self._worthwhile // _IF_IMPORTED if "numba" in sys.modules else self._worthwhile
        if self.done + ahead >= needed:
            with self._lock:
                if self.module is None and not self.is_missing:
                    self.module = self._import()
                    self.is_missing = self.module is None
        return self.module

    def _import(self) -> ModuleType | None:
        try:
            import numba

            if getattr(numba.config, "DISABLE_JIT", False):  # as Python the loops would take minutes
                return None
            return importlib.import_module(self._name)
        except (ImportError, OSError):  # llvmlite raises OSError if its library cannot be loaded
            return None


@functools.cache
def addresses_of(*wanted: tuple[str | None, str]) -> NDArray[np.intp] | None:
    """Return the addresses of functions of C, for loops that call them; None if one of them is not found.

    A call from Python for each chunk hands the interpreter lock over twice, which takes longer than decoding if 16
    threads want it; compiled loops call these functions for many chunks without the lock.

    Parameters
    ----------
    wanted
        Of each function the extension module that calls it, None for the C library, and its name. The libraries are
        loaded already: a search goes on in what a module is linked to. It fails if that is linked in another way, and
        on Windows.
    """
    try:
        names = {module for module, _ in wanted}
        files = {name: None if name is None else importlib.import_module(name).__file__ for name in names}
        libraries = {name: ctypes.CDLL(file) for name, file in files.items()}
        found = [getattr(libraries[module], name) for module, name in wanted]
        return np.array([ctypes.cast(function, ctypes.c_void_p).value for function in found], np.intp)
    except (ImportError, AttributeError, OSError, TypeError):
        return None


def compiled(*, entry: bool = False) -> Callable[[F], F]:
    """Return a decorator that compiles a function which then runs without the interpreter lock.

    Parameters
    ----------
    entry
        Whether Python calls the function; its machine code is kept for later processes.
    """
    import numba

    def decorate(function: F) -> F:
        try:
            made = numba.njit(nogil=True, cache=entry, error_model="numpy")(function)
        except RuntimeError:  # there is no directory to keep it in: each process compiles for itself
            return cast("F", numba.njit(nogil=True, error_model="numpy")(function))
        return _despite_full_disks(made) if entry else cast("F", made)

    return decorate


def _despite_full_disks(made: F) -> F:
    """Return a function that calls ``made``, whether or not its machine code can be kept."""

    @functools.wraps(made)
    def call(*arguments: Any) -> Any:
        try:
            return made(*arguments)
        except OSError:  # numba keeps what it has compiled only after it took it into use: now it only runs
            return made(*arguments)

    return cast("F", call)


def inlined(function: F) -> F:
    """Compile a function into the loops that call it."""
    import numba

    return cast("F", numba.njit(nogil=True, inline="always", error_model="numpy")(function))
