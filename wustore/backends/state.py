"""Which state of a store a reader belongs to: one that is replaced meanwhile must not be mixed with the old one.

A state is a text. It is made of the content if the format keeps checksums (the root document, the small arrays,
the checksums of the planes), so that a copy of a store is the same state; elsewhere of sizes and modification times.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError, StoreReplacedError

__all__ = ["content_state", "digest", "one_state", "reopen", "replaced", "state_of_files"]


class Stateful(Protocol):
    """What is needed of a reader."""

    path: str

    def state(self) -> str:
        """Return what identifies the state of the store."""

    def check_state(self) -> None:
        """Check that the store is still in this state."""

    def close(self) -> None:
        """Release files."""


F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Stateful)


def digest(parts: Iterable[object]) -> str:
    """Return a short digest of bytes, and of other things by their text."""
    found = hashlib.sha256()
    for part in parts:
        data = bytes(part) if isinstance(part, bytes | memoryview) else repr(part).encode()
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()[:32]


def content_state(
    document: Mapping[str, Any], arrays: Iterable[NDArray[Any]], checksums: NDArray[np.uint32] | None
) -> str:
    """Return the state of a store of a format that keeps checksums."""
    parts: list[object] = [json.dumps(document, sort_keys=True)]
    for array in arrays:
        parts += [array.shape, array.tolist() if array.dtype.hasobject else array.tobytes()]
    return digest([*parts, None if checksums is None else checksums.tobytes()])


def state_of_files(places: Iterable[str]) -> str:
    """Return a digest of names, sizes and modification times of files; of anything else the name alone counts."""
    return digest(map(_facts, places))


def _facts(place: str) -> tuple[Any, ...]:
    path = Path(place)
    try:
        found = path.stat()
    except (OSError, ValueError):
        return (path.name,)
    return path.name, found.st_size, found.st_mtime_ns


def replaced(path: str, found: object = None) -> StoreReplacedError:
    """Return the error of a reader whose store is another one now."""
    return StoreReplacedError(
        "the store was replaced or changed since it was opened", path=path, found=found, hint="Open it again."
    )


def reopen(open_: Callable[..., R], arguments: tuple[Any, ...], state: str) -> R:
    """Open a store for a reader that was pickled.

    Parameters
    ----------
    open_, arguments
        What opens the store.
    state
        `Reader.state` when it was pickled.

    Raises
    ------
    StoreReplacedError
        If it is another state now.
    StoreNotFoundError, FormatError, CorruptError, OSError
    """
    reader = open_(*arguments)
    try:
        if reader.state() != state:
            raise replaced(reader.path)
    except BaseException:
        reader.close()
        raise
    return reader


def one_state(method: F) -> F:
    """Make a method of a reader say that the store was replaced, if that is why its bytes look damaged."""

    @functools.wraps(method)
    def checked(self: Stateful, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except CorruptError as error:
            try:
                self.check_state()
            except StoreReplacedError as cause:
                raise cause from error
            raise

    return cast(F, checked)
