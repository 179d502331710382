"""Columns of the table of constituent images, as entries of the document and small arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError, FormatError, located
from wustore.format import tagged_json
from wustore.format.arrays import ArraySpec
from wustore.model.meta import Column, ConstituentTable, object_array
from wustore.model.sizes import check_size

_PLAIN_NODE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_MASK_SUFFIX = "__mask"
_RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)
"""Names that no file or directory has on Windows."""


def _node_names(names: list[str]) -> list[str]:
    """Return an array name for every column: its own if that is safe in any container and file system."""
    taken: set[str] = set()
    nodes = []
    for k, name in enumerate(names):
        safe = _PLAIN_NODE.fullmatch(name) and not _RESERVED.fullmatch(name) and not name.endswith(_MASK_SUFFIX)
        node = name if safe and name.lower() not in taken else f"column_{k}"
        while node.lower() in taken:
            node += "_"
        taken.add(node.lower())
        nodes.append(node)
    return nodes


def _encode_plain(values: NDArray[Any]) -> tuple[str, NDArray[Any], str | None]:
    """Return (encoding, stored array, name of the extra last dimension) of a plain column."""
    kind = values.dtype.kind
    if kind == "U":
        return "text", object_array([str(v) for v in values.ravel()]).reshape(values.shape), None
    if kind == "S":
        width = max(values.dtype.itemsize, 1)
        flat = np.ascontiguousarray(values.astype(f"S{width}"))
        return "bytes", flat.view(np.uint8).reshape(*values.shape, width), "byte"
    if kind == "c":
        part = np.dtype(f"f{values.dtype.itemsize // 2}")
        return "complex", np.ascontiguousarray(values).view(part).reshape(*values.shape, 2), "complex"
    if kind in "mM":
        return "ticks", np.ascontiguousarray(values).view(np.int64), None
    if kind in "biu" or (kind == "f" and values.dtype.itemsize <= 8):
        return "number", np.ascontiguousarray(values), None
    raise FormatError("a column has a dtype that the format does not hold", found=values.dtype)


_STORED: dict[str, tuple[str, str]] = {
    "text": ("O", "U"),
    "bytes": ("u", "S"),
    "complex": ("f", "c"),
    "ticks": ("i", "mM"),
    "number": ("biuf", "biuf"),
}
"""For each encoding the kinds of the stored array, and those of the column."""


def _decode_plain(encoding: str, stored: NDArray[Any], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    outer, inner = _STORED[encoding]
    extra = {"bytes": dtype.itemsize or 1, "complex": 2}.get(encoding)
    itemsize = {"complex": dtype.itemsize // 2, "ticks": 8}.get(encoding, stored.dtype.itemsize)
    if (
        stored.dtype.kind not in outer
        or dtype.kind not in inner
        or stored.dtype.itemsize != itemsize
        or (extra is not None and (stored.ndim < 2 or stored.shape[-1] != extra))
    ):
        raise CorruptError(
            "an array does not fit its column",
            where=where,
            expected=f"{encoding} for {dtype}",
            found=f"{stored.dtype}, shape {stored.shape}",
        )
    if encoding == "text":
        texts = stored.tolist()
        with located(where=where):
            check_size(stored.size * dtype.itemsize, sum(map(len, stored.ravel())) * 4)
        return np.array(texts, dtype=dtype).reshape(stored.shape)
    if encoding == "bytes":
        flat: NDArray[Any] = np.ascontiguousarray(stored).view(f"S{stored.shape[-1]}").reshape(stored.shape[:-1])
        return flat.astype(dtype)
    if encoding == "complex":
        return np.ascontiguousarray(stored).view(dtype).reshape(stored.shape[:-1])
    if encoding == "ticks":
        return np.ascontiguousarray(stored).view(dtype)
    return np.ascontiguousarray(stored.astype(dtype, copy=False))


def column_parts(column: Column, node: str) -> tuple[dict[str, Any], list[ArraySpec]]:
    """Return the document's entry of a column, and its arrays."""
    name = f"constituents/{node}"
    entry: dict[str, Any] = {"name": column.name, "array": node, "kind": column.kind}
    attributes = {
        key: value
        for key, value in (("units", column.unit), ("long_name", column.description or column.name))
        if value is not None
    }
    extra: str | None = None
    if column.kind == "wcs":
        stored = object_array(["" if text is None else str(text) for text in column.values])
    elif column.kind == "json":
        stored = object_array([tagged_json.dumps(value) for value in column.values])
    else:
        entry["encoding"], stored, extra = _encode_plain(column.values)
        entry["dtype"] = column.values.dtype.newbyteorder("<").str
    dims = ["constituent"]
    dims += [f"{node}_{axis}" for axis in range(1, stored.ndim)]
    if extra is not None:
        dims[-1] = f"{node}_{extra}"
    described = {"unit": column.unit, "description": column.description, "format": column.format}
    entry |= {key: value for key, value in described.items() if value is not None}
    if column.meta:
        entry["meta"] = tagged_json.encode(dict(column.meta))
    arrays = [ArraySpec(name, stored, tuple(dims), attributes)]
    if column.mask is not None:
        entry["masked"] = True
        mask = np.ascontiguousarray(column.mask)
        mask_dims = ("constituent", *(f"{node}_{axis}" for axis in range(1, mask.ndim)))
        arrays.append(
            ArraySpec(name + _MASK_SUFFIX, mask.astype(np.uint8), mask_dims, {"long_name": "true where masked"})
        )
    return entry, arrays


def column_from(entry: Mapping[str, Any], n_rows: int, array: Callable[[str], NDArray[Any]]) -> Column:
    """Return the column that an entry of a valid document and its arrays hold.

    Raises
    ------
    CorruptError
        If an array does not fit its entry.
    """
    name = f"constituents/{entry['array']}"
    stored = array(name)
    kind = entry["kind"]
    if stored.shape[:1] != (n_rows,) or (kind != "plain" and (stored.ndim != 1 or stored.dtype.kind != "O")):
        raise CorruptError(
            "an array does not fit its column",
            where=name,
            expected=f"{n_rows} rows of {'text' if kind != 'plain' else entry['dtype']}",
            found=f"{stored.dtype}, shape {stored.shape}",
        )
    values: NDArray[Any]
    if kind == "wcs":
        values = object_array([text or None for text in stored.tolist()])
    elif kind == "json":
        values = object_array(map(tagged_json.loads, stored.tolist()))
    else:
        values = _decode_plain(entry["encoding"], stored, tagged_json.dtype_from(entry["dtype"]), name)
    mask = None
    if entry.get("masked"):
        stored = array(name + _MASK_SUFFIX)
        if stored.shape != values.shape or stored.dtype.kind not in "bu":
            raise CorruptError("a mask does not fit its column", where=name, expected=values.shape, found=stored.shape)
        mask = stored.astype(bool)
    return Column(
        name=entry["name"],
        kind=kind,
        values=values,
        mask=mask,
        unit=entry.get("unit"),
        description=entry.get("description"),
        format=entry.get("format"),
        meta=tagged_json.decode(entry.get("meta", {})),
    )


def table_parts(table: ConstituentTable) -> tuple[list[dict[str, Any]], list[ArraySpec]]:
    """Return the entries of the document and the arrays of a table."""
    entries, arrays = [], []
    for column, node in zip(table.columns, _node_names([c.name for c in table.columns]), strict=True):
        entry, parts = column_parts(column, node)
        entries.append(entry)
        arrays += parts
    return entries, arrays
