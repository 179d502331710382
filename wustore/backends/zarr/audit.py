"""What a store holds twice: once for quick opening, once for every other reader of Zarr. The two must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from wustore.backends.zarr.zip import audit_zip
from wustore.errors import CorruptError, WuStoreError
from wustore.format.tagged_json import parse
from wustore.model.compare import same_bits
from wustore.storage.zarr_store import Keys
from wustore.storage.zip import ZipKeys

__all__ = ["audit"]


def audit(
    keys: Keys, nodes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], small: Callable[[str], NDArray[Any]]
) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong) of the metadata documents and small arrays that opening does not read.

    Parameters
    ----------
    keys
        The store.
    nodes
        Its consolidated metadata, by path; empty where it has none.
    arrays
        The small arrays as the store was opened with them.
    small
        Function that reads a small array from its own chunk.
    """
    if isinstance(keys, ZipKeys):
        yield from audit_zip(keys)
    for name, node in nodes.items():
        where = f"{name}/zarr.json"
        text = keys.get(where)
        if text is None:
            yield where, "the metadata document is missing"
            continue
        try:
            document = parse(text, what="the metadata document")
        except CorruptError as error:
            yield where, str(error)
            continue
        if document != node:
            yield where, "the metadata document differs from the consolidated metadata of the root"
    for name, data in arrays.items():
        try:
            found = small(name)
        except (WuStoreError, OSError) as error:
            yield f"array {name}", str(error)
            continue
        if not same_bits(found, data):
            yield f"array {name}", "its values are not those the store is opened with"
