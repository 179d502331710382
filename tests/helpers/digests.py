"""What a store consists of, as hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(path: Path) -> dict[str, str]:
    """Return file name to sha256."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
