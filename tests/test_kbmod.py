"""To and from KBMOD's objects, with stand-ins that ask for types as KBMOD does."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import EarthLocation
from astropy.table import Table
from astropy.wcs import WCS

import wustore
import wustore.kbmod
from wustore.compat.image_stack import ImageStack
from wustore.errors import MissingDependencyError, UsageError
from wustore.work_unit import WorkUnit

N = 5
CTIO = EarthLocation.from_geodetic(-70.8 * u.deg, -30.2 * u.deg, 2200 * u.m)


def wcs_at() -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [10, 5], [-1e-4, 1e-4]
    wcs.pixel_shape = (9, 8)
    return wcs


def made(**options: Any) -> WorkUnit:
    rng = np.random.default_rng(3)
    sci = [rng.normal(size=(8, 9)).astype(np.float32) + k for k in range(N)]
    var = [rng.uniform(1, 2, (8, 9)).astype(np.float32) for _ in range(N)]
    masks = [(np.arange(72).reshape(8, 9) % 9 == k).astype(np.int32) for k in range(N)]
    stack = ImageStack(60000.0 + np.arange(N), sci, var, masks, [np.full((3, 3), 1 / 9, np.float32)] * N)
    config = wustore.SearchConfiguration({"num_obs": 7, "own": 1.5})
    return WorkUnit(stack, config, wcs=wcs_at(), org_image_meta=Table({"n": np.arange(N)}), observatory=CTIO, **options)


@pytest.fixture(params=["zarr", "hdf5", "fits", "sharded-fits"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / ("a.fits" if "fits" in request.param else f"a.{request.param}")
    wustore.save(made(), path, format=request.param)
    return path


def test_without_kbmod_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "kbmod", None)
    with pytest.raises(MissingDependencyError, match="KBMOD"):
        wustore.kbmod.to_kbmod(made())
    with pytest.raises(MissingDependencyError, match="KBMOD"):
        wustore.kbmod.open(tmp_path / "not looked for")


def test_a_search_takes_what_open_gives(kbmod_stand_in: Any, stored: Path) -> None:
    expected = kbmod_stand_in.search(wustore.kbmod.to_kbmod(made()))
    for load in (False, True):
        work = wustore.kbmod.open(stored, load=load)
        assert kbmod_stand_in.search(work) == expected
        assert work.config["own"] == 1.5
        assert np.allclose([x.value for x in work.observatory.geocentric], [x.value for x in CTIO.geocentric])
        assert work.org_img_meta["n"].tolist() == list(range(N))
        assert work.wcs.wcs.crval.tolist() == [10, 5]
        assert work._per_image_indices == [[k] for k in range(N)]


def test_opening_reads_no_pixel(kbmod_stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    work = wustore.kbmod.open(tmp_path / "a.zarr")
    for planes in (work.im_stack.sci, work.im_stack.var, work.im_stack.psfs):
        assert [list.__getitem__(planes, k) for k in range(N)] == [None] * N
    assert (work.im_stack.height, work.im_stack.width) == (8, 9)


def test_masked_pixels_are_counted_once(kbmod_stand_in: Any, tmp_path: Path) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    work = wustore.kbmod.open(tmp_path / "a.zarr")
    stack = work.im_stack
    assert stack.num_masked_pixels().tolist() == [8] * N
    reads = []
    pairs = stack.sci.source.pairs
    stack.sci.source.pairs = lambda indices: reads.append(indices) or pairs(indices)
    assert stack.num_masked_pixels().tolist() == [8] * N
    stack.sci[1][0, 0] = np.nan
    assert stack.num_masked_pixels().tolist() == [8, 9, 8, 8, 8]
    assert reads == []


def test_filter_and_sort_read_nothing(kbmod_stand_in: Any, tmp_path: Path) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    stack = wustore.kbmod.open(tmp_path / "a.zarr").im_stack
    everything = [np.array(plane) for plane in stack.sci]
    stack.times = stack.times[::-1].copy()
    assert stack.sort_by_time().tolist() == [4, 3, 2, 1, 0]
    stack.filter_images([True, False, True, True, False])
    assert (stack.num_times, stack.zeroed_times.tolist()) == (3, [0, 2, 3])
    assert np.array_equal(np.array(stack.sci), np.array(everything)[[4, 2, 1]], equal_nan=True)
    empty = wustore.kbmod.open(tmp_path / "a.zarr").im_stack
    empty.filter_images(np.zeros(N, bool))
    assert (len(empty), len(empty.sci)) == (0, 0)


def test_what_kbmod_writes_to_planes_is_saved(kbmod_stand_in: Any, tmp_path: Path) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    work = wustore.kbmod.open(tmp_path / "a.zarr")
    expected = [np.where(plane > 4, np.nan, plane) for plane in made().im_stack.sci]
    work.im_stack.mask_by_science_bounds(4.0)
    work.config.set("num_obs", 11)
    wustore.kbmod.save(work, tmp_path / "b.zarr")
    back = wustore.open(tmp_path / "b.zarr")
    assert np.array_equal(np.array(list(back.im_stack.sci)), np.array(expected), equal_nan=True)
    assert back.config["num_obs"] == 11


@pytest.mark.filterwarnings("ignore:At least one image does not have a WCS")
def test_untouched_planes_are_copied_with_what_the_view_hides(kbmod_stand_in: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).parent / "data" / "stores" / "0.1.0" / "flags.zarr.zip") as archive:
        archive.extractall(tmp_path)
    source = tmp_path / "flags.zarr"
    wustore.kbmod.save(wustore.kbmod.open(source), tmp_path / "b.zarr")
    old, new = wustore.open(source), wustore.open(tmp_path / "b.zarr")
    for layer in ("science", "variance", "mask"):
        left, right = old.layer(layer)[:], new.layer(layer)[:]
        assert left.tobytes() == right.tobytes(), layer


def test_the_stack_pickles(kbmod_stand_in: Any, tmp_path: Path) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    stack = wustore.kbmod.open(tmp_path / "a.zarr").im_stack
    there = pickle.loads(pickle.dumps(stack))
    assert type(there) is type(stack)
    assert np.array_equal(there.sci[2], stack.sci[2], equal_nan=True)


def test_a_loaded_work_unit_shares_its_arrays(kbmod_stand_in: Any) -> None:
    ours = made()
    theirs = wustore.kbmod.to_kbmod(ours)
    assert theirs.im_stack.sci[0] is ours.im_stack.sci[0]
    back = wustore.kbmod.from_kbmod(theirs)
    assert back.im_stack is theirs.im_stack
    assert back.config == ours.config
    assert wustore.kbmod.to_kbmod(back).im_stack is theirs.im_stack


def test_none_stays_none(kbmod_stand_in: Any, tmp_path: Path) -> None:
    ours = made()
    ours.config = None
    assert wustore.kbmod.to_kbmod(ours).config is None
    wustore.save(ours, tmp_path / "a.zarr")
    assert wustore.open(tmp_path / "a.zarr").config is None
    assert wustore.kbmod.open(tmp_path / "a.zarr").config is None


def test_an_observatory_can_be_given(kbmod_stand_in: Any) -> None:
    theirs = wustore.kbmod.to_kbmod(made())
    del theirs.observatory
    other = EarthLocation.from_geodetic(1 * u.deg, 2 * u.deg, 3 * u.m)
    assert wustore.kbmod.from_kbmod(theirs, observatory=other).observatory is other
    assert not wustore.kbmod.from_kbmod(theirs).observatory_given


def test_convert_and_save_take_kbmods_work_unit(kbmod_stand_in: Any, tmp_path: Path) -> None:
    theirs = wustore.kbmod.to_kbmod(made())
    wustore.convert(theirs, tmp_path / "a.zarr", profile="portable")
    wustore.save(theirs, tmp_path / "b.zarr")
    assert wustore.diff(tmp_path / "a.zarr", tmp_path / "b.zarr") == []
    assert wustore.open(tmp_path / "a.zarr").per_image_indices == [[k] for k in range(N)]


def test_what_is_no_work_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a WorkUnit"):
        wustore.kbmod.save({"im_stack": 1}, tmp_path / "a.zarr")


# --- reprojection into a store ---


def common() -> WCS:
    wcs = wcs_at()
    wcs.wcs.crpix = [20, 10]
    wcs.pixel_shape = (40, 20)
    return wcs


def two_detectors() -> WorkUnit:
    """Return a WorkUnit whose images 1 and 2 were taken at the same time beside each other."""
    work_unit = made()
    times = work_unit.im_stack.times
    times[2] = times[1]
    wcses = [wcs_at() for _ in range(N)]
    wcses[2].wcs.crpix = [-9, 0]
    ebd = [wcs_at() for _ in range(N)]
    for k, wcs in enumerate(ebd):
        wcs.wcs.crpix = [-9 * (k == 2) - k, 0]
    table = Table({"per_image_wcs": wcses, "ebd_wcs": ebd, "n": np.arange(N)})
    psfs = [np.full((3, 3), k, np.float32) for k in range(N)]
    stack = ImageStack(times, work_unit.im_stack.sci, work_unit.im_stack.var, psfs=psfs)
    return WorkUnit(stack, None, org_image_meta=table, barycentric_distance=40.0, observatory=CTIO)


@pytest.mark.parametrize("frame", ["original", "ebd"])
@pytest.mark.parametrize("target", ["b.zarr", "b.h5"])
def test_reproject(kbmod_stand_in: Any, tmp_path: Path, frame: str, target: str) -> None:
    work_unit = two_detectors()
    wustore.save(work_unit, tmp_path / "a.zarr")
    seen: list[tuple[int, int]] = []
    wustore.kbmod.reproject(
        tmp_path / "a.zarr", tmp_path / target, common(), frame, progress=lambda done, n: seen.append((done, n))
    )
    assert seen == [(k, 4) for k in range(1, 5)]
    assert wustore.verify(tmp_path / target) == []
    back = wustore.open(tmp_path / target)
    assert back.per_image_indices == [[0], [1, 2], [3], [4]]
    assert (back.reprojected, back.reprojection_frame, back.barycentric_distance) == (True, frame, 40.0)
    assert back.org_img_meta["n"].tolist() == list(range(N))
    assert [wcs.wcs.crpix[0] for wcs in back.org_img_meta["ebd_wcs"]] == [0, -1, -11, -3, -4]
    assert back.observatory_given
    assert back.config is None
    assert [psf[0, 0] for psf in back.im_stack.psfs] == [0, 1, 3, 4]
    assert back.wcs is not None
    assert back.wcs.array_shape == (20, 40)
    shift = 1 if frame == "ebd" else 0
    expected = np.full((20, 40), np.nan, np.float32)
    old = work_unit.im_stack.sci
    expected[10:18, 20 + shift : 29 + shift] = old[1]
    expected[10:18, 29 + 2 * shift : 38 + 2 * shift] = old[2]
    assert np.array_equal(back.im_stack.sci[1], expected, equal_nan=True)


def test_reproject_goes_on_where_it_was_killed(
    kbmod_stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wustore.save(two_detectors(), tmp_path / "a.zarr")
    wustore.kbmod.reproject(tmp_path / "a.zarr", tmp_path / "whole.zarr", common())
    calls: list[int] = []
    real = wustore.kbmod.reprojected_planes

    def dies(pairs: Any, wcses: Any, wcs: Any) -> Any:
        calls.append(len(pairs))
        if len(calls) == 3:
            raise OSError("killed")
        return real(pairs, wcses, wcs)

    monkeypatch.setattr(wustore.kbmod, "reprojected_planes", dies)
    with pytest.raises(OSError, match="killed"):
        wustore.kbmod.reproject(tmp_path / "a.zarr", tmp_path / "b.zarr", common(), resume=True)
    assert not (tmp_path / "b.zarr").exists()
    wustore.kbmod.reproject(tmp_path / "a.zarr", tmp_path / "b.zarr", common(), resume=True)
    assert calls == [1, 2, 1, 1, 1]
    assert wustore.diff(tmp_path / "whole.zarr", tmp_path / "b.zarr") == []


def test_reproject_what_cannot_be(kbmod_stand_in: Any, tmp_path: Path) -> None:
    work_unit = two_detectors()
    with pytest.raises(UsageError, match="frame"):
        wustore.kbmod.reproject(work_unit, tmp_path / "b.zarr", common(), "other")
    work_unit.org_img_meta["ebd_wcs"][3] = None
    with pytest.raises(UsageError, match="image 3, ebd_wcs"):
        wustore.kbmod.reproject(work_unit, tmp_path / "b.zarr", common(), "ebd")
    work_unit.org_img_meta["per_image_wcs"][2] = work_unit.org_img_meta["per_image_wcs"][1]
    with pytest.raises(UsageError, match="overlap"):
        wustore.kbmod.reproject(work_unit, tmp_path / "b.zarr", common())
    with pytest.raises(UsageError, match="reprojected already"):
        wustore.kbmod.reproject(made(reprojected=True), tmp_path / "b.zarr", common())
    assert not (tmp_path / "b.zarr").exists()
