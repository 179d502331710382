"""Small arrays of a store, whole: what stands next to the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.model.meta import LAYERS

__all__ = ["ArraySpec", "checksum_array"]


@dataclass(frozen=True, eq=False)
class ArraySpec:
    """A small array, whole: what a backend stores besides the layers.

    Attributes
    ----------
    name
        Path below the root, ``/`` between groups.
    data
        Native numpy array, or an object array of `str` for variable-length text.
    dims
        One dimension name per axis.
    attributes
        JSON attributes.
    """

    name: str
    data: NDArray[Any]
    dims: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


CHECKSUM_DIMS = ("time", "checksum_layer")


def checksum_array(rows: NDArray[np.uint32]) -> ArraySpec:
    """Return the array of checksums, shape (n_images, 4), as it is stored."""
    return ArraySpec(
        "checksum", rows, CHECKSUM_DIMS, {"long_name": "CRC-32C of each plane's values", "layers": " ".join(LAYERS)}
    )
