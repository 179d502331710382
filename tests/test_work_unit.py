"""The WorkUnit API: construction, lazy use, editing, every format, and KBMOD objects."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import EarthLocation
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from astropy.wcs import WCS, Sip

import wustore
from wustore import store_view
from wustore.backends.fits.fidelity import FitsLossWarning
from wustore.backends.memory import MemoryReader
from wustore.compat.configuration import SearchConfiguration
from wustore.compat.image_stack import ImageStack
from wustore.compat.wcs import wcs_fits_equal
from wustore.errors import (
    CorruptError,
    FormatError,
    StoreExistsError,
    StoreNotFoundError,
    UsageError,
)
from wustore.format.wcs import wcs_to_text
from wustore.model.meta import LAYERS, Column, ConstituentTable, Image, Meta
from wustore.store_view import meta_of, reader_of
from wustore.work_unit import (
    WorkUnit,
    add_image_data_to_hdul,
    load_layered_image_from_shard,
    read_image_data_from_hdul,
    work_unit_from,
)

CTIO = EarthLocation(lat=-30.17 * u.deg, lon=-70.81 * u.deg, height=2200 * u.m)
N = 4
SHAPE = (12, 16)


def wcs_at(ra: float = 150.0) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    wcs.wcs.crval, wcs.wcs.crpix = [ra + 1 / 3, -10.0], [8.0, 6.0]
    wcs.wcs.cd = np.array([[-1 / 3e4, 1e-9], [1e-9, 1 / 3e4]])
    terms = np.zeros((3, 3))
    terms[2, 0] = 1e-7 / 3
    wcs.sip = Sip(terms, terms, None, None, wcs.wcs.crpix)
    wcs.array_shape = SHAPE
    return wcs


def stack(n: int = N) -> ImageStack:
    rng = np.random.default_rng(3)
    science = [rng.normal(0, 5, SHAPE).astype(np.float32) for _ in range(n)]
    variance = [np.full(SHAPE, 25 + k / 3, np.float32) for k in range(n)]
    science[0][1, 2] = variance[0][1, 2] = np.nan
    science[1][0, 0] = np.nan  # in one layer only
    return ImageStack(60000.0 + np.arange(n) / 3, science, variance, psfs=[np.eye(3) / 3 for _ in range(n)])


def table(n: int = N) -> Table:
    return Table(
        {"data_loc": [f"/data/{i}.fits" for i in range(n)], "filter": ["g", "r"] * (n // 2), "n": np.arange(n)}
    )


def made(**options: Any) -> WorkUnit:
    arguments: dict[str, Any] = {
        "wcs": wcs_at(),
        "org_image_meta": table(),
        "observatory": CTIO,
    }
    return WorkUnit(stack(), SearchConfiguration({"num_obs": 7, "limits": (1, 2)}), **(arguments | options))


def same_pixels(a: WorkUnit, b: WorkUnit) -> bool:
    return all(
        np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True)
        for mine, theirs in (
            (a.im_stack.sci, b.im_stack.sci),
            (a.im_stack.var, b.im_stack.var),
            (a.im_stack.psfs, b.im_stack.psfs),
        )
        for x, y in zip(mine, theirs, strict=True)
    )


# --- construction ---


def test_defaults() -> None:
    with pytest.warns(UserWarning, match="does not have a WCS"):
        work_unit = WorkUnit(stack(), None)
    assert len(work_unit) == work_unit.n_constituents == work_unit.get_num_images() == N
    assert work_unit.per_image_indices == [[0], [1], [2], [3]]
    assert work_unit._per_image_indices is work_unit.per_image_indices
    assert not work_unit.lazy
    assert work_unit.config is None
    assert not work_unit.observatory_given
    assert round(work_unit.observatory.lat.deg, 4) == -30.2446
    assert work_unit.org_img_meta.colnames == ["data_loc", "ebd_wcs", "geocentric_distance", "per_image_wcs"]
    assert work_unit.get_wcs(0) is None
    assert work_unit.compute_ecliptic_angle() is None


def test_global_and_per_image_wcs() -> None:
    work_unit = made()
    assert work_unit.get_wcs(3) is work_unit.wcs
    assert all(wcs is work_unit.wcs for wcs in work_unit.org_img_meta["per_image_wcs"])
    own = [wcs_at(150.0 + i) for i in range(N)]
    work_unit = made(wcs=None, per_image_wcs=own)
    assert work_unit.get_wcs(2) is own[2]
    assert work_unit.get_constituent_meta("filter") == ["g", "r", "g", "r"]
    assert work_unit.get_constituent_meta(["n", "absent"]) == {"n": [0, 1, 2, 3]}
    with pytest.raises(TypeError):
        work_unit.get_constituent_meta(5)  # type: ignore[arg-type]


def test_a_configuration_may_be_a_dict() -> None:
    work_unit = WorkUnit(stack(), {"num_obs": 3}, wcs=wcs_at())
    assert work_unit.config == SearchConfiguration({"num_obs": 3})
    with pytest.raises(UsageError):
        WorkUnit(stack(), 5)
    with pytest.raises(UsageError):
        WorkUnit(5, None)


@pytest.mark.parametrize(
    "options",
    [
        {"per_image_wcs": [None]},
        {"org_image_meta": table(2), "per_image_indices": [[0], [1], [2], [0]]},
        {"per_image_indices": [[0], [1], [-1], [2]]},
        {"reprojected": True, "wcs": None, "per_image_wcs": [wcs_at()] * N},
    ],
)
def test_what_does_not_agree_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        made(**options)


# --- coordinates and times ---


def test_pixels_of_sky_positions() -> None:
    own = [wcs_at(150.0), wcs_at(151.0), wcs_at(150.0), wcs_at(153.0)]
    work_unit = made(wcs=None, per_image_wcs=own)
    x, y = np.arange(4.0), np.arange(4.0)[::-1]
    sky = np.array([own[i].all_pix2world([[x[i], y[i]]], 0)[0] for i in range(4)])
    got = work_unit.get_pixel_coordinates(sky[:, 0], sky[:, 1])
    np.testing.assert_allclose(got, (x, y), atol=1e-6)
    order = [3, 0, 1]
    got = work_unit.get_pixel_coordinates(sky[order, 0], sky[order, 1], work_unit.im_stack.times[order] + 0.01)
    np.testing.assert_allclose(got, (x[order], y[order]), atol=1e-6)
    with pytest.raises(UsageError, match="no image"):
        work_unit.get_pixel_coordinates([1.0], [2.0], [0.0])
    for arguments in (([1.0], [2.0, 3.0]), ([1.0], [2.0], [1.0, 2.0]), ([1.0], [2.0])):
        with pytest.raises(UsageError):
            work_unit.get_pixel_coordinates(*arguments)
    whole = made()
    sky = whole.wcs.all_pix2world(np.stack([x, y], axis=1), 0)
    np.testing.assert_allclose(whole.get_pixel_coordinates(sky[:, 0], sky[:, 1]), (x, y), atol=1e-6)


def test_times() -> None:
    work_unit = made(obstimes=[3.0, 1.0, 3.0, 2.0])
    assert work_unit.get_all_obstimes().tolist() == [3.0, 1.0, 3.0, 2.0]
    unique, indices = work_unit.get_unique_obstimes_and_indices()
    assert unique.tolist() == [1.0, 2.0, 3.0]
    assert indices == [[1], [3], [0, 2]]
    assert made().get_all_obstimes().tolist() == stack().times.tolist()


def test_positions_need_a_reprojected_work_unit() -> None:
    with pytest.raises(UsageError, match="not reprojected"):
        made().image_positions_to_original_icrs([0], [(1.0, 2.0)])


def test_disorder_keeps_images_and_rows_together() -> None:
    np.random.seed(4)  # noqa: NPY002 - KBMOD's generator
    work_unit = made()
    mark = {float(plane[5, 5]): row for plane, row in zip(work_unit.im_stack.sci, table()["data_loc"], strict=True)}
    work_unit.disorder_obstimes()
    assert np.all(np.diff(work_unit.im_stack.times) >= 0)
    assert set(work_unit.im_stack.times) != set(stack().times)
    rows = work_unit.org_img_meta["data_loc"].tolist()
    assert rows == [mark[float(plane[5, 5])] for plane in work_unit.im_stack.sci]
    # KBMOD permutes the links too
    assert work_unit.per_image_indices == [[table()["data_loc"].tolist().index(row)] for row in rows]


def test_disorder_of_mosaics_moves_links_not_rows() -> None:
    old = [[0, 1], [2], [3], [4]]
    work_unit = WorkUnit(stack(), None, wcs=wcs_at(), per_image_indices=old, org_image_meta=Table({"n": np.arange(5)}))
    mark = {float(plane[5, 5]): k for k, plane in enumerate(work_unit.im_stack.sci)}
    work_unit.disorder_obstimes()
    assert work_unit.org_img_meta["n"].tolist() == [0, 1, 2, 3, 4]
    assert work_unit.per_image_indices == [old[mark[float(plane[5, 5])]] for plane in work_unit.im_stack.sci]


# --- choice and scale ---


def test_filter_images() -> None:
    work_unit = made(obstimes=np.arange(4.0))
    work_unit.filter_images([True, False, True, False])
    assert len(work_unit) == work_unit.n_constituents == 2
    assert work_unit.org_img_meta["n"].tolist() == [0, 2]
    assert work_unit.per_image_indices == [[0], [1]]
    assert work_unit.get_all_obstimes().tolist() == [0.0, 2.0]
    work_unit.filter_images([True, True])
    with pytest.raises(UsageError):
        work_unit.filter_images([True])
    reprojected = made(reprojected=True, per_image_indices=[[0, 1], [2], [3], [0]])
    reprojected.filter_images([False, True, True, True])
    assert reprojected.n_constituents == 4
    assert reprojected.per_image_indices == [[2], [3], [0]]
    linked = made(per_image_indices=[[0, 1], [2], [3], [0]])
    linked.filter_images([False, True, False, True])
    assert linked.org_img_meta["n"].tolist() == [0, 2]
    assert linked.per_image_indices == [[1], [0]]


def test_color_scale() -> None:
    work_unit = made()
    before = work_unit.im_stack.sci[1].copy()
    work_unit.apply_color_scale(None)
    work_unit.apply_color_scale({"g": 0.0, "r": 2.5})
    assert work_unit.org_img_meta["color_scale"].tolist() == [0.0, 2.5, 0.0, 2.5]
    np.testing.assert_allclose(work_unit.im_stack.sci[1], before / 10, rtol=1e-6)
    with pytest.raises(UsageError, match="color scale"):
        work_unit.apply_color_scale({"g": 0.0})
    with pytest.raises(UsageError, match="several filters"):
        made(per_image_indices=[[0, 1], [2], [3], [0]]).apply_color_scale({"g": 0.0, "r": 1.0})
    with pytest.raises(UsageError, match="No filter"):
        made(org_image_meta=None).apply_color_scale({"g": 0.0})


def test_reports(capsys: pytest.CaptureFixture[str]) -> None:
    made(reprojected=True, reprojection_frame="ebd", barycentric_distance=40.0).print_stats()
    out = capsys.readouterr().out
    assert "Barycentric Distance: 40.0" in out
    assert "Image Count: 4" in out


def test_write_config(tmp_path: Path) -> None:
    work_unit = made()
    with pytest.raises(UsageError):
        work_unit.write_config()
    work_unit.config["result_filename"] = str(tmp_path / "night.ecsv")
    work_unit.write_config()
    path = tmp_path / "night_provenance" / "night_config.yaml"
    assert SearchConfiguration.from_file(path)["num_obs"] == 7
    with pytest.raises(StoreExistsError) as caught:
        work_unit.write_config()
    assert isinstance(caught.value, ValueError)  # which KBMOD's callers catch
    work_unit.config["num_obs"] = 8
    work_unit.write_config(overwrite=True)
    assert SearchConfiguration.from_file(path)["num_obs"] == 8


# --- the edge ---


def store(**changes: Any) -> MemoryReader:
    """A store whose masks, flags and dtypes KBMOD's view does not show."""
    rng = np.random.default_rng(5)
    images = []
    for k in range(3):
        shape = (6 + k, 8)
        mask = np.zeros(shape, np.int32)
        mask[0, 0], mask[1, 1] = 4096, -(2**31)
        psf = None if k == 1 else np.full((3, 5), 1 / 15)
        images.append(Image(rng.normal(0, 5, shape), rng.random(shape).astype(np.float32), mask, psf))
    columns = (
        Column("geocentric_distance", "plain", np.array(["40.5", "None", "39.5"])),
        Column("per_image_wcs", "wcs", np.array([wcs_to_text(wcs_at()), None, wcs_to_text(wcs_at(151))], dtype=object)),
        Column("visit", "plain", np.array([5, 6, 7], dtype=np.int16)),
    )
    arguments: dict[str, Any] = {
        "times": np.array([3.0, 1.0, 2.0]),
        "image_shape": np.array([image.science.shape for image in images], np.int32),
        "psf_shape": np.array([(3, 5), (0, 0), (3, 5)], np.int32),
        "dtypes": {
            layer: tuple(None if image.layer(layer) is None else image.layer(layer).dtype for image in images)
            for layer in LAYERS
        },
        "links": ((0,), (1,), (2,)),
        "constituents": ConstituentTable(3, columns),
        "configuration": {"num_obs": 3, "own": (1, 2)},
        "mask_flags": {"SAT": 4096},
        "source": {"format": "test"},
    }
    return MemoryReader(Meta(**(arguments | changes)), images)


