"""PlaneList: a list whose planes are read from a store, and keep what is written to them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest

from wustore.compat.layered_image import LazyPlanes, Plane
from wustore.compat.plane_list import Budget, PlaneList
from wustore.errors import UsageError

N = 6


class Source:
    """Planes that are filled with their index; counts how often each is read."""

    def __init__(self) -> None:
        self.read = [0] * N

    def plane(self, layer: str, i: int) -> Plane:
        self.read[i] += 1
        return np.full((3, 4), i, np.float32)

    def shape(self, layer: str, i: int) -> tuple[int, int]:
        return 3, 4

    def planes(self, layer: str, indices: Sequence[int]) -> Generator[Plane, None, None]:
        for i in indices:
            yield self.plane(layer, i)

    def pairs(self, indices: Sequence[int]) -> Generator[tuple[Plane, Plane], None, None]:
        yield from ((self.plane("science", i), self.plane("variance", i)) for i in indices)

    def load(self, indices: Sequence[int]) -> Any:
        raise NotImplementedError


def planes(indices: Sequence[int] = range(N), budget: int = 0) -> tuple[PlaneList, Source]:
    source = Source()
    return PlaneList(LazyPlanes(source, "science", indices), Budget(budget)), source


def values(given: Any) -> list[float]:
    return [float(plane[0, 0]) for plane in given]


def test_it_is_a_list_for_those_who_ask() -> None:
    made, source = planes()
    assert isinstance(made, list)
    assert len(made) == N
    assert source.read == [0] * N
    assert "6 planes of science" in repr(made)
    assert made.shape(2) == (3, 4)
    assert source.read == [0] * N


def test_every_way_to_read_reads_the_store() -> None:
    made, _ = planes([5, 1, 3])
    assert values(made) == [5, 1, 3]
    assert values(list(made)) == values(tuple(made)) == [5, 1, 3]
    assert values(made[1:]) == values(made[-2:]) == [1, 3]
    assert values(reversed(made)) == [3, 1, 5]
    assert values(made + made) == [5, 1, 3, 5, 1, 3]
    assert values([] + made) == [5, 1, 3]  # noqa: RUF005 - the operator itself
    assert values(made.copy()) == values(made * 1) == [5, 1, 3]
    assert np.array(made).shape == (3, 3, 4)
    assert np.stack(made).mean(axis=(1, 2)).tolist() == [5, 1, 3]
    assert values([*made]) == [5, 1, 3]
    a, *rest = made
    assert values([a, *rest]) == [5, 1, 3]
    assert made[0] in made
    with pytest.raises(IndexError):
        made[3]


def test_a_pass_holds_few_planes_and_a_second_one_keeps_what_the_budget_has_room_for() -> None:
    size = np.zeros((3, 4), np.float32).nbytes
    made, source = planes(budget=2 * size)
    values(made)
    assert source.read == [1] * N
    assert len(made._window) <= 3
    values(made)
    values(made)
    # Two planes were kept when they were read again; the last ones were still there from the first pass.
    kept = [k for k in range(N) if list.__getitem__(made, k) is not None]
    assert kept == [0, 1]
    assert source.read[:2] == [2, 2]
    assert max(source.read[2:]) == 3


def test_what_is_written_stays() -> None:
    made, _ = planes()
    made[1][0, 0] = 50.0
    plane = made[2]
    values(made)
    values(made)
    plane[0, 0] = 60.0  # held since before the pass
    del plane
    values(made)
    assert values(made) == [0, 50, 60, 3, 4, 5]
    assert [made.is_stored(k) for k in range(N)] == [True, False, False, True, True, True]
    assert made.origin() is None
    assert values(made.select([2, 1, 0])) == [60, 50, 0]


def test_what_is_held_is_the_same_object() -> None:
    made, _ = planes()
    held = made[0]
    values(made)
    values(made)
    assert made[0] is held


def test_untouched_planes_name_their_origin() -> None:
    made, source = planes([4, 2])
    values(made)
    origin = made.select([1]).origin()
    assert origin is not None
    assert (origin.source, origin.indices) == (source, (2,))


def test_lists_can_be_changed() -> None:
    made, _ = planes([0, 1, 2])
    new = np.full((3, 4), 9.0)
    made.append(new)
    made[0] = new + 1
    made += [new + 2]
    del made[1]
    assert values(made) == [10, 2, 9, 11]
    assert float(made.pop()[0, 0]) == 11
    assert [made.index_of(k) for k in range(3)] == [None, 2, None]
    assert values(made) == [10, 2, 9]
    made.clear()
    assert len(made) == 0


@pytest.mark.parametrize("name", ["sort", "reverse", "insert", "remove"])
def test_what_a_list_in_a_store_cannot_do_is_refused(name: str) -> None:
    made, _ = planes()
    with pytest.raises(UsageError, match="load=True"):
        getattr(made, name)()


@pytest.mark.parametrize("trip", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_take_along_what_was_changed_and_nothing_else(trip: Any) -> None:
    made, _ = planes(budget=10**6)
    made[3][0, 0] = 70.0
    values(made)
    values(made)
    there = trip(made)
    assert [k for k in range(N) if list.__getitem__(there, k) is not None] == [3]
    assert values(there) == [0, 1, 2, 70, 4, 5]
