"""ImageStack and LayeredImage: images in memory, or read one by one when they are touched.

The interface is KBMOD's (``ImageStackPy``, ``LayeredImagePy``); masked pixels are NaN. A stack over an open
store holds `LazyPlanes` instead of lists: its planes are read-only and read anew at each access, and
every method that changes pixels loads the stack first.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.compat.layered_image import (
    LayeredImage,
    LazyPlanes,
    Plane,
    PlaneSource,
    apply_mask,
    kernel_of,
    mask_shared,
    to_single,
)
from wustore.compat.plane_list import PlaneList
from wustore.errors import FormatError, UsageError
from wustore.model.kbmod_rules import identity_psf, is_masked
from wustore.model.units import mjd

__all__ = ["ImageStack", "ImageStackPy", "match_times"]

logger = logging.getLogger(__name__)


class ImageStack:
    """Images of several times with their variances and PSFs.

    Parameters
    ----------
    times
        Mid-exposure times [MJD, UTC]. Shape (n_images,). Nothing makes an empty stack.
    sci, var
        One array of shape (y, x) per time; sizes may differ. float32 arrays are taken without a copy
        unless a mask changes them.
    mask
        One array per time, greater than 0 where a pixel becomes NaN in both layers.
    psfs
        One kernel (array or object with ``kernel``) per time; a single pixel of 1 by default.

    Attributes
    ----------
    sci, var, psfs
        Lists of arrays; for a stack over a store sequences that read when indexed (`lazy`).
    times
        Shape (n_images,), float64.
    height, width
        Size of the largest image [pixel]; -1 for an empty stack.

    Raises
    ------
    FormatError
        If numbers or shapes do not agree.
    """

    sci: list[Plane] | LazyPlanes
    var: list[Plane] | LazyPlanes
    psfs: list[Plane] | LazyPlanes

    def __init__(
        self,
        times: ArrayLike | None = None,
        sci: Sequence[Any] | None = None,
        var: Sequence[Any] | None = None,
        mask: Sequence[Any] | None = None,
        psfs: Sequence[Any] | None = None,
    ) -> None:
        self.height = -1
        self.width = -1
        self.sci, self.var, self.psfs = [], [], []
        self.times: NDArray[np.float64] = np.array([], dtype=float)
        times = None if times is None else np.atleast_1d(mjd(times))
        if times is None or len(times) == 0:
            if sci is not None or var is not None:
                raise FormatError("Cannot create an image stack without times")
            return
        self.times = np.array(times)
        n = len(self.times)
        for name, given in (("science", sci), ("variance", var), ("mask", mask), ("PSF", psfs)):
            if given is None and name in {"science", "variance"}:
                raise FormatError(f"Missing {name} data.")
            if given is not None and len(given) != n:
                raise FormatError(f"one {name} image is needed for each time", expected=n, found=len(given))
        assert sci is not None
        assert var is not None
        planes, variances = [to_single(image) for image in sci], [to_single(image) for image in var]
        for k in range(n):
            self._fit(planes[k], variances[k], k)
            if mask is not None:
                masked = self._masked(mask[k], planes[k], k)
                planes[k] = apply_mask(planes[k], masked, sci[k])
                variances[k] = apply_mask(variances[k], masked, var[k])
        self.sci, self.var = planes, variances
        self.psfs = [identity_psf(np.float64) for _ in range(n)] if psfs is None else [kernel_of(psf) for psf in psfs]

    @classmethod
    def of(cls, given: Any) -> ImageStack:
        """Return ``given`` itself, or KBMOD's stack as ours: taken over by its attributes, sharing the arrays.

        Parameters
        ----------
        given
            An image stack, ours or KBMOD's.

        Raises
        ------
        UsageError
            If it is no image stack.
        """
        if isinstance(given, ImageStack):
            return given
        missing = [name for name in ("times", "sci", "var", "psfs", "num_times") if not hasattr(given, name)]
        if missing:
            raise UsageError(
                f"not an image stack: {', '.join(missing)} missing",
                expected="times, sci, var, psfs, num_times",
                found=type(given).__name__,
            )
        if isinstance(given.sci, PlaneList):
            stack = cls()
            for name in ("sci", "var", "psfs"):
                planes = getattr(given, name)
                origin = planes.origin() if isinstance(planes, PlaneList) else None
                setattr(stack, name, planes if origin is None else origin)
            stack.times, stack.height, stack.width = np.array(given.times, dtype=float), given.height, given.width
            return stack
        if len(given.sci) == 0:
            return cls()
        return cls(given.times, list(given.sci), list(given.var), psfs=list(given.psfs))

    @classmethod
    def over(cls, source: PlaneSource, times: NDArray[np.float64], size: tuple[int, int]) -> ImageStack:
        """Return a lazy stack over a store: nothing is read until it is touched.

        Parameters
        ----------
        source
            Where to read.
        times
            Mid-exposure times [MJD, UTC]. Shape (n_images,).
        size
            (y, x) of the largest image.
        """
        stack = cls()
        indices = range(len(times))
        stack.times = np.array(times, dtype=float)
        stack.sci = LazyPlanes(source, "science", indices)
        stack.var = LazyPlanes(source, "variance", indices)
        stack.psfs = LazyPlanes(source, "psf", indices)
        stack.height, stack.width = size
        return stack

    # -- what it is --

    def __len__(self) -> int:
        return len(self.sci)

    def __repr__(self) -> str:
        """Say how many images of which size and time there are; none is read."""
        size = f" of {self.height} x {self.width}" if self.num_times else ""
        span = f", MJD {np.nanmin(self.times):.5f} to {np.nanmax(self.times):.5f}" if self.num_times else ""
        return f"<ImageStack: {self.num_times} images{size}{span}, {'in a store' if self.lazy else 'in memory'}>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def num_times(self) -> int:
        """The number of images."""
        return len(self.sci)

    @property
    def zeroed_times(self) -> NDArray[np.float64]:
        """Times since the first image of the stack [days]. Shape (n_images,)."""
        return self.times - self.times[0] if len(self.times) else self.times.copy()

    @property
    def lazy(self) -> bool:
        """Whether planes are read from a store when they are touched."""
        return isinstance(self.sci, LazyPlanes)

    @property
    def npixels(self) -> int:
        """The number of pixels of the largest image."""
        return self.height * self.width

    @property
    def total_pixels(self) -> int:
        """The number of pixels of the stack, counted as if all images were of the largest size."""
        return self.height * self.width * self.num_times

    def get_total_pixels(self) -> int:
        """Return `total_pixels`."""
        return self.total_pixels

    def __eq__(self, other: object) -> bool:
        """Compare as KBMOD does (`numpy.allclose`), with NaN equal to NaN."""
        if not isinstance(other, ImageStack):
            return NotImplemented
        if (self.num_times, self.height, self.width) != (other.num_times, other.height, other.width):
            return False
        if not _close(self.times, other.times):
            return False
        return all(
            _close(a, b)
            for mine, theirs in ((self.sci, other.sci), (self.var, other.var), (self.psfs, other.psfs))
            for a, b in zip(mine, theirs, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def copy(self) -> ImageStack:
        """Return a deep copy; of a lazy stack a loaded one."""
        stack = ImageStack()
        stack.times = self.times.copy()
        stack.height, stack.width = self.height, self.width
        if isinstance(self.sci, LazyPlanes):
            stack.sci, stack.var, stack.psfs = self.sci.source.load(self.sci.indices)
        else:
            stack.sci = [plane.copy() for plane in self.sci]
            stack.var = [plane.copy() for plane in self.var]
            stack.psfs = [plane.copy() for plane in self.psfs]
        return stack

    def load(self, progress: Callable[[int, int], None] | None = None, out: tuple[Any, Any] | None = None) -> None:
        """Read all planes of a lazy stack into memory; nothing happens if they are there.

        Parameters
        ----------
        progress
            Called with (images done, images in all).
        out
            Memory for science and variance; see `wustore.WorkUnit.load_images`.
        """
        if isinstance(self.sci, LazyPlanes):
            self.sci, self.var, self.psfs = self.sci.source.load(self.sci.indices, progress, out)

    def _lists(self) -> tuple[list[Plane], list[Plane], list[Plane]]:
        """Return the three lists of planes, loaded, to change them."""
        self.load()
        assert isinstance(self.sci, list)
        assert isinstance(self.var, list)
        assert isinstance(self.psfs, list)
        return self.sci, self.var, self.psfs

    def _fit(self, science: Plane, variance: Plane, k: int) -> None:
        if science.ndim != 2 or science.shape != variance.shape:
            raise FormatError(
                "science and variance must be two-dimensional and of one shape",
                where=f"image {k}",
                expected=science.shape,
                found=variance.shape,
            )
        self.height, self.width = max(self.height, science.shape[0]), max(self.width, science.shape[1])

    @staticmethod
    def _masked(mask: Any, science: Plane, k: int) -> NDArray[np.bool_]:
        mask = np.asarray(mask)
        if mask.shape != science.shape:
            raise FormatError(
                "Science and Mask data must have the same shape.",
                where=f"image {k}",
                expected=science.shape,
                found=mask.shape,
            )
        return is_masked(mask)

    def _check(self, index: int) -> None:
        if index < 0 or index >= self.num_times:
            raise IndexError(f"image {index} of a stack of {self.num_times}")

    # -- one image --

    def get_obstime(self, index: int) -> float:
        """Return the time of an image [MJD, UTC].

        Parameters
        ----------
        index
            Of the image.
        """
        self._check(index)
        return float(self.times[index])

    def get_mask(self, index: int) -> NDArray[np.bool_]:
        """Return where an image is NaN in science or variance. Shape (y, x).

        Parameters
        ----------
        index
            Of the image.
        """
        self._check(index)
        return np.asarray(np.isnan(self.sci[index]) | np.isnan(self.var[index]))

    def get_single_image(self, index: int) -> LayeredImage:
        """Return an image with all its layers, sharing the stack's arrays.

        Parameters
        ----------
        index
            Of the image.
        """
        self._check(index)
        return LayeredImage(self.sci[index], self.var[index], time=self.times[index], psf=self.psfs[index])

    def set_single_image(self, index: int, img: LayeredImage) -> None:
        """Replace an image by one of the stack's size.

        The stack takes the image over, as in KBMOD: float32 arrays are shared, and the mask is applied to them.

        Parameters
        ----------
        index
            Of the image to replace.
        img
            The new one.

        Raises
        ------
        FormatError
            If the size differs.
        """
        self._check(index)
        if (img.height, img.width) != (self.height, self.width):
            raise FormatError(
                "the image does not have the stack's size",
                expected=f"(y, x) = {(self.height, self.width)}",
                found=(img.height, img.width),
            )
        sci, var, psfs = self._lists()
        masked = self._masked(img.mask, img.sci, index)
        sci[index] = mask_shared(to_single(img.sci), masked)
        var[index] = mask_shared(to_single(img.var), masked)
        psfs[index] = img.psf
        self.times[index] = img.time

    def append_image(
        self, time: float, sci: ArrayLike, var: ArrayLike, mask: ArrayLike | None = None, psf: Any = None
    ) -> None:
        """Append an image.

        Parameters
        ----------
        time
            Mid-exposure time [MJD, UTC].
        sci, var
            Shape (y, x); taken without a copy if they are float32 and nothing is masked.
        mask
            Greater than 0 where pixels become NaN in both layers.
        psf
            Kernel or object with ``kernel``; a single pixel of 1 by default.
        """
        science, variance = to_single(sci), to_single(var)
        k = self.num_times
        masked = None if mask is None else self._masked(mask, science, k)
        kernel = identity_psf(np.float64) if psf is None else kernel_of(psf)
        sci_list, var_list, psf_list = self._lists()
        self._fit(science, variance, k)
        sci_list.append(science if masked is None else apply_mask(science, masked, sci))
        var_list.append(variance if masked is None else apply_mask(variance, masked, var))
        psf_list.append(kernel)
        self.times = np.append(self.times, mjd(time, "time"))

    def append_layered_image(self, layered_image: LayeredImage) -> None:
        """Append an image given with all its layers.

        The stack takes the image over, as `set_single_image` does; its size may differ.

        Parameters
        ----------
        layered_image
            The image; its size may differ from that of the others.
        """
        image = layered_image
        masked = self._masked(image.mask, image.sci, self.num_times)
        sci, var = mask_shared(to_single(image.sci), masked), mask_shared(to_single(image.var), masked)
        self.append_image(image.time, sci, var, psf=image.psf)

    # -- order and choice --

    def _take(self, positions: Sequence[int]) -> None:
        for name in ("sci", "var", "psfs"):
            planes = getattr(self, name)
            chosen = planes.select(positions) if isinstance(planes, LazyPlanes) else [planes[k] for k in positions]
            setattr(self, name, chosen)
        self.times = self.times[np.asarray(positions, dtype=int)]

    def filter_images(self, mask: ArrayLike) -> None:
        """Keep the images where ``mask`` is True; a lazy stack stays lazy.

        Parameters
        ----------
        mask
            A boolean for each image. Shape (n_images,).

        Raises
        ------
        FormatError
            If there is not one boolean per image.
        """
        keep = np.asarray(mask, dtype=bool)
        if keep.shape != (self.num_times,):
            raise FormatError("one boolean per image is needed", expected=(self.num_times,), found=keep.shape)
        self._take(np.flatnonzero(keep).tolist())

    def sort_by_time(self) -> NDArray[np.intp]:
        """Sort the images by time.

        Returns
        -------
        ndarray
            The old indices in the new order. Shape (n_images,).
        """
        order = np.argsort(self.times)
        self._take(order.tolist())
        return order

    def get_matched_obstimes(self, query_times: ArrayLike, threshold: float = 0.0007) -> NDArray[np.intp]:
        """Return for each time the index of the nearest image, -1 if none is within ``threshold`` days.

        Parameters
        ----------
        query_times
            Times [MJD, UTC]. Shape (n,).
        threshold
            Largest distance of a match [days].
        """
        return match_times(self.times, query_times, threshold)

    # -- pixels --

    def num_masked_pixels(self) -> NDArray[np.float64]:
        """Return the number of masked pixels of each image. Shape (n_images,)."""
        return np.array([np.count_nonzero(self.get_mask(k)) for k in range(self.num_times)], dtype=float)

    def get_masked_fractions(self) -> NDArray[np.float64]:
        """Return the masked part of each image, relative to the largest image. Shape (n_images,)."""
        return self.num_masked_pixels() / float(self.npixels)

    def scale_images(self, scale_factor: float | ArrayLike, is_magnitude: bool = True) -> None:
        """Divide science by a flux factor, and variance by its square; masked pixels stay.

        Parameters
        ----------
        scale_factor
            For all images, or one each. Shape () or (n_images,).
        is_magnitude
            Whether it is in magnitudes m, and the flux factor 10 ** (m / 2.5).

        Raises
        ------
        FormatError
            If there are neither one factor nor one for each image.
        """
        factors = np.asarray(scale_factor)  # not made float64: a float32 factor divides in float32, as in KBMOD
        if factors.ndim == 0:
            factors = np.full(self.num_times, factors)
        if factors.shape != (self.num_times,):
            raise FormatError("one scale factor per image is needed", expected=(self.num_times,), found=factors.shape)
        flux = 10 ** (factors / 2.5) if is_magnitude else factors
        sci, var, _ = self._lists()
        for k in range(self.num_times):
            seen = ~self.get_mask(k)
            np.divide(sci[k], flux[k], out=sci[k], where=seen, casting="same_kind")
            np.divide(var[k], flux[k] * flux[k], out=var[k], where=seen, casting="same_kind")

    def _mask_outside(self, layer: str, low: float, high: float) -> None:
        sci, var, _ = self._lists()
        for k in range(self.num_times):
            plane = getattr(self, layer)[k]
            bad = (plane < low) | (plane > high)
            sci[k][bad] = np.nan
            var[k][bad] = np.nan

    def mask_by_science_bounds(self, min_val: float = -1e20, max_val: float = 1e20) -> None:
        """Mask pixels whose science value is below ``min_val`` or above ``max_val``.

        Parameters
        ----------
        min_val, max_val
            Smallest and largest value to keep, in the unit of the science layer.
        """
        self._mask_outside("sci", min_val, max_val)

    def mask_by_variance_bounds(self, min_val: float = 1e-20, max_val: float = 1e20) -> None:
        """Mask pixels whose variance is below ``min_val`` or above ``max_val``.

        Parameters
        ----------
        min_val, max_val
            Smallest and largest value to keep, in the unit of the variance layer.
        """
        self._mask_outside("var", min_val, max_val)

    # -- reports --

    def validate(
        self,
        masked_fraction: float = 0.5,
        min_flux: float = -1e8,
        max_flux: float = 1e8,
        min_var: float = 1e-20,
        max_var: float = 1e8,
    ) -> bool:
        """Return whether the pixels look sane; what does not is logged as a warning.

        Parameters
        ----------
        masked_fraction
            Largest masked part of an image.
        min_flux, max_flux
            Bounds of unmasked science values.
        min_var, max_var
            Bounds of unmasked variance values.
        """
        if self.num_times == 0 or self.total_pixels == 0:
            logger.warning("Image stack is empty.")
            return False
        valid = True
        for k in range(self.num_times):
            science, variance = self.sci[k], self.var[k]
            part = np.count_nonzero(np.isnan(science) | np.isnan(variance)) / self.npixels
            if part > masked_fraction:
                logger.warning("Image %d has %g percent masked pixels.", k, part * 100.0)
                valid = False
            for name, plane, low, high in (
                ("science", science, min_flux, max_flux),
                ("variance", variance, min_var, max_var),
            ):
                least, most = np.fmin.reduce(plane, axis=None), np.fmax.reduce(plane, axis=None)
                if least < low:
                    logger.warning("Image %d has invalid %s values: %g < %g", k, name, least, low)
                    valid = False
                if most > high:
                    logger.warning("Image %d has invalid %s values: %g > %g", k, name, most, high)
                    valid = False
        return valid

    def print_stats(self) -> None:
        """Print a table of extremes, means and masked parts of every image."""
        print("Image Stack Statistics:")
        print(f"  Image Count: {self.num_times}")
        print(f"  Image Size: {self.height} x {self.width} = {self.npixels}")
        widths = (4, 10, 10, 10, 10, 8, 8, 8, 6)
        rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
        print(rule)
        print(_STATISTICS_HEAD)
        print(rule)
        for k in range(self.num_times):
            science, variance = self.sci[k], self.var[k]
            masked = np.isnan(science) | np.isnan(variance) | (variance <= 0.0)
            part = 100.0 * np.count_nonzero(masked) / self.npixels
            numbers = [*_extremes_and_mean(science), *_extremes_and_mean(variance)]
            cells = [f"{k:4d}", f"{self.times[k]:10.3f}"]
            cells += [f"{value:{width}.2f}" for value, width in zip([*numbers, part], widths[2:], strict=True)]
            print("| " + " | ".join(cells) + " |")
            print(rule)


ImageStackPy = ImageStack
"""KBMOD's name."""


