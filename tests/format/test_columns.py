"""Columns of the table of constituent images: names of arrays that are safe anywhere, and every value again."""

from __future__ import annotations

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


ODD = ["", "con", "AUX", "lpt1", "com", "a/b", "..", "x__mask", "1st", "é", "x" * 65, "_x", "x.", "x "]


def test_names_of_arrays() -> None:
    names = [*ODD, "visit", "Visit", "column_3"]
    table = ConstituentTable(1, tuple(Column(name, "plain", np.zeros(1)) for name in names))
    entries, arrays = table_parts(table)
    assert [entry["name"] for entry in entries] == names
    kept = {entry["name"] for entry in entries if entry["array"] == entry["name"]}
    assert kept == {"com", "visit"}  # the array column_3 is that of lpt1
    assert len({spec.name.casefold() for spec in arrays}) == len(names)
    assert all(spec.name.removeprefix("constituents/").replace("_", "").isalnum() for spec in arrays)


@pytest.mark.parametrize("name", ODD)
def test_a_column_comes_back_under_its_name(name: str) -> None:
    column = Column(name, "plain", np.array([1.5, -0.0]), mask=np.array([True, False]))
    entry, arrays = column_parts(column, "column_0")
    stored = {spec.name: spec.data for spec in arrays}
    back = column_from(entry, 2, stored.__getitem__)
    assert back.name == name
    assert same_bits(back.values, column.values)
    assert back.mask is not None
    assert same_bits(back.mask, np.array([True, False]))
