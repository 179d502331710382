"""Strict JSON (RFC 8259) for values that JSON does not know.

NaN and infinities, bytes, tuples, dates and numpy values are written as an object with one key that
starts with ``$``; a mapping that has such a key itself, or keys that are not strings, is written as
``{"$map": [[key, value], ...]}``. So any reader of JSON can read the text, and `loads` gives the
same Python value back, with its type.

===============  ==========================================  =================================
value            JSON                                        note
===============  ==========================================  =================================
nan, inf, -inf   ``{"$float": "nan" | "inf" | "-inf"}``      sign and payload: ``0x…`` bit pattern
bytes            ``{"$bytes": base64}``
tuple            ``{"$tuple": [...]}``
set, frozenset   ``{"$set": [...]}``                         sorted by text
complex          ``{"$complex": [re, im]}``
date, datetime   ``{"$date": ISO 8601}``, ``{"$datetime": …}``
numpy scalar     ``{"$numpy": [dtype, value]}``
numpy array      ``{"$ndarray": [dtype, shape, base64]}``    little-endian, C order
`RawYaml`        ``{"$yaml": text}``
other mapping    ``{"$map": [[key, value], ...]}``
===============  ==========================================  =================================
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from wustore.errors import CorruptError, FormatError

__all__ = ["RawYaml", "decode", "dumps", "encode", "loads"]


class RawYaml(str):
    """YAML text of a value that cannot be rebuilt (a foreign Python object): kept as it is, never run."""

    __slots__ = ()


_CANONICAL_NAN = struct.pack(">d", math.nan)


def _encode_float(value: float) -> Any:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        bits = struct.pack(">d", value)
        return {"$float": "nan" if bits == _CANONICAL_NAN else "0x" + bits.hex()}
    return {"$float": "inf" if value > 0 else "-inf"}


def _decode_float(text: str) -> float:
    if text.startswith("0x"):
        return float(struct.unpack(">d", bytes.fromhex(text[2:]))[0])
    return float(text)


def _encode_array(value: np.ndarray[Any, Any]) -> Any:
    if value.dtype.hasobject:
        raise FormatError("an array of Python objects has no JSON form", found=value.dtype)
    little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"$ndarray": [value.dtype.newbyteorder("<").str, list(value.shape), data]}


def _decode_array(parts: list[Any]) -> np.ndarray[Any, Any]:
    dtype, shape, data = parts
    array = np.frombuffer(base64.b64decode(data, validate=True), dtype=np.dtype(dtype)).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))


def _encode_scalar(value: np.generic) -> Any:
    # The dtype is kept beside the bits: datetime64, float16 and uint64 have no JSON form of their own.
    little = np.asarray(value).astype(value.dtype.newbyteorder("<"))
    return {"$numpy": [little.dtype.str, base64.b64encode(little.tobytes()).decode("ascii")]}


def _decode_scalar(parts: list[Any]) -> np.generic:
    dtype, data = parts
    array = np.frombuffer(base64.b64decode(data, validate=True), dtype=np.dtype(dtype))
    scalar: np.generic = array.astype(array.dtype.newbyteorder("="))[0]
    return scalar


def encode(value: Any) -> Any:
    """Return ``value`` in terms of plain JSON values.

    Raises
    ------
    FormatError
        For a value that has no JSON form (an arbitrary object).
    """
    if value is None or type(value) in {bool, int, str}:
        return value
    for kind, encoder in _ENCODERS:
        if isinstance(value, kind):
            return encoder(value)
    raise FormatError("a value has no JSON form", expected="numbers, text, lists, mappings", found=repr(value)[:80])


def _encode_mapping(value: dict[Any, Any]) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item) for key, item in value.items()}
    return {"$map": [[encode(key), encode(item)] for key, item in value.items()]}


# In this order: numpy's float64 and str_ are also float and str, a datetime is also a date.
_ENCODERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (np.ndarray, _encode_array),
    (np.generic, _encode_scalar),
    (RawYaml, lambda value: {"$yaml": str(value)}),
    (int, int),
    (float, lambda value: _encode_float(float(value))),
    (str, str),
    (list, lambda value: [encode(item) for item in value]),
    (dict, _encode_mapping),
    ((bytes, bytearray), lambda value: {"$bytes": base64.b64encode(bytes(value)).decode("ascii")}),
    (tuple, lambda value: {"$tuple": [encode(item) for item in value]}),
    ((set, frozenset), lambda value: {"$set": sorted((encode(item) for item in value), key=json.dumps)}),
    (complex, lambda value: {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}),
    (datetime.datetime, lambda value: {"$datetime": value.isoformat()}),
    (datetime.date, lambda value: {"$date": value.isoformat()}),
)

_DECODERS: dict[str, Any] = {
    "$float": _decode_float,
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$tuple": lambda items: tuple(decode(item) for item in items),
    "$set": lambda items: {decode(item) for item in items},
    "$complex": lambda parts: complex(decode(parts[0]), decode(parts[1])),
    "$yaml": RawYaml,
    "$date": datetime.date.fromisoformat,
    "$datetime": datetime.datetime.fromisoformat,
    "$numpy": _decode_scalar,
    "$ndarray": _decode_array,
    "$map": lambda items: {decode(key): decode(item) for key, item in items},
}


def decode(value: Any) -> Any:
    """Return the Python value that `encode` was given.

    Raises
    ------
    CorruptError
        For a tagged object that is not one of ours or does not hold what its tag says.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item) for key, item in value.items()}
    decoder = _DECODERS.get(tag)
    if decoder is None or len(value) != 1:
        raise CorruptError("an unknown tagged JSON value", expected=sorted(_DECODERS), found=sorted(value)[:3])
    try:
        return decoder(value[tag])
    except (ValueError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise CorruptError("a tagged JSON value does not hold what it says", where=tag, found=error) from error


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as strict JSON text, non-JSON values tagged."""
    return json.dumps(encode(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _refuse_constant(name: str) -> Any:
    raise CorruptError("JSON text holds a token that JSON does not have", found=name)


def loads(text: str | bytes) -> Any:
    """Return the Python value of strict JSON text written by `dumps`.

    Raises
    ------
    CorruptError
        Where the text is not strict JSON, or a tagged value is wrong.
    """
    try:
        return decode(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CorruptError):
            raise
        raise CorruptError("not JSON text", found=str(error)) from error
