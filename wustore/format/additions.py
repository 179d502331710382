"""What a document holds that this code does not know, kept so that a copy holds it too.

A later minor version may add keys to the document, its layers, table, columns and observatory (docs/spec.md,
section 2). They are JSON values that nothing here interprets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wustore.format import schema
from wustore.format.version import is_newer, schema_version

__all__ = ["Additions", "additions_of", "names_of", "restore_additions"]

Additions = Mapping[tuple[str, ...], Any]
"""Place in the document, a column by its name, to the value there."""


def _places(document: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any], Mapping[str, Any]]]:
    """Yield place, object and schema of each object of a valid document that may have keys of later versions."""
    root = schema.load("document", schema_version(document))
    properties = root["properties"]
    yield (), document, root
    for name, layer in document["layers"].items():
        yield ("layers", name), layer, root["$defs"]["layer"]
    yield ("constituents",), document["constituents"], properties["constituents"]
    for column in document["constituents"]["columns"]:
        yield ("constituents", "columns", column["name"]), column, root["$defs"]["column"]
    if document["observatory"] is not None:
        yield ("observatory",), document["observatory"], properties["observatory"]["anyOf"][1]


def additions_of(document: dict[str, Any]) -> Additions:
    """Return what a valid document holds that its schema does not name; of a newer one also its version."""
    found = {
        (*place, key): value
        for place, holder, rules in _places(document)
        for key, value in holder.items()
        if key not in rules["properties"]
    }
    return {("version",): document["version"], **found} if found and is_newer(document) else found


def restore_additions(document: dict[str, Any], additions: Additions) -> None:
    """Put additions back into a document that is about to be written; those of a layer or column that is gone go."""
    if not additions:
        return
    holders = {place: holder for place, holder, _ in _places(document)}
    for (*place, key), value in additions.items():
        if tuple(place) in holders:
            holders[tuple(place)][key] = value


def names_of(additions: Additions) -> list[str]:
    """Return additions in words, for messages."""
    return [f"key {'.'.join(place)} of the document" for place in additions if place != ("version",)]
