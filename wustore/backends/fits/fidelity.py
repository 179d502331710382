"""What KBMOD's FITS layout cannot carry, found and said by name before it is lost."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.hdu.header_writer import float_text
from wustore.backends.fits.kbmod_hdus import KBMOD_COLUMNS, FitsOptions, kbmod_mask
from wustore.compat.wcs import rounding_shift
from wustore.compat.yaml import plain
from wustore.format.tagged_json import RawYaml
from wustore.model.meta import Column, Image, Meta

__all__ = ["FitsLossWarning", "image_losses", "meta_losses", "option_losses", "warn_of"]

_SAMPLE = 65536
"""Pixels from which the noise of a plane is estimated: 0.5 % accuracy, 1 ms."""

_COARSEST = 0.1
"""A quantisation step above this fraction of the noise (or of the median variance) destroys a plane."""

_HARMLESS = 1e-9
"""Rounding of a WCS that moves no corner by more [arcsec] is not worth a warning."""

_SHOWN = 3


class FitsLossWarning(UserWarning):
    """Something does not fit in the FITS file being written; the message names it."""


def warn_of(losses: Iterator[str] | list[str], stacklevel: int = 3) -> None:
    """Issue one warning for all losses; none if there are none."""
    found = list(losses)
    if found:
        more = f" (and {len(found) - 20} more)" if len(found) > 20 else ""
        message = "the FITS file cannot hold everything: " + "; ".join(found[:20]) + more
        warnings.warn(f"{message}. The Zarr and HDF5 stores keep it all.", FitsLossWarning, stacklevel=stacklevel + 1)


def _listed(indices: list[int]) -> str:
    text = ", ".join(map(str, indices[:_SHOWN]))
    return text + (f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else "")


def _survives(value: float) -> bool:
    return math.isfinite(value) and float(float_text(value)) == value


def _wcs_losses(text: str, name: str) -> Iterator[str]:
    shift = rounding_shift(text)
    if shift > _HARMLESS:
        yield f"the last digits of {name} (which moves a corner of the image by {shift:.2g} arcsec)"
    if "A_ORDER " in text or "AP_ORDER" in text:
        yield f"the SIP distortion of {name}"
    if re.search(r"CPDIS\d|D2IMDIS\d|WUCPDIS|WUD2IM", text):
        yield f"the distortion tables of {name}"


def _ascii(values: NDArray[Any]) -> bool:
    return all(str(value).isascii() for value in values.ravel())


def _column_losses(column: Column) -> Iterator[str]:
    values, name = column.values, f"column {column.name!r}"
    if column.kind == "json":
        present = [value for value in values if value is not None]
        if not present:
            yield f"{name}, which holds only None"
        elif any(not isinstance(value, str) for value in values):
            yield f"the types in {name} (written as text)"
        if not _ascii(values):
            yield f"non-ASCII text in {name}"
    elif column.kind == "wcs":
        if len(values) and all(value is None for value in values):
            yield f"{name}, which holds only None"
        shifts = (rounding_shift(value) for value in values if value is not None)
        shift = next((shift for shift in shifts if shift > _HARMLESS), 0.0)  # one is enough to say so
        if shift:
            yield f"the last digits in {name} (which move a corner of an image by {shift:.2g} arcsec)"
    elif values.dtype.kind == "U":
        if not _ascii(values):
            yield f"non-ASCII text in {name}"
        if any(text != text.rstrip() for text in values.ravel().tolist()):
            yield f"trailing blanks in {name}"
    elif values.dtype == np.int8 or values.dtype.kind in "mM" or values.dtype == np.float16:
        yield f"the type {values.dtype} of {name}"


def _attribute_losses(column: Column) -> Iterator[str]:
    name = f"column {column.name!r}"
    if not column.name.isascii():
        yield f"the non-ASCII name of {name}"
    if column.mask is not None and column.mask.any():
        yield f"the masked cells of {name}"
    extras = [key for key in ("unit", "description", "format") if getattr(column, key) is not None]
    if extras or column.meta:
        yield f"{', '.join(extras) or 'metadata'} of {name}"


def meta_losses(meta: Meta) -> Iterator[str]:
    """Yield what of the metadata KBMOD's layout does not carry."""
    if meta.wcs is not None:
        yield from _wcs_losses(meta.wcs, "the global WCS")
    changed = [i for i, time in enumerate(meta.times.tolist()) if not _survives(time)]
    if changed:
        yield f"the last digits of the time of image {_listed(changed)}"
    if meta.configuration is None:
        yield "that there is no configuration (an empty one is written)"
    for key, value in (meta.configuration or {}).items():
        if not isinstance(value, RawYaml) and plain(value) is not value:
            yield f"the type of the configuration value {key} ({type(value).__name__})"
    if meta.barycentric_distance is not None and not _survives(meta.barycentric_distance):
        yield "the last digits of the barycentric distance"
    for column in meta.constituents.columns:
        # KBMOD makes these four itself; that they are empty says nothing.
        if column.name in KBMOD_COLUMNS and all(value is None for value in column.values):
            continue
        yield from _column_losses(column)
        yield from _attribute_losses(column)
    if meta.constituents.meta:
        yield "the metadata of the table of constituent images"


