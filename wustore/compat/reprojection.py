"""From barycentric (EBD) positions back to the ICRS positions an observer on Earth reports.

A WorkUnit reprojected for an explicit barycentric distance (EBD) shows each object where the solar
system's barycentre would see it at distance d. The observer at time t sees the point d * u from
another place, so the direction found at the telescope is that of the vector d * u - o(t), o being the
observer's barycentric position, with aberration and light deflection applied on the way in and taken off
again as for a star: the ICRS direction that a catalogue would give it.

The chain is that of the IAU SOFA astrometry tools (Astrometry Tools Cookbook, 2021: ``apcs``, ``atciqz`` and
``aticq`` with finite distance) as astropy's ICRS <-> GCRS transformations apply it. As in KBMOD, the place is
given to the GCRS frame by its geocentric (ITRS) coordinates, and Earth's by ERFA's analytic ephemeris ``epv00``:
no tables, so no network.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.compat.wcs import each_sky_to_pixel
from wustore.errors import UsageError
from wustore.model.quiet import quiet

if TYPE_CHECKING:
    from astropy.coordinates import EarthLocation, SkyCoord
    from astropy.wcs import WCS

__all__ = ["image_positions_to_original_icrs", "observed_from_barycentric", "offline"]


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep astropy from fetching Earth orientation tables, and use its built-in ephemeris."""
    from astropy.coordinates import solar_system_ephemeris
    from astropy.utils import iers

    # One thread at a time: these settings belong to the process. Said are "dubious year", stale tables: neither enters
    # the result.
    with (
        quiet(),
        iers.conf.set_temp("auto_download", False),
        iers.conf.set_temp("iers_degraded_accuracy", "ignore"),
        solar_system_ephemeris.set("builtin"),
    ):
        yield


def observed_from_barycentric(
    coords: SkyCoord, times: ArrayLike, distance: float, observatory: EarthLocation
) -> SkyCoord:
    """Return the ICRS directions an observer reports for points at a barycentric distance.

    Parameters
    ----------
    coords
        Directions from the barycentre, ICRS. Shape (n,).
    times
        When they are observed [MJD, UTC]. Shape (n,).
    distance
        Distance of all points from the barycentre [au].

    Returns
    -------
    SkyCoord
        ICRS, without distance. Shape (n,).
    """
    from astropy import units
    from astropy.coordinates import GCRS, ICRS, CartesianRepresentation, SkyCoord, UnitSphericalRepresentation
    from astropy.time import Time

    icrs = coords.icrs
    with offline():
        place = CartesianRepresentation(observatory.x, observatory.y, observatory.z)
        seen_from = GCRS(obstime=Time(np.asarray(times, dtype=float), format="mjd"), obsgeoloc=place)
        points = SkyCoord(icrs.ra, icrs.dec, distance=np.full(icrs.shape, distance) * units.au, frame="icrs")
        apparent = points.transform_to(seen_from)
        # Without the distance the way back to ICRS is that of a star: aberration off, parallax kept.
        direction = seen_from.realize_frame(apparent.data.represent_as(UnitSphericalRepresentation))
        return SkyCoord(direction.transform_to(ICRS()))


def _check(
    image_indices: Sequence[int],
    n_positions: int,
    input_format: str,
    output_format: str,
    reprojection_frame: str | None,
) -> None:
    for name, value in (("input format", input_format), ("output format", output_format)):
        if value not in {"xy", "radec"}:
            raise UsageError(f"{name} must be 'xy' or 'radec'", found=value)
    if n_positions != len(image_indices):
        raise UsageError("one image index per position is needed", expected=n_positions, found=len(image_indices))
    if reprojection_frame not in {"ebd", "original"}:
        raise UsageError("reprojection frame must be 'ebd' or 'original'", found=reprojection_frame)


def _sky(positions: Any, input_format: str, reprojected_wcs: WCS) -> SkyCoord:
    """Return the positions as one array of sky coordinates."""
    from astropy.coordinates import SkyCoord

    if input_format == "radec":
        if isinstance(positions, SkyCoord):
            return positions
        if not all(isinstance(position, SkyCoord) for position in positions):
            raise UsageError("positions must be SkyCoord objects for input format 'radec'")
        return SkyCoord(
            [position.icrs.ra.deg for position in positions],
            [position.icrs.dec.deg for position in positions],
            unit="deg",
        )
    try:
        pixels = np.asarray([tuple(position) for position in positions], dtype=float)
    except (TypeError, ValueError) as error:
        raise UsageError("positions must be pairs (x, y) for input format 'xy'") from error
    if pixels.ndim != 2 or pixels.shape[1] != 2:
        raise UsageError("positions must be pairs (x, y) for input format 'xy'", found=f"shape {pixels.shape}")
    ra, dec = reprojected_wcs.all_pix2world(pixels[:, 0], pixels[:, 1], 0)
    return SkyCoord(ra, dec, unit="deg")


