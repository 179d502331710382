"""Datasets: lazy, the same in every format, on dask workers of other processes too."""

from __future__ import annotations

import importlib.metadata
import pickle
from dataclasses import replace

import dask
import numpy as np
import pytest
import xarray as xr
from chunked import Chunked
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing, open_reader
from wustore.errors import StoreNotFoundError, UsageError
from wustore.model.meta import LAYERS, Column, ConstituentTable, Observatory
from wustore.ops.copy import copy
from wustore.stamps.layer import Layer
from wustore.testing import WCS_TEXT, sample
from wustore.xarray import WuStoreEntrypoint, mjd_to_datetime, to_xarray

ENGINE = WuStoreEntrypoint


def with_meta(reader, **fields):
    images = [reader.image(i) for i in range(reader.meta.n_images)]
    return MemoryReader(replace(reader.meta, **fields), images)


def survey():
    return with_meta(sample("chunked"), times=60000 + np.array([0.25, 0.5, 1.0]), wcs=WCS_TEXT)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xarray")
    source = survey()
    paths = {}
    for name in ("wu.zarr", "wu.h5", "wu.fits"):
        path = str(folder / name)
        options = {"lossless": True} if name == "wu.fits" else {}
        try:
            writer = backend_for_writing(path).create(path, source.meta, **options)
        except TypeError:
            continue
        copy(source, writer)
        paths[name] = path
    return paths


def test_what_a_dataset_holds():
    source = survey()
    dataset = to_xarray(source)
    assert dict(dataset.sizes) == {"time": 3, "y": 600, "x": 530, "psf_y": 3, "psf_x": 3}
    assert list(dataset.data_vars) == list(LAYERS)
    assert dataset.science.dims == ("time", "y", "x")
    assert dataset.science.dtype == np.float32
    assert dataset.mjd.values.tolist() == source.meta.times.tolist()
    assert (
        dataset.time.values.tolist()
        == np.array(["2023-02-25T06", "2023-02-25T12", "2023-02-26T00"], "datetime64[ns]").tolist()
    )
    assert set(dataset.image_wcs.values.tolist()) == {WCS_TEXT}
    assert dataset.x.values.tolist() == list(range(530))
    assert dataset.y.values.tolist() == list(range(600))
    for layer in LAYERS:
        assert dataset[layer].values.tobytes() == Layer(source, layer)[...].tobytes()
    assert list(to_xarray(sample("bare")).data_vars) == ["science", "variance"]


def test_each_image_has_its_own_wcs():
    dataset = to_xarray(select_rich())
    assert dataset.image_wcs.values.tolist() == ["", WCS_TEXT]


def select_rich():
    from wustore.stamps.view import select

    meta = sample("rich").meta
    return select(with_meta(sample("rich"), wcs=None, links=((0,), (2,), (5, 3), ()), times=meta.times), images=[0, 1])


def test_nothing_is_read_before_it_is_needed():
    source = Chunked(survey(), (1, 64, 64))
    dataset = to_xarray(source)
    repr(dataset)
    part = dataset.variance.isel(time=2, y=slice(10, 20), x=5)
    assert source.asked == []
    assert part.shape == (10,)
    assert part.values.shape == (10,)
    assert source.asked == [("variance", (slice(2, 3), slice(10, 20), slice(5, 6)))]
    source.asked.clear()
    dataset.science.isel(time=[0, 2], y=[3, 7]).load()
    assert source.asked == [("science", (slice(i, i + 1), slice(3, 8), slice(0, 530))) for i in (0, 2)]


WHOLE = survey()
ARRAY = Layer(WHOLE, "mask")[...]


def part(n):
    # xarray itself fails on empty slices that go backwards.
    slices = st.slices(n).filter(lambda s: (s.step or 1) > 0 or len(range(*s.indices(n))) > 0)
    return (
        st.integers(-n, n - 1)
        | slices
        | st.lists(st.integers(-n, n - 1), max_size=4).map(lambda found: np.array(found, int))
    )


