"""One image with all its layers, and planes that are read from a store when they are touched."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.errors import FormatError
from wustore.model.kbmod_rules import hide_pixels, identity_psf
from wustore.model.units import mjd

__all__ = [
    "LayeredImage",
    "LayeredImagePy",
    "LazyPlanes",
    "PlaneSource",
    "apply_mask",
    "kernel_of",
    "mask_shared",
    "to_single",
]


Plane = NDArray[Any]


class PlaneSource(Protocol):
    """What a lazy stack reads from."""

    def plane(self, layer: str, i: int) -> Plane:
        """Return layer ``science``, ``variance`` or ``psf`` of image ``i``, masked pixels NaN."""

    def shape(self, layer: str, i: int) -> tuple[int, int]:
        """Return the shape of that plane without reading it."""

    def planes(self, layer: str, indices: Sequence[int]) -> Generator[Plane, None, None]:
        """Yield that plane of these images, reading ahead."""

    def pairs(self, indices: Sequence[int]) -> Generator[tuple[Plane, Plane], None, None]:
        """Yield science and variance of these images, reading ahead."""

    def load(
        self,
        indices: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        out: tuple[Any, Any] | None = None,
    ) -> tuple[list[Plane], list[Plane], list[Plane]]:
        """Return science, variance and PSF planes of these images, the first two in ``out`` if that is given."""


class LazyPlanes(Sequence[Plane]):
    """The planes of one layer of a stack in a store, each read when it is asked for.

    Parameters
    ----------
    source
        Where to read.
    layer
        ``science``, ``variance`` or ``psf``.
    indices
        The images' indices in the source, in the stack's order.
    """

    def __init__(self, source: PlaneSource, layer: str, indices: Sequence[int]) -> None:
        self.source = source
        self.layer = layer
        self.indices = tuple(int(i) for i in indices)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, key: int) -> Plane: ...
    @overload
    def __getitem__(self, key: slice) -> LazyPlanes: ...
    def __getitem__(self, key: int | slice) -> Plane | LazyPlanes:
        if isinstance(key, slice):
            return LazyPlanes(self.source, self.layer, self.indices[key])
        plane = self.source.plane(self.layer, self.indices[key])
        # A change would be lost at the next access: better an error than that.
        plane.flags.writeable = False
        return plane

    def __iter__(self) -> Iterator[Plane]:
        for plane in self.source.planes(self.layer, self.indices):
            plane.flags.writeable = False
            yield plane

    def shape(self, k: int) -> tuple[int, int]:
        """Return the shape of plane ``k`` without reading it."""
        return self.source.shape(self.layer, self.indices[k])

    def select(self, positions: Iterable[int]) -> LazyPlanes:
        """Return the planes at these positions, still unread."""
        return LazyPlanes(self.source, self.layer, [self.indices[k] for k in positions])


def kernel_of(psf: Any) -> Plane:
    """Return the kernel of a PSF: an array, or an object that has one (KBMOD's ``PSF``)."""
    kernel = getattr(psf, "kernel", psf)
    if not isinstance(kernel, np.ndarray):
        raise FormatError("PSF data must be a PSF object or a numpy array.", found=type(psf).__name__)
    return kernel


def to_single(image: Any) -> Plane:
    """Return an image as float32, the array itself if it is."""
    return np.asarray(image, dtype=np.float32)


def apply_mask(plane: Plane, masked: NDArray[np.bool_], original: Any) -> Plane:
    """Return ``plane`` with NaN where masked; the caller's own array is not changed."""
    if not masked.any():
        return plane
    plane = plane.copy() if plane is original or np.may_share_memory(plane, original) else plane
    hide_pixels(plane, masked)
    return plane


def mask_shared(plane: Plane, masked: NDArray[np.bool_]) -> Plane:
    """Return ``plane`` itself with NaN where masked; a copy only if it cannot be written."""
    if not masked.any():
        return plane
    plane = plane if plane.flags.writeable else plane.copy()
    hide_pixels(plane, masked)
    return plane


class LayeredImage:
    """All layers of one image.

    Parameters
    ----------
    sci, var
        Science and variance. Shape (y, x), float32 (converted if they are not).
    mask
        Greater than 0 where a pixel is masked. Shape (y, x); NaN pixels by default.
    time
        Mid-exposure time [MJD, UTC].
    psf
        PSF kernel, float32. Shape (psf_y, psf_x); a single pixel of 1 by default.
    """

    def __init__(
        self,
        sci: ArrayLike,
        var: ArrayLike,
        mask: ArrayLike | None = None,
        time: float = 0.0,
        psf: ArrayLike | None = None,
    ) -> None:
        self.time = float(mjd(time, "time"))
        self.sci = to_single(sci)
        self.var = to_single(var)
        self.psf = identity_psf() if psf is None else to_single(getattr(psf, "kernel", psf))
        self.mask: Any = np.isnan(self.sci) | np.isnan(self.var) if mask is None else mask

    @property
    def width(self) -> int:
        """Size in x [pixel]."""
        return int(self.sci.shape[1])

    @property
    def height(self) -> int:
        """Size in y [pixel]."""
        return int(self.sci.shape[0])


LayeredImagePy = LayeredImage
"""KBMOD's name."""
