"""What a store holds twice: once for quick opening, once for every other reader of Zarr. The two must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from wustore.backends.zarr.zip import audit_zip
from wustore.errors import CorruptError, WuStoreError
from wustore.format.document import arrays_of
from wustore.format.tagged_json import parse
from wustore.model.compare import same_bits
from wustore.model.meta import Meta
from wustore.storage.zarr_store import Keys
from wustore.storage.zip import ZipKeys

__all__ = ["audit"]


def audit(
    keys: Keys, nodes: Mapping[str, Any], meta: Meta, small: Callable[[str], NDArray[Any]]
) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong) of the metadata documents and small arrays that opening does not read.

    Parameters
    ----------
    keys
        The store.
    nodes
        Its consolidated metadata, by path; empty where it has none.
    meta
        What the store says of itself when it is opened.
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
    for spec in arrays_of(meta):
        try:
            data = small(spec.name)
        except (WuStoreError, OSError) as error:
            yield f"array {spec.name}", str(error)
            continue
        if not same_bits(data, spec.data):
            yield f"array {spec.name}", "its values are not those the store is opened with"
