"""``wustore images``, ``header``, ``config`` and ``table``: values from the store, the same in every format."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from astropy.io import ascii as ascii_tables
from astropy.io import fits

from wustore.cli import main
from wustore.cli.about import SIZE, SKY, build
from wustore.compat.configuration import SearchConfiguration
from wustore.ops.images import iso_date, psf_fwhm, sky_of


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    place = tmp_path_factory.mktemp("night")
    build().to_fits(str(place / "night.fits"))
    for target in ("night.zarr", "night.h5"):
        assert main(["convert", str(place / "night.fits"), str(place / target), "-q"]) == 0
    return place


def test_images(night, run):
    code, out, err = run("images", night / "night.zarr", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["image"] for row in rows] == list(range(8))
    assert rows[0]["date"] == "2025-01-01T06:00:00.000"
    assert {row["filter"] for row in rows} == {"r"}
    assert [row["visit"] for row in rows] == [946_000 + i for i in range(8)]
    for row in rows:
        assert (row["height"], row["width"]) == (SIZE, SIZE)
        assert 1.5 < row["masked_percent"] < 2.5
        assert row["sky_noise"] == pytest.approx(SKY, rel=0.05)
        assert row["psf_fwhm"] == pytest.approx(1.4 * 2.3548, rel=0.01)
        assert (row["ra"], row["dec"]) == pytest.approx((351.3, -5.1))
    found = list(csv.DictReader(io.StringIO(run("images", night / "night.h5", "--csv")[1])))
    assert list(found[0]) == list(rows[0])
    assert [float(row["sky_median"]) for row in found] == [row["sky_median"] for row in rows]
    plain = json.loads(run("images", night / "night.fits", "--no-pixels", "--json")[1])
    assert list(plain[0]) == list(rows[0])
    assert plain[0]["sky_noise"] is None
    lines = run("images", night / "night.zarr")[1].splitlines()
    assert len(lines) == 9
    assert "2025-01-01T06:00:00.000" in lines[1]


def test_facts_of_pixels():
    plane = np.array([[1, 2, 3], [4, 5, np.nan]], np.float32)
    median, noise, masked = sky_of(plane, np.array([[0, 0, 0], [0, 2, 0]], np.int32))
    assert (median, masked) == (2.5, pytest.approx(100 / 3))
    assert noise == pytest.approx(1.4826)
    assert sky_of(plane * np.nan, None) == (None, None, 100.0)
    assert psf_fwhm(None) is None
    assert psf_fwhm(np.ones((1, 1), np.float32)) is None
    assert iso_date(60000.123456789) == "2023-02-25T02:57:46.667"
    assert iso_date(float("nan")) is None
    assert iso_date(1e9) is None


def test_header_is_that_of_the_file(night, run):
    with fits.open(night / "night.fits", disable_image_compression=True) as hdus:
        expected = [card.image for card in hdus["VAR_3"].header.cards]
    for name in ("night.fits", "night.zarr", "night.h5"):
        found = json.loads(run("header", night / name, "--image", 3, "--json")[1])
        assert [entry["hdu"] for entry in found] == ["SCI_3", "VAR_3", "MSK_3", "PSF_3"]
        assert found[1]["cards"] == expected
        lines = run("header", night / name)[1].splitlines()
        assert lines[0] == "# PRIMARY"
        assert lines[1].startswith("SIMPLE  =                    T")


def test_header_without_a_capsule(night, run, tmp_path):
    assert run("convert", night / "night.fits", tmp_path / "a.zarr", "--no-capsule")[0] == 0
    code, out, _ = run("header", tmp_path / "a.zarr")
    assert code == 0
    assert "CTYPE1  = 'RA---TAN'" in out


def test_config(night, run, tmp_path):
    code, out, _ = run("config", night / "night.zarr")
    assert code == 0
    found = SearchConfiguration.from_yaml(out)
    assert (found["num_obs"], found["lh_level"]) == (6, 8.0)
    assert json.loads(run("config", night / "night.h5", "--json")[1])["num_obs"] == 6


def test_table(night, run):
    code, out, _ = run("table", night / "night.zarr")
    assert code == 0
    found = ascii_tables.read(out, format="ecsv")
    assert found["visit"].tolist() == [946_000 + i for i in range(8)]
    rows = json.loads(run("table", night / "night.h5", "--json")[1])
    assert rows[3]["data_loc"] == "demo/exposure_3.fits"
    assert list(csv.DictReader(io.StringIO(run("table", night / "night.fits", "--csv")[1])))[3]["filter"] == "r"


def test_info_table(night, run):
    paths = (night / "night.zarr", night / "none", night / "night.h5")
    code, out, _ = run("info", "--table", *paths)
    assert code == 2
    assert len(out.splitlines()) == 2  # stopped at the one that is not there
    code, out, err = run(
        "info", "--table", "--continue-on-error", night / "night.zarr", night / "none", night / "night.h5"
    )
    assert code == 2
    assert len(out.splitlines()) == 3
    assert err.splitlines()[-1] == "2 of 3 stores, 16 images"
