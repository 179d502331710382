"""YAML of configuration values: what KBMOD writes is written the same, and reading never runs anything.

KBMOD dumps each parameter with PyYAML's full dumper, so tuples, complex numbers and numpy values become
Python-specific tags that its own safe loader then refuses. `load_value` rebuilds those few kinds from
their bytes and keeps the text of every other foreign object as `wustore.format.tagged_json.RawYaml`.
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

_SAFE_KINDS = frozenset("biufcUSMm")
_NUMPY_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMPY_ARRAY = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_TAG = "tag:yaml.org,2002:python/"


class _ForeignError(Exception):
    """A node that stands for an object which is not rebuilt."""


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


def _call(loader: _Loader, node: yaml.Node) -> tuple[list[Any], Any]:
    """Return the arguments and the state of a ``python/object/apply`` node, in either of its forms."""
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True), None
    if not isinstance(node, yaml.MappingNode):
        raise _ForeignError
    parts = loader.construct_mapping(node, deep=True)
    if not set(parts) <= {"args", "state"}:
        raise _ForeignError
    return list(parts.get("args", [])), parts.get("state")


def _dtype(loader: _Loader, node: yaml.Node) -> np.dtype[Any]:
    arguments, state = _call(loader, node)
    if not arguments or not isinstance(arguments[0], str):
        raise _ForeignError
    dtype = np.dtype(arguments[0])
    if dtype.kind not in _SAFE_KINDS:
        raise _ForeignError
    if dtype.kind in "Mm":
        # state[8] = (metadata, (unit as bytes, count, numerator, denominator)), see numpy's dtype.__reduce__
        unit, count = state[8][1][:2]
        dtype = np.dtype(f"{dtype.kind}8[{int(count)}{unit.decode('ascii')}]")
    return dtype.newbyteorder(state[1]) if state is not None else dtype


def _numpy_scalar(loader: _Loader, node: yaml.Node) -> Any:
    arguments, _ = _call(loader, node)
    dtype, data = arguments
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
        raise _ForeignError
    array = np.frombuffer(data, dtype=dtype, count=1)
    return array.astype(dtype.newbyteorder("="))[0]


def _numpy_array(loader: _Loader, node: yaml.Node) -> Any:
    _, state = _call(loader, node)
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
        raise _ForeignError
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return np.array(array.astype(dtype.newbyteorder("=")))


def _no_name(loader: _Loader, suffix: str, node: yaml.Node) -> None:
    """Accept the class named inside a numpy array; it is fixed by the kind of value, so the name is not used."""
    if suffix != "numpy.ndarray":
        raise _ForeignError


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
    ("int", _Loader.construct_yaml_int),
    ("long", _Loader.construct_yaml_int),
):
    _Loader.add_constructor(_TAG + _name, _constructor)  # type: ignore[type-var]
for _name in _NUMPY_SCALAR:
    _Loader.add_constructor(_TAG + "object/apply:" + _name, _numpy_scalar)
for _name in _NUMPY_ARRAY:
    _Loader.add_constructor(_TAG + "object/apply:" + _name, _numpy_array)
_Loader.add_constructor(_TAG + "object/apply:numpy.dtype", _dtype)
_Loader.add_multi_constructor(_TAG + "name:", _no_name)
_Loader.add_constructor(None, _foreign)


def _expanded_size(node: yaml.Node, seen: dict[int, int]) -> int:
    """Return how many values ``node`` stands for once its aliases are followed; at least the limit for a cycle."""
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
    """Return the value of ``node``, or its text (``text`` where that is the whole document)."""
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

    Parameters
    ----------
    text
        One YAML document.

    Returns
    -------
    Any
        The value PyYAML's safe loader gives; tuples, complex numbers and numpy scalars and arrays are
        rebuilt from their Python tags; a value that holds any other object is returned whole as `RawYaml`.
        Of a key that occurs twice the last one counts, as in PyYAML.

    Raises
    ------
    FormatError
        Where the text is not YAML.
    """
    return _construct(*_compose(text), text)


def load_mapping(text: str) -> dict[str, Any]:
    """Return a YAML document whose top is a mapping; values that cannot be rebuilt become `RawYaml` one by one.

    Raises
    ------
    FormatError
        Where the text is not YAML or its top is not a mapping with text keys.
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
    The value itself is returned where nothing had to change.
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
