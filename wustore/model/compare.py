"""Deep comparison of values, arrays and metadata: type for type and bit for bit, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.model.meta import LAYERS, Column, ConstituentTable, Meta

__all__ = ["Difference", "meta_differences", "same_value", "table_differences"]


@dataclass(frozen=True)
class Difference:
    """One difference: where it is, and what either side has there.

    Attributes
    ----------
    where
        The place: a value of the metadata, or a layer of an image.
    left, right
        What either side has there, as text.
    largest
        The largest absolute difference of the pixels of that layer and image; None for anything else.
    """

    where: str
    left: str
    right: str
    largest: float | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.left} != {self.right}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_PLAIN = {type(None), bool, int, str}


def same_value(a: Any, b: Any, *, ordered: bool = True) -> bool:
    """Return whether two Python values are equal, type for type, NaN equal to NaN and -0.0 unlike 0.0.

    Parameters
    ----------
    ordered
        Whether the order of the keys of a mapping counts.
    """
    if type(a) is type(b) and type(a) in _PLAIN:
        return bool(a == b)
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic):
        return type(a) is type(b) and same_bits(np.asarray(a), np.asarray(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return same_value(a.real, b.real) and same_value(a.imag, b.imag)
    if isinstance(a, Mapping):
        keys_agree = list(a) == list(b) if ordered else a.keys() == b.keys()
        return keys_agree and all(same_value(a[key], b[key], ordered=ordered) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_value(x, y, ordered=ordered) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays have the same shape, dtype and bits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.hasobject:
        return all(same_value(x, y) for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _column_difference(a: Column, b: Column) -> Difference | None:
    where = f"column {a.name!r}"
    for name in ("kind", "unit", "description", "format"):
        if getattr(a, name) != getattr(b, name):
            return Difference(f"{where}, {name}", _short(getattr(a, name)), _short(getattr(b, name)))
    if not same_value(dict(a.meta), dict(b.meta)):
        return Difference(f"{where}, meta", _short(a.meta), _short(b.meta))
    for name, left, right in (("values", a.values, b.values), ("mask", a.mask, b.mask)):
        if left is None and right is None:
            continue
        if left is None or right is None or not same_bits(left, right):
            return Difference(f"{where}, {name}", _short(left), _short(right))
    return None


def table_differences(a: ConstituentTable, b: ConstituentTable) -> Iterator[Difference]:
    """Yield what differs between two tables of constituent images."""
    names = [column.name for column in a.columns], [column.name for column in b.columns]
    if a.n_rows != b.n_rows:
        yield Difference("number of constituent images", str(a.n_rows), str(b.n_rows))
    if names[0] != names[1]:
        yield Difference("columns", _short(names[0]), _short(names[1]))
    if not same_value(dict(a.meta), dict(b.meta)):
        yield Difference("table metadata", _short(a.meta), _short(b.meta))
    for column in a.columns:
        other = b.get(column.name)
        if other is not None and (difference := _column_difference(column, other)) is not None:
            yield difference


def meta_differences(a: Meta, b: Meta) -> Iterator[Difference]:
    """Yield what differs between two metadata, ``source`` and ``history`` aside."""
    if a.n_images != b.n_images:
        yield Difference("number of images", str(a.n_images), str(b.n_images))
        return
    for name in ("times", "image_shape", "psf_shape"):
        left, right = getattr(a, name), getattr(b, name)
        if not same_bits(left, right):
            i = next(k for k in range(a.n_images) if left[k].tobytes() != right[k].tobytes())
            yield Difference(f"{name} of image {i}", _short(left[i]), _short(right[i]))
    for layer in LAYERS:
        if a.dtypes[layer] != b.dtypes[layer]:
            yield Difference(f"dtypes of {layer}", _short(a.dtypes[layer]), _short(b.dtypes[layer]))
    simple = ("links", "wcs", "reprojected", "reprojection_frame", "barycentric_distance", "observatory")
    for name in (*simple, "configuration", "mask_flags", "additions"):
        left, right = getattr(a, name), getattr(b, name)
        if name == "observatory" and left is not None and right is not None:
            same = same_value(left.geodetic, right.geodetic) and same_value(left.geocentric, right.geocentric)
        else:
            same = same_value(left, right)
        if not same:
            yield from _value_differences(name, left, right)
    yield from table_differences(a.constituents, b.constituents)


def _value_differences(name: str, left: Any, right: Any) -> Iterator[Difference]:
    """Yield a difference per key for mappings, one for anything else."""
    if isinstance(left, Mapping) and isinstance(right, Mapping) and list(left) == list(right):
        for key in left:
            if not same_value(left[key], right[key]):
                yield Difference(f"{name}[{key!r}]", _short(left[key]), _short(right[key]))
    else:
        yield Difference(name, _short(left), _short(right))