def option_losses(options: FitsOptions) -> Iterator[str]:
    """Yield what the options lose that their names do not say."""
    if options.compression_type == "NOCOMPRESS" and options.quantize_level < 0:
        yield (
            f"the exact pixels: NOCOMPRESS quantises too, with the step {-options.quantize_level:g} "
            "(quantize_level=0 or lossless=True does not)"
        )


def _sample(plane: NDArray[Any]) -> NDArray[np.float64]:
    wanted = -(-_SAMPLE // max(plane.shape[1], 1))
    step = max(1, plane.shape[0] // wanted)
    with np.errstate(invalid="ignore"):  # a signalling NaN is no news here
        return plane[::step].astype(np.float64)


def _noise(plane: NDArray[Any]) -> float:
    """Return the noise from differences of neighbours: 1.4826 times their median size, over the root of 2."""
    rows = _sample(plane)
    with np.errstate(all="ignore"):
        steps = np.abs(np.diff(rows, axis=1))
    steps = steps[np.isfinite(steps)]
    return 1.4826 * float(np.median(steps)) / math.sqrt(2) if steps.size else 0.0


def image_losses(i: int, image: Image, options: FitsOptions, infinite: frozenset[str] | None = None) -> Iterator[str]:
    """Yield what of the pixels of image ``i`` these options lose, with numbers.

    Parameters
    ----------
    infinite
        The layers that hold infinities, if that is known already.
    """
    if infinite is None:
        infinite = kbmod_mask(image)[1]
    compression_type, quantize_level = options.compression_type, options.quantize_level
    mask = image.mask
    if not options.exact and mask is not None and mask.size and mask.dtype.kind in "iuf" and mask.max() > 1:
        yield f"the flag values of MSK_{i} (written as 0 and 1)"
    for name, layer, plane in (("SCI", "science", image.science), ("VAR", "variance", image.variance)):
        if plane.dtype.kind != "f":
            continue
        if compression_type == "RICE_1" and quantize_level == 0:
            yield f"the fractions of {name}_{i} (RICE_1 without quantisation cuts them off)"
        if quantize_level >= 0:
            continue
        step = -quantize_level
        if name == "SCI":
            level, what = _noise(plane), "noise"
        else:
            rows = _sample(plane)
            rows = rows[np.isfinite(rows)]
            level, what = (float(np.median(rows)) if rows.size else 0.0), "median"
        if 0 < level * _COARSEST < step:
            yield (
                f"the detail of {name}_{i}: the quantisation step {step:g} is {step / level:.3g} times its {what} "
                f"{level:.3g} (lossless=True keeps it)"
            )
        if layer in infinite:
            yield f"the infinities of {name}_{i} (they are masked)"
