"""KBMOD's image stack over the planes of a store."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.compat.image_stack import ImageStack
from wustore.compat.plane_list import Budget, PlaneList

__all__ = ["store_stack_class", "store_stack_of"]


@functools.cache
def store_stack_class() -> type:
    """Return the subclass of KBMOD's ``ImageStackPy`` whose planes are in a store; KBMOD is imported now."""
    from kbmod.core.image_stack_py import ImageStackPy

    class StoreStack(ImageStackPy):  # type: ignore[misc]  # KBMOD has no types
        """KBMOD's image stack; ``sci``, ``var`` and ``psfs`` are `wustore.compat.plane_list.PlaneList`."""

        __module__ = __name__
        __qualname__ = "StoreStack"
        sci: Any
        var: Any
        psfs: Any
        times: Any

        def _take(self, positions: Sequence[int]) -> None:
            self.sci, self.var, self.psfs = (
                planes.select(positions) if isinstance(planes, PlaneList) else [planes[k] for k in positions]
                for planes in (self.sci, self.var, self.psfs)
            )
            self.num_times = len(self.sci)
            self.times = np.asarray(self.times)[np.asarray(positions, dtype=int)]
            self.zeroed_times = self.times - self.times[0] if self.num_times else []

        def filter_images(self, mask: ArrayLike) -> None:
            """Keep the images where ``mask`` is True; none is read."""
            keep = np.asarray(mask)[: self.num_times].astype(bool)
            self._take(np.flatnonzero(keep).tolist())

        def sort_by_time(self) -> NDArray[np.intp]:
            """Sort the images by time and return the old indices; none is read."""
            order = np.argsort(self.times)
            self._take(order.tolist())
            return order

        def num_masked_pixels(self) -> NDArray[np.float64]:
            """Return the number of masked pixels of each image; those of images in the store are counted once."""
            counts: dict[int, int] = self.__dict__.setdefault("_masked_counts", {})
            places = [self._place(k) for k in range(self.num_times)]
            new = sorted({place for place in places if place is not None and place not in counts})
            for place, (science, variance) in zip(new, self.sci.source.pairs(new) if new else (), strict=True):
                counts[place] = int(np.count_nonzero(np.isnan(science) | np.isnan(variance)))
            return np.array(
                [
                    np.count_nonzero(self.get_mask(k)) if place is None else counts[place]
                    for k, place in enumerate(places)
                ],
                dtype=float,
            )

        def _place(self, k: int) -> int | None:
            """Return the index in the store of an image whose pixels are as they are there."""
            if not isinstance(self.sci, PlaneList) or not isinstance(self.var, PlaneList):
                return None
            place = self.sci.index_of(k)
            same = place == self.var.index_of(k) and self.sci.is_stored(k) and self.var.is_stored(k)
            return place if same else None

    return StoreStack


def __getattr__(name: str) -> Any:
    if name == "StoreStack":  # pickle looks for it here
        return store_stack_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def store_stack_of(stack: ImageStack, cache: int) -> Any:
    """Return KBMOD's stack over the planes of a lazy stack.

    Parameters
    ----------
    cache
        Bytes that planes which are read more than once may keep.
    """
    theirs = store_stack_class()()
    budget = Budget(cache)
    theirs.sci, theirs.var, theirs.psfs = (
        PlaneList(planes, budget)  # type: ignore[arg-type]
        for planes in (stack.sci, stack.var, stack.psfs)
    )
    theirs.num_times, theirs.height, theirs.width = stack.num_times, stack.height, stack.width
    theirs.times, theirs.zeroed_times = stack.times.copy(), stack.zeroed_times
    return theirs
