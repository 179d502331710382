"""Metadata of one WorkUnit followed by another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import FormatError, UsageError
from wustore.model.meta import LAYERS, Column, ConstituentTable, Meta

__all__ = ["appended"]


def appended(base: Meta, other: Meta, *, path: str | None = None) -> Meta:
    """Return the metadata of the images of ``base`` followed by those of ``other``.

    Configuration, observatory and history are those of ``base``. The constituents of ``other`` follow
    those of ``base``, and its links are moved along.

    Parameters
    ----------
    base, other
        Two WorkUnits in the same pixel space.
    path
        Where ``other`` comes from, for messages.

    Raises
    ------
    UsageError
        Where they do not belong together: another global WCS or reprojection, images larger than the store's
        arrays, layers or dtypes that these cannot hold.
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
        constituents=_table(base.constituents, other.constituents),
        mask_flags={**other.mask_flags, **base.mask_flags},
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_layer(base: Meta, other: Meta, layer: str, path: str | None) -> None:
    """Refuse what the array of this layer cannot hold as it stands: existing chunks are never rewritten."""
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


def _table(a: ConstituentTable, b: ConstituentTable) -> ConstituentTable:
    names = [column.name for column in a.columns]
    names += [column.name for column in b.columns if column.name not in names]
    columns = tuple(_column(a.get(name), b.get(name), a.n_rows, b.n_rows) for name in names)
    return ConstituentTable(a.n_rows + b.n_rows, columns, _meta(b.meta, a.meta))


def _meta(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    return {**strong, **{key: value for key, value in weak.items() if key not in strong}}


def _column(a: Column | None, b: Column | None, n_a: int, n_b: int) -> Column:
    if a is None:
        assert b is not None
        a = _nothing(b, n_a)
    if b is None:
        b = _nothing(a, n_b)
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
    """Return a column without values: None where the kind knows it, masked cells where it does not."""
    if like.kind != "plain":
        return replace(like, values=np.full(n, None, dtype=object), mask=None)
    values = np.zeros((n, *like.values.shape[1:]), dtype=like.values.dtype)
    return replace(like, values=values, mask=np.ones(values.shape, dtype=bool))


def _common(a: NDArray[Any], b: NDArray[Any]) -> np.dtype[Any] | None:
    """Return the dtype that holds both columns exactly, None where there is none."""
    if a.shape[1:] != b.shape[1:]:
        return None
    if a.dtype == b.dtype:
        return a.dtype
    if a.dtype.kind != b.dtype.kind or a.dtype.kind not in "USiuf":
        return None
    return np.result_type(a.dtype, b.dtype)


def _as_objects(column: Column) -> Column:
    """Return a column as mixed values; numbers become Python's, so that 1 and 1.5 stand beside each other."""
    if column.kind != "plain":
        return replace(column, kind="json")
    values = np.empty(len(column.values), dtype=object)
    mask = _mask(column)
    for k, cell in enumerate(column.values):
        values[k] = (
            None if mask[k].all() and mask[k].size else (cell.tolist() if isinstance(cell, np.ndarray) else cell.item())
        )
    return replace(column, kind="json", values=values, mask=None)