@settings(max_examples=150)
@given(st.tuples(*(part(n) for n in ARRAY.shape)), st.booleans())
def test_indexing_as_xarray(key, twice):
    dims = ("time", "y", "x")
    chosen = dict(zip(dims, key, strict=True))
    lazy = to_xarray(WHOLE).mask.isel(chosen)
    eager = xr.DataArray(ARRAY, dims=dims).isel(chosen)
    if twice and lazy.ndim and lazy.shape[0]:
        lazy, eager = (
            lazy.isel({lazy.dims[0]: slice(None, None, -2)}),
            eager.isel({eager.dims[0]: slice(None, None, -2)}),
        )
    assert lazy.dims == eager.dims
    assert lazy.values.tobytes() == np.ascontiguousarray(eager.values).tobytes()


def test_pointwise_indexing():
    points = {"time": xr.DataArray([0, 2], dims="p"), "y": xr.DataArray([5, 599], dims="p")}
    found = to_xarray(WHOLE).mask.isel(points)
    assert np.array_equal(found.values, ARRAY[[0, 2], [5, 599]])


def test_times_to_the_microsecond():
    mjd = np.array([0.0, 60000.123456789, np.nan, -1.5, 88068.0])
    times = mjd_to_datetime(mjd)
    assert times.dtype == np.dtype("datetime64[ns]")
    assert np.isnat(times[2])
    back = (times - np.datetime64("1858-11-17", "ns")) / np.timedelta64(1, "D")
    assert np.nanmax(np.abs(back - mjd)) < 1e-11
    assert mjd_to_datetime(np.array([1e9])) is None
    assert mjd_to_datetime(np.array([np.inf])) is None
    far = to_xarray(with_meta(survey(), times=np.array([0.0, 1e9, 2.0])))
    assert far.time.values.tolist() == [0.0, 1e9, 2.0]
    assert far.time.attrs["units"].startswith("days since 1858-11-17")


def test_every_format_gives_the_same(stores):
    expected = to_xarray(survey()).load()
    assert len(stores) == 3
    for path in stores.values():
        with xr.open_dataset(path, engine=ENGINE) as dataset:
            for layer in LAYERS:
                assert dataset[layer].values.tobytes() == expected[layer].values.tobytes(), (path, layer)
            assert dataset.time.values.tobytes() == expected.time.values.tobytes()
            assert set(dataset.image_wcs.values.tolist()) == {WCS_TEXT}
        with xr.open_dataset(path, engine=ENGINE, chunks={}, drop_variables="psf") as dataset:
            assert "psf" not in dataset
            assert dataset.science.chunks == ((1, 1, 1), (600,), (530,))
            with dask.config.set(scheduler="threads"):
                assert dataset.mask.sum().compute() == expected.mask.sum()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_zarr_opened_without_the_engine_has_the_same_times(stores):
    with xr.open_zarr(stores["wu.zarr"]) as plain, xr.open_dataset(stores["wu.zarr"], engine=ENGINE) as dataset:
        difference = np.abs(plain.time.values - dataset.time.values)
        assert difference.max() < np.timedelta64(1, "us")
        assert plain.science.values.tobytes() == dataset.science.values.tobytes()


def test_datasets_pickle_by_address(stores):
    with xr.open_dataset(stores["wu.zarr"], engine=ENGINE) as dataset:
        text = pickle.dumps(dataset)
        assert len(text) < 30_000  # coordinates, no pixels
        assert pickle.loads(text).science.values.tobytes() == dataset.science.values.tobytes()
        names = {tuple(dataset.chunk({})[layer].data.name for layer in LAYERS) for _ in range(2)}
        assert len(names) == 1
        assert len(set(next(iter(names)))) == len(LAYERS)


def test_saving_a_dataset(stores, tmp_path):
    with xr.open_dataset(stores["wu.zarr"], engine=ENGINE) as dataset:
        dataset.isel(y=slice(0, 20), x=slice(0, 30)).to_netcdf(tmp_path / "part.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "part.nc", engine="h5netcdf") as back:
            assert back.science.values.tobytes() == dataset.science.values[:, :20, :30].tobytes()
            assert set(back.image_wcs.values.tolist()) == {WCS_TEXT}


def test_missing_and_foreign(tmp_path, stores):
    with pytest.raises(StoreNotFoundError):
        xr.open_dataset(tmp_path / "none.fits", engine=ENGINE)
    from astropy.io import fits

    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "plain.fits")
    guess = ENGINE().guess_can_open
    assert guess(stores["wu.fits"])
    for path in (stores["wu.zarr"], stores["wu.h5"], str(tmp_path / "plain.fits"), str(tmp_path / "none.fits"), 5):
        assert not guess(path)


