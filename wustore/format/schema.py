"""The packaged JSON Schemas: the truth about the root document and about the arrays beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from wustore.errors import FormatError, MissingDependencyError

__all__ = ["load", "validate", "violations"]

Name = Literal["document", "layout"]


@cache
def load(name: Name) -> dict[str, Any]:
    """Return a schema (JSON Schema 2020-12).

    Parameters
    ----------
    name
        ``document``: the root document; ``layout``: a listing of the arrays (docs/spec.md, "Listing").
    """
    here = Path(__file__).parents[1]
    # A wheel carries them inside the package; a checkout has them at its top.
    folder = next(place for place in (here / "schemas", here.parent / "schemas") if place.is_dir())
    schema: dict[str, Any] = json.loads((folder / f"{name}.schema.json").read_text("utf-8"))
    return schema


def violations(document: Mapping[str, Any], name: Name = "document") -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong there) for each rule of a schema that a document breaks.

    Raises
    ------
    MissingDependencyError
        Without jsonschema (extra ``validate``).
    """
    try:
        import jsonschema
    except ImportError as error:
        raise MissingDependencyError(
            "jsonschema is not installed", hint="pip install 'wustore[validate]' brings it."
        ) from error
    validator = jsonschema.Draft202012Validator(load(name))
    for broken in validator.iter_errors(document):
        found = broken.message if len(broken.message) <= 200 else broken.message[:197] + "..."
        yield broken.json_path, found


def validate(document: Mapping[str, Any], name: Name = "document") -> None:
    """Refuse a document that does not follow its schema.

    Raises
    ------
    FormatError
        Names the first place and what is wrong there.
    MissingDependencyError
        Without jsonschema (extra ``validate``).
    """
    for where, what in violations(document, name):
        raise FormatError(f"the {name} does not follow its schema", where=where, found=what)
