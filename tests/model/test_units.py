"""Values with units become plain numbers in the unit that is wanted, or are refused."""

from __future__ import annotations

import datetime as dt

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from astropy.coordinates import Angle
from astropy.table import QTable, Table
from astropy.time import Time

from wustore.errors import UsageError
from wustore.model.units import in_unit, mjd, whole_pixels

DEGREES = [10.0, 11.0]


@pytest.mark.parametrize(
    "value",
    [
        DEGREES,
        np.array(DEGREES),
        np.array(DEGREES) * u.deg,
        np.array(DEGREES) * 60 * u.arcmin,
        (np.array(DEGREES) / 15) * u.hourangle,
        Angle(DEGREES, "deg"),
        [10 * u.deg, 660 * u.arcmin],
        ["10deg", "660arcmin"],
        ["0h40m0s", "11d0m"],
        Table({"a": np.array(DEGREES) * u.deg})["a"],
        QTable({"a": np.radians(DEGREES) * u.rad})["a"],
        xr.DataArray(np.array(DEGREES) * 3600, attrs={"units": "arcsec"}),
    ],
)
def test_angles(value):
    assert np.allclose(in_unit(value, "deg", "ra"), DEGREES, rtol=1e-14)


@pytest.mark.parametrize("value", [3 * u.pix, "3", "3pix", np.int8(3), 3])
def test_pixels(value):
    assert in_unit(value, "pix", "x") == 3


@pytest.mark.parametrize(
    ("value", "unit", "named"),
    [
        (1 * u.s, "deg", "s"),
        (1 * u.arcsec, "pix", "arcsec"),
        ("2.5m", "deg", "m"),
        (u.Quantity(1), "deg", ""),
        (xr.DataArray(1.0, attrs={"units": "furlong"}), "deg", "furlong"),
        ("12:30", "deg", "12:30"),
        ("much", "pix", "much"),
        (None, "pix", ""),
        ([1, [2]], "pix", ""),
    ],
)
def test_refused(value, unit, named):
    with pytest.raises(UsageError) as caught:
        in_unit(value, unit, "x")
    assert caught.value.where == "x"
    assert named in str(caught.value.found)


NOON = 60607.5  # 2024-10-24T12:00 UTC


@pytest.mark.parametrize(
    "value",
    [
        NOON,
        str(NOON),
        "2024-10-24T12:00",
        "2024-10-24T14:00+02:00",
        NOON * u.d,
        NOON * 24 * u.h,
        Time(NOON, format="mjd"),
        Time(NOON, format="mjd", scale="utc").tdb,
        np.datetime64("2024-10-24T12:00"),
        dt.datetime(2024, 10, 24, 12),
        dt.datetime(2024, 10, 24, 14, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        pd.Timestamp("2024-10-24T12:00"),
    ],
)
def test_times(value):
    assert mjd(value) == pytest.approx(NOON, abs=1e-10)
    assert mjd([value, NOON + 1]) == pytest.approx([NOON, NOON + 1], abs=1e-10)


def test_arrays_of_times():
    days = np.array(["2024-10-24T12:00", "NaT"], "datetime64[s]")
    assert np.array_equal(mjd(days), [NOON, np.nan], equal_nan=True)
    assert mjd(pd.Series([pd.Timestamp("2024-10-24T12:00", tz="UTC")])).tolist() == [NOON]
    assert mjd(Table({"t": Time([NOON], format="mjd")})["t"]).tolist() == [NOON]
    assert mjd(np.array([b"2024-10-24T12:00"])).tolist() == [NOON]
    exact = np.array([60000.123456789, 51544.5])
    assert mjd(exact).tobytes() == exact.tobytes()


@pytest.mark.parametrize("value", ["yesterday", 5 * u.m, dt.date(2024, 1, 1), object(), "2024-13-01"])
def test_no_times(value):
    with pytest.raises(UsageError):
        mjd(value)


def test_whole_pixels():
    assert [whole_pixels(value, "radius") for value in (3, np.int64(3), 3.0, "3pix", 3 * u.pix)] == [3] * 5
    for wrong in (True, 1.5, 2 * u.arcsec, np.nan, None, "many"):
        with pytest.raises(UsageError):
            whole_pixels(wrong, "radius")


NOONS = [NOON, NOON + 1]


@pytest.mark.parametrize(
    "times",
    [
        NOONS,
        np.array(NOONS) * u.d,
        np.array(NOONS) * 24 * u.h,
        Time(NOONS, format="mjd"),
        Time(NOONS, format="mjd").datetime64.astype("datetime64[s]"),
        Time(NOONS, format="mjd").to_datetime().tolist(),
    ],
)
def test_stacks_take_times_in_every_form(times):
    from wustore import ImageStack, SearchConfiguration, WorkUnit

    planes = [np.ones((2, 2), "f4")] * 2
    stack = ImageStack(times=times, sci=planes, var=planes)
    assert np.allclose(stack.times, NOONS, rtol=0, atol=1e-9)
    assert stack.get_matched_obstimes(times).tolist() == [0, 1]
    stack.append_image(times[1], *planes)
    assert stack.times[2] == stack.times[1]
    with pytest.warns(UserWarning, match="WCS"):
        work_unit = WorkUnit(ImageStack(times=[1, 2], sci=planes, var=planes), SearchConfiguration(), obstimes=times)
    assert np.allclose(work_unit.get_all_obstimes(), NOONS, rtol=0, atol=1e-9)