class Counting(MemoryReader):
    """Counts the images that are read."""

    def __init__(self, reader: MemoryReader) -> None:
        super().__init__(reader._meta, reader._images)
        self.reads: list[tuple[int, tuple[str, ...]]] = []

    def image(self, i: int, layers: Any = LAYERS) -> Image:
        self.reads.append((i, tuple(layers)))
        return super().image(i, layers)


def test_a_lazy_work_unit_reads_what_is_touched() -> None:
    reader = Counting(store())
    work_unit = work_unit_from(reader)
    assert work_unit.lazy
    assert len(work_unit) == 3
    assert (work_unit.im_stack.height, work_unit.im_stack.width) == (8, 8)
    assert work_unit.config["num_obs"] == 3
    assert work_unit.get_all_obstimes().tolist() == [3.0, 1.0, 2.0]
    assert work_unit.org_img_meta["visit"].tolist() == [5, 6, 7]
    assert reader.reads == []
    science = work_unit.im_stack.sci[1]
    assert reader.reads == [(1, ("science", "mask"))]
    assert science.shape == (7, 8)
    assert science.dtype == np.float32
    assert np.isnan(science[0, 0])
    assert np.isfinite(science[1, 1])
    assert work_unit.im_stack.psfs[1].tolist() == [[1.0]]
    assert work_unit.im_stack.psfs[0].dtype == np.float64
    work_unit.load_images()
    assert not work_unit.lazy
    np.testing.assert_array_equal(work_unit.im_stack.sci[1], science)
    with pytest.raises(UsageError):
        work_unit.load_images()


