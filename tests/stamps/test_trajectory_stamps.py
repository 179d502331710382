"""Stamps and trajectories equal a naive loop over pixels, and read exactly the chunks they need."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import astropy.units as u
import numpy as np
import pytest
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time
from calls import calls_of, loops_of
from chunked import Chunked
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import traced

import wustore
from wustore.backends.hdf5.filters import pipeline
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing, open_reader
from wustore.backends.zarr.filters import blocks
from wustore.compat.wcs import make_fake_wcs
from wustore.errors import FormatError, StoreNotFoundError, UsageError
from wustore.format.wcs import wcs_to_text
from wustore.ops.copy import copy
from wustore.stamps.coadd import KINDS, coadd
from wustore.stamps.cutting import gather, masking
from wustore.stamps.trajectories import NOWHERE, Trajectories, nearest_pixel, trajectories_from
from wustore.stamps.trajectory_stamps import stamp_batches, stamps, trajectory_coadds, trajectory_stamps
from wustore.storage import threads
from wustore.testing import sample

MOTIONS = [(100, 200, 30, 4), (0, 0, -1, 1), (528.6, 599, 0, 0), (-50, 5, 0, 0), (265, 300, 5, -5)]


def with_meta(reader, **fields):
    images = [reader.image(i) for i in range(reader.meta.n_images)]
    return MemoryReader(replace(reader.meta, **fields), images)


def naive(reader, x0, y0, vx, vy, radius):
    """One trajectory, pixel by pixel: science, variance, mask, inside, each (time, y, x)."""
    meta = reader.meta
    side = 2 * radius + 1
    science, variance = (np.full((meta.n_images, side, side), np.nan) for _ in range(2))
    mask = np.zeros((meta.n_images, side, side), np.int64)
    inside = np.zeros(mask.shape, bool)
    for i in range(meta.n_images):
        image = reader.image(i)
        days = meta.times[i] - meta.times[0]
        if np.isnan(days):
            continue
        cx, cy = int(np.floor(x0 + vx * days + 0.5)), int(np.floor(y0 + vy * days + 0.5))
        for j in range(side):
            for k in range(side):
                y, x = cy - radius + j, cx - radius + k
                if not (0 <= y < image.science.shape[0] and 0 <= x < image.science.shape[1]):
                    continue
                inside[i, j, k] = True
                mask[i, j, k] = 0 if image.mask is None else image.mask[y, x]
                if mask[i, j, k] <= 0:
                    with np.errstate(invalid="ignore"):  # signalling NaN among the samples
                        science[i, j, k], variance[i, j, k] = image.science[y, x], image.variance[y, x]
    return science, variance, mask, inside


coordinate = st.floats(-30, 330) | st.sampled_from([-0.5, -0.7, 0.49999, 0.5, 12.5, 1e300, -1e12])
speed = st.floats(-200, 200) | st.just(0.0)
motion = st.tuples(coordinate, coordinate, speed, speed)


@pytest.mark.usefixtures("cutting")
@settings(max_examples=40)
@given(
    st.sampled_from(["simple", "ragged", "missing", "flags", "dtypes"]),
    st.lists(motion, max_size=4),
    st.integers(0, 6),
    st.sampled_from([(1, 4, 5), (2, 300, 280), (1, 1, 1)]),
    st.sampled_from([1, 3000, 10**9]),
)
def test_equal_a_loop_over_pixels(name, motions, radius, chunk, max_memory):
    reader = Chunked(sample(name), chunk)
    got = trajectory_stamps(reader, motions, radius, max_memory=max_memory)
    assert got.science.shape == (len(motions), reader.meta.n_images, 2 * radius + 1, 2 * radius + 1)
    assert got.science.dtype == reader.meta.layer_dtype("science")
    for n, (x0, y0, vx, vy) in enumerate(motions):
        expected = naive(reader, x0, y0, vx, vy, radius)
        for array, values in zip((got.science, got.variance, got.mask, got.inside), expected, strict=True):
            assert np.array_equal(array[n], values, equal_nan=array.dtype.kind == "f")


def test_positions_are_the_searchs():
    # A pixel's own area goes from half a pixel below its number to half a pixel above, also left of the frame.
    assert nearest_pixel([0, 0.49, 0.5, 1.49, -0.5, -0.51, -1.5, np.nan, np.inf]).tolist() == [
        *(0, 0, 1, 1, 0, -1, -1, NOWHERE, NOWHERE)
    ]
    times = 60000 + np.array([0.5, 0.75, 2.5])
    x, y = Trajectories(np.array([10.0]), np.array([5.0]), np.array([4.0]), np.array([-2.0])).pixels(times, times[0])
    assert x.tolist() == [[10, 11, 18]]
    assert y.tolist() == [[5, 5, 1]]


def test_a_fixed_position_is_one_read_for_each_image_and_layer():
    reader = Chunked(sample("chunked"), (1, 256, 256))
    got = stamps(reader, 100.2, 300.0, 10)
    assert got.science.shape == (3, 21, 21)
    box = slice(290, 311), slice(90, 111)
    assert reader.asked == [(layer, (slice(0, 3), *box)) for layer in ("science", "variance", "mask")]
    assert np.array_equal(got.x, [100] * 3)
    assert np.array_equal(got.images, [0, 1, 2])
    several = stamps(reader, [100.2, 2.0], [[300.0], [599.0]], 10)
    assert several.science.shape == (2, 2, 3, 21, 21)
    assert several.science[0, 0].tobytes() == got.science.tobytes()


def many_motions(n=60):
    rng = np.random.default_rng(2)
    return np.stack([rng.uniform(0, 530, n), rng.uniform(0, 200, n), *rng.uniform(-40, 40, (2, n))], axis=1)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_shared_chunk_is_read_once(depth):
    reader = Chunked(sample("chunked"), (depth, 64, 64))
    got = trajectory_stamps(reader, many_motions(), 5)
    expected = set()
    for n, i in np.ndindex(got.x.shape):
        y, x = got.y[n, i], got.x[n, i]
        rows = range(max(y - 5, 0) // 64, min(y + 5, 599) // 64 + 1) if y + 5 >= 0 and y - 5 < 600 else ()
        columns = range(max(x - 5, 0) // 64, min(x + 5, 529) // 64 + 1) if x + 5 >= 0 and x - 5 < 530 else ()
        expected |= {(i // depth, row, column) for row in rows for column in columns}
    assert reader.touched() == Counter(expected)
    assert reader.touched("variance") == reader.touched("mask") == reader.touched()


def test_images_that_do_not_fit_are_read_in_pieces():
    reader = Chunked(sample("chunked"), (1, 64, 64))
    expected = trajectory_stamps(sample("chunked"), many_motions(), 5)
    got = trajectory_stamps(reader, many_motions(), 5, max_memory=300_000)
    for name in ("science", "variance", "mask", "inside"):
        assert getattr(got, name).tobytes() == getattr(expected, name).tobytes()
    sizes = [np.prod([part.stop - part.start for part in index]) * 4 for _, index in reader.asked]
    assert 64 * 64 * 4 <= max(sizes) <= 300_000


@pytest.mark.usefixtures("cutting")
def test_the_work_of_python_does_not_grow_with_the_stamps(monkeypatch):
    reader = sample("chunked")
    monkeypatch.setattr(threads, "available_cores", lambda: 1)  # all in this thread, so that it is counted

    def calls(n):
        found = Trajectories(*many_motions(n).T)
        return calls_of(lambda: trajectory_stamps(reader, found, 3))

    calls(10)
    few, many = calls(100), calls(1000)
    assert many < 1.1 * few + 50


def note(done, *at):
    done.append(at)


def test_batches_of_images_hold_whole_rows_of_chunks():
    reader = Chunked(sample("ragged"), (2, 64, 64))
    motions = np.array([[3.0, 4.0, 1.0, 0.5], [1.0, 0.0, -1.0, 0.0]])
    whole = trajectory_stamps(reader, motions, 3)
    for max_memory, sizes in ((5000, [2, 2]), (10**9, [4])):
        reader.asked.clear()
        done = []
        parts = list(stamp_batches(reader, motions, 3, max_memory=max_memory, progress=partial(note, done)))
        assert [part.science.shape[1] for part in parts] == sizes
        assert set(reader.touched().values()) == {1}
        assert np.concatenate([part.science for part in parts], axis=1).tobytes() == whole.science.tobytes()
        assert done == [(stop, 4) for stop in np.cumsum(sizes).tolist()]


@pytest.mark.usefixtures("cutting")
def test_batches_of_trajectories_where_one_image_is_too_much():
    reader = Chunked(sample("chunked"), (1, 64, 64))
    motions = many_motions()
    whole = trajectory_stamps(sample("chunked"), motions, 5)
    stamp = 11 * 11 * (4 + 4 + whole.mask.itemsize + 1)
    seen = np.zeros(whole.x.shape, int)
    for part in stamp_batches(reader, motions, 5, max_memory=2 * 25 * stamp + 1):
        assert len(part) <= 25
        (image,) = part.images
        seen[part.ids, image] += 1
        for name in ("science", "variance", "mask", "inside"):
            assert getattr(part, name)[:, 0].tobytes() == getattr(whole, name)[part.ids, image].tobytes()
    assert (seen == 1).all()


@pytest.mark.slow
def test_many_trajectories_stream_through_bounded_memory(monkeypatch):
    """100,000 trajectories through 100 images: 10 million stamps, 18 GB, never held together."""
    monkeypatch.setattr(threads, "available_cores", lambda: 2)  # each thread has memory of its own
    side, n, n_images = 512, 100_000, 100
    rng = np.random.default_rng(5)
    planes = [rng.normal(0, 1, (side, side)).astype(np.float32) for _ in range(2)]

    class Night(MemoryReader):
        def read(self, layer, index, out=None):
            times = range(index[0].start, index[0].stop)
            box = np.stack([planes[k % 2][index[1], index[2]] for k in times])
            if out is None:
                return box
            out[...] = box
            return out

    source = sample("simple")
    dtypes = dict.fromkeys(source.meta.dtypes, (None,) * n_images) | dict.fromkeys(
        ("science", "variance"), (np.dtype(np.float32),) * n_images
    )
    meta = replace(
        source.meta,
        times=60000 + np.arange(n_images) / 100,
        image_shape=np.full((n_images, 2), side, np.int32),
        psf_shape=np.zeros((n_images, 2), np.int32),
        dtypes=dtypes,
        links=None,
    )
    reader = Night(meta, [])
    motions = Trajectories(*rng.uniform(20, side - 20, (2, n)), *rng.uniform(-9, 9, (2, n)))
    with traced() as peak:
        done, total = [], 0
        found = trajectory_coadds(reader, motions, 10, "mean", progress=lambda *at: done.append(at))
        result = found.values.nbytes + found.x.nbytes + found.y.nbytes
        assert done == [(k + 1, n_images) for k in range(n_images)]
        assert peak.bytes < result + n * 21 * 21 * 4 + 300e6  # and the count of each pixel
        k = 1234
        one = trajectory_stamps(reader, Trajectories(*(getattr(motions, name)[k] for name in ("x", "y", "vx", "vy"))))
        assert one.coadd("mean")[0].tobytes() == found.values[k].tobytes()
        del found
        peak.again()
        for part in stamp_batches(reader, motions, 10, layers=("science",)):
            total += part.science.shape[0] * part.science.shape[1]
        assert total == n * n_images
        assert peak.bytes < 700e6  # the pixels of the trajectories are 160 MB of these


def test_choice_of_images_and_layers():
    reader = Chunked(sample("simple"), (1, 11, 13))
    whole = stamps(reader, 5, 5, 2)
    some = stamps(reader, 5, 5, 2, times=(60001, None), layers=("variance",))
    assert some.science is None
    assert some.mask is None
    assert np.array_equal(some.variance, whole.variance[1:], equal_nan=True)
    assert some.times.tolist() == [60001, 60002]
    picked = stamps(reader, 5, 5, 2, images=[2, 0])
    assert np.array_equal(picked.science, whole.science[[2, 0]], equal_nan=True)
    reader.asked.clear()
    stamps(reader, 5, 5, 2, layers=["mask"])
    assert {layer for layer, _ in reader.asked} == {"mask"}
    # A motion starts at the first image of the store, whichever images are wanted.
    moved = trajectory_stamps(reader, [(5, 5, 1.0, 0)], 2, images=[1, 2])
    assert moved.x.tolist() == [[6, 7]]


def test_refused():
    reader = sample("simple")
    for arguments in (
        {"x": 1, "y": 1, "radius": -1},
        {"x": 1, "y": 1, "radius": 1.5},
        {"x": 1, "y": 1, "radius": True},
        {"x": 1, "radius": 2},
        {"x": 1, "y": 1, "ra": 1, "dec": 2, "radius": 2},
        {"x": 1, "y": 1, "layers": ("psf",)},
        {"x": 1, "y": 1, "layers": "science"},
        {"x": 1, "y": 1, "layers": ()},
        {"x": 1, "y": 1, "images": [3]},
        {"x": 1, "y": 1, "times": [1, 2, 3]},
        {"x": 1, "y": 1, "times": (2.0, 1.0)},
        {"x": "a", "y": 1},
        {"x": [1, 2], "y": [1, 2, 3]},
        {"ra": [1, 2], "dec": [1, 2, 3]},
        {"ra": 1, "dec": 2},
    ):
        with pytest.raises(UsageError):
            stamps(reader, **arguments)
    with pytest.raises(UsageError, match="no time"):
        trajectory_stamps(with_meta(reader, times=np.array([np.nan, 1, 2])), [(1, 1, 0, 0)], 1)


@pytest.mark.usefixtures("cutting")
def test_pixels_without_data():
    source = sample("simple")
    images = [source.image(i) for i in range(3)]
    for image in images:
        image.mask[5, 5] = 0
    images[1].science[5, 5] = -9999
    images[2].variance[5, 5] = -9999
    for extra, expected in (({}, -9999), ({"no_data": -9999.0}, np.nan)):
        got = stamps(MemoryReader(replace(source.meta, source=extra), images), 5, 5, 1)
        assert np.array_equal(got.science[1, 1, 1], expected, equal_nan=True)
        assert np.array_equal(got.variance[2, 1, 1], expected, equal_nan=True)


# --- every format ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamps")
    source = sample("chunked")
    paths = {}
    for name in ("wu.zarr", "wu.zarr.zip", "wu.h5", "wu.fits"):
        paths[name] = str(folder / name)
        copy(source, backend_for_writing(paths[name]).create(paths[name], source.meta))
    return paths


def cells(x, y, radius, chunk):
    """The chunks (image, row, column) that stamps at (x, y) touch in images of 600 x 530."""
    found = set()
    for (_, i), cx in np.ndenumerate(x):
        cy = y[_, i]
        rows = range(max(cy - radius, 0), min(cy + radius + 1, 600))
        columns = range(max(cx - radius, 0), min(cx + radius + 1, 530))
        found |= {(i, row // chunk[1], column // chunk[2]) for row in rows for column in columns}
    return found


@pytest.mark.usefixtures("cutting")
@pytest.mark.parametrize("layout", ["images", "cutouts", "balanced"])
def test_zarr_reads_the_chunks_of_a_stamp(tmp_path, layout):
    source = sample("chunked")
    path = str(tmp_path / "wu.zarr")
    copy(source, backend_for_writing(path).create(path, source.meta, layout=layout))
    rng = np.random.default_rng(4)
    motions = np.stack([rng.uniform(-5, 540, 30), rng.uniform(-5, 610, 30), *rng.uniform(-30, 30, (2, 30))], axis=1)
    for radius, wanted in ((3, motions), (0, motions[:2]), (40, motions[:5])):
        with open_reader(path) as reader:
            got = trajectory_stamps(reader, wanted, radius)
            assert got.science.tobytes() == trajectory_stamps(source, wanted, radius).science.tobytes()
            for layer in ("science", "variance", "mask"):
                assert reader.counters[layer] == len(cells(got.x, got.y, radius, reader.chunks(layer)))


def test_hdf5_reads_the_chunks_of_a_stamp(stores):
    motions = [(100, 200, 30, 4), (102, 201, 29, 4), (0, 0, -1, 1)]
    with open_reader(stores["wu.h5"]) as reader:
        assert reader.chunks_read == 0
        got = trajectory_stamps(reader, motions, 4)
        layers = ("science", "variance", "mask")
        assert reader.chunks_read == sum(len(cells(got.x, got.y, 4, reader.chunks(layer))) for layer in layers)


def test_fits_decodes_the_tiles_of_a_stamp(stores):
    with open_reader(stores["wu.fits"]) as reader:
        got = stamps(reader, 265, 300, 10, layers=("science",))
        assert reader.pixels_decoded <= got.x.size * 21 * 530 * 2  # rows of science and of the mask
        before = reader.pixels_decoded
        assert before < 0.05 * 2 * 3 * 600 * 530


@pytest.mark.usefixtures("cutting")
def test_every_format_gives_the_same(stores):
    expected = trajectory_stamps(sample("chunked"), MOTIONS, 6)
    for path in stores.values():
        with open_reader(path) as reader:
            got = trajectory_stamps(reader, MOTIONS, 6)
        for name in ("science", "variance", "mask", "inside"):
            assert getattr(got, name).tobytes() == getattr(expected, name).tobytes(), (path, name)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_one_stamp_takes_little_python(tmp_path, suffix, compiled, monkeypatch):
    """Planned once for all images, not for each: of one stamp, what many would share is most of the work."""
    planes = [np.random.default_rng(k).uniform(1, 2, (300, 300)).astype(np.float32) for k in range(10)]
    path = str(tmp_path / f"wu{suffix}")
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # no WCS
        work_unit = wustore.WorkUnit(wustore.ImageStack(times=range(10), sci=planes, var=planes), None)
    wustore.save(work_unit, path)

    for module, name, where in (
        (blocks, "LOOPS", "backends.zarr.filters"),
        (pipeline, "_LOOPS", "backends.hdf5.filters"),
        (gather, "_LOOPS", "stamps.cutting"),
        (masking, "_LOOPS", "stamps.cutting"),
    ):
        monkeypatch.setattr(module, name, loops_of(f"{where}.loops_numba", compiled=compiled))

    def calls(n_images):
        got = []
        with open_reader(path, workers=1) as reader:  # all in this thread, so that it is counted
            found = calls_of(lambda: got.append(stamps(reader, 150.0, 200.0, 10, images=range(n_images))))
        assert np.array_equal(got[0].science, np.stack(planes[:n_images])[:, 190:211, 140:161])
        return found

    calls(10)  # what is imported on the way counts once
    of_ten, of_five = calls(10), calls(5)
    assert of_ten < 3600
    assert of_ten - of_five < 5 * 180


def test_of_a_work_unit(stores):
    expected = trajectory_stamps(sample("chunked"), MOTIONS, 6)
    with wustore.open(stores["wu.zarr"]) as work_unit:
        assert work_unit.trajectory_stamps(MOTIONS, 6).science.tobytes() == expected.science.tobytes()
        assert work_unit.stamps(100, 200, 6).science.shape == (3, 13, 13)
        with np.errstate(invalid="ignore", over="ignore"):
            coadds = work_unit.trajectory_coadds(MOTIONS, 6, "median")
            assert coadds.values.tobytes() == expected.coadd("median").tobytes()
        work_unit.load_images()
        loaded = work_unit.trajectory_stamps(MOTIONS, 6)
        assert np.array_equal(loaded.science, expected.science, equal_nan=True)
        smaller = work_unit.select(images=[0, 2]).cutout(100, 200, 30, 20)
        assert smaller.im_stack.sci[1].shape == (20, 30)


# --- forms of trajectories ------------------------------------------------------------------------------

ROWS = np.array([[1.0, 2.0, 3.0, 4.0], [5.5, 6.5, -7.0, 8.0]])


def columns_of(trajectories):
    return np.stack([trajectories.x, trajectories.y, trajectories.vx, trajectories.vy], axis=1)


@pytest.mark.parametrize(
    "form",
    [
        lambda: ROWS,
        lambda: ROWS.tolist(),
        lambda: tuple(map(tuple, ROWS)),
        lambda: dict(zip(("x", "y", "vx", "vy"), ROWS.T, strict=True)),
        lambda: Table(ROWS, names=("x", "y", "vx", "vy")),
        lambda: Table(ROWS[:, ::-1], names=("vy", "vx", "y", "x")).as_array(),
        lambda: Table(ROWS, names=("x", "y", "vx", "vy")).to_pandas(),
        lambda: [SimpleNamespace(x=x, y=y, vx=vx, vy=vy) for x, y, vx, vy in ROWS],
        lambda: SimpleNamespace(get_list=lambda: [SimpleNamespace(x=x, y=y, vx=vx, vy=vy) for x, y, vx, vy in ROWS]),
        lambda: Trajectories(*ROWS.T),
    ],
)
def test_forms(form):
    assert np.array_equal(columns_of(trajectories_from(form(), sample("simple").meta)), ROWS)


def test_forms_of_one_or_none():
    meta = sample("simple").meta
    assert columns_of(trajectories_from(SimpleNamespace(x=1, y=2, vx=3, vy=4), meta)).tolist() == [[1, 2, 3, 4]]
    assert columns_of(trajectories_from((1, 2, 3, 4), meta)).tolist() == [[1, 2, 3, 4]]
    assert len(trajectories_from([], meta)) == 0
    assert trajectory_stamps(sample("simple"), [], 2).science.shape == (0, 3, 5, 5)


@pytest.mark.parametrize("name", ["results.ecsv", "results.parquet", "results.parq", "results.csv", "results.hdf5"])
def test_results_files(tmp_path, name):
    table = Table(ROWS, names=("x", "y", "vx", "vy"))
    table["uuid"] = ["a", "b"]
    if name != "results.csv":
        table["stamp"] = np.zeros((2, 9))
        table.meta["mjd_utc_mid"] = np.array([60000.25, 60001.0])
    path = tmp_path / name
    options = {"format": "parquet"} if name.endswith("parq") else {}
    if name.endswith("hdf5"):
        import h5py
        from astropy.table.meta import get_yaml_from_table

        with h5py.File(path, "w") as file:
            file["__astropy_table__"] = table["x", "y", "vx", "vy"].as_array()
            lines = get_yaml_from_table(table["x", "y", "vx", "vy"])
            file["__astropy_table__.__table_column_meta__"] = [line.encode() for line in lines]
    else:
        table.write(path, **options)
    found = trajectories_from(path, sample("simple").meta)
    assert np.array_equal(columns_of(found), ROWS)
    assert found.zero_time == (None if name == "results.csv" else 60000.25)
    # The positions are those of the times that the results were found with.
    got = trajectory_stamps(sample("simple"), path, 1)  # its first image: 60000
    shift = -0.25 if found.zero_time else 0
    assert got.x[:, 0].tolist() == [int(np.floor(x + vx * shift + 0.5)) for x, _, vx, _ in ROWS]


def test_kbmods_results():
    class Results:  # what KBMOD's have: a table, and the times that it was found with
        table = Table(ROWS, names=("x", "y", "vx", "vy"))
        colnames = table.colnames
        mjd_mid = np.array([60000.25, 60001.0])

    found = trajectories_from(Results(), sample("simple").meta)
    assert np.array_equal(columns_of(found), ROWS)
    assert found.zero_time == 60000.25


def test_bad_trajectories(tmp_path):
    meta = sample("simple").meta
    masked = Table(ROWS, names=("x", "y", "vx", "vy"), masked=True)
    masked["vx"] = MaskedColumn([1.0, 2.0], mask=[False, True])
    for bad in (
        np.ones((2, 3)),
        [(1, 2, 3, np.nan)],
        [("a", 2, 3, 4)],
        {"x": [1], "y": [1]},
        {"x": [1], "y": [1], "vx": [1, 2], "vy": [1]},
        masked,
        object(),
        tmp_path,
        tmp_path / "none.ecsv",
        5,
    ):
        with pytest.raises((UsageError, StoreNotFoundError)):
            trajectories_from(bad, meta)
    for name in ("a.ecsv", "a.parquet", "a.hdf5", "a.csv", "a.txt"):
        (tmp_path / name).write_bytes(b"\x00\xffnothing of the kind")
        with pytest.raises((FormatError, UsageError)):
            trajectories_from(tmp_path / name, meta)


# --- sky ------------------------------------------------------------------------------------------------


def sky_reader():
    wcs = make_fake_wcs(201.5, -9.9, 11, 13, 0.2 / 3600)
    return with_meta(sample("simple"), wcs=wcs_to_text(wcs)), wcs


def test_stamps_on_the_sky():
    reader, wcs = sky_reader()
    ra, dec = wcs.all_pix2world([4.0, 7.3], [3.0, 8.1], 0)
    got = stamps(reader, ra=ra, dec=dec, radius=2)
    assert got.science.tobytes() == stamps(reader, [4.0, 7.3], [3.0, 8.1], 2).science.tobytes()
    assert stamps(reader, ra=ra[0], dec=dec[0], radius=2).science.shape == (3, 5, 5)
    far = stamps(reader, ra=ra[0] + 180, dec=-dec[0], radius=2)
    assert np.isnan(far.science).all()
    assert not far.inside.any()
    with pytest.raises(UsageError):
        stamps(reader, ra=0, dec=100, radius=2)


def test_each_image_has_its_own_wcs():
    from wustore.model.meta import Column, ConstituentTable

    texts = np.empty(3, object)
    texts[:] = [wcs_to_text(make_fake_wcs(201.5 + 0.0001 * i, -9.9, 11, 13, 0.2 / 3600)) for i in range(3)]
    table = ConstituentTable(3, (Column("per_image_wcs", "wcs", texts),))
    reader = with_meta(sample("simple"), constituents=table, links=((2,), (1,), (0,)))
    got = stamps(reader, ra=201.5, dec=-9.9, radius=2)
    centre = stamps(with_meta(sample("simple"), wcs=texts[0]), ra=201.5, dec=-9.9, radius=2).x[0]
    assert got.x[2] == centre  # image 2 is made of constituent 0
    assert got.x[0] < got.x[1] < got.x[2]


def test_motions_on_the_sky():
    reader, wcs = sky_reader()
    times = reader.meta.times
    x0, y0, vx, vy = 3.0, 2.0, 1.5, 2.25
    days = np.array([-1.0, 0.5, 2.0])
    ra, dec = wcs.all_pix2world(x0 + vx * days, y0 + vy * days, 0)
    points = Table({"ra": ra, "dec": dec, "mjd": times[0] + days})
    line = trajectories_from(points, reader.meta)
    assert np.allclose(columns_of(line), [[x0, y0, vx, vy]], atol=1e-6)
    twice = Table({name: np.repeat(points[name], 2) for name in points.colnames})
    twice["object"] = ["b", "a"] * 3
    assert np.allclose(columns_of(trajectories_from(twice, reader.meta)), [[x0, y0, vx, vy]] * 2, atol=1e-6)
    (start_ra, later_ra), (start_dec, later_dec) = wcs.all_pix2world([x0, x0 + vx], [y0, y0 + vy], 0)
    rates = {"ra": [start_ra], "dec": [start_dec], "v_ra": [later_ra - start_ra], "v_dec": [later_dec - start_dec]}
    assert np.allclose(columns_of(trajectories_from(rates, reader.meta)), [[x0, y0, vx, vy]], atol=1e-6)
    single = trajectories_from({"ra": ra[:1], "dec": dec[:1], "mjd": [times[0]]}, reader.meta)
    assert single.vx.tolist() == [0]
    with pytest.raises(UsageError, match="no WCS"):
        trajectories_from(points, sample("simple").meta)


# --- coadds ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cutting")
def test_coadds_by_hand():
    nan = np.nan
    science = np.array([[1.0, nan], [4.0, nan], [2.0, 5.0], [9.0, nan]]).reshape(4, 1, 2)
    variance = np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 0.5], [nan, 1.0]]).reshape(4, 1, 2)
    assert coadd(science, "sum").tolist() == [[16, 5]]
    assert coadd(science, "mean").tolist() == [[4, 5]]
    assert coadd(science, "median").tolist() == [[2, 5]]  # the lower of 2 and 4
    assert coadd(science, "weighted", variance).tolist() == [[(1 + 4 / 2) / (1 + 1 / 2), 5]]
    for kind in KINDS:
        assert coadd(np.full((3, 2, 2), nan), kind, np.ones((3, 2, 2))).tolist() == [[0, 0], [0, 0]]
        assert coadd(np.empty((0, 2, 2)), kind, np.empty((0, 2, 2))).tolist() == [[0, 0], [0, 0]]
    for bad in ("max", "weighted"):
        with pytest.raises(UsageError):
            coadd(science, bad)
    with pytest.raises(UsageError):
        coadd(science[0], "sum")


@pytest.mark.usefixtures("cutting")
@pytest.mark.parametrize("kind", KINDS)
def test_coadds_of_many(kind):
    reader = sample("chunked")
    many = trajectory_stamps(reader, [(100, 100, 2, 1), (-3, 5, 0, 0)], 4)
    with np.errstate(invalid="ignore", over="ignore"):
        together = many.coadd(kind)
        assert together.shape == (2, 9, 9)
        for n in range(2):
            assert np.array_equal(coadd(many.science[n], kind, many.variance[n]), together[n], equal_nan=True)
    with pytest.raises(UsageError):
        stamps(reader, 1, 1, 1, layers=("variance",)).coadd(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_memory", [1, 50_000, 10**9])
def test_coadds_in_bounded_memory(kind, max_memory):
    reader = Chunked(sample("chunked"), (1, 64, 64))
    with np.errstate(invalid="ignore", over="ignore"):
        expected = trajectory_stamps(reader, MOTIONS, 6).coadd(kind)
        reader.asked.clear()
        found = trajectory_coadds(reader, MOTIONS, 6, kind, max_memory=max_memory)
    assert found.values.tobytes() == expected.tobytes()
    assert found.x.shape == (len(MOTIONS), 3)
    assert ("variance" in {layer for layer, _ in reader.asked}) == (kind == "weighted")
    assert trajectory_coadds(reader, [], 6, kind).values.shape == (0, 13, 13)


def test_coadds_are_kbmods():
    """The definitions of KBMOD's stamp utilities, written as plain loops."""
    rng = np.random.default_rng(9)
    science = rng.normal(0, 1, (7, 5, 5)).astype(np.float32)
    science[rng.random(science.shape) < 0.4] = np.nan
    variance = rng.uniform(0, 2, science.shape).astype(np.float32)
    variance[rng.random(science.shape) < 0.2] = 0
    for y, x in np.ndindex(5, 5):
        values = science[:, y, x].astype(float)
        good = np.sort(values[~np.isnan(values)])
        assert coadd(science, "sum")[y, x] == pytest.approx(good.sum())
        assert coadd(science, "mean")[y, x] == pytest.approx(good.mean() if good.size else 0)
        assert coadd(science, "median")[y, x] == (good[(len(good) - 1) // 2] if good.size else 0)
        use = ~np.isnan(values) & (variance[:, y, x] != 0)
        weights = 1 / variance[use, y, x].astype(float)
        expected = (values[use] * weights).sum() / weights.sum() if use.any() else 0
        assert coadd(science, "weighted", variance)[y, x] == pytest.approx(expected)


# --- units ----------------------------------------------------------------------------------------------


def test_everything_with_units_is_converted(tmp_path):
    reader, wcs = sky_reader()
    ra, dec = (float(value) for value in wcs.all_pix2world(4.0, 3.0, 0))
    plain = stamps(reader, ra=ra, dec=dec, radius=2, times=(60001, None))
    start = Time(60001, format="mjd", scale="utc")
    for options in (
        {"ra": ra / 15 * u.hourangle, "dec": dec * 60 * u.arcmin, "radius": 2 * u.pix, "times": (start, None)},
        {"x": 4 * u.pix, "y": "3pix", "radius": "2pix", "times": (start.datetime64, None)},
        {"x": 4, "y": 3, "radius": 2, "times": (start.to_datetime(), 10**6 * u.d)},
    ):
        assert stamps(reader, **options).science.tobytes() == plain.science.tobytes()
    pixels = QTable({"x": [5] * u.pix, "y": [5] * u.pix, "vx": [1 / 24] * u.pix / u.h, "vy": [0] * u.pix / u.s})
    rates = QTable(
        {"ra": [ra] * u.deg, "dec": [dec] * u.deg, "v_ra": [0.15] * u.arcsec / u.h, "v_dec": [0] * u.deg / u.d}
    )
    for table in (pixels, rates):
        plain = Table([table[name].value for name in table.colnames], names=table.colnames)
        plain["vx" if "vx" in table.colnames else "v_ra"] = [1.0 if "vx" in table.colnames else 0.15 * 24 / 3600]
        expected = columns_of(trajectories_from(plain, reader.meta))
        assert np.allclose(columns_of(trajectories_from(table, reader.meta)), expected)
        for name in ("a.ecsv", "a.parquet"):
            table.write(tmp_path / name, overwrite=True)
            assert np.allclose(columns_of(trajectories_from(tmp_path / name, reader.meta)), expected)
    points = Table({"ra": [ra], "dec": [dec], "time": Time([60001.0], format="mjd")})
    assert trajectories_from(points, reader.meta).zero_time == 60000


@pytest.mark.parametrize(
    ("options", "unit"),
    [
        ({"x": 4 * u.arcsec, "y": 3}, "arcsec"),
        ({"x": 4, "y": 3, "radius": 5 * u.arcsec}, "arcsec"),
        ({"x": 4, "y": 3, "times": (5 * u.m, None)}, "m"),
        ({"ra": 1 * u.pix, "dec": 2}, "pix"),
    ],
)
def test_a_unit_that_does_not_fit_is_named(options, unit):
    reader, _ = sky_reader()
    with pytest.raises(UsageError) as caught:
        stamps(reader, **options)
    assert caught.value.found == unit


def test_a_list_of_rows_is_rows():
    meta = sample("simple").meta
    rows = np.arange(16.0).reshape(4, 4)
    for form in (list(rows), tuple(rows), [list(row) for row in rows]):
        assert columns_of(trajectories_from(form, meta)).tolist() == rows.tolist()
    with pytest.raises(UsageError, match="Trajectories"):
        trajectories_from((rows[0, :3],) * 4, meta)
    with pytest.raises(UsageError, match="plain numbers"):
        trajectories_from([(1, 2, 3 * u.pix / u.h, 4)], meta)


def test_ids():
    meta = sample("simple").meta
    table = Table(ROWS, names=("x", "y", "vx", "vy"))
    assert trajectories_from(table, meta).names.tolist() == [0, 1]
    table["uuid"] = ["b", "a"]
    assert trajectories_from(table, meta).names.tolist() == ["b", "a"]
    found = trajectory_stamps(sample("simple"), table, 1)
    assert found.ids.tolist() == trajectory_coadds(sample("simple"), table, 1).ids.tolist() == ["b", "a"]


def test_stamps_say_where_they_come_from():
    reader, wcs = sky_reader()
    found = stamps(reader, [4, 400], [3, 3], 2)
    assert found.source == reader.path
    assert found.ids.tolist() == [0, 1]
    assert found.is_outside.tolist() == [[False] * 3, [True] * 3]
    assert found.wcs == (reader.meta.wcs,) * 3
    here = found.wcs_of(0, 1)
    assert np.allclose(here.all_pix2world(2, 2, 0), wcs.all_pix2world(4, 3, 0), atol=1e-12)
    with pytest.raises(UsageError, match="no WCS"):
        stamps(sample("simple"), 4, 3, 2).wcs_of(0)
