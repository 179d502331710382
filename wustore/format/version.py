"""Versions of the format: which one is written, which ones are read, and what a newer one may have added.

A version is ``MAJOR.MINOR``. A reader reads every minor version of its major version; what a later minor version adds
is carried through copies, or the copy is refused. Rules: docs/spec.md, section 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wustore.errors import CorruptError, FormatError, VersionError

__all__ = ["FORMAT", "OLDER", "VERSION", "check_version", "is_newer", "schema_version"]

FORMAT = "wustore"
VERSION = "1.0"
"""Version of the format written."""
OLDER = ("0.1.0",)
"""Versions before 1.0 that are read."""

_PATTERN = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8}))?", re.ASCII)
_MAJOR, _MINOR = map(int, VERSION.split("."))


def check_version(document: Any) -> None:
    """Refuse a document that is not ours or whose version this code does not read.

    Raises
    ------
    FormatError, VersionError, CorruptError
    """
    if not isinstance(document, dict):
        raise CorruptError("the root document is not an object", found=type(document).__name__)
    if document.get("format") != FORMAT:
        raise FormatError("not a wustore store", where="root document", expected=FORMAT, found=document.get("format"))
    version = document.get("version")
    match = _PATTERN.fullmatch(version) if isinstance(version, str) else None
    if match is None or (match[3] and version not in OLDER):
        raise CorruptError("the root document names no version of the format", where="version", found=version)
    if version in OLDER or int(match[1]) == _MAJOR:
        return
    newer = int(match[1]) > _MAJOR
    raise VersionError(
        f"the store has {'a newer' if newer else 'another'} version of the format than this wustore reads",
        expected=f"version {VERSION} (any {_MAJOR}.x), or {', '.join(OLDER)}",
        found=f"version {version}",
        hint="Update wustore to read it." if newer else None,
    )


def is_newer(document: Mapping[str, Any] | None) -> bool:
    """Return whether a document that is read has a later minor version than this code writes."""
    version = (document or {}).get("version", VERSION)
    return version not in OLDER and int(version.partition(".")[2]) > _MINOR


def schema_version(document: Any) -> str:
    """Return which version's schemas a document is held against: later minor versions follow those of 1.0."""
    version = document.get("version") if isinstance(document, dict) else None
    return version if version in OLDER else VERSION