def test_loaded_equals_lazy() -> None:
    assert same_pixels(work_unit_from(store(), lazy=False), work_unit_from(store()))


def test_no_data_of_2023_is_nan() -> None:
    reader = store(source={"no_data": -9999.0})
    reader._images[0].variance[3, 3] = -9999.0
    work_unit = work_unit_from(reader)
    assert np.isnan(work_unit.im_stack.var[0][3, 3])
    assert np.isfinite(work_unit.im_stack.sci[0][3, 3])


def test_distances_are_numbers_again() -> None:
    assert work_unit_from(store()).org_img_meta["geocentric_distance"].tolist() == [40.5, None, 39.5]


def test_an_untouched_lazy_work_unit_hands_on_its_reader() -> None:
    reader = store()
    work_unit = work_unit_from(reader)
    assert reader_of(work_unit) is reader
    # Looking is not touching.
    _ = work_unit.org_img_meta["visit"], work_unit.wcs, work_unit.config["num_obs"], work_unit.im_stack.sci[0]
    assert reader_of(work_unit) is reader


def test_changed_metadata_over_unchanged_pixels() -> None:
    reader = store()
    work_unit = work_unit_from(reader)
    work_unit.config["num_obs"] = 4
    work_unit.org_img_meta["visit"][0] = 50
    work_unit.filter_images([False, True, True])
    edited = reader_of(work_unit)
    assert edited is not reader
    assert edited.meta.configuration is not None
    assert edited.meta.configuration["num_obs"] == 4
    assert edited.meta.constituents.get("visit").values.tolist() == [6, 7]  # type: ignore[union-attr]
    assert edited.meta.times.tolist() == [1.0, 2.0]
    assert edited.meta.mask_flags == {"SAT": 4096}
    image = edited.image(1)
    np.testing.assert_array_equal(image.mask, reader.image(2).mask)
    assert image.science.dtype == np.float64
    assert [i for i, _ in edited.images()] == [0, 1]
    whole = edited.read("science", (slice(0, 2), slice(0, 8), slice(0, 8)))
    np.testing.assert_array_equal(whole[1], reader.image(2).science)
    assert np.isnan(whole[0, 7]).all()
    small = work_unit_from(reader)
    small.filter_images([True, False, False])
    part = reader_of(small).read("mask", (slice(0, 1), slice(0, 6), slice(2, 8)))
    np.testing.assert_array_equal(part[0], reader.image(0).mask[:, 2:])  # type: ignore[index]


