"""What a store holds twice: once for quick opening, once for every other reader of Zarr. The two must agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from wustore.backends.zarr.metadata import CONSOLIDATED
from wustore.errors import CorruptError, WuStoreError
from wustore.format.arrays import ESCAPED
from wustore.format.content import foreign_content, own_content
from wustore.format.document import CONVENTIONS, NAMES
from wustore.format.tagged_json import parse
from wustore.model.compare import same_bits
from wustore.model.meta import Meta
from wustore.storage.locks import CLAIM
from wustore.storage.zarr_store import DirectoryKeys, Keys
from wustore.storage.zip import ZipKeys, audit_zip

__all__ = ["audit", "foreign", "is_remainder", "outdated"]

_ROOT_ATTRIBUTES = {"Conventions", "zarr_conventions", "wustore"}
_ROOT_MEMBERS = {"zarr_format", "node_type", "attributes", "consolidated_metadata"}
_OF_A_GENERATION = {"shape", "chunk_grid", "chunk_key_encoding"}
"""Members of an array's metadata that an append changes."""
_OUTDATED = (
    "the metadata document is of the state before the last append, which was interrupted. Readers that use the root's"
    " consolidated metadata are not concerned; "
)
_BY_CLEAN, _BY_EDIT = "'wustore clean' of the store writes it", "the next append, or writing the store again, writes it"
_CHUNK = re.compile(r"c(?:[./]\d+)*")
"""The key of a chunk below its array."""
_OF_THE_SYSTEM = (".nfs", ".DS_Store", ".wustore-")
"""Beginnings of names that file systems, and locks, put into a directory."""


def audit(
    keys: Keys, nodes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], small: Callable[[str], NDArray[Any]]
) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong) of the metadata documents and small arrays that opening does not read.

    Parameters
    ----------
    nodes
        Its consolidated metadata, by path; empty where it has none.
    arrays
        The small arrays as the store was opened with them.
    small
        Function that reads a small array from its own chunk.
    """
    if isinstance(keys, ZipKeys):
        yield from audit_zip(keys)
    yield from _root_problems(_document(keys, "zarr.json"))
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
        if _is_outdated(document, node):
            yield where, _OUTDATED + (_BY_CLEAN if isinstance(keys, DirectoryKeys | ZipKeys) else _BY_EDIT)
        elif document != node:
            yield where, "the metadata document differs from the consolidated metadata of the root"
    for name, data in arrays.items():
        try:
            found = small(name)
        except (WuStoreError, OSError) as error:
            yield f"array {name}", str(error)
            continue
        if not same_bits(found, data):
            yield f"array {name}", "its values are not those the store is opened with"


def outdated(keys: Keys, nodes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of arrays whose own metadata documents an interrupted append has not replaced.

    Parameters
    ----------
    keys, nodes
        As for `audit`.
    """
    return (name for name, node in nodes.items() if _is_outdated(_document(keys, f"{name}/zarr.json"), node))


def _is_outdated(document: Any, node: Any) -> bool:
    """Return whether a document is what an append replaces by ``node``: the same, but for fewer images."""
    if not isinstance(document, dict) or not isinstance(node, dict) or document == node:
        return False
    a, b = document.get("shape"), node.get("shape")
    if not isinstance(a, list) or not isinstance(b, list) or len(a) != len(b):
        return False
    fewer = all(isinstance(n, int) and isinstance(m, int) and n <= m for n, m in zip(a, b, strict=True))
    return fewer and _without(document, _OF_A_GENERATION) == _without(node, _OF_A_GENERATION)


def _without(document: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def _root_problems(root: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with members of the root that neither its checksum nor opening covers."""
    for name in sorted(root.keys() - _ROOT_MEMBERS):
        yield "zarr.json", f"unknown member {name!r}"
    attributes = root.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    if attributes.get("Conventions") != CONVENTIONS:
        yield "zarr.json, attribute Conventions", f"it is {attributes.get('Conventions')!r}, not {CONVENTIONS!r}"
    if not isinstance(attributes.get("zarr_conventions"), list):
        yield "zarr.json, attribute zarr_conventions", "it is no list"
    consolidated = root.get("consolidated_metadata")
    if consolidated is None:
        return
    rest = _without(consolidated, {"metadata"}) if isinstance(consolidated, dict) else consolidated
    if rest != CONSOLIDATED or not isinstance(consolidated.get("metadata"), dict):
        yield "zarr.json, consolidated_metadata", "it is no consolidated metadata, inline, as Zarr has it"


def foreign(keys: Keys, nodes: Mapping[str, Any], meta: Meta) -> Iterator[str]:
    """Yield in words what others added to a store; at a URL, where listing is slow, what its metadata name."""
    own = own_content(meta)
    left = not keys.by_url and keys.size(CLAIM) is not None
    root = _document(keys, "zarr.json")
    yield from (f"root attribute {name}" for name in sorted(set(_attributes(root)) - _ROOT_ATTRIBUTES))
    listed = [] if keys.by_url else sorted(keys.list(""))
    if left:  # a writer that was stopped has not removed all of the store before
        listed = [key for key in listed if not is_remainder(key, nodes)]
    names = {key.removesuffix("/zarr.json") for key in listed if key.endswith("/zarr.json")} | nodes.keys()
    stored = []
    for name in names:
        document = _document(keys, f"{name}/zarr.json")
        stored.append((name, str(document.get("node_type", "array")), _attributes(document)))
    yield from foreign_content(own, stored, {ESCAPED})
    for key in listed:
        name = next((name for name in _parents(key) if name in names), "")
        leaf = key.rpartition("/")[2]
        if leaf.startswith(_OF_THE_SYSTEM) or (leaf.startswith(".") and "~" in leaf) or leaf == "zarr.json":
            continue
        if name in own and _CHUNK.fullmatch(key, len(name) + 1):
            continue
        if not name or name in own:
            yield f"file {key}"


def is_remainder(key: str, nodes: Mapping[str, Any]) -> bool:
    """Return whether a key is of an array that wustore writes, but that this store does not have.

    Parameters
    ----------
    nodes
        Its consolidated metadata.
    """
    if not nodes or key.partition("/")[0] not in NAMES:
        return False
    return not any(name in nodes for name in (key.removesuffix("/zarr.json"), *_parents(key)))


def _parents(key: str) -> Iterator[str]:
    """Yield the names of the groups that a key is below, the innermost first."""
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


def _document(keys: Keys, key: str) -> dict[str, Any]:
    try:
        document = parse(keys.get(key) or b"{}", what="the metadata document")
    except CorruptError:
        return {}
    return document if isinstance(document, dict) else {}


def _attributes(document: Mapping[str, Any]) -> list[str]:
    attributes = document.get("attributes")
    return list(attributes) if isinstance(attributes, dict) else []
