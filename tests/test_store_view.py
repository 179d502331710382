"""A store's planes as KBMOD sees them, read into memory that is at hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import wustore
from wustore.errors import UsageError


class TestLoadInto:
    """A full load into memory that the user has."""

    @pytest.fixture(params=["x.zarr", "x.h5", "x.fits"])
    def path(self, tmp_path, request):
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
