"""Loops that numba compiles: how they are compiled, and whether a process has enough work to import them.

Importing numba takes 0.3 s, and compiling some seconds, once for each installation. So small work is done without it,
and all work is if numba is not installed. Every loop has a slower equivalent that gives the same bytes.

Machine code is kept in files for later processes, as numba's cache does, but each in a file whose name says what it is
the code of. numba numbers them: two processes that compile a function for different types at the same time may choose
the same number, and later processes then run the code of one type on values of the other, without an error if these
have the same size. It knows a change of a module by the time of its file, and no change of what that imports; and an
index that a power failure cut off ends every later process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import hashlib
import importlib
import pickle
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
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
        if entry:
            _keep_in_own_files(made, function.__module__)
        return _despite_full_disks(made) if entry else cast("F", made)

    return decorate


def _keep_in_own_files(made: Any, module: str) -> None:
    """Let a compiled function keep its machine code in `_CodeFiles`; a numba that has no such place keeps its way."""
    with contextlib.suppress(AttributeError):
        cache = made._cache
        replaced = cache._cache_file  # of numba's class IndexDataCacheFile: its methods load, save and flush are called
        origin = (replaced._version, _sources(module) or replaced._source_stamp)
        cache._cache_file = _CodeFiles(Path(cache.cache_path), cache._impl.filename_base, origin)


class _CodeFiles:
    """The machine code of a function, a file for each list of types.

    The name is a digest of the types, the processor, and the sources that the code was made of. What a file holds is
    checked before it is used, and compiled again if it is not whole.

    Parameters
    ----------
    folder, base
        Where, and how the names begin.
    origin
        What else the code depends on: the version of numba, and the sources.
    """

    def __init__(self, folder: Path, base: str, origin: object) -> None:
        self._folder = folder
        self._base = base
        self._origin = origin

    def _path(self, key: object) -> Path:
        name = _digest(repr((key, self._origin)).encode())[:16].hex()
        return self._folder / f"{self._base}.{name}.nbc"

    def load(self, key: object) -> Any:
        """Return what was saved for these types, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        check, code = content[:_CHECK], content[_CHECK:]
        return pickle.loads(code) if check == _digest(path.name.encode(), code) else None

    def save(self, key: object, data: object) -> None:
        """Keep what was compiled for these types; a reader sees all of it or nothing."""
        from numba.core.serialize import dumps

        path, code = self._path(key), dumps(data)
        beside = path.with_name(f"{path.name}~{uuid.uuid4().hex[:8]}")
        try:
            beside.write_bytes(_digest(path.name.encode(), code) + code)
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise

    def flush(self) -> None:
        """Forget all that was saved of the function."""
        for path in self._folder.glob(f"{glob.escape(self._base)}.*.nbc"):
            path.unlink(missing_ok=True)


def _digest(*parts: bytes) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


_CHECK = 32
"""Bytes of a digest."""
_IMPORT = re.compile(r"^from (wustore[.\w]*) import (\([^)]*\)|.+)$", re.MULTILINE)


@functools.cache
def _sources(module: str) -> str:
    """Return a digest of the sources that machine code of a module is made of; empty if only byte code is installed."""
    texts = sorted(_sources_of(module, set()))
    return _digest(*(text.encode() for _, text in texts)).hex() if texts else ""


def _sources_of(module: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the source of a module, of modules of loops below it, and of those from which they take constants."""
    seen.add(module)
    spec = getattr(sys.modules.get(module), "__spec__", None)
    text = getattr(spec.loader, "get_source", lambda name: None)(module) if spec is not None else None
    if text is None:
        return
    yield module, text
    if not module.endswith("_numba"):
        return
    for package, names in _IMPORT.findall(text):
        for name in (package, *(f"{package}.{one}" for one in re.findall(r"\w+", names))):
            if name in sys.modules and name not in seen:
                yield from _sources_of(name, seen)


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
