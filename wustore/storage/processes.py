"""Child processes that run no code of the current directory.

Python looks for modules in the current directory first if it is started with ``-c``, and so do the workers that
`multiprocessing` spawns. A script beside the data that has the name of a module would be run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["command", "safe_path"]

_OWN = Path(__file__).resolve().parents[2]
"""Where this package was found."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "import importlib; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])"
)


def _search_path() -> list[str]:
    """Return where this process finds modules, without the current directory."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        here = None
    return [entry for entry in sys.path if entry and (Path(entry).resolve() != here or here == _OWN)]


def command(module: str, function: str, *arguments: str) -> list[str]:
    """Return the command that calls a function with texts in another Python, with the modules of this one."""
    return [
        sys.executable,
        "-I",
        "-W",
        "ignore",
        "-c",
        _START,
        json.dumps(_search_path()),
        module,
        function,
        *arguments,
    ]


@contextmanager
def safe_path() -> Iterator[None]:
    """Let Pythons that are started meanwhile not look into the current directory."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONSAFEPATH", None)
        else:
            os.environ["PYTHONSAFEPATH"] = before
