"""Planes of a store as a `list`: read when they are touched, changed in memory, bounded while they are only read."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NoReturn, SupportsIndex

from wustore.compat.layered_image import LazyPlanes, Plane, PlaneSource
from wustore.errors import UsageError
from wustore.model.checksum import plane_checksum

__all__ = ["CACHE_BYTES", "Budget", "PlaneList"]

CACHE_BYTES = 2 * 2**30
"""Bytes that planes which are read more than once may keep, unless a caller says otherwise."""

_WINDOW = 2
"""Planes that stay after they are read, without being held by anyone."""


class Budget:
    """Bytes that several lists may keep together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, size: int) -> bool:
        """Take ``size`` bytes if there are so many left, and return whether there are."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


class PlaneList(list[Any]):
    """A `list` of planes for code that asks for that very type, such as numba's and KBMOD's.

    Indexing and iterating read from the store; in order, several planes are read ahead. A plane is let go again
    after the next ones were read, unless somebody holds it, it was changed, or it was read before and the budget has
    room. So a pass over all planes needs memory for a few; repeated passes find them in memory; and a plane
    behaves like one of a plain list: what is written to it stays.

    Parameters
    ----------
    planes
        Where to read.
    budget
        Bytes for planes that are read more than once, shared with other lists.
    """

    def __init__(self, planes: LazyPlanes, budget: Budget | None = None) -> None:
        super().__init__([None] * len(planes))
        self.source: PlaneSource = planes.source
        self.layer = planes.layer
        self._where: list[int | None] = list(planes.indices)
        self._budget = Budget(CACHE_BYTES) if budget is None else budget
        self._sums: dict[int, int] = {}
        self._window: dict[int, Plane] = {}
        self._ahead: Generator[Plane, None, None] | None = None
        self._ahead_at = self._last = -1
        self._lock = threading.RLock()

    # -- reading --

    def _fetch(self, k: int) -> Plane:
        """Read the plane at position ``k``; from the second one in a row on with those that follow it."""
        if self._ahead is not None and self._ahead_at != k:
            self._ahead.close()
            self._ahead = None
        if self._ahead is None and k == self._last + 1 and k > 0:
            rest = []
            for index in self._where[k:]:
                if index is None:
                    break
                rest.append(index)
            self._ahead = self.source.planes(self.layer, rest)
        self._last = k
        index = self._where[k]
        assert index is not None
        if self._ahead is None:
            return self.source.plane(self.layer, index)
        self._ahead_at = k + 1
        plane = next(self._ahead)
        if k + 1 == len(self) or self._where[k + 1] is None:
            self._ahead.close()  # its threads end
            self._ahead = None
        return plane

    def _is_changed(self, index: int, plane: Plane) -> bool:
        return plane_checksum(plane) != self._sums[index]

    def _let_go(self) -> None:
        """Drop the oldest planes that nobody holds; a changed one moves into the list for good."""
        for index in list(self._window)[:-_WINDOW]:
            if sys.getrefcount(self._window[index]) > 2:  # the window's and that of the call
                continue
            plane = self._window.pop(index)
            if self._is_changed(index, plane) and index in self._where:
                super().__setitem__(self._where.index(index), plane)

    def _plane(self, k: int) -> Plane:
        with self._lock:
            kept: Plane | None = super().__getitem__(k)
            if kept is not None:
                return kept
            index = self._where[k]
            assert index is not None
            if index in self._window:
                return self._window[index]
            plane = self._fetch(k)
            again = index in self._sums
            self._sums[index] = plane_checksum(plane)
            if again and self._budget.take(plane.nbytes):
                super().__setitem__(k, plane)
            else:
                self._window[index] = plane
                self._let_go()
            return plane

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self._plane(k) for k in range(*key.indices(len(self)))]
        return self._plane(range(len(self))[key])

    def __iter__(self) -> Iterator[Any]:
        k = 0
        while k < len(self):
            yield self._plane(k)
            k += 1

    def __reversed__(self) -> Iterator[Any]:
        return (self._plane(k) for k in reversed(range(len(self))))

    # -- what of it is still as the store has it --

    def is_stored(self, k: int) -> bool:
        """Return whether the plane at position ``k`` is that of the store."""
        index = self._where[k]
        if index is None:
            return False
        plane = super().__getitem__(k)
        plane = self._window.get(index) if plane is None else plane
        return plane is None or not self._is_changed(index, plane)

    def origin(self) -> LazyPlanes | None:
        """Return where all planes are read from, or None if one was changed, set or added."""
        with self._lock:
            if not all(self.is_stored(k) for k in range(len(self))):
                return None
            return LazyPlanes(self.source, self.layer, [i for i in self._where if i is not None])

    def index_of(self, k: int) -> int | None:
        """Return the index in the store of the plane at position ``k``; None if it was set or added."""
        return self._where[k]

    def shape(self, k: int) -> tuple[int, int]:
        """Return the shape of the plane at position ``k``, without reading it if it is in the store."""
        index = self._where[k]
        return self._plane(k).shape if index is None else self.source.shape(self.layer, index)

    def select(self, positions: Iterable[int]) -> PlaneList:
        """Return the planes at these positions; those that are not in memory stay unread."""
        return self._of([int(k) for k in positions])

    def _of(self, positions: list[int]) -> PlaneList:
        with self._lock:
            chosen = PlaneList(LazyPlanes(self.source, self.layer, []), self._budget)
            chosen._sums = dict(self._sums)
            for k in positions:
                index, plane = self._where[k], super().__getitem__(k)
                if plane is None and index in self._window:
                    plane = self._window[index]
                chosen._where.append(index)
                list.append(chosen, plane)
            return chosen

    # -- changes --

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, slice):
            self._refuse("assigning to a slice")
        with self._lock:
            k = range(len(self))[key]
            self._where[k] = None
            super().__setitem__(k, value)

    def append(self, value: Any) -> None:
        """Add a plane at the end."""
        with self._lock:
            self._where.append(None)
            super().append(value)

    def extend(self, values: Iterable[Any]) -> None:
        """Add planes at the end."""
        for value in values:
            self.append(value)

    def __iadd__(self, values: Iterable[Any]) -> PlaneList:  # type: ignore[misc]
        self.extend(values)
        return self

    def pop(self, key: SupportsIndex = -1) -> Any:
        """Remove the plane at a position and return it."""
        with self._lock:
            k = range(len(self))[key]
            plane = self._plane(k)
            del self[k]
            return plane

    def __delitem__(self, key: Any) -> None:
        with self._lock:
            del self._where[key]
            super().__delitem__(key)

    def clear(self) -> None:
        """Remove all planes."""
        del self[:]

    # -- as a plain list --

    def copy(self) -> list[Any]:
        """Return a plain list of all planes, read into memory."""
        return list(self)

    def __add__(self, other: Any) -> Any:
        return list(self) + list(other)

    def __radd__(self, other: Any) -> Any:
        return list(other) + list(self)

    def __contains__(self, value: object) -> bool:
        return any(plane is value for plane in self)

    def __eq__(self, other: object) -> bool:
        return self is other or list(self) == (list(other) if isinstance(other, list) else other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"<{len(self)} planes of {self.layer}, read when they are touched>"

    def _refuse(self, what: str, *args: Any, **options: Any) -> NoReturn:
        raise UsageError(
            f"{what} is not possible while the planes are in a store",
            found=repr(self),
            hint="Load them: wustore.kbmod.open(path, load=True), or list(planes).",
        )

    def insert(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse: not possible while planes are in a store."""
        self._refuse("insert")

    def remove(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse: not possible while planes are in a store."""
        self._refuse("remove")

    def reverse(self) -> NoReturn:
        """Refuse: not possible while planes are in a store."""
        self._refuse("reverse")

    def sort(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse: not possible while planes are in a store."""
        self._refuse("sort")

    def index(self, value: Any, *args: Any) -> int:
        """Return the position of a plane."""
        return list(self).index(value, *args)

    def count(self, value: Any) -> int:
        """Return how often a plane is in the list."""
        return sum(plane is value for plane in self)

    def __mul__(self, n: SupportsIndex) -> list[Any]:
        return list(self) * n

    __rmul__ = __mul__

    def __imul__(self, n: SupportsIndex) -> NoReturn:
        self._refuse("repeating")

    def __reduce__(self) -> Any:
        with self._lock:
            own = {k: self._plane(k) for k in range(len(self)) if not self.is_stored(k)}
            return _rebuilt, (self.source, self.layer, self._where, own, self._budget.limit)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.__reduce__()


def _rebuilt(source: PlaneSource, layer: str, where: list[int | None], own: dict[int, Plane], limit: int) -> PlaneList:
    planes = PlaneList(LazyPlanes(source, layer, []), Budget(limit))
    for k, index in enumerate(where):
        planes.append(own.get(k))
        planes._where[k] = None if k in own else index
    return planes
