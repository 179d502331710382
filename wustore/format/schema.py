"""The JSON Schema of the root document, and a small validator: each document is checked once, when it is read.

The validator knows the keywords of JSON Schema 2020-12 that the schema uses, and no others; the tests hold it against
the package ``jsonschema``. Code behind it relies on the types that the schema promises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

from wustore.errors import CorruptError, FormatError
from wustore.format.tagged_json import DEEPEST
from wustore.format.version import VERSION, schema_version

__all__ = ["Violation", "check", "load", "violation"]

Name = Literal["document", "layout", "index"]


class Violation(NamedTuple):
    """A place in a document (JSON path), and which rule it breaks."""

    where: str
    what: str


_DEEPEST = DEEPEST + 8
"""Levels of a document: a value stands at most five below its root."""

_Rule = Callable[[Any, int], Violation | None]
"""Function of a value and its depth in the document."""


@cache
def load(name: Name, version: str = VERSION) -> dict[str, Any]:
    """Return a schema (JSON Schema 2020-12).

    Parameters
    ----------
    name
        ``document``: the root document; ``layout``: a listing of the arrays (docs/spec.md, "Listing"); ``index``: the
        document of an index of FITS files.
    version
        Of the format.
    """
    here = Path(__file__).parents[1]
    # A wheel carries them inside the package; a checkout has them at its top.
    folder = next(place for place in (here / "schemas", here.parent / "schemas") if place.is_dir())
    schema: dict[str, Any] = json.loads((folder / version / f"{name}.schema.json").read_text("utf-8"))
    return schema


def violation(document: Any, name: Name = "document") -> Violation | None:
    """Return the first rule of its version's schema that a document breaks, None if it follows the schema."""
    found = _rule(name, schema_version(document) if name == "document" else VERSION)(document, 0)
    return None if found is None else Violation(f"${found.where}", found.what)


def check(document: Any, name: Name = "document", *, written: bool = False) -> None:
    """Refuse a document that does not follow its schema.

    Parameters
    ----------
    name
        Of the schema.
    written
        Whether it is about to be written, not read.

    Raises
    ------
    CorruptError
        Names the first place and what is wrong there.
    FormatError
        The same of a document that is about to be written.
    """
    found = violation(document, name)
    if found is None:
        return
    if written:
        raise FormatError("the format does not hold a value", where=found.where, found=found.what)
    what = "the root document" if name == "document" else f"the document of the {name}"
    raise CorruptError(f"{what} does not follow the format", where=found.where, found=found.what)


# --- the validator ------------------------------------------------------------------------------------


def _short(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, dict | list):
        return f"{kind} of {len(value)}"
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else "an integer of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}

_IGNORED = {"$schema", "$id", "$defs", "title", "description", "$comment", "contentEncoding", "then", "else"}


