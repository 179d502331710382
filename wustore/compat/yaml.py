"""YAML of configuration values: what KBMOD writes is written the same, and reading never runs anything.

KBMOD dumps each parameter with PyYAML's full dumper, so tuples, complex numbers and numpy values become
Python-specific tags that its own safe loader then refuses. `load_value` takes tuples, complex numbers and texts, and
keeps any other object, numpy's included, as its text (`wustore.format.tagged_json.RawYaml`).
"""

from __future__ import annotations

import datetime
import os
from typing import Any

import numpy as np
import yaml

from wustore.errors import FormatError
from wustore.format.tagged_json import RawYaml

__all__ = ["dump_mapping", "dump_value", "load_mapping", "load_value", "plain"]

_MAX_NODES = 1_000_000
"""Values an aliased document may expand to; KBMOD's largest configuration has a few hundred."""

_LONGEST_INTEGER = 1000
"""Characters of an integer."""

_TAG = "tag:yaml.org,2002:python/"


class _ForeignError(Exception):
    """A node of an object that is not rebuilt."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader plus the plain values behind a few Python tags."""


def _tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(_sequence(node), deep=True))


def _sequence(node: yaml.Node) -> yaml.SequenceNode:
    if not isinstance(node, yaml.SequenceNode):
        raise _ForeignError
    return node


def _complex(loader: _Loader, node: yaml.Node) -> complex:
    if not isinstance(node, yaml.ScalarNode):
        raise _ForeignError
    return complex(str(loader.construct_scalar(node)))


def _text(loader: _Loader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _ForeignError
    return str(loader.construct_scalar(node))


def _integer(loader: _Loader, node: yaml.Node) -> int:
    # Sexagesimal digits make numbers of any length, which Python itself refuses to print.
    if not isinstance(node, yaml.ScalarNode) or len(node.value) > _LONGEST_INTEGER:
        raise _ForeignError
    return int(loader.construct_yaml_int(node))


def _foreign(loader: _Loader, node: yaml.Node) -> Any:
    raise _ForeignError


_Loader.add_constructor(_TAG + "tuple", _tuple)
_Loader.add_constructor(_TAG + "complex", _complex)
for _name in ("str", "unicode"):
    _Loader.add_constructor(_TAG + _name, _text)
for _name, _constructor in (
    ("none", _Loader.construct_yaml_null),
    ("bool", _Loader.construct_yaml_bool),
    ("float", _Loader.construct_yaml_float),
    ("bytes", _Loader.construct_yaml_binary),
    ("int", _integer),
    ("long", _integer),
):
    _Loader.add_constructor(_TAG + _name, _constructor)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor(None, _foreign)


def _expanded_size(node: yaml.Node, seen: dict[int, int]) -> int:
    """Return how many values ``node`` means once its aliases are followed; at least the limit for a cycle."""
    key = id(node)
    if key in seen:
        return seen[key]
    seen[key] = _MAX_NODES  # met again before it is finished: it contains itself
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_expanded_size(item, seen) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_expanded_size(key_, seen) + _expanded_size(value, seen) for key_, value in node.value)
    seen[key] = size
    return size


def _compose(text: str) -> tuple[_Loader, yaml.Node | None]:
    try:
        loader = _Loader(text)
        return loader, loader.get_single_node()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError("not YAML text", found=str(error).replace("\n", " ")[:300]) from error


def _construct(loader: _Loader, node: yaml.Node | None, text: str | None) -> Any:
    """Return the value of ``node``, or its text (``text`` if that is the whole document)."""
    if node is None:
        return None
    try:
        if _expanded_size(node, {}) >= _MAX_NODES:
            raise _ForeignError
        return loader.construct_document(node)
    except RecursionError as error:
        raise FormatError("YAML text is nested too deeply") from error
    except (_ForeignError, yaml.YAMLError, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError):
        return RawYaml(yaml.serialize(node) if text is None else text)


def load_value(text: str) -> Any:
    """Return the value of a YAML text as KBMOD writes one per parameter.

    Returns
    -------
    Any
        The value PyYAML's safe loader gives, and tuples and complex numbers; a value that holds any other object
        is returned whole as `RawYaml`.
        Of a key that occurs twice the last one counts, as in PyYAML.

    Raises
    ------
    FormatError
        If the text is not YAML.
    """
    return _construct(*_compose(text), text)


def load_mapping(text: str) -> dict[str, Any]:
    """Return a YAML document whose top is a mapping; values that cannot be rebuilt become `RawYaml` one by one.

    Raises
    ------
    FormatError
        If the text is not YAML or its top is not a mapping with text keys.
    """
    loader, node = _compose(text)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise FormatError("YAML text does not hold a mapping", expected="name: value", found=node.tag)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _construct(loader, key_node, None)
        if not isinstance(key, str):
            raise FormatError("a parameter name is not text", found=repr(key)[:80])
        result[key] = _construct(loader, value_node, None)
    return result


class _Dumper(yaml.Dumper):
    """PyYAML's full dumper (KBMOD's), which also puts kept YAML text back where it was."""


def _represent_raw(dumper: _Dumper, value: RawYaml) -> yaml.Node:
    node = yaml.compose(str(value), Loader=yaml.SafeLoader)
    return dumper.represent_none(None) if node is None else node


_Dumper.add_representer(RawYaml, _represent_raw)


def _dump(value: Any, *, default_flow_style: bool) -> str:
    try:
        return str(yaml.dump(value, Dumper=_Dumper, default_flow_style=default_flow_style))
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise FormatError("a value has no YAML form", found=f"{type(value).__name__}: {error}"[:200]) from error


def dump_value(value: Any) -> str:
    """Return the YAML text that KBMOD writes for one parameter: ``yaml.dump(value, default_flow_style=True)``.

    Raises
    ------
    FormatError
        For a value that PyYAML cannot represent.
    """
    if isinstance(value, RawYaml):
        return str(value)
    return _dump(value, default_flow_style=True)


def dump_mapping(values: dict[str, Any]) -> str:
    """Return a mapping as a YAML document, keys sorted: ``yaml.dump(values)``."""
    return _dump(values, default_flow_style=False)


def plain(value: Any) -> Any:
    """Return ``value`` in terms that every safe YAML reader knows: what KBMOD can read back.

    Tuples and arrays become lists, numpy scalars Python numbers, complex numbers and unknown objects text.
    The value itself is returned if nothing had to change.
    """
    if value is None or type(value) in {bool, int, float, str, bytes, datetime.date, datetime.datetime}:
        return value
    if isinstance(value, np.generic):
        return plain(value.item()) if value.dtype.kind not in "Mm" else str(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        changed = {_plain_key(key): plain(item) for key, item in value.items()}
        same = len(changed) == len(value) and all(
            new is old and changed[new] is value[old] for new, old in zip(changed, value, strict=True)
        )
        return value if same and type(value) is dict else changed
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return value if type(value) is list and all(a is b for a, b in zip(items, value, strict=True)) else items
    if isinstance(value, set | frozenset):
        return {_plain_key(item) for item in value}
    if isinstance(value, bool | int | float | str):
        base = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
        return base(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _plain_key(value: Any) -> Any:
    simple = plain(value)
    return simple if isinstance(simple, bool | int | float | str | bytes | datetime.date | None) else str(value)
