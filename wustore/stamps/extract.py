"""Stamps through time: small squares around positions and linear motions, from any reader.

Only the chunks that the stamps touch are read, each of them once however many stamps share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.backends.base import Index, Reader
from wustore.errors import UsageError
from wustore.model.kbmod_rules import hide_pixels, is_masked, no_data_of
from wustore.model.meta import PIXEL_LAYERS
from wustore.model.select import TimeRange, chosen_images
from wustore.stamps.coadd import coadd
from wustore.stamps.sky import numbers_alike, sky_to_pixel
from wustore.stamps.trajectories import nearest_pixel, trajectories_from

__all__ = ["MAX_MEMORY", "Coadds", "Stamps", "stamp_batches", "stamps", "trajectory_coadds", "trajectory_stamps"]

MAX_MEMORY = 256 << 20
"""Working memory beside the result [bytes]: 8000 stamps of 21 x 21 through 18 images at a time."""


@dataclass(frozen=True, eq=False)
class Stamps:
    """Stamps through time.

    S is the shape of what they were asked for: () for one position, (n,) for n positions or trajectories. Each
    stamp has 2 * radius + 1 pixels in y and x.

    Attributes
    ----------
    science, variance
        Shape S + (time, y, x), in the unit of the store. NaN where the frame ends and where the pixel is masked.
        None where not asked for.
    mask
        The flags as stored, 0 where the frame ends or the image has no mask layer. Shape S + (time, y, x).
        None where not asked for.
    inside
        True where there is a pixel of the image, False where the frame ends. Shape S + (time, y, x).
    x, y
        The pixels at the centres of the stamps. Shape S + (time,); `wustore.stamps.trajectories.NOWHERE` where a
        position is not a number.
    times
        MJD [days, UTC]. Shape (time,).
    images
        Indices of the images. Shape (time,).
    radius
        Pixels on either side of the centre.
    """

    science: NDArray[Any] | None
    variance: NDArray[Any] | None
    mask: NDArray[Any] | None
    inside: NDArray[np.bool_]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    times: NDArray[np.float64]
    images: NDArray[np.int64]
    radius: int

    def __len__(self) -> int:
        return len(self.inside)

    def coadd(self, kind: str = "mean") -> NDArray[np.float64]:
        """Return the coadd over time, shape S + (y, x), in the unit of the science layer.

        Parameters
        ----------
        kind
            One of `wustore.stamps.coadd.KINDS`; the rules are those of `wustore.stamps.coadd.coadd`.

        Raises
        ------
        UsageError
            Of an unknown kind, or where the layers it needs were not asked for.
        """
        if self.science is None:
            raise UsageError("a coadd needs the science layer", hint="Ask for it in layers=….")
        return coadd(self.science, kind, self.variance)


@dataclass(frozen=True, eq=False)
class Coadds:
    """Coadded stamps.

    Attributes
    ----------
    values
        Shape (n, y, x), in the unit of the science layer; 0 where no time has data.
    kind
        One of `wustore.stamps.coadd.KINDS`.
    x, y, times, images, radius
        As in `Stamps`.
    """

    values: NDArray[np.float64]
    kind: str
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    times: NDArray[np.float64]
    images: NDArray[np.int64]
    radius: int


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
) -> Stamps:
    """Cut stamps around fixed positions out of every image.

    Parameters
    ----------
    reader
        An open store.
    x, y
        Position or positions [pixel, from 0], shape S. A stamp is centred on the pixel ``floor(x + 0.5)``.
    radius
        Pixels on either side of the centre.
    times
        (start, stop), MJD [days, UTC], both ends included; None leaves an end open. All images by default.
    ra, dec
        Position or positions on the sky instead, ICRS [deg]; each image's WCS says which pixel that is.
    images
        Indices of the images wanted, or a boolean for each.
    layers
        Layers wanted, of science, variance and mask.
    max_memory
        Working memory beside the result [bytes].

    Returns
    -------
    Stamps
        Arrays of shape S + (time, y, x).

    Raises
    ------
    UsageError
        Where an argument cannot be meant.
    CorruptError
        Where the stored bytes are damaged or missing.
    """
    chosen = chosen_images(reader.meta, times, images)
    if x is not None and y is not None and ra is None and dec is None:
        placed = numbers_alike("x and y", x, y)
        centre_x, centre_y = (np.broadcast_to(value[..., None], (*value.shape, len(chosen))) for value in placed)
    elif ra is not None and dec is not None and x is None and y is None:
        centre_x, centre_y = sky_to_pixel(reader.meta, ra, dec, chosen)
    else:
        raise UsageError("the positions of the stamps are not clear", expected="x and y, or ra and dec")
    return _stamps(reader, nearest_pixel(centre_x), nearest_pixel(centre_y), radius, chosen, layers, max_memory)


def trajectory_stamps(
    reader: Reader,
    trajectories: Any,
    radius: int = 10,
    times: TimeRange | None = None,
    *,
    images: Sequence[int] | NDArray[Any] | None = None,
    layers: Sequence[str] = PIXEL_LAYERS,
    max_memory: int = MAX_MEMORY,
) -> Stamps:
    """Cut stamps along linear motions, as KBMOD's stamp functions do, for all trajectories at once.

    Parameters
    ----------
    reader
        An open store.
    trajectories
        In any form that `wustore.stamps.trajectories.trajectories_from` takes: arrays, tables, results files, sky
        positions. At time t the centre is the pixel ``floor(x + vx * (t - t0) + 0.5)``; t0 is the time of
        the first image of the store.
    radius
        Pixels on either side of the centre.
    times
        (start, stop), MJD [days, UTC], both ends included; None leaves an end open. All images by default.
    images
        Indices of the images wanted, or a boolean for each.
    layers
        Layers wanted, of science, variance and mask.
    max_memory
        Working memory beside the result [bytes]. A result that is itself too large comes in parts from
        `stamp_batches`.

    Returns
    -------
    Stamps
        Arrays of shape (n, time, y, x).

    Raises
    ------
    UsageError
        Where an argument cannot be meant.
    CorruptError
        Where the stored bytes are damaged or missing.
    """
    chosen = chosen_images(reader.meta, times, images)
    x, y = _path(reader, trajectories, chosen)
    return _stamps(reader, x, y, radius, chosen, layers, max_memory)


def stamp_batches(
    reader: Reader,
    trajectories: Any,
    radius: int = 10,
    times: TimeRange | None = None,
    *,
    images: Sequence[int] | NDArray[Any] | None = None,
    layers: Sequence[str] = PIXEL_LAYERS,
    max_memory: int = MAX_MEMORY,
) -> Iterator[Stamps]:
    """Yield the stamps of `trajectory_stamps` in parts, some images at a time, for results larger than memory.

    A part holds as many images as fit into half of ``max_memory``, at least those that share a chunk, so that each
    chunk is still read once.

    Parameters
    ----------
    reader, trajectories, radius, times, images, layers, max_memory
        As in `trajectory_stamps`.

    Yields
    ------
    Stamps
        Arrays of shape (n, images of this part, y, x).

    Raises
    ------
    UsageError, CorruptError
        As in `trajectory_stamps`.
    """
    chosen = chosen_images(reader.meta, times, images)
    x, y = _path(reader, trajectories, chosen)
    _check(reader, radius, layers)
    side = 2 * radius + 1
    itemsize = 1 + sum(reader.meta.layer_dtype(layer).itemsize for layer in layers if reader.meta.has_layer(layer))
    fits = max(max_memory // 2 // max(len(x) * side * side * itemsize, 1), 1)
    depth = math.lcm(*(reader.chunks(layer)[0] for layer in layers if reader.meta.has_layer(layer)))
    # Where the images' row of chunks changes, and the end.
    seams = [*(np.flatnonzero(np.diff(chosen // depth)) + 1).tolist(), len(chosen)]
    start = 0
    for seam, following in zip_longest(seams, seams[1:]):
        if following is None or following - start > fits:
            part = slice(start, seam)
            yield _stamps(reader, x[:, part], y[:, part], radius, chosen[part], layers, max_memory // 2)
            start = seam


def trajectory_coadds(
    reader: Reader,
    trajectories: Any,
    radius: int = 10,
    kind: str = "mean",
    times: TimeRange | None = None,
    *,
    images: Sequence[int] | NDArray[Any] | None = None,
    max_memory: int = MAX_MEMORY,
) -> Coadds:
    """Coadd the stamps along linear motions, of any number of trajectories in bounded memory.

    Trajectories that are near to each other are taken together, as many as fit into ``max_memory``, so that most
    chunks are read once.

    Parameters
    ----------
    reader, trajectories, radius, times, images, max_memory
        As in `trajectory_stamps`.
    kind
        One of `wustore.stamps.coadd.KINDS`.

    Returns
    -------
    Coadds
        Values of shape (n, y, x).

    Raises
    ------
    UsageError
        Where an argument cannot be meant.
    CorruptError
        Where the stored bytes are damaged or missing.
    """
    chosen = chosen_images(reader.meta, times, images)
    x, y = _path(reader, trajectories, chosen)
    layers = ("science", "variance") if kind == "weighted" else ("science",)
    _check(reader, radius, layers)
    side = 2 * radius + 1
    values = np.zeros((len(x), side, side))
    fits = max(max_memory // max(len(chosen) * side * side * _COADD_BYTES, 1), 1)
    order = np.argsort(y[:, len(chosen) // 2], kind="stable") if len(chosen) else np.arange(len(x))
    for start in range(0, len(x), fits):
        part = order[start : start + fits]
        found = _stamps(reader, x[part], y[part], radius, chosen, layers, max_memory)
        values[part] = found.coadd(kind)
    return Coadds(values, kind, x, y, reader.meta.times[chosen], chosen, radius)


_COADD_BYTES = 40
"""Memory for one pixel of a stamp while it is coadded [bytes]: its layers, and two float64 arrays."""


def _path(reader: Reader, trajectories: Any, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    meta = reader.meta
    return trajectories_from(trajectories, meta).pixels(meta.times[chosen], float(meta.times[0]))


def _check(reader: Reader, radius: int, layers: Sequence[str]) -> None:
    if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or radius < 0:
        raise UsageError("not a radius of stamps", expected="a whole number of pixels, 0 or more", found=radius)
    unknown = [layer for layer in layers if layer not in PIXEL_LAYERS]
    if isinstance(layers, str) or unknown or not layers:
        raise UsageError("not layers of stamps", expected=f"some of {', '.join(PIXEL_LAYERS)}", found=layers)
    if any(reader.meta.has_layer(layer) for layer in layers):
        return
    raise UsageError("no image has these layers", path=str(reader.path), found=", ".join(layers))


@dataclass(frozen=True)
class _Run:
    """Consecutive images in which a stamp covers the same pixels: one box of the store, its place and its size."""

    box: Index
    place: tuple[Any, ...]
    size: int


def _stamps(
    reader: Reader,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    radius: int,
    chosen: NDArray[np.int64],
    layers: Sequence[str],
    max_memory: int,
) -> Stamps:
    """Cut stamps with centres (x, y), shape S + (time,), out of the chosen images."""
    _check(reader, radius, layers)
    meta, side = reader.meta, 2 * int(radius) + 1
    flat = (math.prod(x.shape[:-1]), len(chosen), side, side)
    runs = _runs(x.reshape(flat[:2]), y.reshape(flat[:2]), int(radius), chosen, meta.image_shape[chosen])
    inside = np.zeros(flat, bool)
    for run in runs:
        inside[run.place] = True
    planes: dict[str, NDArray[Any]] = {}
    has_mask = meta.has_layer("mask")
    mask = np.zeros(flat, meta.layer_dtype("mask") if has_mask else np.int8)
    if has_mask:
        _fill(reader, "mask", runs, mask, max_memory)
    if "mask" in layers:
        planes["mask"] = mask
    masked, no_data = is_masked(mask), no_data_of(meta)
    for layer in ("science", "variance"):
        if layer in layers:
            dtype = meta.layer_dtype(layer)
            values = np.full(flat, np.nan, dtype if dtype.kind == "f" else np.float64)
            _fill(reader, layer, runs, values, max_memory)
            hide_pixels(values, masked, no_data)
            planes[layer] = values
    whole = (*x.shape[:-1], *flat[1:])
    shaped = {layer: values.reshape(whole) for layer, values in planes.items()}
    return Stamps(
        science=shaped.get("science"),
        variance=shaped.get("variance"),
        mask=shaped.get("mask"),
        inside=inside.reshape(whole),
        x=x,
        y=y,
        times=meta.times[chosen],
        images=chosen,
        radius=int(radius),
    )


def _runs(
    x: NDArray[np.int64], y: NDArray[np.int64], radius: int, chosen: NDArray[np.int64], shape: NDArray[np.int32]
) -> list[_Run]:
    """Return the boxes to read, for centres of shape (n, time) and images of true ``shape`` (time, 2)."""
    corner = np.stack([y - radius, x - radius], axis=-1)
    low = np.clip(corner, 0, shape)
    high = np.clip(corner + (2 * radius + 1), 0, shape)
    covered: NDArray[np.bool_] = np.all(high > low, axis=-1)
    begins = covered.copy()
    if x.shape[1] > 1:
        same = (low[:, 1:] == low[:, :-1]).all(axis=-1) & (high[:, 1:] == high[:, :-1]).all(axis=-1)
        same &= (corner[:, 1:] == corner[:, :-1]).all(axis=-1) & (np.diff(chosen) == 1)
        begins[:, 1:] &= ~(same & covered[:, :-1])
    runs = []
    n_times = x.shape[1]
    for n in range(len(x)):
        starts = np.flatnonzero(begins[n]).tolist()
        for a, following in pairwise([*starts, n_times]):
            b = a + 1
            while b < following and covered[n, b]:
                b += 1
            (top, left), (bottom, right) = low[n, a].tolist(), high[n, a].tolist()
            y0, x0 = corner[n, a].tolist()
            i = int(chosen[a])
            runs.append(
                _Run(
                    (slice(i, i + b - a), slice(top, bottom), slice(left, right)),
                    (n, slice(a, b), slice(top - y0, bottom - y0), slice(left - x0, right - x0)),
                    (b - a) * (bottom - top) * (right - left),
                )
            )
    return runs


def _fill(reader: Reader, layer: str, runs: list[_Run], out: NDArray[Any], max_memory: int) -> None:
    """Read what the runs ask of a layer into ``out``, as much at a time as fits into ``max_memory``."""
    chunk = reader.chunks(layer)
    limit = max(max_memory // reader.meta.layer_dtype(layer).itemsize, 1)

    def cell(run: _Run) -> tuple[int, ...]:
        return tuple(part.start // extent for part, extent in zip(run.box, chunk, strict=True))

    if sum(run.size for run in runs) > limit:  # neighbours together: then only chunks at the seams are read twice
        runs = sorted(runs, key=cell)
    start = 0
    while start < len(runs):
        stop, used = start, 0
        while stop < len(runs) and (stop == start or used + runs[stop].size <= limit):
            used += runs[stop].size
            stop += 1
        stop = _back_to_seam(runs, start, stop, chunk[0])
        part = runs[start:stop]
        for run, box in zip(part, reader.read_boxes(layer, [run.box for run in part]), strict=True):
            out[run.place] = box
        start = stop


def _back_to_seam(runs: list[_Run], start: int, stop: int, depth: int) -> int:
    """Return the last place up to ``stop`` where the images' row of chunks changes, or ``stop`` where there is none."""
    if stop == len(runs):
        return stop
    for k in range(stop, start, -1):
        before, here = runs[k - 1].box[0].start // depth, runs[k].box[0].start // depth
        if before != here:
            return k
    return stop
