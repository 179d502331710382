"""Which arrays and attributes a store consists of, so that what others added to it is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from wustore.format.arrays import ArraySpec, checksum_array
from wustore.format.document import arrays_of
from wustore.format.packed import pack
from wustore.format.planes import LayerSpec, layers_of
from wustore.model.meta import LAYERS, Meta

__all__ = ["foreign_content", "own_content"]

_FITS = ("fits/data", "fits/bound")
"""The FITS reconstruction data."""


def own_content(meta: Meta) -> dict[str, set[str]]:
    """Return the names of the attributes of each array and group that wustore writes for ``meta``."""
    sums = checksum_array(np.zeros((meta.n_images, len(LAYERS)), np.uint32))
    specs: list[ArraySpec | LayerSpec] = [*layers_of(meta), *arrays_of(meta), sums, pack([])]
    own = {spec.name: set(spec.attributes) for spec in specs}
    own |= {name: {"long_name"} for name in _FITS}
    own |= {group: set() for group in {name.rpartition("/")[0] for name in (*own, "constituents/")} - {""}}
    return own


def foreign_content(
    own: Mapping[str, set[str]], stored: Iterable[tuple[str, str, Iterable[str]]], ignored: Iterable[str] = ()
) -> Iterator[str]:
    """Yield in words what a store holds that wustore did not write; what lies below such a group goes with it.

    Parameters
    ----------
    own
        From `own_content`.
    stored
        Name, kind (``array``, ``group``) and attributes of each array and group, in any order.
    ignored
        Attributes that the container needs.
    """
    known, skipped = set(ignored), ""
    for name, kind, attributes in sorted(stored):
        if skipped and name.startswith(skipped):
            continue
        if name not in own:
            skipped = f"{name}/"
            yield f"{kind} {name}"
        else:
            yield from (f"attribute {key} of {name}" for key in sorted(set(attributes) - own[name] - known))
