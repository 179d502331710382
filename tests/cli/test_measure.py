"""The benchmark measures what it says, on any store."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing, open_reader
from wustore.cli import main
from wustore.cli import measure as bench
from wustore.ops.copy import copy
from wustore.testing import sample


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("bench") / "wu.zarr")
    source = sample("chunked")
    rng = np.random.default_rng(0)
    images = []
    for i in range(3):
        science = rng.normal(0, 5, (600, 530)).astype(np.float32)
        images.append(replace(source.image(i), science=science, variance=np.abs(science) + 20))
    reader = MemoryReader(source.meta, images)
    copy(reader, backend_for_writing(path).create(path, reader.meta))
    return path


def test_table_and_document(store, capsys, tmp_path):
    command = ["bench", store, "--images", "2", "--only", "zarr none", "--directory", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    astropy, plain = json.loads(captured.out)["cases"]
    assert "measuring Zarr none" in captured.err
    assert astropy["name"] == "FITS, astropy"
    # Steps of 0.01 lose up to half a step; the archive loses nothing.
    assert 0 < astropy["different"] <= 2 * 2 * 600 * 530
    assert 0.004 < astropy["largest"] < 0.0051
    assert plain["different"] == 0
    assert plain["largest"] == 0
    assert 2 * 2 * 600 * 530 * 4 < plain["bytes"] < 2.6 * 2 * 600 * 530 * 4
    for measured in (astropy, plain):
        assert measured["failed"] is None
        assert all(measured[key] > 0 for key in ("write", "load", "image"))
        assert 2 * 2 * 600 * 530 * 4 < measured["memory"] < 10**9
    assert plain["stamp"] > 0
    assert plain["trajectories"] > 0
    assert astropy["stamp"] is None
    assert list(tmp_path.iterdir()) == []


def test_table():
    from wustore.cli.measure import _table

    base = bench.Measurement("FITS, astropy", 10**6, 2.0, 4.0, 0.5, None, None, 10**8, 7, 0.005)
    other = bench.Measurement("Zarr", 5 * 10**5, 1.0, 0.04, 0.05, 0.004, 0.4, 10**7, 0, 0.0)
    broken = bench.Measurement("HDF5", failed="no plug-in")
    lines = _table([base, other, broken])
    assert lines[1].split("  ")[0] == "FITS, astropy"
    assert "within 0.005" in lines[1]
    assert "500.0 kB" in lines[2]
    assert "40.0 ms (100 x)" in lines[2]
    assert "4.0 ms (1e+03 x)" in lines[2]
    assert lines[2].endswith("yes")
    assert "failed: no plug-in" in lines[3]


def test_bad_arguments(store, tmp_path, capsys):
    assert main(["bench", store, "--only", "no such case"]) == 2
    assert main(["bench", str(tmp_path / "none.zarr")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_case_that_fails_says_so(store):
    case = bench.Case("broken", "zarr", ".zarr", {"no_such_option": 1})
    (found,) = bench.measurements(store, n_images=1, cases=[case])
    assert found.load is None
    assert "no_such_option" in found.failed


def test_differences():
    a = np.array([[1.0, np.nan, 0.0, np.inf]], np.float32)
    b = np.array([[1.5, -np.nan, -0.0, 3.0]], np.float32)
    assert bench._differences([(a, a)], [(a, a)]) == {"different": 0, "largest": 0.0}
    assert bench._differences([(a, a)], [(a, b)]) == {"different": 3, "largest": np.inf}


def test_astropys_way_is_kbmods(tmp_path):
    """What the benchmark compares with writes the planes that KBMOD writes."""
    import wustore

    rng = np.random.default_rng(1)
    science = [rng.normal(0, 5, (40, 50)).astype(np.float32) for _ in range(2)]
    variance = [np.full((40, 50), 25, np.float32) for _ in range(2)]
    science[1][3:5] = variance[1][3:5] = np.nan
    psf = np.ones((1, 1), np.float32)
    bench.astropy_write(str(tmp_path / "astropy.fits"), [(s, v, psf) for s, v in zip(science, variance, strict=True)])
    stack = wustore.ImageStack(
        times=[1.0, 2.0], sci=[plane.copy() for plane in science], var=[plane.copy() for plane in variance]
    )
    with pytest.warns(UserWarning, match="WCS"):
        work_unit = wustore.WorkUnit(stack, wustore.SearchConfiguration())
    work_unit.to_fits(tmp_path / "kbmod.fits")
    left = bench.astropy_read(str(tmp_path / "astropy.fits"))
    right = bench.astropy_read(str(tmp_path / "kbmod.fits"))
    assert bench._differences(left, right)["different"] == 0
    assert bench._differences(left, zip(science, variance, strict=True))["largest"] < 0.0051
    with open_reader(tmp_path / "kbmod.fits") as reader:
        assert bench._differences(bench._seen(reader), left)["different"] == 0
