"""The real KBMOD's pipeline on stores; skipped if it is not installed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS

import wustore
import wustore.kbmod
from wustore.compat.image_stack import ImageStack
from wustore.compat.wcs import make_fake_wcs

pytestmark = [
    pytest.mark.kbmod,
    pytest.mark.filterwarnings("ignore"),  # KBMOD's own
]
pytest.importorskip("kbmod.search", reason="KBMOD is not installed (by design: it is built from source)")

N, SHAPE = 8, (60, 50)
FORMATS = {"zarr": "a.zarr", "hdf5": "a.h5", "fits": "a.fits", "sharded-fits": "a.fits"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def wcs_at(shift: float, height: int = SHAPE[0], width: int = SHAPE[1]) -> WCS:
    wcs = make_fake_wcs(10 + shift, 5 - shift / 2, height, width, deg_per_pixel=2e-4)
    wcs.array_shape = (height, width)
    return wcs


def made() -> Any:
    """Return KBMOD's WorkUnit with a moving source, masked pixels, and two images of one time beside each other."""
    from kbmod.configuration import SearchConfiguration
    from kbmod.core.image_stack_py import ImageStackPy
    from kbmod.work_unit import WorkUnit

    rng = np.random.default_rng(7)
    times = 60000 + np.array([0.0, 0.1, 0.1, 0.2, 1.0, 1.1, 1.2, 1.3])
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    sci, var = [], []
    for k, day in enumerate(times - times[0]):
        blob = 300 * np.exp(-((x - 12 - 9 * day) ** 2 + (y - 20 - 6 * day) ** 2) / 2)
        sci.append((blob + rng.normal(size=SHAPE)).astype(np.float32))
        var.append(rng.uniform(0.9, 1.1, SHAPE).astype(np.float32))
        for plane in (sci[k], var[k]):
            plane[40:44, 5 * k : 5 * k + 4] = np.nan
    config = SearchConfiguration()
    config.set_multiple(
        {
            "num_obs": 4,
            "coadds": ["mean", "median", "weighted"],
            "nightly_coadds": True,
            "save_all_stamps": True,
            "cpu_only": True,
            "generator_config": {
                "name": "EclipticCenteredSearch",
                "angles": [0.3, 0.9, 9],
                "angle_units": "radian",
                "velocities": [5, 15, 9],
                "velocity_units": "pix / d",
                "given_ecliptic": 0.0,
            },
        }
    )
    table = Table(
        {
            "per_image_wcs": [wcs_at(1e-5 * k + 0.02 * (k == 2)) for k in range(N)],
            "ebd_wcs": [wcs_at(3e-5 * k + 0.02 * (k == 2)) for k in range(N)],
            "filter": ["r"] * N,
        }
    )
    psfs = [np.full((3, 3), 1 / 9, np.float32) for _ in range(N)]
    stack = ImageStackPy(times, sci, var, psfs=psfs)
    return WorkUnit(stack, config, org_image_meta=table, barycentric_distance=41.0)


@pytest.fixture(scope="module")
def reference() -> Any:
    return made()


@pytest.fixture(params=[(name, load) for name in FORMATS for load in (False, True)], ids=str)
def work(request: pytest.FixtureRequest, reference: Any, tmp_path: Path) -> Any:
    """KBMOD's WorkUnit out of a store of each format, lazy and loaded."""
    name, load = request.param
    wustore.kbmod.save(reference, tmp_path / FORMATS[name], format=name)
    return wustore.kbmod.open(tmp_path / FORMATS[name], load=load)


def same_results(a: Any, b: Any) -> None:
    assert len(a) == len(b) > 0
    assert set(a.colnames) == set(b.colnames)
    for name in set(a.colnames) - {"uuid"}:
        left, right = np.asarray(a.table[name]), np.asarray(b.table[name])
        assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f"), name


def test_search_with_coadds_and_stamps(work: Any, reference: Any) -> None:
    from kbmod.run_search import SearchRunner

    expected = SearchRunner().run_search_from_work_unit(copy.deepcopy(reference))
    assert {"all_stamps", "coadd_weighted", "img_ra"} <= set(expected.colnames)
    same_results(SearchRunner().run_search_from_work_unit(work), expected)


def test_stamps_of_a_trajectory(work: Any, reference: Any) -> None:
    from kbmod.core.stamp_utils import create_stamps_from_image_stack
    from kbmod.search import Trajectory

    path = Trajectory(x=12, y=20, vx=9.0, vy=6.0)
    expected = create_stamps_from_image_stack(reference.im_stack, path, 3)
    got = create_stamps_from_image_stack(work.im_stack, path, 3)
    assert np.array_equal(np.array(list(got)), np.array(list(expected)), equal_nan=True)


def test_trajectory_explorer(work: Any, reference: Any) -> None:
    from kbmod.trajectory_explorer import TrajectoryExplorer

    found = [
        TrajectoryExplorer(unit.im_stack, unit.config).evaluate_linear_trajectory(12, 20, 9.0, 6.0, False)
        for unit in (work, reference)
    ]
    same_results(*found)


@pytest.mark.parametrize("frame", ["original", "ebd"])
@pytest.mark.parametrize("parallelize", [False, True])
def test_reprojection_in_memory(work: Any, reference: Any, frame: str, parallelize: bool) -> None:
    from kbmod.reprojection import reproject_work_unit

    common = wcs_at(0.005, 90, 140)
    options = {"frame": frame, "parallelize": parallelize, "max_parallel_processes": 2, "show_progress": False}
    expected = reproject_work_unit(reference, common, **options)
    got = reproject_work_unit(work, common, **options)
    for layer in ("sci", "var", "psfs"):
        left, right = (np.array(getattr(unit.im_stack, layer)) for unit in (got, expected))
        assert np.array_equal(left, right, equal_nan=True)
    assert got._per_image_indices == expected._per_image_indices


@pytest.mark.parametrize("frame", ["original", "ebd"])
@pytest.mark.parametrize("target", ["b.zarr", "b.h5"])
def test_reprojection_into_a_store(reference: Any, tmp_path: Path, frame: str, target: str) -> None:
    from kbmod.reprojection import reproject_work_unit

    common = wcs_at(0.005, 90, 140)
    expected = reproject_work_unit(reference, common, frame=frame, parallelize=False, show_progress=False)
    wustore.kbmod.save(reference, tmp_path / "a.zarr")
    wustore.kbmod.reproject(tmp_path / "a.zarr", tmp_path / target, common, frame)
    got = wustore.kbmod.open(tmp_path / target)
    for layer in ("sci", "var", "psfs"):
        left, right = (np.array(getattr(unit.im_stack, layer)) for unit in (got, expected))
        assert np.array_equal(left, right, equal_nan=True)
    assert got._per_image_indices == expected._per_image_indices
    assert got.org_img_meta.colnames == expected.org_img_meta.colnames
    assert list(got.im_stack.times) == list(expected.im_stack.times)


def test_kbmod_reads_what_we_write(reference: Any, tmp_path: Path) -> None:
    from kbmod.work_unit import WorkUnit

    wustore.kbmod.save(reference, tmp_path / "a.fits")
    there = WorkUnit.from_fits(tmp_path / "a.fits", show_progress=False)
    for left, right in zip(there.im_stack.sci, reference.im_stack.sci, strict=True):
        assert np.array_equal(left, right, equal_nan=True)
    assert isinstance(wustore.kbmod.from_kbmod(there).im_stack, type(reference.im_stack))
    assert isinstance(wustore.WorkUnit.of(there), wustore.WorkUnit)
    assert ImageStack.of(there.im_stack).num_times == N
