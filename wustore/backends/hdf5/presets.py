"""Which filters and which chunk shapes the profiles and layouts mean in HDF5.

``portable`` (the default) and ``none`` use filters that are built into HDF5. ``compact`` is the same as ``portable``
here. ``fast`` uses the Blosc plug-in. Measured on a 2048 x 2048 science plane that KBMOD's FITS had quantised, one core
(bytes a pixel, encode and decode MB/s): portable 2.55, 330, 600 (libdeflate alone: 2.59, 125, 490; its level 9: 2.60,
43, 510); fast 3.62, 1250, 2900.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from wustore.backends.hdf5.filters.pipeline import BLOSC, DEFLATE, FLETCHER32, SHUFFLE, Pipeline, blosc_options
from wustore.errors import MissingDependencyError
from wustore.model.meta import LAYERS

__all__ = ["SIDES", "declared", "need_plugins", "pipeline_for"]

# libdeflate's level 1 makes noise smaller than any higher level, at twice their speed; the smooth
# variance and the mask are smaller at 6 (0.022 instead of 0.081 bytes a pixel) and encode faster.
_GZIP = {"science": 1, "variance": 6, "mask": 6, "psf": 6}

_LEVELS: dict[str, dict[str, int]] = {
    "portable": _GZIP,
    "compact": _GZIP,
    "fast": dict.fromkeys(LAYERS, 5),
    "none": dict.fromkeys(LAYERS, 0),
}

SIDES = {"images": (256, 512), "balanced": (128, 128), "cutouts": (64, 64)}
"""Sides (y, x) of a chunk [pixel] by the name of the layout. Measured on images of 2048 x 2048 in the default profile,
one core: a whole image and a stamp of 21 x 21 in one layer take 56 and 0.7 ms with 256 x 256, 53 and 1.4 with 256 x
512, 48 and 2.7 with 512 x 512, 48 and 2.9 with 128 x 2048. The first three give files of the same size (0.1 %)."""


def need_plugins() -> None:
    """Register the plug-in filters."""
    try:
        import hdf5plugin
    except ImportError as error:
        raise MissingDependencyError(
            "this needs HDF5 filter plug-ins, which are not installed",
            expected="hdf5plugin",
            hint="pip install 'wustore[plugins]' brings it; or use profile='portable'.",
        ) from error
    # By force: netCDF4 points HDF5 to a Blosc built for its own copy of the library, which fails in h5py's.
    try:
        hdf5plugin.register("blosc", force=True)
    except RuntimeError:
        # HDF5 exchanges no filter that an open dataset uses: that of a store of this profile which is repacked.
        if not h5py.h5z.filter_avail(BLOSC):
            raise


def pipeline_for(profile: str, layer: str, dtype: np.dtype[Any], chunks: tuple[int, ...]) -> Pipeline:
    """Return the filters of a layer's chunks."""
    if profile == "fast":
        numbers: tuple[int, ...] = (BLOSC, FLETCHER32)
    elif profile == "none":
        numbers = (FLETCHER32,)
    elif dtype.itemsize == 1:
        numbers = (DEFLATE, FLETCHER32)
    else:
        numbers = (SHUFFLE, DEFLATE, FLETCHER32)
    return Pipeline(numbers, dtype, chunks, level=_LEVELS[profile][layer])


def declared(pipeline: Pipeline) -> dict[str, Any]:
    """Return the arguments of ``create_dataset`` that declare a pipeline."""
    keywords: dict[str, Any] = {"fletcher32": True, "shuffle": SHUFFLE in pipeline.filters}
    if DEFLATE in pipeline.filters:
        keywords |= {"compression": "gzip", "compression_opts": pipeline.level}
    elif BLOSC in pipeline.filters:
        keywords |= {"compression": BLOSC, "compression_opts": blosc_options(pipeline)}
    return keywords
