"""A store as one zip file, its members stored as they are so that ranges of them can be read."""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ["pack_directory"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that zip knows: the bytes must not depend on the clock."""


def pack_directory(path: Path, to: Path, *, without: str) -> None:
    """Write a zip file of the files below a directory, sorted by name.

    Parameters
    ----------
    path
        The directory.
    to
        The file.
    without
        Start of the names to leave out.
    """
    names = ((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, file in sorted(names, key=lambda pair: pair[1]):
            if name.startswith(without):
                continue
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # Unix, whatever this is written on
            info.external_attr = 0o644 << 16
            archive.writestr(info, file.read_bytes())