def test_the_engine_is_registered():
    points = {point.name: point.value for point in importlib.metadata.entry_points(group="xarray.backends")}
    if "wustore" not in points:
        pytest.skip("the installed metadata is older than the entry point: install again")
    assert points["wustore"] == "wustore.xarray:WuStoreEntrypoint"
    assert "wustore" in xr.backends.list_engines()


def night(k):
    """A night of its own: times, WCS, observatory, filters."""
    text = WCS_TEXT
    shifted = "".join(
        f"CRVAL1  = {10.0 + k:>20.1f}".ljust(80) if card.startswith("CRVAL1") else card
        for card in (text[j : j + 80] for j in range(0, len(text), 80))
    )
    table = ConstituentTable(
        3,
        (
            Column("filter", "plain", np.array(["g", "r", "r"])),
            Column("visit", "plain", np.array([1, 2, 3]) + 10 * k),
            Column("zero_point", "plain", np.array([27.0, 27.1, 0.0]), np.array([False, False, True]), unit="mag"),
            Column("data_loc", "json", np.array(["a", None, {"b": 1}], object)),
        ),
    )
    observatory = Observatory((-30.0 + k, -70.0, 2000.0))
    times = 60000 + 10.0 * k + np.arange(3)
    return with_meta(
        sample("chunked"), times=times, wcs=shifted, constituents=table, observatory=observatory, links=None
    )


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nights")
    paths = []
    for k in range(2):
        path = str(folder / f"{k}.zarr")
        reader = night(k)
        copy(reader, backend_for_writing(path).create(path, reader.meta))
        paths.append(path)
    return paths


def test_coordinates_of_the_table():
    dataset = to_xarray(night(1))
    assert dataset.filter.values.tolist() == ["g", "r", "r"]
    assert dataset.visit.values.tolist() == [11, 12, 13]
    assert dataset.zero_point.values[:2].tolist() == [27.0, 27.1]
    assert np.isnan(dataset.zero_point.values[2])
    assert dataset.zero_point.attrs["units"] == "mag"
    assert dataset.observatory_latitude.values.tolist() == [-29.0] * 3
    assert "data_loc" not in dataset.coords
    assert dataset.sel(time=dataset["filter"] == "r").sizes["time"] == 2


@pytest.mark.parametrize("layout", ["images", "cutouts"])
def test_chunks_are_those_of_the_store_without_warnings(tmp_path, layout):
    path = str(tmp_path / "x.zarr")
    copy(WHOLE, backend_for_writing(path).create(path, WHOLE.meta, layout=layout))
    with xr.open_dataset(path, engine=ENGINE, chunks={}) as dataset:  # a warning would be an error here
        assert dataset.science.chunks == ((1, 1, 1), (600,), (530,))  # a shard each


def test_several_nights_keep_their_own(nights):
    with xr.open_mfdataset(nights, engine=ENGINE, combine="nested", concat_dim="time") as dataset:
        assert dataset.sizes["time"] == 6
        assert dataset.visit.values.tolist() == [1, 2, 3, 11, 12, 13]
        assert dataset.observatory_latitude.values.tolist() == [-30.0] * 3 + [-29.0] * 3
        for i, ra in ((0, 10.0), (5, 11.0)):
            assert dataset.wustore.wcs(i).wcs.crval[0] == ra
            x, y = dataset.wustore.wcs(i).wcs.crpix - 1
            assert dataset.wustore.sky(x, y, i).ra.deg == pytest.approx(ra)
        # Each image's own WCS: the same place on the sky is another pixel in the other night.
        there = dataset.wustore.sky(100.0, 200.0, 3)
        stamps = dataset.wustore.stamps(ra=there.ra.deg, dec=there.dec.deg, radius=2)
        assert stamps.science.values[3:].tobytes() == dataset.science.values[3:, 198:203, 98:103].tobytes()
        assert stamps.stamp_centre_x.values[3:] == pytest.approx([100.0] * 3)
        assert abs(stamps.stamp_centre_x.values[0] - 100) > 1000
        assert np.isnan(stamps.science.values[0]).all()
        assert (stamps.mask.values[0] == 1).all()
        assert stamps.visit.values.tolist() == dataset.visit.values.tolist()
        with pytest.raises(UsageError, match="different WCSes"):
            dataset.wustore.cutout(ra=there.ra.deg, dec=there.dec.deg)


