"""All small arrays of a store as one array of bytes: opening takes one request, and one checksum covers it all.

Layout: length of a JSON table (uint64, little-endian); the table, name to dtype, shape, offset and size;
then the bytes: numbers little-endian in C order, text as a JSON list.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError
from wustore.format.arrays import ArraySpec
from wustore.format.tagged_json import dtype_from, most_values, parse
from wustore.model.meta import object_array

__all__ = ["PACKED", "pack", "unpack"]

PACKED = "packed"
"""Name of the array in a store."""


def pack(specs: Iterable[ArraySpec]) -> ArraySpec:
    """Return the array that holds the values of all ``specs``."""
    table: dict[str, list[Any]] = {}
    bodies = []
    offset = 0
    for spec in specs:
        if spec.data.dtype.kind == "O":
            dtype, body = "text", json.dumps(spec.data.ravel().tolist()).encode()
        else:
            little = spec.data.dtype.newbyteorder("<")
            dtype, body = little.str, np.ascontiguousarray(spec.data).astype(little, copy=False).tobytes()
        table[spec.name] = [dtype, list(spec.data.shape), offset, len(body)]
        bodies.append(body)
        offset += len(body)
    head = json.dumps(table, separators=(",", ":")).encode()
    data = np.frombuffer(b"".join([struct.pack("<Q", len(head)), head, *bodies]), dtype=np.uint8)
    return ArraySpec(PACKED, data, ("packed_byte",), {"long_name": "all small arrays, for a quick opening"})


def unpack(packed: NDArray[np.uint8], stored: int | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays by name that `pack` was given.

    Parameters
    ----------
    stored
        What the array was unpacked from [byte], by default its own size: it decides how many texts are believed.
    """
    try:
        content = np.ascontiguousarray(packed).data.cast("B")
        stored = len(content) if stored is None else stored
        (length,) = struct.unpack_from("<Q", content)
        table = parse(str(content[8 : 8 + length], "utf-8"), stored=stored, what="the table")
        bodies = content[8 + length :]
        taken = sum(size for _, _, _, size in table.values())
        if taken > len(bodies):
            raise CorruptError("the packed arrays overlap", expected=f"{len(bodies)} bytes", found=f"{taken} bytes")
        texts = sum(math.prod(shape) for dtype, shape, _, _ in table.values() if dtype == "text")
        if texts > (most := most_values(stored) * 3 // 2):
            raise CorruptError("the packed metadata hold too many texts", expected=f"at most {most}", found=texts)
        return {name: _unpacked(bodies, stored, *entry) for name, entry in table.items()}
    except (struct.error, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise CorruptError("the packed metadata does not decode", where=f"array {PACKED}", found=error) from error


def _unpacked(bodies: memoryview, stored: int, dtype: str, shape: list[int], offset: int, size: int) -> NDArray[Any]:
    if not 0 <= offset <= offset + size <= len(bodies) or min(shape, default=0) < 0:
        raise CorruptError("an array is not where it should be", found=f"{size} bytes at {offset}, shape {shape}")
    body = bodies[offset : offset + size]
    if dtype != "text":
        native = dtype_from(dtype)
        return np.frombuffer(body, native.newbyteorder("<")).astype(native).reshape(shape)
    texts = parse(str(body, "utf-8"), stored=stored)
    if len(texts) != math.prod(shape):
        raise CorruptError("an array of text has not as many as its shape says", expected=shape, found=len(texts))
    if not all(isinstance(text, str) for text in texts):
        raise CorruptError("an array of text holds something else")
    return object_array(texts).reshape(shape)
