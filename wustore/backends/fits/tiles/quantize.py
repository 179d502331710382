"""Floats to scaled integers and back, bit for bit as cfitsio and astropy do it, a block of tiles at a time.

The rules are those of section 10.2 of the FITS standard 4.0 (value = integer * ZSCALE + ZZERO, subtractive dithering
and its random sequence); the choice of the zero point and of what is not quantised follows cfitsio's
``fits_quantize_float``, which astropy calls. KBMOD's own case, Rice tiles with an absolute step and without dithering,
is compiled: `rice.encode_numba.encode_floats` quantises and codes in one pass, and must agree with this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLANK",
    "NO_DITHER",
    "SUBTRACTIVE_DITHER_1",
    "SUBTRACTIVE_DITHER_2",
    "ZERO",
    "Quantised",
    "Scratch",
    "dequantise",
    "dither_noise",
    "quantise",
    "relative_steps",
    "requantise",
]

#: The integer that astropy writes for NaN.
BLANK = -2147483648
#: The integer that means exactly 0.0 under SUBTRACTIVE_DITHER_2.
ZERO = -2147483646

NO_DITHER = "NO_DITHER"
SUBTRACTIVE_DITHER_1 = "SUBTRACTIVE_DITHER_1"
SUBTRACTIVE_DITHER_2 = "SUBTRACTIVE_DITHER_2"

_N_RANDOM = 10000
_RESERVED = 10
#: What cfitsio calls NULL_VALUE.
_NULL = -2147483647
_LARGEST = 2147483647.0

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@lru_cache(maxsize=1)
def _random_sequence() -> NDArray[np.float32]:
    """Return the 10,000 numbers of appendix I of the FITS standard (Park and Miller's generator)."""
    values = np.empty(_N_RANDOM)
    seed = 1
    for i in range(_N_RANDOM):
        seed = (16807 * seed) % 2147483647
        values[i] = seed / 2147483647.0
    return values.astype(np.float32)


@lru_cache(maxsize=256)
def _tile_noise(start: int, n_pixels: int) -> NDArray[np.float32]:
    sequence = _random_sequence()
    pieces = []
    missing = n_pixels
    while missing > 0:
        first = int(sequence[start] * np.float32(500))
        piece = sequence[first : first + missing]
        pieces.append(piece)
        missing -= piece.size
        start = (start + 1) % _N_RANDOM
    return np.concatenate(pieces) if pieces else sequence[:0]


def dither_noise(rows: NDArray[np.int64], n_pixels: int) -> NDArray[np.float32]:
    """Return the random offsets of tiles, of shape (tile, pixel).

    Parameters
    ----------
    rows
        Number of each tile counted from 1, plus ZDITHER0, minus 1: what the standard calls the seed.
    """
    noise = np.empty((len(rows), n_pixels), np.float32)
    for i, row in enumerate(rows):
        noise[i] = _tile_noise((int(row) - 1) % _N_RANDOM, n_pixels)
    return noise


def _factor(scale: NDArray[np.float64]) -> Any:
    """Return the factor of tiles: one number where all have the same, which takes a quarter of the time."""
    bits = np.ascontiguousarray(scale).view(np.int64)
    return scale[0] if (bits == bits[0]).all() else scale[:, None]


def dequantise(
    integers: Integers,
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    out: Floats,
    *,
    blank: int | NDArray[np.int64] | None = None,
    dither: str = NO_DITHER,
    rows: NDArray[np.int64] | None = None,
    scratch: NDArray[np.float64] | None = None,
) -> None:
    """Write the values of quantised tiles to `out`.

    The arithmetic is in double precision and rounded once, to the type of `out`, as astropy does.

    Parameters
    ----------
    integers
        Quantised pixels, of shape (tile, pixel).
    scale, zero
        ZSCALE and ZZERO of each tile.
    out
        float32 or float64, of the shape of `integers`.
    blank
        The integer that means NaN: one for all, or one per tile; None for none.
    dither, rows
        ZQUANTIZ, and with dithering the seed of each tile (see `dither_noise`).
    scratch
        float64 working space of the shape of `integers`.

    Notes
    -----
    Measured on blocks of 32 rows of 2048 pixels, which stay in a 1 MB second-level cache with their float64
    working copy: 1.6 ns a pixel, 1.2 of them for the arithmetic.
    """
    work = np.empty(integers.shape) if scratch is None else scratch
    noise: NDArray[np.float32] | None = None
    with np.errstate(all="ignore"):
        # Converting first and working in place is 1.7 times faster than operations of mixed type.
        np.copyto(work, integers)
        if dither != NO_DITHER:
            assert rows is not None
            noise = dither_noise(rows, integers.shape[1])
            work -= noise
            work += 0.5
        work *= _factor(scale)
        work += zero[:, None]
        np.copyto(out, work, casting="same_kind")
    odd = np.flatnonzero(~(np.isfinite(scale) & np.isfinite(zero)))
    if odd.size:
        _dequantise_odd(integers, scale, zero, out, odd, noise)
    if dither == SUBTRACTIVE_DITHER_2:
        np.copyto(out, 0.0, where=integers == ZERO)
    if blank is not None:
        is_blank = integers == (blank if isinstance(blank, int) else blank[:, None])
        np.copyto(out, np.nan, where=is_blank)


def _dequantise_odd(
    integers: Integers,
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    out: Floats,
    odd: NDArray[np.intp],
    noise: NDArray[np.float32] | None,
) -> None:
    """Dequantise tiles whose scale or zero point is not finite.

    Of two NaN it depends on the order of the operands which one comes out, and in numpy also on whether a pixel
    is in the last few of an array: without dithering do literally as astropy does, with it as its C code.
    """
    with np.errstate(all="ignore"):
        for i in odd:
            if noise is None:
                out[i] = integers[i] * scale[i] + zero[i]
            else:
                product = (integers[i].astype(np.float64) - noise[i] + 0.5) * scale[i]
                out[i] = np.where(np.isnan(product), product, product + zero[i])


class Scratch:
    """Working space for `quantise`: fresh pages cost as much as the arithmetic.

    Parameters
    ----------
    shape
        Of the tiles: (tile, pixel). Fewer tiles may come.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.floats = np.empty(shape)
        self.mask = np.empty(shape, np.bool_)


@dataclass(frozen=True)
class Quantised:
    """Tiles after quantisation.

    Attributes
    ----------
    scale, zero
        ZSCALE and ZZERO of each tile; 0 if it failed.
    failed
        Which tiles must be stored without quantisation.
    has_blank
        Whether a tile that did not fail holds NaN.
    """

    scale: NDArray[np.float64]
    zero: NDArray[np.float64]
    failed: NDArray[np.bool_]
    has_blank: bool


def quantise(
    values: Floats,
    step: NDArray[np.float64] | float,
    out: NDArray[np.int32],
    *,
    dither: str = NO_DITHER,
    rows: NDArray[np.int64] | None = None,
    scratch: Scratch | None = None,
) -> Quantised:
    """Quantise tiles with a known step.

    Parameters
    ----------
    values
        float32 or float64 in native byte order, of shape (tile, pixel).
    step
        The distance between levels, one for all or one per tile; a tile with step 0 fails.
    out
        Gets the integers, of shape (tile, pixel); NaN becomes `BLANK`. Those of failed tiles have no meaning.

    Notes
    -----
    10 ms for 2048 x 2048 pixels of float32 in blocks of 32 rows, where cfitsio's loop alone takes 16 ms.
    """
    n_pixels = values.shape[1]
    steps = np.broadcast_to(np.asarray(step, np.float64), values.shape[:1])
    spare = scratch or Scratch(values.shape)
    work, integers, mask = spare.floats[: len(values)], out, spare.mask[: len(values)]
    with np.errstate(all="ignore"):
        # Multiplying makes signalling NaN quiet, which the search for the extremes needs: numpy's fmin and fmax
        # forget what they found before a signalling one.
        if values.dtype == np.float64:
            np.multiply(values, 1.0, out=work)
        else:
            np.copyto(work, values)
        zero, failed = _zero_points(work, steps, dither, values.dtype)
        work -= zero[:, None]
        work /= step if isinstance(step, float) else steps[:, None]
        if dither != NO_DITHER:
            assert rows is not None
            work += dither_noise(rows, n_pixels)
            work -= 0.5
        # C rounds halves away from zero: (int)(x + 0.5), or (int)(x - 0.5) below zero. The two differ from
        # the first alone only at or below -0.5, where very few pixels are.
        np.less_equal(work, -0.5, out=mask)
        below = np.flatnonzero(mask) if mask.any() else ()  # finding none takes 2 ms a plane, asking 0.1
        rounded_below = (work.reshape(-1)[below] - 0.5).astype(np.int32) if len(below) else ()
        work += 0.5
        # As in C on x86-64, what is out of range becomes -2**31.
        np.copyto(integers, work, casting="unsafe")
        if len(below):
            integers.reshape(-1)[below] = rounded_below
    if dither == SUBTRACTIVE_DITHER_2:
        np.copyto(integers, ZERO, where=np.equal(values, 0, out=mask))
    np.isnan(values, out=mask)
    has_blank = bool(mask.any())
    if has_blank:
        np.copyto(integers, BLANK, where=mask)
        has_blank = not failed.any() or bool(mask[~failed].any())
    return Quantised(np.where(failed, 0.0, steps), np.where(failed, 0.0, zero), failed, has_blank)


def _zero_points(
    values: NDArray[np.float64], steps: NDArray[np.float64], dither: str, kind: np.dtype[Any]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the zero point of each tile, and which tiles cannot be quantised."""
    low = np.fmin.reduce(values, axis=1).astype(kind)
    high = np.fmax.reduce(values, axis=1).astype(kind)
    # astropy puts the smallest value in the place of NaN, and 0 if there is nothing but NaN.
    empty = np.isnan(low)
    low[empty] = 0
    high[empty] = 0
    # cfitsio looks for the extremes from the largest finite float on, which infinities do not replace.
    largest = np.finfo(kind).max
    np.minimum(low, largest, out=low)
    np.maximum(high, -largest, out=high)
    span = (high - low).astype(np.float64) / steps
    failed = (span > 2.0 * _LARGEST - _RESERVED) | (steps == 0) | (values.shape[1] <= 1)
    if dither == SUBTRACTIVE_DITHER_2:
        zero = low - steps * float(_NULL + _RESERVED)
    else:
        # A multiple of the step, so that quantising again finds the same levels; for the widest ranges the
        # middle, whose sum is in the pixels' own precision.
        multiple = _truncate(low / steps + 0.5) * steps
        zero = np.where(span < _LARGEST - _RESERVED, multiple, (low + high).astype(np.float64) / 2.0)
    return zero, failed


def _truncate(quotient: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a C cast to a 64-bit integer and back leaves on x86-64: out of range becomes -2**63."""
    whole = np.trunc(quotient)
    whole += 0.0  # -0.0 becomes 0.0, as an integer has no signed zero
    whole[~(np.abs(quotient) < 2.0**63)] = -(2.0**63)
    return whole


def requantise(
    values: Floats,
    scale: NDArray[np.float64],
    zero: NDArray[np.float64],
    out: NDArray[np.int32],
    *,
    blank: int | NDArray[np.int64] | None = None,
    dither: str = NO_DITHER,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """Recover the integers that `dequantise` turned into `values`.

    The answer is exact wherever neighbouring integers have different values, that is while the spacing of floats
    is below the step (for float32 and a step of 0.01: below 131072).

    Parameters
    ----------
    values
        Decoded tiles, of shape (tile, pixel).
    out
        Gets the integers, of shape (tile, pixel).
    """
    with np.errstate(all="ignore"):
        work = values.astype(np.float64)
        work -= zero[:, None]
        work /= _factor(scale)
        if dither != NO_DITHER:
            assert rows is not None
            work += dither_noise(rows, values.shape[1])
            work -= 0.5
        np.rint(work, out=work)
        np.copyto(out, work, casting="unsafe")
    if dither == SUBTRACTIVE_DITHER_2:
        np.copyto(out, ZERO, where=values == 0)
    if blank is not None:
        stand_in = np.asarray(blank if isinstance(blank, int) else blank[:, None], np.int64).astype(np.int32)
        np.copyto(out, stand_in, where=np.isnan(values))


#: From the median of the differences to the standard deviation of Gaussian noise, by order.
_FACTORS = (1.0483579, 0.6052697, 0.1772048)


#: Fewer pixels have no difference of fifth order: cfitsio then finds no noise, and does not quantise.
_FEWEST = 9


def relative_steps(values: NDArray[np.floating[Any]], level: float) -> NDArray[np.float64] | None:
    """Return the step of each tile: its noise divided by `level`.

    Parameters
    ----------
    values
        float32 or float64, of shape (tile, pixel).
    level
        The quantize_level, above 0.

    Returns
    -------
    ndarray or None
        0 for tiles that are not to be quantised. None if a result would depend on the order in which C compares
        values that are not numbers.

    Notes
    -----
    Half the time of encoding a plane: with it `encode_plane` takes 0.5 of astropy's time.
    """
    n_tiles, n_pixels = values.shape
    missing = np.isnan(values)
    if missing.any():
        if _has_signalling(values[missing]):
            return None
        # astropy puts the smallest value in the place of NaN, and 0 if there is nothing else.
        lowest = np.fmin.reduce(values, axis=1)
        lowest[np.isnan(lowest)] = 0
        values = np.where(missing, lowest[:, None], values)
    if n_pixels < _FEWEST:
        return np.zeros(n_tiles)
    size = n_pixels - _FEWEST + 1
    v1, v3, v4, v5, v6, v7, v9 = (values[:, i : i + size] for i in (0, 2, 3, 4, 5, 6, 8))
    kind = values.dtype.type
    with np.errstate(all="ignore"):
        second = np.abs(v5 - v7)
        third = np.abs(kind(2) * v5 - v3 - v7)
        fifth = np.abs(kind(6) * v5 - kind(4) * v3 - kind(4) * v7 + v1 + v9)
    if np.isnan(fifth).any() or np.isnan(third).any() or np.isnan(second).any():
        return None
    # Stretches of equal pixels do not count.
    flat2 = (v5 == v6) & (v6 == v7)
    flat3 = flat2 & (v3 == v4) & (v4 == v5)
    count2 = size - np.count_nonzero(flat2, axis=1)
    count3 = size - np.count_nonzero(flat3, axis=1)
    # cfitsio takes the median of second order among as many values as there are of third order, so that
    # zeros make up for those that do not count.
    second[flat2] = 0
    for differences in (second, third, fifth):
        differences[flat3] = np.inf
    noise2, noise3, noise5 = (
        factor * _lower_medians(differences, count3)
        for factor, differences in zip(_FACTORS, (second, third, fifth), strict=True)
    )
    noise2[(count2 == 0) | ((count2 == 1) & (count3 > 1))] = 0
    noise: NDArray[np.float64] = noise3
    for other in (noise2, noise5):
        noise = np.where((other != 0) & (other < noise), other, noise)
    with np.errstate(all="ignore"):
        steps: NDArray[np.float64] = noise / float(np.float32(level))
    return steps if bool(np.isfinite(steps).all()) else None


def _lower_medians(differences: NDArray[Any], counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the lower median of the first `counts` values of each row in increasing order; 0 of none."""
    ordered = np.sort(differences, axis=1)
    middle = ordered[np.arange(len(ordered)), np.maximum(counts - 1, 0) // 2]
    medians: NDArray[np.float64] = middle.astype(np.float64)
    medians[counts == 0] = 0
    return medians


def _has_signalling(nans: NDArray[Any]) -> bool:
    """Tell whether a NaN is signalling: numpy's minimum then forgets what it found before."""
    quiet = {4: 1 << 22, 8: 1 << 51}[nans.dtype.itemsize]
    return bool((nans.view(f"u{nans.dtype.itemsize}") & quiet == 0).any())
