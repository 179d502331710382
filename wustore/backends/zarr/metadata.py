"""Zarr v3 metadata documents, and arrays small enough to be one chunk."""

from __future__ import annotations

import json
import math
import operator
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.zarr.codecs import Chain, Hints, parse_chain
from wustore.backends.zarr.filters.decode import DamagedChunk, strip_crc, unpacked_zstd, with_crc
from wustore.errors import CorruptError
from wustore.format.arrays import ESCAPED, ArraySpec, escaped, unescaped
from wustore.model.checksum import crc32c
from wustore.model.meta import object_array
from wustore.model.sizes import check_size

__all__ = [
    "BINDING",
    "CONSOLIDATED",
    "PACKED_CHECKSUM",
    "SEPARATOR",
    "array_metadata",
    "chunk_key",
    "decode_small",
    "document_checksum",
    "encode_small",
    "group_metadata",
    "is_node_name",
    "packed_checksum",
    "separator_of",
    "small_metadata",
    "to_json",
]

SEPARATOR = "."
"""Between the numbers of a chunk key: one file a shard and no directories, for quotas that count both."""

_TEXT_CODECS: list[dict[str, Any]] = [
    {"name": "vlen-utf8"},
    {"name": "zstd", "configuration": {"level": 5, "checksum": False}},
    {"name": "crc32c"},
]

