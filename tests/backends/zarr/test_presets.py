"""Profiles and layouts in Zarr: which codecs a layer gets, how it is cut, and what pcodec is told."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.backends.zarr import presets
from wustore.backends.zarr.codecs import Hints
from wustore.backends.zarr.presets import SIDES, grid_for, hints_for
from wustore.errors import UsageError
from wustore.format.preset_names import PROFILES
from wustore.model.meta import LAYERS

FLOATS, INTEGERS = ("float32", "float64"), ("int8", "uint8", "bool", "int32", "int64")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [*FLOATS, "float16", *INTEGERS])
def test_codecs(profile: str, layer: str, dtype: str) -> None:
    """The table of the format's page: the core's codecs in ``portable``, pcodec for floats in ``compact`` only."""
    chain = grid_for(layer, (50, 60), np.dtype(dtype), profile=profile).chain
    if profile in {"none", "fast"}:
        assert chain.method == {"none": "raw", "fast": "blosc"}[profile]
    elif dtype in INTEGERS:
        assert chain.method == ("zstd" if np.dtype(dtype).itemsize == 1 else "blosc")
    elif profile == "compact" and layer != "psf":
        assert chain.method == "pcodec"
    else:
        assert chain.method == "zstd"
    assert chain.to_json()[-1]["name"] == "crc32c"


@pytest.mark.parametrize("layout", SIDES)
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 300), (2048, 2051)])
def test_cut(layout: str, shape: tuple[int, int]) -> None:
    """Equal chunks near the layout's side, none of them all padding."""
    grid = grid_for("science", shape, np.dtype("f4"), layout=layout)
    for size, chunk, count in zip(shape, grid.chunk, grid.counts, strict=True):
        assert count == max(round(size / SIDES[layout]), 1)
        assert (count - 1) * chunk < size <= count * chunk
    assert grid_for("psf", shape, np.dtype("f4"), layout=layout).counts == (1, 1)


def test_chunks_of_ones_own() -> None:
    grid = grid_for("science", (50, 60), np.dtype("f4"), chunks=(20, 100))
    assert (grid.chunk, grid.counts) == ((20, 60), (3, 1))
    assert grid_for("psf", (5, 7), np.dtype("f4"), chunks=(2, 2)).chunk == (5, 7)
    for wrong in ({"profile": "small"}, {"layout": "tiles"}, {"chunks": (0, 5)}, {"chunks": (5,)}):
        with pytest.raises(UsageError):
            grid_for("science", (50, 60), np.dtype("f4"), **wrong)


def test_hints() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 5, (128, 128)).astype("f4")
    quantised = (np.rint(noise / np.float32(0.01)) * np.float32(0.01)).astype("f4")
    ramp = np.add.outer(np.arange(128.0), np.arange(128.0) ** 2).astype("f4") + noise / 1000
    assert hints_for(quantised).mode == "multiples"
    assert hints_for(quantised).base == 0.01
    assert hints_for(noise).mode == "classic"
    assert hints_for(noise).order == 0
    assert hints_for(ramp).order == 2
    masked = quantised.copy()
    masked[::2, ::5] = np.nan
    masked[1, :8] = np.inf
    assert hints_for(masked) == hints_for(quantised)


@pytest.mark.parametrize(
    "plane",
    [
        np.zeros((64, 64), "i4"),
        np.zeros((64, 64), "f2"),
        np.zeros((5, 5), "f4"),
        np.full((64, 64), np.nan, "f4"),
        np.zeros((0, 5), "f4"),
    ],
    ids=["integers", "float16", "tiny", "no values", "empty"],
)
def test_no_sample_no_hints(plane: np.ndarray) -> None:
    assert hints_for(plane) == Hints()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 513, 514])
def test_the_median_is_that_of_numpy(n: int) -> None:
    """The choice of hints decides about bytes, so the numbers are equal bit for bit."""
    rng = np.random.default_rng(n)
    for values in (rng.normal(0, 1e3, n), rng.integers(0, 3, n).astype(float), rng.random(n) * 1e-300):
        assert presets._median(values.copy()) == float(np.median(values))