class _Compiler:
    """Turns a schema into functions; what is referred to is compiled once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._rules: dict[str, _Rule] = {}

    def rule(self, schema: Any) -> _Rule:
        if isinstance(schema, bool):
            return _anything if schema else _nothing
        rules: list[_Rule] = []
        for keyword, value in schema.items():
            if keyword not in _IGNORED:
                rules += getattr(self, f"_{keyword.removeprefix('$')}")(value, schema)
        return rules[0] if len(rules) == 1 else _all_of(rules)

    def _ref(self, target: str, _: Any) -> list[_Rule]:
        def rule(value: Any, depth: int) -> Violation | None:
            known = self._rules.get(target)
            if known is None:
                known = self._rules[target] = self.rule(self._root["$defs"][target.removeprefix("#/$defs/")])
            return known(value, depth)

        return [rule]

    def _type(self, names: str | list[str], _: Any) -> list[_Rule]:
        listed = [names] if isinstance(names, str) else names
        allowed = {kind for name in listed for kind in _TYPES[name]}
        inherited = tuple(allowed)

        def rule(value: Any, depth: int) -> Violation | None:
            if type(value) in allowed or (isinstance(value, inherited) and not isinstance(value, bool)):
                return None
            return Violation("", f"{_short(value)} is not {' or '.join(listed)}")

        return [rule]

    def _const(self, expected: Any, _: Any) -> list[_Rule]:
        return self._enum([expected], _)

    def _enum(self, expected: list[Any], _: Any) -> list[_Rule]:
        # True equals 1 in Python, not in JSON.
        known = [(type(item), item) for item in expected]

        def rule(value: Any, depth: int) -> Violation | None:
            return None if (type(value), value) in known else Violation("", f"{_short(value)} is not one of {expected}")

        return [rule]

    def _pattern(self, pattern: str, _: Any) -> list[_Rule]:
        # "$" of ECMA 262 is the end of the text; Python's also fits before a line feed there.
        search = re.compile(re.sub(r"\$(?=\||$)", r"\\Z", pattern), re.ASCII).search

        def rule(value: Any, depth: int) -> Violation | None:
            if not isinstance(value, str) or search(value):
                return None
            return Violation("", f"{_short(value)} does not match {pattern}")

        return [rule]

    def _minimum(self, least: float, _: Any) -> list[_Rule]:
        def rule(value: Any, depth: int) -> Violation | None:
            if not isinstance(value, int | float) or value >= least:
                return None
            return Violation("", f"{_short(value)} is less than {least}")

        return [rule]

    def _maximum(self, most: float, _: Any) -> list[_Rule]:
        def rule(value: Any, depth: int) -> Violation | None:
            if not isinstance(value, int | float) or value <= most:
                return None
            return Violation("", f"{_short(value)} is more than {most}")

        return [rule]

    def _minItems(self, least: int, _: Any) -> list[_Rule]:  # noqa: N802 - named as the keyword
        def rule(value: Any, depth: int) -> Violation | None:
            return Violation("", f"{len(value)} items") if isinstance(value, list) and len(value) < least else None

        return [rule]

    def _maxItems(self, most: int, _: Any) -> list[_Rule]:  # noqa: N802
        def rule(value: Any, depth: int) -> Violation | None:
            return Violation("", f"{len(value)} items") if isinstance(value, list) and len(value) > most else None

        return [rule]

    def _uniqueItems(self, wanted: bool, _: Any) -> list[_Rule]:  # noqa: N802
        def rule(value: Any, depth: int) -> Violation | None:
            if not isinstance(value, list) or len({json.dumps(item) for item in value}) == len(value):
                return None
            return Violation("", "an item occurs twice")

        return [rule] if wanted else []

    def _prefixItems(self, schemas: list[Any], schema: Any) -> list[_Rule]:  # noqa: N802
        rules = [self.rule(one) for one in schemas]

        def rule(value: Any, depth: int) -> Violation | None:
            return (
                _first(zip(range(len(value)), rules, value, strict=False), depth) if isinstance(value, list) else None
            )

        return [rule]

    def _items(self, schema: Any, whole: Mapping[str, Any]) -> list[_Rule]:
        start, each = len(whole.get("prefixItems", ())), self.rule(schema)

        def rule(value: Any, depth: int) -> Violation | None:
            if not isinstance(value, list):
                return None
            return _first(zip(range(start, len(value)), repeat(each), value[start:], strict=False), depth)

        return [rule]

    def _properties(self, schemas: Mapping[str, Any], _: Any) -> list[_Rule]:
        rules = {key: self.rule(one) for key, one in schemas.items()}

        def rule(value: Any, depth: int) -> Violation | None:
            if not isinstance(value, dict):
                return None
            return _first([(key, rules[key], item) for key, item in value.items() if key in rules], depth)

        return [rule]

    def _additionalProperties(self, schema: Any, whole: Mapping[str, Any]) -> list[_Rule]:  # noqa: N802
        known, each = set(whole.get("properties", ())), self.rule(schema)
        if schema is True:
            return []

        def rule(value: Any, depth: int) -> Violation | None:
            if not isinstance(value, dict):
                return None
            return _first([(key, each, item) for key, item in value.items() if key not in known], depth)

        return [rule]

    def _propertyNames(self, schema: Any, _: Any) -> list[_Rule]:  # noqa: N802
        each = self.rule(schema)

        def rule(value: Any, depth: int) -> Violation | None:
            return _first(zip(value, repeat(each), value, strict=False), depth) if isinstance(value, dict) else None

        return [rule]

    def _required(self, names: list[str], _: Any) -> list[_Rule]:
        def rule(value: Any, depth: int) -> Violation | None:
            if isinstance(value, dict):
                for name in names:
                    if name not in value:
                        return Violation("", f"{name} is missing")
            return None

        return [rule]

    def _alternatives(self, schemas: list[Any]) -> Iterator[tuple[str | None, _Rule]]:
        """Yield (key that an object needs, rule) of each alternative, nested ones flattened."""
        for one in schemas:
            target = self._root["$defs"][one["$ref"].removeprefix("#/$defs/")] if "$ref" in one else one
            if target.keys() <= {"anyOf", "description"}:
                yield from self._alternatives(target["anyOf"])
            else:
                yield next(iter(target.get("required", ())), None), self.rule(one)

    def _anyOf(self, schemas: list[Any], _: Any) -> list[_Rule]:  # noqa: N802
        rules = [*self._alternatives(schemas)]

        def rule(value: Any, depth: int) -> Violation | None:
            failed = []
            is_object = isinstance(value, dict)
            for key, one in rules:
                if is_object and key is not None and key not in value:
                    continue
                found = one(value, depth)
                if found is None:
                    return None
                failed.append(found)
            # The alternative that fits furthest into the value says most.
            return max(
                failed, key=lambda found: len(found.where), default=Violation("", f"{_short(value)} fits no form")
            )

        return [rule]

    def _if(self, schema: Any, whole: Mapping[str, Any]) -> list[_Rule]:
        condition, then, other = (self.rule(one) for one in (schema, whole.get("then", True), whole.get("else", True)))

        def rule(value: Any, depth: int) -> Violation | None:
            return (then if condition(value, depth) is None else other)(value, depth)

        return [rule]


def _anything(value: Any, depth: int) -> None:
    return None


def _nothing(value: Any, depth: int) -> Violation:
    return Violation("", "it does not belong here")


def _all_of(rules: list[_Rule]) -> _Rule:
    def rule(value: Any, depth: int) -> Violation | None:
        for one in rules:
            found = one(value, depth)
            if found is not None:
                return found
        return None

    return rule


def _first(members: Iterable[tuple[Any, _Rule, Any]], depth: int) -> Violation | None:
    """Return the first violation among (key or index, rule, value)."""
    if depth >= _DEEPEST:
        return Violation("[…]", f"nested more than {_DEEPEST} deep")
    for key, rule, value in members:
        found = rule(value, depth + 1)
        if found is not None:
            step = f"[{key}]" if isinstance(key, int) else f".{_short(key)[1:-1]}"
            return Violation(step + found.where, found.what)
    return None


@cache
def _rule(name: Name, version: str) -> _Rule:
    schema = load(name, version)
    return _Compiler(schema).rule(schema)
