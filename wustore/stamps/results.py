"""What cutting out gives: stamps through time, and coadds of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError
from wustore.stamps.coadd import coadd

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["Coadds", "Stamps"]


@dataclass(frozen=True, eq=False, repr=False)
class Stamps:
    """Stamps through time.

    S is the shape of what they were asked for: () for one position, (n,) for n positions or trajectories. Each
    stamp has 2 * radius + 1 pixels in y and x.

    Attributes
    ----------
    science, variance
        Shape S + (time, y, x), in the unit of the store. NaN outside of the image and where the pixel is masked.
        None if not asked for.
    mask
        The flags as stored, 0 outside of the image and if the image has no mask layer. Shape S + (time, y, x).
        None if not asked for.
    inside
        True for a pixel of the image, False outside of it. Shape S + (time, y, x).
    x, y
        The pixels at the centres of the stamps. Shape S + (time,); `wustore.stamps.trajectories.NOWHERE` if a
        position is not a number.
    times
        MJD [days, UTC]. Shape (time,).
    images
        Indices of the images. Shape (time,).
    radius
        Pixels on either side of the centre.
    ids
        Name of each position or trajectory: from the table that it came in, else its number. Shape S.
    wcs
        Header text of the WCS of each image, None for an image without. Length time.
    source
        Path of the store.
    """

    science: NDArray[Any] | None
    variance: NDArray[Any] | None
    mask: NDArray[Any] | None
    inside: NDArray[np.bool_]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    times: NDArray[np.float64]
    images: NDArray[np.int64]
    radius: int
    ids: NDArray[Any] = field(default_factory=lambda: np.array(0))
    wcs: tuple[str | None, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return len(self.inside)

    @property
    def is_outside(self) -> NDArray[np.bool_]:
        """Which stamps have no pixel of the image, shape S + (time,)."""
        return np.asarray(~self.inside.any(axis=(-2, -1)))

    def wcs_of(self, *index: int) -> WCS:
        """Return the WCS of one stamp, whose pixels count from the corner of the stamp.

        Parameters
        ----------
        index
            Of the stamp, as for ``stamps.x``: the place on the time axis last.

        Raises
        ------
        UsageError
            If its image has no WCS.
        """
        from wustore.format.wcs import text_to_wcs
        from wustore.stamps.view import shifted_wcs

        text = self.wcs[index[-1]] if self.wcs else None
        if text is None:
            raise UsageError("an image has no WCS", where=f"image {self.images[index[-1]]}")
        side = 2 * self.radius + 1
        return text_to_wcs(
            shifted_wcs(text, int(self.x[index]) - self.radius, int(self.y[index]) - self.radius, side, side)
        )

    def coadd(self, kind: str = "mean") -> NDArray[np.float64]:
        """Return the coadd over time, shape S + (y, x), in the unit of the science layer.

        Parameters
        ----------
        kind
            One of `wustore.stamps.coadd.KINDS`; the rules are those of `wustore.stamps.coadd.coadd`.

        Raises
        ------
        UsageError
            For an unknown kind, or if the layers it needs were not asked for.
        """
        if self.science is None:
            raise UsageError("a coadd needs the science layer", hint="Ask for it in layers=….")
        return coadd(self.science, kind, self.variance)


@dataclass(frozen=True, eq=False, repr=False)
class Coadds:
    """Coadded stamps.

    Attributes
    ----------
    values
        Shape (n, y, x), in the unit of the science layer; 0 where no time has data.
    kind
        One of `wustore.stamps.coadd.KINDS`.
    x, y, times, images, radius, ids, wcs, source
        As in `Stamps`.
    """

    values: NDArray[np.float64]
    kind: str
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    times: NDArray[np.float64]
    images: NDArray[np.int64]
    radius: int
    ids: NDArray[Any] = field(default_factory=lambda: np.array(0))
    wcs: tuple[str | None, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return len(self.values)