def image_positions_to_original_icrs(
    image_indices: Sequence[int] | NDArray[np.integer[Any]],
    positions: Any,
    reprojected_wcs: WCS,
    original_wcses: Sequence[WCS | None],
    all_times: ArrayLike,
    observatory: EarthLocation,
    input_format: str = "xy",
    output_format: str = "xy",
    filter_in_frame: bool = True,
    reprojection_frame: str | None = "original",
    barycentric_distance: float | None = None,
    per_image_indices: Sequence[Sequence[int]] | None = None,
    image_locations: Sequence[Any] | None = None,
) -> list[Any]:
    """Return where positions in reprojected images were in the original images.

    Parameters
    ----------
    image_indices
        The image of each position. Shape (n,).
    positions
        Pairs (x, y) [pixel, from 0], or SkyCoord objects.
    all_times
        Time of each image [MJD, UTC].
    input_format, output_format
        ``xy`` or ``radec``.
    filter_in_frame
        Keep only positions within an original image (its edges included).
    reprojection_frame
        ``original`` or ``ebd``.
    barycentric_distance
        Distance of the EBD frame [au].
    per_image_indices
        Constituents of each image; one to one by default.
    image_locations
        Name of each constituent; pairs (image, constituent) by default.

    Returns
    -------
    list
        In the order of ``positions``. With ``radec`` unfiltered: SkyCoord. Otherwise a tuple (position,
        location), None if no original image has the position, or a list of tuples if several have.

    Warns
    -----
    UserWarning
        If several original images have a position.
    """
    indices = [int(i) for i in image_indices]
    _check(indices, len(positions), input_format, output_format, reprojection_frame)
    if reprojection_frame == "ebd" and barycentric_distance is None:
        raise UsageError("the EBD frame needs a barycentric distance")
    if not indices:
        return []
    coords = _sky(positions, input_format, reprojected_wcs)
    if reprojection_frame == "ebd":
        assert barycentric_distance is not None
        times = np.asarray(all_times, dtype=float)[indices]
        coords = observed_from_barycentric(coords, times, barycentric_distance, observatory)
    if output_format == "radec" and not filter_in_frame:
        return list(coords)

    links = [[i] for i in range(len(original_wcses))] if per_image_indices is None else per_image_indices
    found: list[list[tuple[Any, Any]]] = [[] for _ in indices]
    pairs = [(k, int(j)) for k, i in enumerate(indices) for j in links[i]]
    placed = _pixels_of(coords, pairs, original_wcses)
    for (k, j), (x, y) in zip(pairs, placed.tolist(), strict=True):
        if filter_in_frame and not _inside(x, y, original_wcses[j]):
            continue
        location = (indices[k], j) if image_locations is None else image_locations[j]
        found[k].append(((x, y) if output_format == "xy" else coords[k], location))
    ambiguous = [k for k, matches in enumerate(found) if len(matches) > 1]
    if ambiguous and filter_in_frame:
        warnings.warn(
            f"several constituent images have position {ambiguous[0]}"
            + (f" and {len(ambiguous) - 1} others" if len(ambiguous) > 1 else "")
            + "; all are returned",
            UserWarning,
            stacklevel=2,
        )
    return [None if not matches else matches[0] if len(matches) == 1 else matches for matches in found]


def _pixels_of(coords: SkyCoord, pairs: list[tuple[int, int]], wcses: Sequence[WCS | None]) -> NDArray[np.float64]:
    """Return the pixel position of coordinate k in constituent j for each pair."""
    lacking = next((j for _, j in pairs if wcses[j] is None), None)
    if lacking is not None:
        raise UsageError("a constituent image has no WCS", where=f"constituent {lacking}")
    return each_sky_to_pixel(coords[np.array([k for k, _ in pairs], int)], [wcses[j] for _, j in pairs])


def _inside(x: float, y: float, wcs: WCS | None) -> bool:
    """Return whether a pixel is in the image of a WCS, edges included; any finite one if it has no size."""
    if wcs is None or wcs.array_shape is None:
        return bool(np.isfinite(x) and np.isfinite(y))
    height, width = wcs.array_shape
    return bool(0.0 <= x <= width and 0.0 <= y <= height)
