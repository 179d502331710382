"""Positions at a barycentric distance, against the geometry done by hand and KBMOD's own answers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import EarthLocation, SkyCoord, get_body_barycentric
from astropy.time import Time
from astropy.utils import iers
from astropy.wcs import WCS

from wustore.compat.reprojection import image_positions_to_original_icrs, observed_from_barycentric, offline
from wustore.compat.wcs import sky_to_pixel
from wustore.errors import UsageError

CTIO = EarthLocation(lat=-30.17 * u.deg, lon=-70.81 * u.deg, height=2200 * u.m)


def wcs_at(ra: float, dec: float = -10.0, scale: float = 1e-3, shape: tuple[int, int] | None = (100, 120)) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [ra, dec], [50.0, 50.0]
    wcs.wcs.cdelt = [-scale, scale]
    wcs.array_shape = shape
    return wcs


def test_against_plain_geometry() -> None:
    coords = SkyCoord([10.0, 120.0, 250.0], [-5.0, 40.0, -70.0], unit="deg")
    times = np.array([60000.1, 60090.5, 60200.9])
    distance = 40.0
    seen = observed_from_barycentric(coords, times, distance, CTIO)
    with offline():
        earth = get_body_barycentric("earth", Time(times, format="mjd")).xyz.to_value(u.au)
    vectors = distance * coords.cartesian.xyz.value - earth
    expected = SkyCoord(*vectors, representation_type="cartesian")
    # The observer stands up to 9 arcsec * 1/40 / 206265 au beside Earth's centre: 0.3 arcsec at 40 au.
    assert seen.separation(SkyCoord(expected.spherical.lon, expected.spherical.lat)).arcsec.max() < 0.3
    # At 40 au parallax itself is above a degree.
    assert seen.separation(coords).deg.max() > 1.0


def test_very_far_points_do_not_move() -> None:
    coords = SkyCoord([10.0, 120.0], [-5.0, 40.0], unit="deg")
    seen = observed_from_barycentric(coords, [60000.0, 60100.0], 1e9, CTIO)
    assert seen.separation(coords).arcsec.max() < 1e-3


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iers.IERS_Auto, "open", lambda *a, **k: pytest.fail("Earth orientation tables were asked for"))
    observed_from_barycentric(SkyCoord([1.0], [2.0], unit="deg"), [70000.0], 40.0, CTIO)


def positions(indices: list[int], places: list[tuple[float, float]], **options: object) -> list[object]:
    arguments: dict[str, object] = {
        "reprojected_wcs": wcs_at(10.0),
        "original_wcses": [wcs_at(10.0), wcs_at(10.02), wcs_at(50.0)],
        "all_times": [60000.0, 60001.0],
        "observatory": CTIO,
        "per_image_indices": [[0, 2], [0, 1]],
        "image_locations": ["a", "b", "c"],
    }
    return image_positions_to_original_icrs(indices, places, **(arguments | options))  # type: ignore[arg-type]


def test_original_frame() -> None:
    (((x, y), name),) = positions([0], [(30.0, 40.0)])
    assert (round(x, 6), round(y, 6), name) == (30.0, 40.0, "a")
    with pytest.warns(UserWarning, match="position 1"):
        first, second = positions([0, 1], [(30.0, 40.0), (60.0, 40.0)])
    assert first[1] == "a"
    assert [match[1] for match in second] == ["a", "b"]
    assert positions([0], [(-30.0, 40.0)]) == [None]
    sky = positions([0], [(30.0, 40.0)], output_format="radec", filter_in_frame=False)
    assert isinstance(sky[0], SkyCoord)
    back = positions([0], sky, input_format="radec")
    assert np.allclose(back[0][0], (30.0, 40.0))
    assert np.allclose(positions([0], SkyCoord(sky), input_format="radec")[0][0], (30.0, 40.0))
    assert positions([], []) == []
    unnamed = positions([1], [(110.0, 40.0)], image_locations=None)
    assert unnamed[0][1] == (1, 0)


def test_positions_go_by_position() -> None:
    places = [(30.0, 40.0), (60.0, 20.0), (10.0, 70.0)]
    options = {"reprojection_frame": "ebd", "barycentric_distance": 40.0, "filter_in_frame": False}
    straight = positions([0, 1, 0], places, **options)
    turned = positions([0, 1, 0][::-1], places[::-1], **options)
    assert [match[0][0] for match in straight] == [match[0][0] for match in turned[::-1]]


def test_an_image_without_size_takes_every_position() -> None:
    wcs = wcs_at(10.0, shape=None)
    assert positions([0], [(-30.0, 40.0)], original_wcses=[wcs], per_image_indices=[[0]])[0][1] == "a"


@pytest.mark.parametrize(
    ("indices", "places", "options"),
    [
        ([0], [(1.0, 2.0)], {"input_format": "pixels"}),
        ([0], [(1.0, 2.0)], {"output_format": "pixels"}),
        ([0], [(1.0, 2.0)], {"reprojection_frame": "galactic"}),
        ([0], [(1.0, 2.0)], {"reprojection_frame": "ebd"}),
        ([0, 1], [(1.0, 2.0)], {}),
        ([0], [(1.0, 2.0, 3.0)], {}),
        ([0], [5.0], {}),
        ([0], [(1.0, 2.0)], {"input_format": "radec"}),
        ([0], [(1.0, 2.0)], {"original_wcses": [None, None, None]}),
    ],
)
def test_arguments_that_cannot_be_meant(indices: list[int], places: list[object], options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        positions(indices, places, **options)  # type: ignore[arg-type]


def test_positions_off_the_sphere_are_nan() -> None:
    pixels = sky_to_pixel(SkyCoord([10.0, 190.0], [-10.0, 10.0], unit="deg"), wcs_at(10.0))
    assert np.allclose(pixels[0], (49.0, 49.0))
    assert np.isnan(pixels[1]).all()


def test_kbmod_answers(corpus: Path) -> None:
    from wustore.work_unit import WorkUnit

    vectors = json.loads((corpus / "api_vectors.json").read_text())
    checked = 0
    for name, cases in vectors.items():
        for case in (key for key in cases if key.startswith("to_original_xy_") and "error" not in key):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work_unit = WorkUnit.from_fits(corpus / name)
                places = [tuple(place) for place in cases[case]["positions"]]
                got = work_unit.image_positions_to_original_icrs(
                    list(range(len(places))),
                    places,
                    output_format=case.split("_")[3],
                    filter_in_frame=case.endswith("in_frame"),
                )
            assert len(got) == len(cases[case]["result"])
            for mine, kbmods in zip(got, cases[case]["result"], strict=True):
                compare(mine, kbmods)
                checked += 1
    assert checked


def compare(mine: object, kbmods: object) -> None:
    if kbmods is None:
        assert mine is None
    elif isinstance(kbmods, dict):
        assert isinstance(mine, SkyCoord)
        assert abs(mine.ra.deg - kbmods["ra"]) < 1e-9
        assert abs(mine.dec.deg - kbmods["dec"]) < 1e-9
    elif isinstance(kbmods, str):
        assert str(mine) == kbmods
    elif isinstance(kbmods, list):
        assert isinstance(mine, tuple | list)
        for a, b in zip(mine, kbmods, strict=True):
            compare(a, b)
    else:
        assert abs(mine - kbmods) < 1e-6  # type: ignore[operator]
