"""Every error that wustore raises, in one tree.

::

    WuStoreError                 path, where; message = what, where, expected, found, hint
     |- FormatError              (ValueError) the data does not follow the format
     |   |- VersionError         written by a newer wustore than this one can read
     |   |- IncompleteError      a conversion that has not finished
     |   |- OtherFormatError     the content is of another format than the one asked for
     |   `- CorruptError         damaged: truncated, a failed checksum, a missing chunk
     |- BackendError
     |   |- UnknownFormatError   (LookupError) no backend knows this path
     |   `- MissingDependencyError (ImportError) an optional package is needed
     |- StoreExistsError         (FileExistsError, ValueError) the latter is what KBMOD raises
     |- StoreNotFoundError       (FileNotFoundError, ValueError) here too
     |- StoreReplacedError       (OSError) another state of the store than the one that was opened
     |- UsageError               (ValueError) an argument that cannot be meant
     `- FidelityError            (ValueError) an export that cannot be exact

Every leaf is also the builtin that a caller would catch. Damaged input raises only these,
`OSError` and `MemoryError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

__all__ = [
    "BackendError",
    "CorruptError",
    "FidelityError",
    "FormatError",
    "IncompleteError",
    "MissingDependencyError",
    "OtherFormatError",
    "StoreExistsError",
    "StoreNotFoundError",
    "StoreReplacedError",
    "UnknownFormatError",
    "UsageError",
    "VersionError",
    "WuStoreError",
]


class WuStoreError(Exception):
    """Root of all errors of wustore.

    Parameters
    ----------
    what
        What went wrong, as a sentence without a full stop.
    path
        The file, directory or URL concerned.
    where
        The place inside it: an HDU, array, chunk, header card, row.
    expected, found
        What should have been there, and what was.
    hint
        What the reader of the message can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        path: str | PathLike[str] | None = None,
        where: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.path = None if path is None else fspath(path)
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        text = self.what
        place = ", ".join(part for part in (self.path, self.where) if part)
        if place:
            text += f" [{place}]"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.found is not None:
            text += f"; found {self.found}"
        if self.hint:
            text += f". {self.hint}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError and ImportError subclasses would otherwise be rebuilt from `args` alone, and an error
        # raised in a worker process would lose its place.
        return _rebuild, (type(self), self.what, self.path, self.where, self.expected, self.found, self.hint)


def _rebuild(
    kind: type[WuStoreError],
    what: str,
    path: str | None,
    where: str | None,
    expected: object,
    found: object,
    hint: str | None,
) -> WuStoreError:
    return kind(what, path=path, where=where, expected=expected, found=found, hint=hint)


@contextmanager
def located(path: str | PathLike[str] | None = None, where: str | None = None) -> Iterator[None]:
    """Give an error of wustore that is raised inside the place that it does not say itself.

    So functions that know bytes or documents, but not where they come from, need no parameters for messages.

    Parameters
    ----------
    path, where
        As in `WuStoreError`.
    """
    try:
        yield
    except WuStoreError as error:
        if error.path is None and path is not None:
            error.path = fspath(path)
        error.where = error.where or where
        raise


class FormatError(WuStoreError, ValueError):
    """The data does not follow the format it claims to have."""


class VersionError(FormatError):
    """The store was written by a newer version than this one can read."""


class IncompleteError(FormatError):
    """The store is a conversion that has not finished."""


class OtherFormatError(FormatError):
    """The content is of another format than the one it was opened as."""


class CorruptError(FormatError):
    """The data is damaged: truncated, changed, or with a part missing."""


class BackendError(WuStoreError):
    """No backend, or not this one, can do what was asked."""


class UnknownFormatError(BackendError, LookupError):
    """No backend recognises the path, or several do."""


class MissingDependencyError(BackendError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class StoreExistsError(WuStoreError, FileExistsError, ValueError):
    """The target exists and overwriting was not asked for."""


class StoreNotFoundError(WuStoreError, FileNotFoundError, ValueError):
    """There is nothing at the path."""


class StoreReplacedError(WuStoreError, OSError):
    """The store was replaced or changed after it was opened, or after a reader of it was pickled.

    It is not damaged: open it again.
    """


class UsageError(WuStoreError, ValueError):
    """An argument has a value that cannot be meant."""


class FidelityError(WuStoreError, ValueError):
    """An export would not be exact; names the HDU and the first difference."""
