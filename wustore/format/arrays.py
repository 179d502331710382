"""Small arrays of a store, whole: what a store holds besides the layers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.model.meta import LAYERS

__all__ = ["ESCAPED", "ArraySpec", "checksum_array", "escaped", "unescaped"]

ESCAPED = "wustore_escaped"
"""Attribute of an array of text whose strings are JSON literals."""


@dataclass(frozen=True, eq=False)
class ArraySpec:
    """A small array, whole: what a backend stores besides the layers.

    Attributes
    ----------
    name
        Path below the root, ``/`` between groups.
    data
        Native numpy array, or an object array of `str` for variable-length text.
    """

    name: str
    data: NDArray[Any]
    dims: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def escaped(texts: Iterable[str]) -> list[str] | None:
    """Return texts as JSON literals if UTF-8 cannot hold one of them (a lone surrogate), else None."""
    texts = list(texts)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return list(map(json.dumps, texts))
    return None


def unescaped(texts: Iterable[str]) -> list[str]:
    """Return the texts of JSON literals.

    Raises
    ------
    ValueError
        If one is not the literal of a string.
    """
    found = list(map(json.loads, texts))
    if not all(isinstance(text, str) for text in found):
        raise ValueError("it is no string")
    return found


CHECKSUM_DIMS = ("time", "checksum_layer")


def checksum_array(rows: NDArray[np.uint32]) -> ArraySpec:
    """Return the array of checksums, shape (n_images, 4), as it is stored."""
    return ArraySpec(
        "checksum", rows, CHECKSUM_DIMS, {"long_name": "CRC-32C of each plane's values", "layers": " ".join(LAYERS)}
    )
