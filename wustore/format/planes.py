"""Layers of a store: the big arrays, filled image by image; checksums of their planes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wustore.model.checksum import plane_checksum
from wustore.model.meta import LAYERS, Image, Meta

__all__ = ["LayerSpec", "PlaneProblem", "fill_value", "layers_of", "plane_checksums", "plane_problems"]


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """A big array, filled image by image.

    Attributes
    ----------
    name
        One of `wustore.model.meta.LAYERS`.
    shape
        (time, y, x), padded to the largest image.
    dtype
        Native dtype that holds every image exactly.
    fill
        Value of the padding: NaN for floating dtypes, 0 for others.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    dims: tuple[str, str, str]
    fill: float | int
    attributes: Mapping[str, Any] = field(default_factory=dict)


class PlaneProblem(NamedTuple):
    """A plane that is not what it should be: its layer, what is wrong, what was expected and what was found."""

    layer: str
    what: str
    expected: object
    found: object


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """Return the padding value of a layer of this dtype: NaN for floating dtypes, else 0."""
    return float("nan") if dtype.kind == "f" else 0


def layers_of(meta: Meta) -> list[LayerSpec]:
    """Return the layer arrays that a store of ``meta`` has, in the order to create them."""
    specs = []
    for name in LAYERS:
        if not meta.has_layer(name):
            continue
        dtype = meta.layer_dtype(name)
        attributes = dict(_LAYER_ATTRIBUTES[name])
        if name == "mask" and dtype.kind in "iu":
            # Bits that the dtype cannot hold (bit 31 of a signed one is its sign) stay out of the attribute.
            flags = {key: bit for key, bit in meta.mask_flags.items() if bit <= np.iinfo(dtype).max}
            if flags:
                attributes["flag_masks"] = list(flags.values())
                attributes["flag_meanings"] = " ".join(re.sub(r"\s+", "_", key) for key in flags)
        dims = ("time", "psf_y", "psf_x") if name == "psf" else ("time", "y", "x")
        specs.append(LayerSpec(name, meta.layer_shape(name), dtype, dims, fill_value(dtype), attributes))
    return specs


def plane_checksums(image: Image) -> tuple[int, ...]:
    """Return the checksum of each plane, in the order of `wustore.model.meta.LAYERS`; computed once for an image."""
    if image.checksums is not None:
        return image.checksums
    return tuple(plane_checksum(image.layer(layer)) for layer in LAYERS)


def plane_problems(
    meta: Meta, i: int, image: Image, sums: NDArray[np.uint32] | None = None, layers: Sequence[str] = LAYERS
) -> Iterator[PlaneProblem]:
    """Yield what distinguishes an image from what the metadata and the stored checksums say of it.

    Parameters
    ----------
    sums
        The stored checksums of all planes, or None if there are none.
    """
    checksums = None if sums is None else plane_checksums(image)
    for k, layer in enumerate(LAYERS):
        if layer not in layers:
            continue
        plane, dtype = image.layer(layer), meta.dtypes[layer][i]
        expected = None if dtype is None else (meta.shape_of(layer, i), dtype)
        found = None if plane is None else (plane.shape, plane.dtype)
        if expected != found:
            yield PlaneProblem(
                layer, "an image does not have the shape and dtype that the metadata says", expected, found
            )
        elif checksums is not None and sums is not None and plane is not None and checksums[k] != sums[i, k]:
            what = "the pixels of an image are not those that were written here"
            yield PlaneProblem(layer, what, f"CRC-32C {int(sums[i, k]):#010x}", f"{checksums[k]:#010x}")


_LAYER_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "science": {"long_name": "science image", "ancillary_variables": "variance mask"},
    "variance": {"long_name": "variance of the science image"},
    "mask": {"long_name": "pixel mask: greater than 0 is masked"},
    "psf": {"long_name": "point spread function kernel"},
}
