"""All small arrays of a store as one array of bytes: opening takes one request, and one checksum covers it all.

Layout: length of a JSON table (uint64, little-endian); the table, name to dtype, shape, offset and size;
then the bytes: numbers little-endian in C order, text as a JSON list.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError
from wustore.format.arrays import ArraySpec

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


def unpack(packed: NDArray[np.uint8], path: str | None = None) -> dict[str, NDArray[Any]]:
    """Return the arrays by name that `pack` was given.

    Raises
    ------
    CorruptError
    """
    stored = packed.tobytes()
    try:
        (length,) = struct.unpack_from("<Q", stored)
        start = 8 + length
        arrays: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape, offset, size) in json.loads(stored[8:start]).items():
            body = stored[start + offset : start + offset + size]
            if dtype == "text":
                texts = json.loads(body)
                data = np.empty(len(texts), dtype=object)
                data[:] = texts
            else:
                data = np.frombuffer(body, dtype=dtype).astype(np.dtype(dtype).newbyteorder("="))
            arrays[name] = data.reshape(shape)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(
            "the packed metadata does not decode", path=path, where=f"array {PACKED}", found=error
        ) from error
    return arrays