def test_accessor_of_a_part():
    dataset = to_xarray(WHOLE)
    part = dataset.isel(y=slice(50, 300), x=slice(20, 400))
    for data in (dataset, part):
        window = data.wustore.cutout(100, 120, 7, 5)
        assert window.science.values.tobytes() == Layer(WHOLE, "science")[:, 118:123, 97:104].tobytes()
        assert data.wustore.stamps(100, 120, 3).mask.values.tobytes() == ARRAY[:, 117:124, 97:104].tobytes()
    with pytest.raises(UsageError, match="beyond the images"):
        part.wustore.cutout(21, 120, 7)
    edge = part.wustore.stamps(20, 50, 2)
    assert np.isnan(edge.science.values[:, :2]).all()
    assert edge.science.values[:, 2:, 2:].tobytes() == Layer(WHOLE, "science")[:, 50:53, 20:23].tobytes()
    with pytest.raises(UsageError, match="neighbours"):
        dataset.isel(x=slice(None, None, 2)).wustore.stamps(10, 10)
    with pytest.raises(UsageError, match="once"):
        dataset.wustore.stamps(10)
    with pytest.raises(UsageError, match="no WCS"):
        to_xarray(with_meta(sample("chunked"), wcs=None)).wustore.wcs()


def test_storage_options_reach_the_file_system(nights, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    seen = []

    class Guarded(MemoryFileSystem):
        protocol = "guarded"
        store, pseudo_dirs = {}, [""]
        cachable = False

        def __init__(self, *arguments, anon=False, **options):
            super().__init__(*arguments, **options)
            seen.append(anon)

    fsspec.register_implementation("guarded", Guarded, clobber=True)
    system = Guarded(anon=True)
    system.put(nights[0], "guarded://night.zarr", recursive=True)
    seen.clear()
    url = "guarded://night.zarr"
    with xr.open_dataset(url, engine=ENGINE, storage_options={"anon": True}) as dataset:
        assert dataset.visit.values.tolist() == [1, 2, 3]
        copied = pickle.loads(pickle.dumps(dataset))
        assert copied.science.values.tobytes() == dataset.science.values.tobytes()
    assert seen
    assert all(seen)
    with pytest.raises(UsageError, match="for URLs"):
        open_reader(nights[0], storage_options={"anon": True})


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.admin.tick.limit": "60s", "distributed.comm.timeouts.connect": "60s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as running,
        distributed.Client(running) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wu.zarr", "wu.h5", "wu.fits"])
def test_on_a_distributed_cluster(stores, cluster, name):
    with open_reader(stores[name]) as reader:
        for layer in ("science", "mask"):
            array = Layer(reader, layer).dask()
            found = cluster.compute(array, sync=True)
            assert found.tobytes() == Layer(survey(), layer)[...].tobytes()
            again = Layer(reader, layer).dask(chunks=(1, 256, 256))
            assert np.array_equal(cluster.compute(again.max(axis=0), sync=True), found.max(axis=0), equal_nan=True)
    with xr.open_dataset(stores[name], engine=ENGINE, chunks={}) as dataset:
        total = cluster.compute((dataset.mask > 0).sum(("y", "x")), sync=True)
        assert total.values.tolist() == (ARRAY > 0).sum((1, 2)).tolist()


def test_of_a_work_unit(stores):
    import wustore

    with wustore.open(stores["wu.zarr"]) as work_unit:
        dataset = work_unit.to_xarray()
        assert dataset.mask.values.tobytes() == ARRAY.tobytes()
        work_unit.load_images()
        loaded = work_unit.to_xarray()
        expected = np.where(ARRAY > 0, np.float32(np.nan), Layer(WHOLE, "science")[...])
        assert np.array_equal(loaded.science.values, expected, equal_nan=True)
