"""Metadata of one WorkUnit followed by another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import FormatError, UsageError
from wustore.model.meta import LAYERS, Column, ConstituentTable, Meta, Observatory

__all__ = ["appended"]


def appended(base: Meta, other: Meta, *, path: str | None = None) -> Meta:
    """Return the metadata of the images of ``base`` followed by those of ``other``.

    Configuration, observatory and history are those of ``base``. The constituents of ``other`` follow
    those of ``base``, in the units of its columns, and its links are moved along.

    Parameters
    ----------
    base, other
        Two WorkUnits in the same pixel space.

    Raises
    ------
    UsageError
        If they do not belong together: another global WCS, reprojection or observatory, other meanings of the mask's
        bits, images larger than the store's arrays, layers or dtypes that these cannot hold, columns in units that
        cannot be converted exactly.
    """
    for name in ("wcs", "reprojected", "reprojection_frame", "barycentric_distance"):
        if getattr(base, name) != getattr(other, name):
            raise UsageError(
                "the images do not belong to this store",
                path=path,
                where=name,
                expected=_short(getattr(base, name)),
                found=_short(getattr(other, name)),
            )
    _check_observatory(base.observatory, other.observatory, path)
    dtypes = {layer: (*base.dtypes[layer], *other.dtypes[layer]) for layer in LAYERS}
    for layer in LAYERS:
        _check_layer(base, other, layer, path)
    return replace(
        base,
        times=np.concatenate([base.times, other.times]),
        image_shape=np.concatenate([base.image_shape, other.image_shape]),
        psf_shape=np.concatenate([base.psf_shape, other.psf_shape]),
        dtypes=dtypes,
        links=_links(base, other, path),
        constituents=_table(base.constituents, other.constituents, path),
        mask_flags=_flags(base.mask_flags, other.mask_flags, path),
    )


_DEGREES, _METRES = 1e-7, 0.01
"""How far apart two observatories are the same one: FITS cards, and the way from one form to the other, round."""


def _check_observatory(base: Observatory | None, other: Observatory | None, path: str | None) -> None:
    """Refuse images of another observatory: a store has one, and the parallax correction uses it."""
    if other is None or base == other:
        return
    if base is not None:
        apart = [abs(a - b) for a, b in zip(base.geodetic, other.geodetic, strict=True)]
        apart[1] = min(apart[1], abs(360 - apart[1]))
        if apart[0] <= _DEGREES and apart[1] <= _DEGREES and apart[2] <= _METRES:
            return
    raise UsageError(
        "the images are of another observatory than the store's",
        path=path,
        where="observatory",
        expected=None if base is None else base.geodetic,
        found=other.geodetic,
        hint="Keep them in a store of their own.",
    )


def _flags(base: Mapping[str, int], other: Mapping[str, int], path: str | None) -> dict[str, int]:
    """Return the meanings of the mask's bits on both sides; refuse a name or a bit that would mean two things."""
    names = {bit: name for name, bit in base.items()}
    for name, bit in other.items():
        known, meaning = base.get(name, bit), names.get(bit, name)
        if known != bit or (meaning != name and base.get(name) != bit):
            raise UsageError(
                "the mask flags of the images mean other things than the store's",
                path=path,
                where=f"mask flag {name!r}",
                expected=f"value {known}" if known != bit else f"value {bit} is {meaning!r}",
                found=f"value {bit}",
                hint="Keep them in a store of their own.",
            )
    return {**other, **base}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_layer(base: Meta, other: Meta, layer: str, path: str | None) -> None:
    """Refuse what the array of this layer cannot hold as it is: existing chunks are never rewritten."""
    if not other.has_layer(layer):
        return
    hint = "Convert both into a new store instead."
    if not base.has_layer(layer):
        raise UsageError("the store does not have this layer", path=path, where=layer, hint=hint)
    dtype = base.layer_dtype(layer)
    try:
        common = replace(other, dtypes={**other.dtypes, layer: (*other.dtypes[layer][1:], dtype)}).layer_dtype(layer)
        common = np.result_type(common, other.layer_dtype(layer))
    except FormatError as error:
        raise UsageError(error.what, path=path, where=layer, found=error.found, hint=hint) from error
    if common != dtype:
        raise UsageError(
            "the store's dtype does not hold these images", path=path, where=layer, expected=dtype, hint=hint
        )
    room, needed = base.layer_shape(layer)[1:], other.layer_shape(layer)[1:]
    if any(a < b for a, b in zip(room, needed, strict=True)):
        raise UsageError(
            "an image is larger than the store's arrays", path=path, where=layer, expected=room, found=needed, hint=hint
        )