def test_parts_that_did_not_change_stay_as_the_store_has_them() -> None:
    reader = store(links=None, reprojected=None)
    work_unit = work_unit_from(reader)
    work_unit.barycentric_distance = 40.0
    meta = meta_of(work_unit)
    assert meta.barycentric_distance == 40.0
    assert meta.links is None
    assert meta.reprojected is None
    assert meta.observatory is None
    assert meta.constituents is reader.meta.constituents
    assert meta.configuration == reader.meta.configuration


def test_a_wcs_that_astropy_refuses_spoils_nothing_else() -> None:
    text = "".join(card.ljust(80) for card in ("CTYPE1  = 'RA---TAN'", "CTYPE2  = 'DEC--CAR'"))
    work_unit = work_unit_from(store(wcs=text))
    assert work_unit.im_stack.sci[0].shape == (6, 8)
    assert reader_of(work_unit).meta.wcs == text
    with pytest.raises(FormatError, match="does not describe a WCS"):
        _ = work_unit.wcs


def test_a_new_work_unit_over_a_lazy_stack_reads_through() -> None:
    reader = Counting(store())
    lazy = work_unit_from(reader)
    own = WorkUnit(lazy.im_stack, None, wcs=wcs_at())
    through = reader_of(own)
    assert reader.reads == []
    assert own.lazy
    np.testing.assert_array_equal(through.image(0).mask, store().image(0).mask)
    assert through.meta.configuration is None


def test_pickling_a_lazy_work_unit(tmp_path: Path) -> None:
    made().to_zarr(tmp_path / "a.zarr")
    work_unit = wustore.open(tmp_path / "a.zarr")
    again = pickle.loads(pickle.dumps(work_unit))
    assert again.lazy
    assert same_pixels(again, work_unit)


# --- formats ---

FORMATS = ["zarr", "hdf5", "fits", "sharded"]


def write(work_unit: WorkUnit, form: str, folder: Path, **options: Any) -> None:
    if form == "zarr":
        work_unit.to_zarr(folder / "a.zarr", **options)
    elif form == "hdf5":
        work_unit.to_hdf5(folder / "a.h5", **options)
    elif form == "fits":
        work_unit.to_fits(folder / "a.fits", lossless=True, **options)
    else:
        work_unit.to_sharded_fits("a.fits", folder, lossless=True, **options)


