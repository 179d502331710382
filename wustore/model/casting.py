"""The dtype that a layer is stored in, and casts to it: exact, or refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import FormatError

__all__ = ["cast_plane", "common_dtype"]


def common_dtype(dtypes: Iterable[np.dtype[Any] | None], layer: str) -> np.dtype[Any]:
    """Return the dtype that holds the values of several others exactly.

    Parameters
    ----------
    dtypes
        Of the images; None for an image without this layer.
    layer
        Its name, for messages.

    Raises
    ------
    FormatError
        If there is none (for int64 and float64, say), or no image has this layer.
    """
    present = {dtype for dtype in dtypes if dtype is not None}
    if not present:
        raise FormatError("no image has this layer", where=layer)
    common = np.result_type(*present)
    for dtype in present:
        if not np.can_cast(dtype, common, "safe") or (
            dtype.kind in "iu" and common.kind == "f" and np.iinfo(dtype).bits >= np.finfo(common).nmant
        ):
            raise FormatError(
                "the images' dtypes have no common exact dtype", where=layer, found=sorted(map(str, present))
            )
    return common


def cast_plane(plane: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return ``plane`` in a wider or narrower dtype, exactly, NaN payloads and signalling NaNs included.

    Used where images of one layer differ in dtype: each goes into the array's common dtype and comes back.
    A floating-point unit quietens a signalling NaN that it converts, so NaNs are moved as bits: a binary32
    fraction is the upper 23 of the 52 bits of a binary64 one (IEEE 754-2019, 3.4).
    """
    if plane.dtype == dtype:
        return plane
    with np.errstate(invalid="ignore"):
        cast = plane.astype(dtype)
    pair = (plane.dtype.str[1:], cast.dtype.str[1:])
    if pair not in {("f4", "f8"), ("f8", "f4")}:
        return cast
    where = np.isnan(plane)
    if pair == ("f4", "f8"):
        bits = np.ascontiguousarray(plane).view(np.uint32)[where].astype(np.uint64)
        moved = (bits >> 31 << 63) | np.uint64(0x7FF << 52) | ((bits & 0x7FFFFF) << 29)
        cast.view(np.uint64)[where] = moved
    else:
        wide = np.ascontiguousarray(plane).view(np.uint64)[where]
        narrow = (wide >> 63 << 31) | np.uint64(0xFF << 23) | ((wide >> 29) & 0x7FFFFF)
        cast.view(np.uint32)[where] = narrow.astype(np.uint32)
    return cast
