"""A store's planes as KBMOD sees them, read into memory that is at hand."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

import wustore
from wustore import store_view
from wustore.errors import UsageError
from wustore.stamps.cutting.masking import hide
from wustore.work_unit import work_unit_from


@pytest.fixture(params=["x.zarr", "x.h5", "x.fits"])
def night(tmp_path, request):
    """Return a store of three images with masks."""
    path = tmp_path / request.param
    science = np.random.default_rng(4).normal(0, 5, (3, 40, 30)).astype("f4")
    science[1, 3:9, 2:20] = np.nan
    stack = wustore.ImageStack(times=[1.0, 2.0, 3.0], sci=list(science), var=list(25 + 0 * science))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wustore.save(wustore.WorkUnit(stack, wustore.SearchConfiguration()), tmp_path / "night.fits")
        if path.suffix == ".fits":
            return tmp_path / "night.fits"
        wustore.convert(tmp_path / "night.fits", path)
    return path


@pytest.mark.parametrize("given", [False, True])
def test_images_are_masked_by_the_threads_that_read_them(night, monkeypatch, given):
    meeting = threading.Barrier(3)
    threads = set()

    def note(plane, masked, no_data):
        hide(plane, masked, no_data)
        if threading.current_thread() not in threads:
            threads.add(threading.current_thread())
            meeting.wait(60)  # passed if three images are at this point at the same time

    monkeypatch.setattr(store_view, "hide", note)
    out = tuple(np.zeros((3, 40, 30), "f4") for _ in range(2)) if given else None
    with wustore.open_reader(night, workers=3) as reader:
        monkeypatch.setattr(reader, "images_at_once", lambda n: 3)  # the images are too small for three
        work_unit_from(reader).load_images(out=out)
    assert len(threads) == 3
    assert threading.current_thread() not in threads


def test_one_worker_is_the_calling_thread(night, monkeypatch):
    threads = set()
    monkeypatch.setattr(store_view, "hide", lambda *_: threads.add(threading.current_thread()))
    with wustore.open_reader(night, workers=1) as reader:
        work_unit_from(reader).load_images()
    assert threads == {threading.current_thread()}


class TestLoadInto:
    """A full load into memory that the user has."""

    @pytest.fixture
    def path(self, night):
        return night

    def expected(self, path):
        loaded = wustore.open(path)
        loaded.load_images()
        return [np.stack(planes) for planes in (loaded.im_stack.sci, loaded.im_stack.var)]

    def test_arrays(self, path):
        out = (np.zeros((3, 40, 30), "f4"), np.zeros((3, 40, 30), "f4"))
        unit = wustore.open(path, lazy=True)
        unit.load_images(out=out)
        for given, planes, expected in zip(
            out, (unit.im_stack.sci, unit.im_stack.var), self.expected(path), strict=True
        ):
            assert given.tobytes() == expected.tobytes()
            assert all(np.shares_memory(plane, given) for plane in planes)

    def test_anything_with_the_buffer_protocol(self, path):
        science, variance = bytearray(4 * 3 * 40 * 30), memoryview(np.zeros((3, 40, 30), "f4"))
        wustore.open(path, lazy=True).load_images(out=(science, variance))
        expected = self.expected(path)
        assert [bytes(science), variance.tobytes()] == [planes.tobytes() for planes in expected]

    @pytest.mark.parametrize(
        "wrong",
        [np.zeros((2, 40, 30), "f4"), np.zeros((3, 40, 30), "f8"), bytes(14400), bytearray(3), [1.0], None],
        ids=["shape", "dtype", "read-only", "short", "list", "none"],
    )
    def test_other_memory_is_refused(self, path, wrong):
        good = np.zeros((3, 40, 30), "f4")
        unit = wustore.open(path, lazy=True)
        with pytest.raises(UsageError, match="not memory for planes"):
            unit.load_images(out=(good, wrong))
        assert unit.lazy, "nothing was loaded"
