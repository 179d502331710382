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
import operator
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from wustore.errors import CorruptError, FormatError

__all__ = ["DEEPEST", "RawYaml", "decode", "dtype_from", "dumps", "encode", "loads", "most_values"]

DEEPEST = 50
"""Levels of objects and arrays in a value or document: no configuration needs them, and Python's stack holds them."""

_ARRAY_KINDS = "biufcSUmM"
_DTYPE = re.compile(r"[<|][biufcSUmM][0-9]+(\[[0-9]*[a-zA-Z]+\])?")


class RawYaml(str):
    """YAML text of a value that cannot be rebuilt (a foreign Python object): kept as it is, never run."""

    __slots__ = ()


_CANONICAL_NAN = struct.pack(">d", math.nan)


def dtype_from(text: Any) -> np.dtype[Any]:
    """Return the dtype of a stored text, native byte order.

    Raises
    ------
    CorruptError
        If it is not numpy's text of a plain dtype; numpy itself takes many more texts, and parses some as Python.
    """
    try:
        if isinstance(text, str) and _DTYPE.fullmatch(text):
            return np.dtype(text).newbyteorder("=")
    except (TypeError, ValueError, OverflowError):
        pass
    raise CorruptError("not a dtype", found=repr(text)[:60])


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
    if type(value) is not np.ndarray:  # a subclass means more than its numbers: units, a mask, fields
        raise FormatError("an array with units or a mask has no JSON form", found=type(value).__name__)
    if value.dtype.kind not in _ARRAY_KINDS:
        raise FormatError("an array of this dtype has no JSON form", found=value.dtype)
    little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"$ndarray": [value.dtype.newbyteorder("<").str, list(value.shape), data]}


def _decode_array(parts: list[Any]) -> np.ndarray[Any, Any]:
    dtype, shape, data = parts
    flat = _from_base64(data, dtype)
    return flat.reshape([operator.index(size) for size in shape])


def _from_base64(data: str, dtype: Any) -> np.ndarray[Any, Any]:
    native = dtype_from(dtype)
    return np.frombuffer(base64.b64decode(data, validate=True), native.newbyteorder("<")).astype(native)


def _encode_scalar(value: np.generic) -> Any:
    if value.dtype.kind not in _ARRAY_KINDS:
        raise FormatError("a value of this dtype has no JSON form", found=value.dtype)
    # The dtype is kept with the bits: datetime64, float16 and uint64 have no JSON form of their own.
    little = np.asarray(value).astype(value.dtype.newbyteorder("<"))
    return {"$numpy": [little.dtype.str, base64.b64encode(little.tobytes()).decode("ascii")]}


def _decode_scalar(parts: list[Any]) -> np.generic:
    dtype, data = parts
    scalar: np.generic = _from_base64(data, dtype)[0]
    return scalar


def encode(value: Any, depth: int = 0) -> Any:
    """Return ``value`` in terms of plain JSON values.

    Parameters
    ----------
    depth
        How many levels of JSON it is put below.

    Raises
    ------
    FormatError
        For a value that has no JSON form (an arbitrary object), or is nested too deeply.
    """
    if value is None or type(value) in {bool, int, str}:
        return value
    if depth > DEEPEST:
        raise FormatError("a value is nested too deeply", expected=f"at most {DEEPEST} levels")
    for kind, encoder in _ENCODERS:
        if isinstance(value, kind):
            return encoder(value, depth)
    raise FormatError("a value has no JSON form", expected="numbers, text, lists, mappings", found=repr(value)[:80])


def _encode_items(items: Iterable[Any], depth: int) -> list[Any]:
    return [encode(item, depth + 1) for item in items]


def _encode_mapping(value: dict[Any, Any], depth: int) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, depth + 1) for key, item in value.items()}
    return {"$map": [_encode_items(pair, depth + 2) for pair in value.items()]}


