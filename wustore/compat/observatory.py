"""`wustore.model.meta.Observatory` <-> `astropy.coordinates.EarthLocation`, and KBMOD's default."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

from wustore.errors import FormatError
from wustore.model.meta import Observatory

if TYPE_CHECKING:
    from astropy.coordinates import EarthLocation

__all__ = ["check_place", "default_observatory", "location_of", "observatory_of"]

_RUBIN = (-30.24463333, -70.74941667, 2662.75)
"""Latitude [deg], longitude [deg], height [m] of the Rubin Observatory, as KBMOD has them."""


def location_of(observatory: Observatory) -> EarthLocation:
    """Return the place as astropy has it: from the geocentric form if that is known.

    Raises
    ------
    FormatError
        If the numbers are no place on Earth.
    """
    from astropy import units
    from astropy.coordinates import EarthLocation

    if observatory.geocentric is not None:
        x, y, z = observatory.geocentric
        return EarthLocation.from_geocentric(x, y, z, unit=units.m)
    check_place(observatory)
    latitude, longitude, height = observatory.geodetic
    return EarthLocation(lat=latitude * units.deg, lon=longitude * units.deg, height=height * units.m)


def check_place(observatory: Observatory, *, path: str | None = None) -> None:
    """Check that the numbers are a place on Earth, without astropy.

    Raises
    ------
    FormatError
        If they are not.
    """
    latitude, longitude, height = observatory.geodetic
    is_place = -90 <= latitude <= 90 and math.isfinite(longitude) and math.isfinite(height)
    if observatory.geocentric is None and not is_place:
        raise FormatError(
            "the observatory is at no place on Earth",
            path=path,
            where="observatory (OBS_LAT, OBS_LON, OBS_ELEV in FITS)",
            expected="a latitude from -90 to 90 degrees, and finite numbers",
            found=f"latitude {latitude}, longitude {longitude}, height {height}",
            hint="Correct the cards in the primary header, or remove them: then KBMOD's default is taken.",
        )


def observatory_of(location: EarthLocation) -> Observatory:
    """Return both forms of a place; the geodetic one is what KBMOD writes as OBS_LAT, OBS_LON, OBS_ELEV."""
    x, y, z = (float(value.to_value("m")) for value in (location.x, location.y, location.z))
    geodetic = (float(location.lat.deg), float(location.lon.deg), float(location.height.to_value("m")))
    return Observatory(geodetic, (x, y, z))


@cache
def default_observatory() -> Observatory:
    """Return the Rubin Observatory, which KBMOD assumes (and writes) if no place is given."""
    return observatory_of(location_of(Observatory(_RUBIN)))
