"""Zarr stores whose chunks are not bound to their places, as they were written before the format had that."""

from __future__ import annotations

import json
from pathlib import Path

from wustore.backends.zarr.metadata import PACKED_CHECKSUM, document_checksum

__all__ = ["unbind"]


def unbind(store: str | Path) -> None:
    """Take the key away that binds the shards of a store; who changes pixels with another program has to."""
    path = Path(store, "zarr.json")
    root = json.loads(path.read_text())
    document = root["attributes"]["wustore"]
    del document[PACKED_CHECKSUM]
    document["crc32c"] = document_checksum(document)
    path.write_text(json.dumps(root))