_DTYPES = {
    name: np.dtype(name)
    for name in ("bool", *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32")
} | {"float64": np.dtype(np.float64)}
"""Data types of Zarr v3 that the format uses."""


CONSOLIDATED = {"kind": "inline", "must_understand": False}
"""What the root says of the metadata documents in it; they are its member ``metadata``."""


def to_json(document: Mapping[str, Any]) -> bytes:
    """Return a metadata document as it is stored."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def group_metadata(attributes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the metadata document of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}


def array_metadata(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    dims: Iterable[str],
    *,
    chunk: tuple[int, ...],
    codecs: list[dict[str, Any]],
    fill: Any = 0,
    attributes: Mapping[str, Any] | None = None,
    separator: str = SEPARATOR,
) -> dict[str, Any]:
    """Return the metadata document of an array."""
    if dtype.kind == "f":
        fill = "NaN" if np.isnan(fill) else float(fill)
    elif dtype.kind == "b":
        fill = bool(fill)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [int(size) for size in shape],
        "data_type": "string" if dtype.kind == "O" else dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [int(size) for size in chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": fill,
        "codecs": codecs,
        "dimension_names": list(dims),
        "attributes": dict(attributes or {}),
        "storage_transformers": [],
    }


def is_node_name(name: str) -> bool:
    """Return whether a path of an array or group leads to a key of the store: text, no empty or dotted part."""
    return escaped([name]) is None and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def chunk_key(name: str, place: tuple[int, ...], separator: str = SEPARATOR) -> str:
    """Return the key of a chunk of an array written here."""
    return f"{name}/" + separator.join(("c", *map(str, place)))


def separator_of(node: Mapping[str, Any]) -> str:
    """Return the separator of an array's chunk keys (Zarr v3: a slash by default).

    Raises
    ------
    CorruptError
        If it is none of those that the Zarr specification has: keys would be names of any kind.
    """
    try:
        separator = node["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
    except (KeyError, AttributeError):
        return "/"
    if separator not in (".", "/"):
        raise CorruptError("no separator of chunk keys", expected="a dot or a slash", found=repr(separator))
    return str(separator)


# --- arrays of one chunk --------------------------------------------------------------------------------


def _small_chain(dtype: np.dtype[Any]) -> Chain:
    return Chain(dtype, "zstd", {"level": 5, "checksum": False})


def small_metadata(spec: ArraySpec, separator: str = SEPARATOR) -> dict[str, Any]:
    """Return the metadata document of an array stored as one chunk."""
    text = spec.data.dtype.kind == "O"
    literals = text and escaped(spec.data.ravel().tolist()) is not None
    return array_metadata(
        spec.data.shape,
        spec.data.dtype,
        spec.dims,
        chunk=tuple(max(size, 1) for size in spec.data.shape),
        codecs=_TEXT_CODECS if text else _small_chain(spec.data.dtype).to_json(),
        fill="" if text else 0,
        attributes={**spec.attributes, **({ESCAPED: 1} if literals else {})},
        separator=separator,
    )


def encode_small(data: NDArray[Any]) -> bytes | None:
    """Return the one chunk of an array, None if it has no values."""
    if data.size == 0:
        return None
    if data.dtype.kind != "O":
        return with_crc(_small_chain(data.dtype).compressor(Hints())(np.ascontiguousarray(data).reshape(-1)))
    from numcodecs import Zstd

    return with_crc(bytes(Zstd(5).encode(_text_to_bytes(data))))


def decode_small(metadata: Mapping[str, Any], raw: bytes | None) -> NDArray[Any] | None:
    """Return an array from its one chunk, or None if the metadata is not what `small_metadata` writes."""
    try:
        shape = tuple(map(operator.index, metadata["shape"]))
        kind, codecs = metadata["data_type"], metadata["codecs"]
        chunk = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        known = chunk == tuple(max(size, 1) for size in shape) and metadata["chunk_key_encoding"]["name"] == "default"
        text = kind == "string" and list(map(_plain_codec, codecs)) == list(map(_plain_codec, _TEXT_CODECS))
        literals = ESCAPED in metadata.get("attributes", {})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    dtype = np.dtype(object) if text else _DTYPES.get(kind) if isinstance(kind, str) else None
    chain = parse_chain(codecs, dtype) if dtype is not None and not text else None
    if not known or (chain is None and not text):
        return None
    if 0 in shape:
        return np.empty(shape, dtype)
    if raw is None:
        raise DamagedChunk("the chunk is missing")
    if text:
        values = _text_from_bytes(unpacked_zstd(strip_crc(raw)), shape)
        if not literals:
            return values
        try:
            return object_array(unescaped(values.ravel().tolist())).reshape(shape)
        except ValueError as error:
            raise DamagedChunk(f"a text is no JSON literal of a string: {error}") from error
    check_size(math.prod(shape) * np.dtype(dtype).itemsize, len(raw))
    assert chain is not None
    return chain.decode(raw, shape)


def _plain_codec(codec: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return name and configuration of a codec; an empty configuration is the same as none."""
    return codec["name"], codec.get("configuration") or {}


def _text_to_bytes(data: NDArray[Any]) -> bytes:
    """Return texts as codec ``vlen-utf8`` does: their number, then length and UTF-8 bytes of each (uint32, little)."""
    parts = [struct.pack("<I", data.size)]
    texts = data.ravel().tolist()
    for value in escaped(texts) or texts:
        encoded = value.encode()
        parts += [struct.pack("<I", len(encoded)), encoded]
    return b"".join(parts)


def _text_from_bytes(stored: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        (count,) = struct.unpack_from("<I", stored)
        if count != math.prod(shape):
            raise DamagedChunk("the chunk holds a different number of values")
        values = []
        place = 4
        for _ in range(count):
            (length,) = struct.unpack_from("<I", stored, place)
            values.append(stored[place + 4 : place + 4 + length].decode())
            place += 4 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedChunk(f"the chunk holds something else than texts: {error}") from error
    if place != len(stored):
        raise DamagedChunk("the chunk holds a different number of bytes")
    return object_array(values).reshape(shape)


# --- the root document -----------------------------------------------------------------------------------


def document_checksum(document: Mapping[str, Any]) -> str:
    """Return the CRC-32C of a root document without its own ``crc32c``: eight hexadecimal digits.

    Taken of the JSON text with sorted keys, no blanks and characters outside ASCII escaped, so that any
    tool may lay out the file anew.
    """
    plain = {key: value for key, value in document.items() if key != "crc32c"}
    try:
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise CorruptError("the root document is nested too deeply") from error
    return f"{crc32c(text.encode()):08x}"


BINDING = "binding"
"""Name in the packed array of what binds the chunks of each shard (`wustore.backends.zarr.shards.binding_of`)."""

PACKED_CHECKSUM = "packed_crc32c"
"""Key of the root document: it binds the packed array, and by it all shards, to the document."""


def packed_checksum(packed: NDArray[np.uint8]) -> str:
    """Return what the root document says of the packed array: the CRC-32C of its values, in hexadecimal."""
    return f"{crc32c(packed.tobytes()):08x}"