_STATISTICS_HEAD = (
    "|  idx |     Time   |  Flux Min  |  Flux Max  |  Flux Mean |  Var Min |  Var Max | Var Mean | Masked |"
)
"""KBMOD's heading of `ImageStack.print_stats`, blank for blank: scripts read it."""


def _extremes_and_mean(plane: Plane) -> tuple[float, float, float]:
    seen = plane[~np.isnan(plane)]
    if seen.size == 0:
        return np.nan, np.nan, np.nan
    return float(seen.min()), float(seen.max()), float(seen.mean(dtype=float))


def _close(a: Plane, b: Plane) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, equal_nan=True))


def match_times(times: ArrayLike, query_times: ArrayLike, threshold: float = 0.0007) -> NDArray[np.intp]:
    """Return for each queried time the index of the nearest of ``times``.

    Parameters
    ----------
    times
        In any order [days]. Shape (n,).
    query_times
        Shape (k,) [days].
    threshold
        Largest distance of a match [days]; one minute by default.

    Returns
    -------
    ndarray
        Shape (k,); -1 if nothing is near enough. Of two equally near times the earlier one.
    """
    known, queries = mjd(times), mjd(query_times)
    order = np.argsort(known, kind="stable")
    bounded = np.concatenate([[-np.inf], known[order], [np.inf]])
    right = np.searchsorted(bounded[:-1], queries, side="left")
    right = np.maximum(right, 1)
    nearer_left = np.abs(bounded[right - 1] - queries) <= np.abs(bounded[right] - queries)
    nearest = np.where(nearer_left, right - 1, right)
    distance = np.abs(bounded[nearest] - queries)
    places = np.concatenate([[-1], order, [-1]])
    return np.where(distance <= threshold, places[nearest], -1)
