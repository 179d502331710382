"""Columns of the table of constituent images: names of arrays that are safe anywhere, and every value again."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.errors import CorruptError, FormatError
from wustore.format.columns import column_from, column_parts, table_parts
from wustore.model.compare import same_bits
from wustore.model.meta import Column, ConstituentTable, object_array

VALUES: list[tuple[Any, Any]] = [
    ("plain", np.array([1, -1, 127], np.int8)),
    ("plain", np.array([2**64 - 1, 0, 1], np.uint64)),
    ("plain", np.array([0.1, np.nan, -0.0], np.float32)),
    ("plain", np.array([True, False, True])),
    ("plain", np.array(["é", "", "a" * 30])),
    ("plain", np.array([b"g", b"\xff", b""])),
    ("plain", np.array([1 + 2j, np.nan, 0], np.complex64)),
    ("plain", np.array(["2026-11-23T01:02:03", "NaT", "1970-01-01"], "datetime64[ms]")),
    ("plain", np.arange(12.0).reshape(3, 2, 2)),
    ("wcs", object_array(["CRPIX1", None, "CRPIX1"])),
    ("json", object_array([None, {"a": [1, 2.5]}, (1, "x")])),
]


def stored(column: Column) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    entry, arrays = column_parts(column, "it")
    return entry, {spec.name: spec.data for spec in arrays}


@pytest.mark.parametrize(("kind", "values"), VALUES)
def test_values_come_back(kind: Any, values: NDArray[Any]) -> None:
    mask = np.zeros(values.shape, bool)
    mask[1] = True
    column = Column(
        "a / name", kind, values, mask=mask, unit="mag", description="what", format="%.2f", meta={"k": (1,)}
    )
    entry, arrays = stored(column)
    found = column_from(entry, 3, arrays.__getitem__)
    assert same_bits(found.values, values)
    assert found.mask is not None
    assert found.mask.tolist() == mask.tolist()
    assert (found.name, found.kind, found.unit, found.description, found.format, found.meta) == (
        "a / name", kind, "mag", "what", "%.2f", {"k": (1,)},
    )  # fmt: skip


def test_arrays_have_safe_names_that_differ_in_more_than_case() -> None:
    names = ["filter", "Filter", "a b", "x__mask", "column_2", "é", "visit", "FILTER"]
    columns = tuple(Column(name, "plain", np.arange(2)) for name in names)
    entries, arrays = table_parts(ConstituentTable(2, columns))
    nodes = [entry["array"] for entry in entries]
    assert [entry["name"] for entry in entries] == names
    assert [nodes[0], nodes[6]] == ["filter", "visit"]
    assert len({node.lower() for node in nodes}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", node) and not node.endswith("__mask") for node in nodes)
    assert [spec.name for spec in arrays] == [f"constituents/{node}" for node in nodes]


@pytest.mark.parametrize(("kind", "values"), VALUES)
def test_arrays_that_do_not_fit(kind: Any, values: NDArray[Any]) -> None:
    entry, arrays = stored(Column("x", kind, values))
    (array,) = arrays.values()
    with pytest.raises(CorruptError, match="does not fit its column"):
        column_from(entry, 4, lambda _: array)
    other = np.zeros(3, np.float16) if array.dtype.kind == "O" else object_array(["a", "b", "c"])
    with pytest.raises(CorruptError, match="does not fit its column"):
        column_from(entry, 3, lambda _: other)


def test_masks_that_do_not_fit() -> None:
    entry, arrays = stored(Column("x", "plain", np.arange(3), mask=np.array([True, False, True])))
    arrays["constituents/it__mask"] = np.zeros(2, np.uint8)
    with pytest.raises(CorruptError, match="a mask does not fit"):
        column_from(entry, 3, arrays.__getitem__)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="long double is double here")
def test_long_doubles_are_refused() -> None:
    with pytest.raises(FormatError, match="a dtype that the format does not hold"):
        column_parts(Column("x", "plain", np.zeros(2, np.longdouble)), "x")
