"""Which images of a store fulfil a condition, and the metadata that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError
from wustore.model.meta import Column, ConstituentTable, Meta
from wustore.model.units import mjd

__all__ = ["FILTER_COLUMNS", "TimeRange", "chosen_images", "consecutive_runs", "image_column", "selected_meta"]

FILTER_COLUMNS = ("filter", "band")
"""Columns of the constituent table that name the filter: KBMOD's ``filter``, and ``band`` of its collections."""

TimeRange = tuple[float | None, float | None]


def chosen_images(
    meta: Meta,
    times: TimeRange | None = None,
    images: Sequence[int] | NDArray[Any] | None = None,
    filters: Sequence[str] | None = None,
) -> NDArray[np.int64]:
    """Return the indices of the images that fulfil every condition given.

    Parameters
    ----------
    times
        (start, stop), MJD [days, UTC] or anything else that `wustore.model.units.mjd` takes, both ends included; None
        leaves an end open. Images without a time are never in a range.
    images
        Indices (negative ones from the end), whose order is kept, or a boolean for every image.
    filters
        Names of filters: an image is chosen when all its constituents were taken through one of them.

    Raises
    ------
    UsageError
        If a condition is invalid, or the table has no column of filters.
    """
    chosen = np.arange(meta.n_images) if images is None else _indices(images, meta.n_images)
    if times is not None:
        chosen = chosen[_within(meta, times)[chosen]]
    if filters is not None:
        wanted = {filters} if isinstance(filters, str) else set(filters)
        of_image = _filters_of(meta)
        chosen = np.array([i for i in chosen.tolist() if of_image[i] and of_image[i] <= wanted], np.int64)
    return chosen.astype(np.int64)


def _indices(images: Sequence[int] | NDArray[Any], n_images: int) -> NDArray[np.int64]:
    wanted = np.asarray(images)
    if wanted.dtype == bool and wanted.shape == (n_images,):
        return np.flatnonzero(wanted)
    if wanted.size == 0:
        return np.empty(0, np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise UsageError("not a selection of images", expected="indices, or one boolean for each image", found=images)
    beyond = (wanted >= n_images) | (wanted < -n_images)
    if beyond.any():
        raise UsageError(
            "there is no such image", expected=f"an index below {n_images}", found=int(wanted[beyond.argmax()])
        )
    return wanted.astype(np.int64) % n_images


def _within(meta: Meta, times: TimeRange) -> NDArray[np.bool_]:
    try:
        start, stop = times
    except (TypeError, ValueError):
        raise UsageError(
            "not a range of times",
            expected="(start, stop), as MJD or as times",
            found=times,
            hint="Single images are chosen by their indices, images=[…].",
        ) from None
    low = -np.inf if start is None else float(mjd(start))
    high = np.inf if stop is None else float(mjd(stop))
    if not low <= high:
        raise UsageError("a range of times ends before it starts", expected="(start, stop) in MJD", found=(start, stop))
    return (meta.times >= low) & (meta.times <= high)


def _filters_of(meta: Meta) -> list[set[str]]:
    """Return the filters of each image's constituents."""
    names = [column.name for column in meta.constituents.columns]
    fitting = [name for wanted in FILTER_COLUMNS for name in names if name == wanted]
    fitting += [name for wanted in FILTER_COLUMNS for name in names if name.lower() == wanted]
    name = fitting[0] if fitting else None
    column = None if name is None else meta.constituents.get(name)
    if column is None:
        raise UsageError(
            "the table of constituent images has no column of filters",
            where="constituents",
            expected=" or ".join(FILTER_COLUMNS),
            found=", ".join(names) or "no columns",
        )
    values = [_text(value) for value in column.values.tolist()]
    return [{values[row] for row in meta.links_of(i)} for i in range(meta.n_images)]


def image_column(meta: Meta, names: Sequence[str]) -> list[Any]:
    """Return a value for each image from the first column of the table of constituents that has one of these names.

    None if there is no such column, no link to a constituent, or only masked cells; if the constituents of an image
    differ, a text with a comma between their values.
    """
    there = [column.name for column in meta.constituents.columns]
    name = next((name for wanted in names for name in there if name.lower() == wanted.lower()), None)
    column = None if name is None else meta.constituents.get(name)
    if column is None or column.kind == "wcs" or column.values.ndim != 1:
        return [None] * meta.n_images
    cells = column.values.tolist()
    if column.mask is not None:
        cells = [None if masked else cell for cell, masked in zip(cells, column.mask.tolist(), strict=True)]
    values: list[Any] = []
    for rows in map(meta.links_of, range(meta.n_images)):
        distinct = list(dict.fromkeys(_plain(cells[row]) for row in rows if cells[row] is not None))
        values.append(distinct[0] if len(distinct) == 1 else ",".join(map(str, distinct)) or None)
    return values


def _plain(cell: Any) -> Any:
    """Return a cell as a number, or as text."""
    return cell if isinstance(cell, int | float) else _text(cell)


def _text(value: object) -> str:
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip()


def consecutive_runs(indices: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the stretches of ``indices`` in which each is one more than that before."""
    bounds = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    yield from ((a, b) for a, b in pairwise(bounds) if b > a)


def _rows(column: Column, rows: NDArray[np.int64]) -> Column:
    return replace(column, values=column.values[rows], mask=None if column.mask is None else column.mask[rows])


def selected_meta(meta: Meta, chosen: NDArray[np.int64]) -> Meta:
    """Return the metadata of the chosen images, with the constituents that they are made of, links renumbered."""
    listed = chosen.tolist()
    table, links = meta.constituents, meta.links
    if links is not None or meta.n_constituents == meta.n_images:
        kept = np.array(sorted({row for i in listed for row in meta.links_of(i)}), np.int64)
        table = ConstituentTable(len(kept), tuple(_rows(column, kept) for column in table.columns), table.meta)
        if links is not None:
            place = {row: k for k, row in enumerate(kept.tolist())}
            links = tuple(tuple(place[row] for row in links[i]) for i in listed)
    return replace(
        meta,
        times=meta.times[chosen],
        image_shape=meta.image_shape[chosen],
        psf_shape=meta.psf_shape[chosen],
        dtypes={layer: tuple(dtypes[i] for i in listed) for layer, dtypes in meta.dtypes.items()},
        links=links,
        constituents=table,
        additions={},
    )
