"""Numbers that come with units, and times in their many forms: the one place where they become plain numbers.

A value with a unit is converted, or refused with the unit named; it is never taken for a plain number.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError

__all__ = ["has_unit", "in_unit", "mjd", "whole_pixels"]

_EPOCH = np.datetime64("1858-11-17T00:00:00", "us")
"""MJD 0."""

_DAY = 86_400_000_000
"""Microseconds."""


def _unit_of(value: Any) -> Any:
    """Return the unit that a value carries: a Quantity, a column of a table, a DataArray; None without one."""
    for holder in (value, getattr(value, "info", None)):
        unit = getattr(holder, "unit", None)
        if unit is not None:
            return unit
    unit = getattr(value, "units", None)  # pint, and others
    if unit is None:
        attributes = getattr(value, "attrs", None)
        unit = attributes.get("units") if isinstance(attributes, dict) else None
    return unit


def has_unit(value: Any) -> bool:
    """Return whether a value says in which unit it is."""
    return _unit_of(value) is not None or (isinstance(value, str) and not _is_number(value))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def in_unit(value: Any, unit: str, name: str) -> NDArray[np.float64]:
    """Return a value as plain numbers in some unit.

    Parameters
    ----------
    value
        Numbers, in the unit already; or a Quantity, a table column with a unit, a text such as ``10arcsec``, or a list
        of these, which are converted.
    unit
        The unit wanted, as astropy spells it; ``pix`` for pixels.

    Returns
    -------
    ndarray
        Shape of ``value``.

    Raises
    ------
    UsageError
        If it is no number, or in a unit that cannot be converted.

    Examples
    --------
    >>> float(in_unit("2arcmin", "arcsec", "size"))
    120.0
    """
    if isinstance(value, str):
        value = float(value) if _is_number(value) else _parsed(value, unit, name)
    elif isinstance(value, list | tuple) and any(has_unit(item) for item in value):
        return np.array([in_unit(item, unit, name) for item in value], np.float64)
    found = _unit_of(value)
    if found is None:
        if value is None:
            raise UsageError("not a number", where=name, expected=f"numbers [{unit}]", found=None)
        try:
            return np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError("not a number", where=name, expected=f"numbers [{unit}]", found=_short(error)) from error
    return _converted(value, found, unit, name)


def whole_pixels(value: Any, name: str) -> int:
    """Return a number of pixels, which may come with its unit.

    Raises
    ------
    UsageError
        If it is no whole number, or in another unit.
    """
    pixels = value if isinstance(value, int | np.integer) else float(in_unit(value, "pix", name))
    if isinstance(value, bool) or not np.isfinite(pixels) or int(pixels) != pixels:
        raise UsageError("not a whole number of pixels", where=name, expected="0 or more", found=value)
    return int(pixels)


def _converted(value: Any, found: Any, unit: str, name: str) -> NDArray[np.float64]:
    from astropy import units

    text = str(found)
    try:
        factor = units.Unit(found if isinstance(found, units.UnitBase) else text)
        plain = value.value if isinstance(value, units.Quantity) else getattr(value, "magnitude", value)
        return np.asarray((np.asarray(plain, np.float64) * factor).to_value(units.Unit(unit)), np.float64)
    except (units.UnitsError, ValueError, TypeError) as error:
        raise UsageError("a unit that cannot be converted", where=name, expected=unit, found=text) from error


def _parsed(text: str, unit: str, name: str) -> Any:
    """Return the Quantity that a text such as ``10arcsec`` or ``12h30m`` is."""
    from astropy import units
    from astropy.coordinates import Angle

    # "12h30m" is an angle of two parts; "12:30" may be hours or degrees, so it is refused.
    is_angle = units.Unit(unit).is_equivalent(units.deg) and re.search(r"[hd°]\s*\d", text)
    try:
        return Angle(text) if is_angle else units.Quantity(text)
    except (TypeError, ValueError):
        pass
    raise UsageError("not a number with a unit", where=name, expected=f"such as 1.5 or 1.5{unit}", found=text)


# --- times --------------------------------------------------------------------------------------------------


def mjd(value: Any, name: str = "times") -> NDArray[np.float64]:
    """Return times as MJD [days, UTC].

    Parameters
    ----------
    value
        MJD; an astropy Time of any scale; datetime64 or datetime (UTC unless they have a time zone); ISO 8601 text; a
        Quantity or column of MJD with a unit of time; or a list of these.

    Returns
    -------
    ndarray
        Shape of ``value``; NaN for NaT.

    Raises
    ------
    UsageError
        If it is none of these.

    Examples
    --------
    >>> float(mjd("2024-10-24T12:00"))
    60607.5
    """
    if hasattr(value, "mjd") and hasattr(value, "utc"):
        return np.asarray(np.ma.filled(value.utc.mjd, np.nan), np.float64)
    if isinstance(value, dt.datetime):
        zone = value.tzinfo
        value = np.datetime64(value.astimezone(dt.UTC).replace(tzinfo=None) if zone is not None else value, "us")
    if isinstance(value, str):
        return in_unit(value, "d", name) if _is_number(value) else _parsed_time(value, name)
    if isinstance(value, list | tuple):
        return np.array([mjd(item, name) for item in value], np.float64)
    if isinstance(value, np.datetime64) or getattr(getattr(value, "dtype", None), "kind", "") == "M":
        return _from_datetime64(np.asarray(value, "datetime64[us]"))  # pandas gives those of a time zone as UTC
    if getattr(getattr(value, "dtype", None), "kind", "") in {"O", "U", "S"}:
        items = np.asarray(value)
        flat = [mjd(item.decode() if isinstance(item, bytes) else item, name) for item in items.ravel().tolist()]
        return np.array(flat, np.float64).reshape(items.shape)
    if getattr(value, "tzinfo", None) is not None or type(value).__name__ == "date":
        raise UsageError("not a time", where=name, expected=_TIMES, found=repr(value))
    return in_unit(value, "d", name)


_TIMES = "MJD, astropy Time, datetime64, datetime or ISO 8601 text"


def _from_datetime64(value: NDArray[Any]) -> NDArray[np.float64]:
    unknown = np.isnat(value)
    ticks = (np.where(unknown, _EPOCH, value).astype("datetime64[us]") - _EPOCH).astype(np.int64)
    days = ticks // _DAY + (ticks % _DAY) / _DAY
    return np.where(unknown, np.nan, days)


def _parsed_time(text: str, name: str) -> NDArray[np.float64]:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("not a time", where=name, expected=_TIMES, found=text) from None
    return mjd(moment, name)


def _short(error: Exception) -> str:
    return str(error)[:120]