# In this order: numpy's float64 and str_ are also float and str, a datetime is also a date.
_ENCODERS: tuple[tuple[type | tuple[type, ...], Callable[[Any, int], Any]], ...] = (
    (np.ndarray, lambda value, _: _encode_array(value)),
    (np.generic, lambda value, _: _encode_scalar(value)),
    (RawYaml, lambda value, _: {"$yaml": str(value)}),
    (int, lambda value, _: int(value)),
    (float, lambda value, _: _encode_float(float(value))),
    (str, lambda value, _: str.__str__(value)),  # a member of an Enum of texts is its text
    (list, _encode_items),
    (dict, _encode_mapping),
    ((bytes, bytearray), lambda value, _: {"$bytes": base64.b64encode(bytes(value)).decode("ascii")}),
    (tuple, lambda value, depth: {"$tuple": _encode_items(value, depth + 1)}),
    ((set, frozenset), lambda value, depth: {"$set": sorted(_encode_items(value, depth + 1), key=json.dumps)}),
    (complex, lambda value, _: {"$complex": [_encode_float(value.real), _encode_float(value.imag)]}),
    (datetime.datetime, lambda value, _: {"$datetime": value.isoformat()}),
    (datetime.date, lambda value, _: {"$date": value.isoformat()}),
)


def _decode_items(items: list[Any], depth: int) -> list[Any]:
    if not isinstance(items, list):
        raise TypeError("not a list")
    return [decode(item, depth + 1) for item in items]


def _decode_pairs(pairs: list[Any], depth: int) -> dict[Any, Any]:
    return dict(map(tuple, (_decode_items(pair, depth + 1) for pair in pairs)))


_DECODERS: dict[str, Callable[[Any, int], Any]] = {
    "$float": lambda text, _: _decode_float(text),
    "$bytes": lambda text, _: base64.b64decode(text, validate=True),
    "$tuple": lambda items, depth: tuple(_decode_items(items, depth)),
    "$set": lambda items, depth: set(_decode_items(items, depth)),
    "$complex": lambda parts, depth: complex(*_decode_items(parts, depth)),
    "$yaml": lambda text, _: RawYaml(text),
    "$date": lambda text, _: datetime.date.fromisoformat(text),
    "$datetime": lambda text, _: datetime.datetime.fromisoformat(text),
    "$numpy": lambda parts, _: _decode_scalar(parts),
    "$ndarray": lambda parts, _: _decode_array(parts),
    "$map": _decode_pairs,
}


def decode(value: Any, depth: int = 0) -> Any:
    """Return the Python value that `encode` was given.

    Parameters
    ----------
    depth
        How many levels of JSON it was found below.

    Raises
    ------
    CorruptError
        For a tagged object that is not one of ours or does not hold what its tag says, or one nested too deeply.
    """
    if not isinstance(value, list | dict):
        return value
    if depth > DEEPEST:
        raise CorruptError("a value is nested too deeply", expected=f"at most {DEEPEST} levels")
    if isinstance(value, list):
        return _decode_items(value, depth)
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, depth + 1) for key, item in value.items()}
    decoder = _DECODERS.get(tag)
    if decoder is None or len(value) != 1:
        raise CorruptError("an unknown tagged JSON value", expected=sorted(_DECODERS), found=sorted(value)[:3])
    try:
        return decoder(value[tag], depth + 1)
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, struct.error) as error:
        if isinstance(error, CorruptError):
            raise
        raise CorruptError("a tagged JSON value does not hold what it says", where=tag, found=error) from error


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return ``value`` as strict JSON text, non-JSON values tagged."""
    return json.dumps(encode(value), allow_nan=False, ensure_ascii=False, indent=indent)


def loads(text: str | bytes) -> Any:
    """Return the Python value of strict JSON text written by `dumps`.

    Raises
    ------
    CorruptError
        If the text is not strict JSON, or a tagged value is wrong.
    """
    return decode(parse(text))


# --- text ---------------------------------------------------------------------------------------------

_VALUES = 1 << 21
"""Values that a text of any length may hold; in memory each takes about 70 bytes, where its text may be two."""


def most_values(stored: int) -> int:
    """Return how many values a text may hold that was unpacked from so many bytes."""
    return _VALUES + stored // 24


def parse(
    text: str | bytes | bytearray,
    *,
    stored: int | None = None,
    what: str = "a text",
) -> Any:
    """Return the JSON values of a text: the one place where JSON of a store is read.

    Parameters
    ----------
    text
        JSON text; the tokens ``NaN`` and ``Infinity`` are refused.
    stored
        The length of what the text was unpacked from [byte], by default its own.
    """
    most = most_values(len(text) if stored is None else stored)
    if isinstance(text, str):
        count = text.count(",") + text.count("[") + text.count("{")
    else:
        count = text.count(b",") + text.count(b"[") + text.count(b"{")
    if count > most:
        raise CorruptError(f"{what} holds too many values", expected=most, found=count)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what} is not JSON", found=str(error)[:200]) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the token {name}")
