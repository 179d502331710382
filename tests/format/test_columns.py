"""Columns are stored in arrays whose names every container and file system takes."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.format.columns import column_from, column_parts, table_parts
from wustore.model.compare import same_bits
from wustore.model.meta import Column, ConstituentTable

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