def _links(base: Meta, other: Meta, path: str | None) -> tuple[tuple[int, ...], ...] | None:
    if base.links is None and other.links is None:
        return None

    def known(meta: Meta) -> tuple[tuple[int, ...], ...]:
        if meta.links is not None:
            return meta.links
        if meta.n_images != meta.n_constituents:
            raise UsageError("one side has no links from images to constituents", path=path)
        return tuple((i,) for i in range(meta.n_images))

    offset = base.n_constituents
    moved = tuple(tuple(index + offset for index in indices) for indices in known(other))
    return known(base) + moved


# --- the table ----------------------------------------------------------------------------------------


def _table(a: ConstituentTable, b: ConstituentTable, path: str | None) -> ConstituentTable:
    names = [column.name for column in a.columns]
    names += [column.name for column in b.columns if column.name not in names]
    columns = tuple(_column(a.get(name), b.get(name), a.n_rows, b.n_rows, path) for name in names)
    return ConstituentTable(a.n_rows + b.n_rows, columns, _meta(b.meta, a.meta))


def _meta(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    return {**strong, **{key: value for key, value in weak.items() if key not in strong}}


def _in_unit(column: Column, unit: str | None, path: str | None) -> Column:
    """Return a column in another unit."""
    if column.unit == unit:
        return column
    refusal = UsageError(
        "a column has another unit than the store's, and cannot be converted exactly",
        path=path,
        where=f"column {column.name!r}",
        expected=f"unit {unit}",
        found=f"unit {column.unit}",
        hint="Convert it in the source, or keep the images in a store of their own.",
    )
    if unit is None or column.unit is None:
        raise refusal
    from astropy.units import Unit, UnitConversionError, UnitTypeError

    try:
        here, there = Unit(column.unit), Unit(unit)
        if here == there:
            return replace(column, unit=unit)
        if column.kind != "plain" or column.values.dtype.kind != "f":
            raise refusal
        values = np.asarray(here.to(there, column.values)).astype(column.values.dtype)
    except (ValueError, TypeError, UnitConversionError, UnitTypeError) as error:
        if error is refusal:
            raise
        raise refusal from error
    return replace(column, values=values, unit=unit)


def _column(a: Column | None, b: Column | None, n_a: int, n_b: int, path: str | None) -> Column:
    if a is None:
        assert b is not None
        a = _nothing(b, n_a)
    if b is None:
        b = _nothing(a, n_b)
    b = _in_unit(b, a.unit, path)
    if a.kind != b.kind or (a.kind == "plain" and _common(a.values, b.values) is None):
        a, b = _as_objects(a), _as_objects(b)
    mask = None
    if a.mask is not None or b.mask is not None:
        mask = np.concatenate([_mask(a), _mask(b)])
    values: NDArray[Any]
    if a.kind == "plain":
        dtype = _common(a.values, b.values)
        assert dtype is not None
        values = np.concatenate([a.values.astype(dtype), b.values.astype(dtype)])
    else:
        values = np.concatenate([a.values, b.values])
    return replace(a, values=values, mask=mask, meta=_meta(b.meta, a.meta))


def _mask(column: Column) -> NDArray[np.bool_]:
    return np.zeros(column.values.shape, dtype=bool) if column.mask is None else column.mask


def _nothing(like: Column, n: int) -> Column:
    """Return a column without values: None if the kind knows it, masked cells if it does not."""
    if like.kind != "plain":
        return replace(like, values=np.full(n, None, dtype=object), mask=None)
    values = np.zeros((n, *like.values.shape[1:]), dtype=like.values.dtype)
    return replace(like, values=values, mask=np.ones(values.shape, dtype=bool))


def _common(a: NDArray[Any], b: NDArray[Any]) -> np.dtype[Any] | None:
    """Return the dtype that holds both columns exactly, None if there is none."""
    if a.shape[1:] != b.shape[1:]:
        return None
    if a.dtype == b.dtype:
        return a.dtype
    if a.dtype.kind != b.dtype.kind or a.dtype.kind not in "USiuf":
        return None
    return np.result_type(a.dtype, b.dtype)


def _as_objects(column: Column) -> Column:
    """Return a column as mixed values; numbers become Python's, so that 1 and 1.5 can be in one column."""
    if column.kind != "plain":
        return replace(column, kind="json")
    values = np.empty(len(column.values), dtype=object)
    mask = _mask(column)
    for k, cell in enumerate(column.values):
        values[k] = (
            None if mask[k].all() and mask[k].size else (cell.tolist() if isinstance(cell, np.ndarray) else cell.item())
        )
    return replace(column, kind="json", values=values, mask=None)
