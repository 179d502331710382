"""Which codecs and which chunk shapes the profiles and layouts mean in Zarr.

``compact``: pcodec for floats; ``portable``: codecs of the Zarr core only; ``fast``: LZ4; ``none``: plain.

Every figure below was measured on ten 2048 x 2048 images read from KBMOD's default FITS (noise sigma 5,
2 % masked), two cores, pcodec 1.1; see docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.chunk_grid import chunk_sides, split_axis
from wustore.backends.zarr.codecs import PCODEC_DTYPES, Chain, Hints, finds_structure
from wustore.backends.zarr.shards import ShardGrid
from wustore.format.preset_names import check_names

__all__ = ["SIDES", "grid_for", "hints_for"]

SIDES = {"images": 256, "balanced": 128, "cutouts": 64}
"""Layout to the side of an inner chunk [pixel]. Against 256, science grows by 0.03 % at 128 and by 0.7 % at 64."""

_PCODEC_LEVEL = 6
"""Of 0 to 12. Science: 1.457 B/pixel at 5, 1.402 at 6 (1.5 % above the entropy), 1.380 at 7, 1.376 at 8; encoding of
unquantised noise 411, 378, 345, 290 MB/s a core. Variance: 0.145, 0.123, 0.117, 0.107."""

_CONTINUOUS_LEVEL = 5
"""For unquantised values, whose bits are mostly noise. Noise: 1.6 % larger than at 6, encoded 1.17 times as fast."""

_STEP = 0.01
"""KBMOD's quantisation step. Naming it gives variance 0.123 B/pixel instead of 0.139 that pcodec finds by itself."""

_SAMPLED_ROWS = 6
"""Enough to tell quantised from continuous values, in 1 ms a plane of 2048 x 2048."""

_SAMPLED_VALUES = 512
"""With fewer finite values than this there is no sample: looking would take half the time of writing a tiny image."""


def _blosc(cname: str, level: int, shuffle: str, dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"typesize": dtype.itemsize, "cname": cname, "clevel": level, "shuffle": shuffle, "blocksize": 0}


def _zstd(level: int) -> dict[str, Any]:
    return {"level": level, "checksum": False}


def _chain(profile: str, layer: str, dtype: np.dtype[Any]) -> Chain:
    if profile == "none":
        return Chain(dtype, "raw")
    if profile == "fast":
        # Science 3.62 B/pixel at 2.8 (encode) and 4.3 (decode) GB/s a core; byte shuffle 3.69 at 1.3 and 5.2.
        shuffle = "bitshuffle" if layer == "science" else "shuffle"
        return Chain(dtype, "blosc", _blosc("lz4", 5, shuffle, dtype))
    if dtype.kind in "iub":
        # Masks are blobs: 0.0007 B/pixel with zstd 9 (0.0020 with 3) at 2 GB/s. Wide flag masks with random bits:
        # bitshuffle before zstd 0.18 B/pixel, plain zstd 0.22.
        if dtype.itemsize == 1:
            return Chain(dtype, "zstd", _zstd(9))
        return Chain(dtype, "blosc", _blosc("zstd", 3, "bitshuffle", dtype))
    if profile == "compact" and dtype in PCODEC_DTYPES and layer != "psf":
        return Chain(dtype, "pcodec", {"level": _PCODEC_LEVEL})
    # Portable science: plain zstd 3 gives 2.10 B/pixel, byte shuffle before it 2.94 (quantised values repeat).
    # PSF kernels are symmetric, which zstd sees and pcodec does not.
    return Chain(dtype, "zstd", _zstd(9 if layer == "psf" else 3))


def grid_for(
    layer: str,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    *,
    profile: str = "compact",
    layout: str = "images",
    chunks: Sequence[int] | None = None,
) -> ShardGrid:
    """Return how the images of a layer are cut and encoded.

    Parameters
    ----------
    layer
        One of `wustore.model.meta.LAYERS`.
    shape
        Padded shape (y, x).
    chunks
        Shape (y, x) of an inner chunk, instead of the layout's; PSF kernels are never cut.
    """
    check_names(profile, layout)
    sides = chunk_sides(chunks)
    chain = _chain(profile, layer, dtype)
    height, width = (max(int(size), 1) for size in shape)
    if layer == "psf":
        return ShardGrid((height, width), (1, 1), chain)
    if sides is not None:
        chunk_y, chunk_x = min(sides[0], height), min(sides[1], width)
        return ShardGrid((chunk_y, chunk_x), (-(-height // chunk_y), -(-width // chunk_x)), chain)
    (chunk_y, n_y), (chunk_x, n_x) = (split_axis(size, SIDES[layout]) for size in (height, width))
    return ShardGrid((chunk_y, chunk_x), (n_y, n_x), chain)


def hints_for(plane: NDArray[Any]) -> Hints:
    """Return what pcodec should try on this plane, from a sample of its rows.

    The choice is a function of the plane only, so that the bytes do not depend on who writes them. Left
    to itself pcodec finds nearly the same, but takes up to three times as long (lookback deltas).
    """
    if plane.dtype.kind != "f" or plane.dtype.itemsize < 4 or not plane.size:
        return Hints()
    step = max(1, plane.shape[0] // _SAMPLED_ROWS)
    with np.errstate(all="ignore"):
        rows = plane[::step].astype(np.float64)
        finite = np.sort(rows[np.isfinite(rows)])
        if finite.size < _SAMPLED_VALUES:
            return Hints()
        order = _smoothness(rows, finite)
        units = finite / _STEP
        # A float32 near 100 is within 4e-6 of a multiple of 0.01, so within 4e-4 steps.
        slack = np.maximum(np.abs(units), 1.0) * np.finfo(plane.dtype).eps * 2
        if np.mean(np.abs(units - np.rint(units)) <= slack) > 0.99 and _median(slack) < 0.05:
            return Hints("multiples", _STEP, order)
    # Looking for structure takes 1.2 to 1.5 times as long as not to: asked once for the plane, not for each chunk.
    if finds_structure(plane[::step].reshape(-1), order):
        return Hints("auto", order=order)
    return Hints("classic", order=order, level=_CONTINUOUS_LEVEL)


def _smoothness(rows: NDArray[np.float64], ordered: NDArray[np.float64]) -> int:
    """Return the order of differences, at most 2, whose typical size is clearly the smallest."""
    best, order = _median(np.abs(ordered - ordered[ordered.size // 2])), 0
    differences = rows
    for k in (1, 2):
        differences = differences[:, 1:] - differences[:, :-1]
        sizes = np.abs(differences)
        sizes = sizes[np.isfinite(sizes)]
        if sizes.size < _SAMPLED_VALUES:
            break
        typical = _median(sizes)
        # White noise makes differences 1.4 times larger; a gain below 0.8 does not pay for the slower decoding.
        if typical < 0.8 * best:
            best, order = typical, k
    return order


def _median(values: NDArray[np.float64]) -> float:
    """Return the median of finite numbers, which it sorts in part; `numpy.median` makes ten calls for it."""
    middle = values.size // 2
    if values.size % 2:
        values.partition(middle)
        return float(values[middle])
    values.partition((middle - 1, middle))
    return float((values[middle - 1] + values[middle]) / 2)
