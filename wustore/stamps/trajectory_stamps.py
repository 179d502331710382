"""Stamps along trajectories, and around fixed positions: a small square of each image, from any reader.

Only the chunks that the stamps touch are read, each of them once however many stamps share it
(`wustore.stamps.cutting.shared_chunks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.backends.base import Progress, Reader
from wustore.errors import UsageError
from wustore.model.kbmod_rules import no_data_of
from wustore.model.meta import PIXEL_LAYERS
from wustore.model.select import TimeRange, chosen_images
from wustore.model.units import whole_pixels
from wustore.stamps.coadd import RunningCoadd, check_kind
from wustore.stamps.cutting.gather import Gather, as_index
from wustore.stamps.cutting.shared_chunks import Windows
from wustore.stamps.notebook import with_bar
from wustore.stamps.results import Coadds, Stamps
from wustore.stamps.sky import linked_wcs_or_none, numbers_alike, sky_to_pixel
from wustore.stamps.trajectories import nearest_pixel, trajectories_from
from wustore.storage import buffers
from wustore.storage.threads import in_threads, read_ahead

__all__ = ["MAX_MEMORY", "stamp_batches", "stamps", "trajectory_coadds", "trajectory_stamps"]

MAX_MEMORY = 256 << 20
"""Working memory besides the result [bytes]: the pixels of 16 images of 2048 x 2048."""


@with_bar("cutting")
def stamps(
    reader: Reader,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    radius: int = 10,
    times: TimeRange | None = None,
    *,
    ra: ArrayLike | None = None,
    dec: ArrayLike | None = None,
    images: Sequence[int] | NDArray[Any] | None = None,
    layers: Sequence[str] = PIXEL_LAYERS,
    max_memory: int = MAX_MEMORY,
    progress: Progress | None = None,
) -> Stamps:
    """Cut stamps around fixed positions out of every image; parameters as of `wustore.WorkUnit.stamps`.

    Examples
    --------
    >>> from wustore.testing import sample
    >>> found = stamps(sample("chunked"), x=100, y=150, radius=10)
    >>> found.science.shape
    (3, 21, 21)
    """
    wanted = _Request(reader, radius, chosen_images(reader.meta, times, images), layers, max_memory)
    if x is not None and y is not None and ra is None and dec is None:
        placed = numbers_alike("pix", x=x, y=y)
        shape = placed[0].shape
        centre_x, centre_y = (np.broadcast_to(value[..., None], (*shape, len(wanted.images))) for value in placed)
    elif ra is not None and dec is not None and x is None and y is None:
        centre_x, centre_y = sky_to_pixel(reader.meta, ra, dec, wanted.images)
    else:
        raise UsageError("the positions of the stamps are not clear", expected="x and y, or ra and dec")
    ids = np.arange(math.prod(centre_x.shape[:-1])).reshape(centre_x.shape[:-1])
    return wanted.stamps(nearest_pixel(centre_x), nearest_pixel(centre_y), ids, progress)


@with_bar("cutting")
def trajectory_stamps(
    reader: Reader,
    trajectories: Any,
    radius: int = 10,
    times: TimeRange | None = None,
    *,
    images: Sequence[int] | NDArray[Any] | None = None,
    layers: Sequence[str] = PIXEL_LAYERS,
    max_memory: int = MAX_MEMORY,
    progress: Progress | None = None,
) -> Stamps:
    """Cut stamps along linear motions; parameters as of `wustore.WorkUnit.trajectory_stamps`.

    Examples
    --------
    >>> from wustore.testing import sample
    >>> found = trajectory_stamps(sample("chunked"), [(100, 200, 3.5, 0.5), (50, 60, 0, 0)], radius=5)
    >>> found.science.shape, found.coadd("median").shape
    ((2, 3, 11, 11), (2, 11, 11))
    """
    wanted = _Request(reader, radius, chosen_images(reader.meta, times, images), layers, max_memory)
    return wanted.stamps(*wanted.path(trajectories), progress)


def stamp_batches(
    reader: Reader,
    trajectories: Any,
    radius: int = 10,
    times: TimeRange | None = None,
    *,
    images: Sequence[int] | NDArray[Any] | None = None,
    layers: Sequence[str] = PIXEL_LAYERS,
    max_memory: int = MAX_MEMORY,
    progress: Progress | None = None,
) -> Iterator[Stamps]:
    """Yield the stamps of `trajectory_stamps` in batches, for results larger than memory; each chunk is read once.

    A batch holds all trajectories and as many images as fit into half of ``max_memory``, images that share a chunk
    together. If the trajectories do not fit for one image, there are several batches for it, each with some
    trajectories; `Stamps.ids` says which.
    """
    wanted = _Request(reader, radius, chosen_images(reader.meta, times, images), layers, max_memory // 2)
    x, y, ids = wanted.path(trajectories)
    n_times = len(wanted.images)
    windows = wanted.windows(x, y)
    fits = max_memory // 2 // max(len(x) * wanted.stamp_bytes, 1)
    # Where the images' row of chunks changes, and the end; a row whose stamps do not fit is cut by trajectories.
    seams = sorted({part.times.stop for part in windows.parts})
    start = 0
    for seam, following in zip_longest(seams, seams[1:]):
        if following is not None and following - start <= fits:
            continue
        part = slice(start, seam)
        if seam - start <= fits:
            yield wanted.part(part).stamps(x[:, part], y[:, part], ids)
        else:
            yield from wanted.cut_by_trajectories(windows, range(start, seam), x, y, ids)
        start = seam
        if progress is not None:
            progress(seam, n_times)


@with_bar("coadding")
def trajectory_coadds(
    reader: Reader,
    trajectories: Any,
    radius: int = 10,
    kind: str = "mean",
    times: TimeRange | None = None,
    *,
    images: Sequence[int] | NDArray[Any] | None = None,
    max_memory: int = MAX_MEMORY,
    progress: Progress | None = None,
) -> Coadds:
    """Coadd the stamps along linear motions; parameters as of `wustore.WorkUnit.trajectory_coadds`.

    ``sum``, ``mean`` and ``weighted`` add image after image to all coadds, so each chunk is read once. A ``median``
    needs the stamps of all times at once: trajectories that are near to each other are taken together, as many as fit
    into ``max_memory``, and chunks that several of these groups touch are read for each of them.
    """
    check_kind(kind)
    layers = ("science", "variance") if kind == "weighted" else ("science",)
    wanted = _Request(reader, radius, chosen_images(reader.meta, times, images), layers, max_memory)
    x, y, ids = wanted.path(trajectories)
    values = wanted.medians(x, y, progress) if kind == "median" else wanted.running(kind, x, y, progress)
    return Coadds(values=values, kind=kind, x=x, y=y, ids=ids, **wanted.facts)


@dataclass(frozen=True, eq=False)
class _Request:
    """What is to be cut out, but for the positions."""

    reader: Reader
    radius: Any
    images: NDArray[np.int64]
    layers: Sequence[str]
    max_memory: int

    def __post_init__(self) -> None:
        layers, meta = self.layers, self.reader.meta
        radius = whole_pixels(self.radius, "radius")
        if radius < 0:
            raise UsageError("not a radius of stamps", expected="a whole number of pixels, 0 or more", found=radius)
        object.__setattr__(self, "radius", radius)
        unknown = [layer for layer in layers if layer not in PIXEL_LAYERS]
        if isinstance(layers, str) or unknown or not layers:
            raise UsageError("not layers of stamps", expected=f"some of {', '.join(PIXEL_LAYERS)}", found=layers)
        if not any(meta.has_layer(layer) for layer in layers):
            raise UsageError("no image has these layers", path=str(self.reader.path), found=", ".join(layers))

    @property
    def side(self) -> int:
        """Of a stamp [pixel]."""
        return 2 * int(self.radius) + 1

    @property
    def stamp_bytes(self) -> int:
        """Bytes of a stamp, all its layers together."""
        return self.side**2 * (1 + sum(self.dtypes[layer].itemsize for layer in self.layers))

    @property
    def facts(self) -> dict[str, Any]:
        """What results say about where they come from."""
        meta = self.reader.meta
        return {
            "times": meta.times[self.images],
            "images": self.images,
            "radius": int(self.radius),
            "wcs": tuple(linked_wcs_or_none(meta, i) for i in self.images.tolist()),
            "source": str(self.reader.path),
        }

    @cached_property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """The dtypes of stamps of each layer: floating, so that NaN fits, but for masks."""
        dtypes: dict[str, np.dtype[Any]] = dict.fromkeys(PIXEL_LAYERS, np.dtype(np.float64))
        dtypes["mask"] = np.dtype(np.int8)
        for layer in filter(self.reader.meta.has_layer, PIXEL_LAYERS):
            dtype = self.reader.meta.layer_dtype(layer)
            if layer == "mask" or dtype.kind == "f":
                dtypes[layer] = dtype
        return dtypes

    def part(self, places: slice) -> _Request:
        """Return the request for some of the images."""
        return _Request(self.reader, self.radius, self.images[places], self.layers, self.max_memory)

    def path(self, trajectories: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """Return the pixels (x, y) that trajectories pass, shape (n, time), and their names."""
        meta = self.reader.meta
        found = trajectories_from(trajectories, meta)
        return *found.pixels(meta.times[self.images], float(meta.times[0])), found.names

    def windows(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> Windows:
        """Return what is to be read around centres of shape (n, time)."""
        layers = [layer for layer in PIXEL_LAYERS if layer in self.layers or layer == "mask"]
        together = self.max_memory // max(len(y) * self.stamp_bytes, 1)
        return Windows(self.reader, layers, self.images, y, x, int(self.radius), self.max_memory, together)

    def stamps(
        self, x: NDArray[np.int64], y: NDArray[np.int64], ids: NDArray[Any], progress: Progress | None = None
    ) -> Stamps:
        """Cut stamps around centres (x, y), shape S + (time,)."""
        n_times = len(self.images)
        flat_x, flat_y = (values.reshape(math.prod(x.shape[:-1]), n_times) for values in (x, y))
        windows = self.windows(flat_x, flat_y)
        arrays = self._arrays(len(flat_x), n_times)

        def work(p: int) -> None:
            part = windows.parts[p]
            for gather in windows.load(part).gathers():
                self._cut_into(arrays, gather, gather.members, part.times.start)

        for p, _ in read_ahead(work, range(len(windows.parts)), windows.workers):
            if progress is not None:
                progress(windows.parts[p].times.stop, n_times)
        shaped = {name: values.reshape(*x.shape, *values.shape[2:]) for name, values in arrays.items()}
        return self._result(shaped, x, y, ids)

    def cut_by_trajectories(
        self, windows: Windows, places: range, x: NDArray[np.int64], y: NDArray[np.int64], ids: NDArray[Any]
    ) -> Iterator[Stamps]:
        """Yield stamps of some images in pieces that fit, each with some of the trajectories."""
        request = self.part(slice(places.start, places.stop))
        fits = max(self.max_memory // (len(places) * self.stamp_bytes), 1)
        for part in [part for part in windows.parts if part.times.start in places]:
            block = windows.load(part)
            for start in range(0, len(part.members), fits):
                members = part.members[start : start + fits]
                arrays = self._arrays(len(members), len(places))

                def cut(
                    gather: Gather, arrays: dict[str, NDArray[Any]] = arrays, members: NDArray[np.int64] = members
                ) -> None:
                    self._cut_into(arrays, gather, members.searchsorted(gather.members))

                in_threads(cut, block.gathers(start, start + fits))
                centres = x[members][:, places.start : places.stop], y[members][:, places.start : places.stop]
                yield request._result(arrays, *centres, ids[members])

    def _arrays(self, n: int, n_times: int) -> dict[str, NDArray[Any]]:
        shape = (n, n_times, self.side, self.side)
        arrays = {layer: buffers.empty(shape, self.dtypes[layer]) for layer in self.layers}
        return arrays | {"inside": buffers.empty(shape, bool)}

    def _cut_into(
        self, arrays: dict[str, NDArray[Any]], gather: Gather, rows: NDArray[np.int64], first: int = 0
    ) -> None:
        """Put stamps into arrays by layer, shape (n, time, y, x), masked pixels NaN.

        Parameters
        ----------
        rows, first
            Their places on the first axis, and the place of their first time.
        """
        meta, mask = self.reader.meta, None
        if "mask" in arrays:
            gather.cut_into(arrays["mask"], rows, first, "mask", 0)
            mask = arrays["mask"], rows, first
        elif meta.has_layer("mask"):
            mask = gather.cut("mask", 0, self.dtypes["mask"]), np.arange(len(rows)), 0
        for layer in ("science", "variance"):
            if layer in arrays:
                gather.cut_into(arrays[layer], rows, first, layer, np.nan, mask, no_data_of(meta))
        if "inside" in arrays:
            gather.mark_inside(arrays["inside"], rows, first)

    def _result(
        self, arrays: dict[str, NDArray[Any]], x: NDArray[np.int64], y: NDArray[np.int64], ids: NDArray[Any]
    ) -> Stamps:
        layers = {layer: arrays.get(layer) for layer in PIXEL_LAYERS}
        return Stamps(**layers, inside=arrays["inside"], x=x, y=y, ids=ids, **self.facts)  # type: ignore[arg-type]

    # --- coadds --------------------------------------------------------------------------------------------

    def running(
        self, kind: str, x: NDArray[np.int64], y: NDArray[np.int64], progress: Progress | None
    ) -> NDArray[np.float64]:
        """Return coadds to which one image after the other is added."""
        windows = self.windows(x, y)
        total = RunningCoadd(kind, (len(x), self.side, self.side))

        def add(gather: Gather) -> None:
            members = gather.members
            cut = self._arrays(len(members), gather.n_times)
            del cut["inside"]
            self._cut_into(cut, gather, np.arange(len(members)))
            for k in range(gather.n_times):
                of_time = {layer: stamps[:, k] for layer, stamps in cut.items()}
                total.add(as_index(members), of_time["science"], of_time.get("variance"))

        parts = windows.parts
        for p, block in read_ahead(lambda p: windows.load(parts[p]), range(len(parts)), windows.workers):
            in_threads(add, block.gathers())
            if progress is not None:
                progress(parts[p].times.stop, len(self.images))
        return total.result()

    def medians(self, x: NDArray[np.int64], y: NDArray[np.int64], progress: Progress | None) -> NDArray[np.float64]:
        """Return coadds of kind ``median``, some trajectories at a time."""
        n_times = len(self.images)
        values = np.zeros((len(x), self.side, self.side))
        # The stamps and their frames, and what sorting them takes.
        one = max(n_times * self.side**2 * (4 * self.dtypes["science"].itemsize + 8), 1)
        fits = max(self.max_memory // one, 1)
        order = _near_together(x[:, n_times // 2], y[:, n_times // 2], fits) if n_times else np.arange(len(x))
        for start in range(0, len(x), fits):
            part = order[start : start + fits]
            values[part] = self.stamps(x[part], y[part], part).coadd("median")
            if progress is not None:
                progress(min(start + fits, len(x)) * n_times // len(x), n_times)
        return values


def _near_together(x: NDArray[np.int64], y: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return an order of positions in which ``size`` that follow each other lie in about a square."""
    strips = max(int(np.sqrt(len(x) / size)), 1)
    by_y = np.argsort(y, kind="stable")
    strip = np.empty(len(x), np.int64)
    strip[by_y] = np.arange(len(x)) * strips // max(len(x), 1)
    return np.lexsort((x, strip))