def read(form: str, folder: Path) -> WorkUnit:
    if form == "zarr":
        return WorkUnit.from_zarr(folder / "a.zarr")
    if form == "hdf5":
        return WorkUnit.from_hdf5(folder / "a.h5")
    if form == "fits":
        return WorkUnit.from_fits(folder / "a.fits", show_progress=False)
    return WorkUnit.from_sharded_fits("a.fits", folder)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_it_back(form: str, tmp_path: Path) -> None:
    work_unit = made(reprojected=True, reprojection_frame="ebd", barycentric_distance=40.1)
    write(work_unit, form, tmp_path)
    back = read(form, tmp_path)
    assert not back.lazy
    assert same_pixels(back, work_unit)
    assert back.config == work_unit.config
    assert back.im_stack.times.tolist() == work_unit.im_stack.times.tolist()
    assert back.per_image_indices == work_unit.per_image_indices
    assert (back.reprojected, back.reprojection_frame, back.barycentric_distance) == (True, "ebd", 40.1)
    assert np.allclose(back.observatory.lat.deg, CTIO.lat.deg, rtol=0, atol=1e-9)
    assert back.wcs.sip is not None
    assert back.wcs.wcs.crval.tolist() == work_unit.wcs.wcs.crval.tolist()
    assert back.org_img_meta.colnames == work_unit.org_img_meta.colnames
    assert back.org_img_meta["n"].dtype == np.int64
    with pytest.raises(StoreExistsError):
        write(work_unit, form, tmp_path)
    write(work_unit, form, tmp_path, overwrite=True)


@pytest.mark.parametrize("form", FORMATS)
def test_every_kind_of_column_and_value_survives(form: str, tmp_path: Path) -> None:
    rich = table()
    rich["Filter"] = np.array(["", "\u00e9", "trailing  ", "x"])
    rich["i8"] = np.array([-7, 3, 0, 1], np.int8)
    rich["masked"] = np.ma.MaskedArray([1, 2, 3, 4], mask=[True, False, False, True])
    rich["angle"] = np.arange(4.0) * u.deg
    mixed = np.empty(4, dtype=object)
    mixed[:] = [None, {"a": (1, 2)}, wcs_at(), 2.5]
    rich["mixed"] = mixed
    rich.meta["survey"] = "night"
    wcs = wcs_at()
    wcs.pixel_shape = None
    work_unit = made(org_image_meta=rich, wcs=wcs, observatory=None)
    work_unit.config["array"] = np.arange(3)
    write(work_unit, form, tmp_path)
    back = read(form, tmp_path)
    assert back.config == work_unit.config
    assert not back.observatory_given
    assert back.wcs.pixel_shape is None
    old, new = work_unit.org_img_meta, back.org_img_meta
    assert new.colnames == old.colnames
    assert new.meta == {"survey": "night"}
    assert str(new["angle"].unit) == "deg"
    assert new["masked"].mask.tolist() == [True, False, False, True]
    assert wcs_fits_equal(new["mixed"][2], wcs_at())
    for name in old.colnames:
        assert new[name].dtype == old[name].dtype, name
        for a, b in zip(old[name], new[name], strict=True):
            assert isinstance(a, WCS) or repr(a) == repr(b), name


def test_kbmod_defaults_are_lossy_and_readable(tmp_path: Path) -> None:
    work_unit = made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work_unit.to_fits(tmp_path / "a.fits")
    back = WorkUnit.from_fits(tmp_path / "a.fits")
    seen = np.isfinite(back.im_stack.sci[2])
    assert np.abs(back.im_stack.sci[2] - work_unit.im_stack.sci[2])[seen].max() <= 0.00501
    assert np.isnan(back.im_stack.var[1][0, 0])  # KBMOD's mask layer masks both


def test_lazy_shards(tmp_path: Path) -> None:
    work_unit = made()
    work_unit.to_sharded_fits("a.fits", tmp_path, lossless=True)
    lazy = WorkUnit.from_sharded_fits("a.fits", tmp_path, lazy=True)
    assert lazy.lazy
    assert lazy.file_paths == [str(tmp_path / f"{i}_a.fits") for i in range(N)]
    lazy.to_zarr(tmp_path / "b.zarr")
    assert lazy.lazy
    assert same_pixels(WorkUnit.from_zarr(tmp_path / "b.zarr"), work_unit)
    lazy.filter_images([True, True, False, False])
    assert len(lazy.file_paths) == 2
    lazy.to_fits(tmp_path / "c.fits", lossless=True)
    assert len(WorkUnit.from_fits(tmp_path / "c.fits")) == 2
    lazy.load_images()
    assert np.array_equal(lazy.im_stack.sci[0], work_unit.im_stack.sci[0], equal_nan=True)


def test_kbmod_style_lazy_work_unit(tmp_path: Path) -> None:
    made().to_sharded_fits("a.fits", tmp_path, lossless=True)
    paths = [str(tmp_path / f"{i}_a.fits") for i in range(N)]
    times = stack().times
    lazy = WorkUnit(ImageStack(), SearchConfiguration(), wcs=wcs_at(), lazy=True, file_paths=paths, obstimes=times)
    assert lazy.lazy
    assert lazy.n_constituents == N
    lazy.filter_images([True, False, True, True])
    lazy.load_images()
    assert not lazy.lazy
    assert len(lazy) == 3
    assert lazy.im_stack.times.tolist() == times[[0, 2, 3]].tolist()


