"""What images of another store must be to be appended: same units, flags and observatory, or converted, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wustore.errors import UsageError
from wustore.model.concat import appended
from wustore.model.meta import Column, ConstituentTable, Meta, Observatory
from wustore.testing import sample


def stack(unit: str | None = None, values: object = (1.5, 2.5, 3.5), **changes: object) -> Meta:
    column = Column("exptime", "plain", np.array(values), unit=unit)
    meta = replace(sample("simple").meta, constituents=ConstituentTable(3, (column,)), links=None)
    return replace(meta, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("ours", "theirs", "factor"), [("s", "min", 60), ("s", "s", 1), ("deg", "arcmin", 1 / 60)])
def test_columns_are_converted(ours: str, theirs: str, factor: float) -> None:
    column = appended(stack(ours), stack(theirs)).constituents.columns[0]
    assert column.unit == ours
    np.testing.assert_allclose(column.values, [1.5, 2.5, 3.5, *np.array([1.5, 2.5, 3.5]) * factor], rtol=1e-15)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (stack("s"), stack("m")),
        (stack("s"), stack(None)),
        (stack(None), stack("s")),
        (stack("s"), stack("furlong per fortnight")),
        (stack("s", (1, 2, 3)), stack("min", (1, 2, 3))),
    ],
)
def test_units_that_cannot_be_converted(ours: Meta, theirs: Meta) -> None:
    with pytest.raises(UsageError, match="unit"):
        appended(ours, theirs)


@pytest.mark.parametrize("theirs", [{"BAD": 2}, {"CR": 1}, {"BAD": 2, "SAT": 1}])
def test_flags_that_mean_other_things(theirs: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="mask flag"):
        appended(stack(mask_flags={"BAD": 1}), stack(mask_flags=theirs))


def test_flags_are_joined() -> None:
    meta = appended(stack(mask_flags={"BAD": 1, "DEAD": 1}), stack(mask_flags={"BAD": 1, "CR": 4}))
    assert meta.mask_flags == {"BAD": 1, "DEAD": 1, "CR": 4}


HERE = Observatory((-30.17, -70.8, 2200.0))


@pytest.mark.parametrize("base", [HERE, None])
def test_another_observatory(base: Observatory | None) -> None:
    with pytest.raises(UsageError, match="observatory"):
        appended(stack(observatory=base), stack(observatory=Observatory((19.8, -155.5, 4200.0))))


def test_the_same_observatory() -> None:
    rounded = Observatory((-30.17 + 1e-9, -70.8 + 360, 2200.001), (1.0, 2.0, 3.0))
    for other in (HERE, rounded, None):
        assert appended(stack(observatory=HERE), stack(observatory=other)).observatory == HERE
