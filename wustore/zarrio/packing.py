"""A store as one zip file, its members stored as they are so that ranges of them can be read."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

__all__ = ["pack_directory"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that zip knows: the bytes must not depend on the clock."""


def pack_directory(path: Path) -> None:
    """Replace a directory by a zip file of the same name that holds its files, sorted by name.

    The directory needs as much space again while it is packed, and stays until the file is whole.
    """
    beside = path.with_name(f"{path.name}~zip")
    beside.unlink(missing_ok=True)
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
                info = zipfile.ZipInfo(file.relative_to(path).as_posix(), _EPOCH)
                info.create_system = 3  # Unix, whatever this is written on
                info.external_attr = 0o644 << 16
                archive.writestr(info, file.read_bytes())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    shutil.rmtree(path)
    beside.rename(path)