@pytest.mark.parametrize(
    "use",
    [
        lambda lazy, path: wustore.save(lazy, path / "b.h5"),
        lambda lazy, path: lazy.to_zarr(path / "b.zarr"),
        lambda lazy, path: lazy.layer("science"),
        lambda lazy, path: lazy.stamps(2, 2, 1),
        lambda lazy, path: lazy.cutout(4, 3, 2, 2),
        lambda lazy, path: lazy.select(images=[1]),
    ],
)
def test_a_kbmod_style_lazy_work_unit_loads_where_pixels_are_needed(
    tmp_path: Path, use: Callable[[WorkUnit, Path], object]
) -> None:
    made().to_sharded_fits("a.fits", tmp_path, lossless=True)
    paths = [str(tmp_path / f"{i}_a.fits") for i in range(N)]
    lazy = WorkUnit(ImageStack(), None, wcs=wcs_at(), lazy=True, file_paths=paths, obstimes=stack().times)
    use(lazy, tmp_path)
    assert not lazy.lazy
    assert np.array_equal(lazy.im_stack.sci[1], made().im_stack.sci[1], equal_nan=True)


@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip", "a.h5", "a.fits"])
def test_a_lazy_work_unit_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work_unit = made()
    wustore.save(work_unit, tmp_path / name)
    made().to_sharded_fits("s.fits", tmp_path, lossless=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with wustore.open(name) as lazy, WorkUnit.from_sharded_fits("s.fits", ".", lazy=True) as shards:
        sent = pickle.dumps(lazy.layer("science"))
        assert shards.file_paths is not None
        monkeypatch.chdir("elsewhere")
        np.testing.assert_array_equal(pickle.loads(sent)[0], lazy.layer("science")[0])
        for loaded in (lazy, shards):
            loaded.load_images()
            assert len(loaded.im_stack.sci) == len(work_unit)


def test_missing_files(tmp_path: Path) -> None:
    for load in (
        lambda: WorkUnit.from_fits(tmp_path / "a.fits"),
        lambda: WorkUnit.from_sharded_fits("a.fits", tmp_path),
        lambda: WorkUnit.from_zarr(tmp_path / "a.zarr"),
        lambda: WorkUnit.from_hdf5(tmp_path / "a.h5"),
        lambda: load_layered_image_from_shard(tmp_path / "0_a.fits"),
    ):
        with pytest.raises(StoreNotFoundError) as caught:
            load()
        assert isinstance(caught.value, ValueError)  # which KBMOD's callers catch


def test_open_save_convert(tmp_path: Path) -> None:
    work_unit = made()
    wustore.save(work_unit, tmp_path / "a.zarr", workers=1)
    with wustore.open(tmp_path / "a.zarr") as lazy:
        assert lazy.lazy
        wustore.save(lazy, tmp_path / "a.h5")
    wustore.convert(tmp_path / "a.h5", tmp_path / "b.zarr")
    loaded = wustore.open(tmp_path / "b.zarr", lazy=False)
    assert not loaded.lazy
    assert same_pixels(loaded, work_unit)
    assert loaded.config["limits"] == (1, 2)


def test_layers_stamps_and_smaller_work_units() -> None:
    work_unit = made()
    assert work_unit.layer("science").shape == (N, *SHAPE)
    stamps = work_unit.stamps(8.0, 6.0, 2)
    np.testing.assert_array_equal(stamps.science[2], work_unit.im_stack.sci[2][4:9, 6:11])
    assert work_unit.trajectory_stamps([(8.0, 6.0, 0.0, 0.0)], 1).science.shape == (1, N, 3, 3)
    small = work_unit.cutout(8.0, 6.0, 5, 3)
    assert small.im_stack.sci[0].shape == (3, 5)
    chosen = work_unit.select(images=[2, 0])
    assert len(chosen) == 2
    np.testing.assert_array_equal(chosen.im_stack.sci[0], work_unit.im_stack.sci[2])


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made().to_fits(tmp_path / "a.fits", lossless=True)
    capsys.readouterr()
    WorkUnit.from_fits(tmp_path / "a.fits", show_progress=True)
    assert "4/4" in capsys.readouterr().err


# --- HDUs one by one ---


def test_hdus_of_one_image() -> None:
    hdul = fits.HDUList([fits.PrimaryHDU()])
    science = np.arange(12, dtype=np.float32).reshape(3, 4)
    variance = np.ones((3, 4), np.float32)
    science[0, 0], variance[1, 1] = np.nan, np.inf
    mask = np.zeros((3, 4), np.int32)
    mask[2, 2] = 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        add_image_data_to_hdul(
            hdul, 3, science, variance, mask, 60000.5, wcs=wcs_at(), compression_type="GZIP_2", quantize_level=0
        )
        buffer = io.BytesIO()
        hdul.writeto(buffer)
        with fits.open(io.BytesIO(buffer.getvalue())) as written:
            assert [hdu.name for hdu in written[1:]] == ["SCI_3", "VAR_3", "MSK_3", "PSF_3"]
            sci, var, flags, time, psf, wcs = read_image_data_from_hdul(written, 3)
            with pytest.raises(FormatError, match="SCI_0"):
                read_image_data_from_hdul(written, 0)
            del written["PSF_3"], written["MSK_3"]
            _, _, none, _, identity, _ = read_image_data_from_hdul(written, 3)
    assert np.argwhere(np.isnan(sci)).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert np.isnan(var[0, 0])
    assert flags.sum() == 3
    assert (time, psf.tolist(), identity.tolist(), none.sum()) == (60000.5, [[1.0]], [[1.0]], 0)
    assert wcs is not None
    assert wcs.array_shape == SHAPE


def test_metadata_hdus() -> None:
    hdul = made().metadata_to_hdul()
    assert [hdu.name for hdu in hdul] == ["PRIMARY", "KBMOD_CONFIG", "IMG_META"]
    header = hdul[0].header
    assert list(header)[4:12] == ["NUMIMG", "NCON", "REPRJCTD", "REPFRAME", "BARY", "OBS_LAT", "OBS_LON", "OBS_ELEV"]
    assert header["CTYPE1"] == "RA---TAN"


def test_metadata_hdus_are_those_of_a_file(tmp_path: Path) -> None:
    """One builder: also where columns do not fit, as int8, which KBMOD writes as logical values."""
    rich = table()
    rich["i8"] = np.array([-7, 3, 0, 1], np.int8)
    rich["angle"] = np.arange(4.0) * u.deg
    rich["visit"] = np.array([5, 6, 7, 8], np.uint16)
    work_unit = made(org_image_meta=rich, observatory=None)
    with pytest.warns(FitsLossWarning, match="'i8'"):
        work_unit.to_fits(tmp_path / "a.fits")
    buffer = io.BytesIO()
    work_unit.metadata_to_hdul().writeto(buffer)
    assert (tmp_path / "a.fits").read_bytes().startswith(buffer.getvalue())
    hdul = work_unit.metadata_to_hdul()
    assert hdul["IMG_META"].columns["i8"].format == "L"
    assert hdul["IMG_META"].columns["angle"].unit == "deg"


def test_damaged_shards(tmp_path: Path) -> None:
    made().to_sharded_fits("a.fits", tmp_path, lossless=True)
    path = tmp_path / "1_a.fits"
    image = load_layered_image_from_shard(path)
    assert np.array_equal(image.sci, made().im_stack.sci[1], equal_nan=True)
    wrong = path.rename(tmp_path / "7_a.fits")
    with pytest.raises(FormatError, match="SCI_7"):
        load_layered_image_from_shard(wrong)
    named = wrong.rename(tmp_path / "x_a.fits")
    with pytest.raises(FormatError, match="number"):
        load_layered_image_from_shard(named)
    (tmp_path / "5_b.fits").write_bytes(b"SIMPLE  =" + b" " * 5000)
    with pytest.raises((CorruptError, FormatError)):
        load_layered_image_from_shard(tmp_path / "5_b.fits")


# --- KBMOD's own objects, by stand-ins with the same attributes ---


class KbmodStack:
    def __init__(self, times: Any, sci: Any, var: Any, psfs: Any) -> None:
        self.times, self.sci, self.var, self.psfs = np.asarray(times), sci, var, psfs
        self.num_times = len(times)


class KbmodConfiguration:
    def __init__(self) -> None:
        self._params = dict(SearchConfiguration().to_dict())

    def __getitem__(self, name: str) -> Any:
        return self._params[name]

    def set_multiple(self, values: Any) -> None:
        self._params.update(values)


def test_kbmod_objects_are_taken_by_their_attributes() -> None:
    ours = stack()
    configuration = KbmodConfiguration()
    configuration._params["own"] = 5
    given = KbmodStack(ours.times, ours.sci, ours.var, ours.psfs)
    work_unit = WorkUnit(given, configuration, wcs=wcs_at())
    assert work_unit.im_stack.sci[0] is ours.sci[0]
    assert work_unit.config["own"] == 5
    assert work_unit.im_stack is given
    assert work_unit.config is configuration
    assert meta_of(work_unit).configuration == configuration._params


# --- copies at any stage ---


def _crval(work_unit: WorkUnit) -> list[float]:
    assert work_unit.wcs is not None
    return [float(x) for x in work_unit.wcs.wcs.crval]


STAGES: dict[str, Callable[[WorkUnit], object]] = {
    "untouched": lambda wu: None,
    "global WCS read": lambda wu: wu.wcs,
    "table read": lambda wu: wu.org_img_meta,
    "plane read": lambda wu: wu.im_stack.sci[0],
    "filtered": lambda wu: wu.filter_images([True, False, True, True]),
    "changed": lambda wu: wu.config.set("num_obs", 3),
    "loaded": lambda wu: wu.load_if_lazy(),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("trip", ["pickle", "deepcopy", "cloudpickle"])
def test_copies_at_any_stage(tmp_path: Path, stage: str, trip: str) -> None:
    if trip == "cloudpickle":
        pickler: Any = pytest.importorskip("cloudpickle")
    else:
        pickler = pickle
    path = tmp_path / "a.zarr"
    wustore.save(made(), path)
    work_unit = wustore.open(path)
    STAGES[stage](work_unit)
    there = copy.deepcopy(work_unit) if trip == "deepcopy" else pickler.loads(pickler.dumps(work_unit))
    assert _crval(there) == _crval(work_unit)
    assert there.config == work_unit.config
    assert there.get_wcs(0) is not None
    assert len(there) == len(work_unit)
    for a, b in zip(there.im_stack.sci, work_unit.im_stack.sci, strict=True):
        assert np.array_equal(a, b, equal_nan=True)
    wustore.save(there, tmp_path / "b.zarr")
    if stage not in {"filtered", "changed", "loaded"}:
        assert wustore.diff(path, tmp_path / "b.zarr") == []


def test_a_spawned_process_takes_a_work_unit(tmp_path: Path) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        lazy = wustore.open(tmp_path / "a.zarr")
        there = pool.submit(WorkUnit.get_pixel_coordinates, lazy, [150.33], [-10.0]).result()
    assert np.array_equal(there, lazy.get_pixel_coordinates([150.33], [-10.0]))


# --- links, configurations, stacks and times as they come ---


@pytest.mark.parametrize("given", [[0, 1, 2, 3], np.arange(4), [[0], [1], [2], [3]], [[0], np.array([1]), 2, (3,)]])
def test_links_in_every_form(given: Any) -> None:
    assert made(per_image_indices=given).per_image_indices == [[0], [1], [2], [3]]


def test_a_configuration_can_be_set() -> None:
    work_unit = made()
    work_unit.config = {"num_obs": 33}
    assert work_unit.config["num_obs"] == 33
    ours = SearchConfiguration()
    work_unit.config = ours
    ours.set("num_obs", 34)
    assert work_unit.config is ours
    assert meta_of(work_unit).configuration["num_obs"] == 34  # type: ignore[index]
    work_unit.config = None
    assert work_unit.config is None
    with pytest.raises(UsageError, match="not a configuration"):
        work_unit.config = 5


def test_a_stack_can_be_set(tmp_path: Path) -> None:
    work_unit = made()
    wustore.save(work_unit, tmp_path / "a.zarr")
    lazy = wustore.open(tmp_path / "a.zarr")
    other = KbmodStack(stack().times, [plane + 1 for plane in stack().sci], stack().var, stack().psfs)
    lazy.im_stack = other
    assert lazy.im_stack is other
    assert not lazy.lazy
    wustore.save(lazy, tmp_path / "b.zarr")
    back = wustore.open(tmp_path / "b.zarr")
    assert np.array_equal(back.im_stack.sci[1], other.sci[1], equal_nan=True)
    with pytest.raises(UsageError, match="times, sci"):
        lazy.im_stack = object()


def test_times_in_every_form() -> None:
    mjd = stack().times
    for given in (Time(mjd, format="mjd"), Time(mjd, format="mjd").datetime64):
        made_of = ImageStack(given, stack().sci, stack().var)
        assert np.allclose(made_of.times, mjd, rtol=0, atol=1e-9)
        assert made_of.get_matched_obstimes(given).tolist() == [0, 1, 2, 3]
        assert np.allclose(made(obstimes=given).get_all_obstimes(), mjd, rtol=0, atol=1e-9)


def test_the_first_hdu_of_a_file_can_be_an_image(tmp_path: Path) -> None:
    hdul = fits.HDUList()
    plane = np.ones((8, 9), np.float32)
    add_image_data_to_hdul(hdul, 0, plane, plane, plane * 0, 60000.0)
    hdul.writeto(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits") as file:
        assert {"SCI_0", "VAR_0", "MSK_0", "PSF_0"} <= {hdu.name for hdu in file}
        assert np.array_equal(read_image_data_from_hdul(file, 0)[0], plane)


# --- what is shown ---


def test_repr_reads_no_pixel_and_fits_on_a_screen(tmp_path: Path) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    lazy = wustore.open(tmp_path / "a.zarr")
    text, page = repr(lazy), lazy._repr_html_()
    assert not lazy.wcs_decoded
    assert lazy._table is None
    assert "4 images, lazy" in text
    assert "a.zarr (zarr)" in text
    assert "one for all images" in text
    assert len(text.splitlines()) <= 12
    assert max(map(len, text.replace(str(tmp_path), "").splitlines())) <= 140
    for name, value in store_view.summary_of(lazy):
        assert f">{name}</th>" in page
        assert value in text
    assert "in memory" in repr(made())
    assert repr(ImageStack()) == "<ImageStack: 0 images, in memory>"
    assert "&lt;ImageStack: 4 images" in stack()._repr_html_()


def test_loading_shows_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wustore.save(made(), tmp_path / "a.zarr")
    work_unit = wustore.open(tmp_path / "a.zarr")
    work_unit.load_images(show_progress=True)
    assert not work_unit.lazy
    assert "4/4" in capsys.readouterr().err
