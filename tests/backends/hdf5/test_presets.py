"""What profiles and layouts mean in HDF5: the filters of each layer, declared so that every program reads them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from wustore.backends.hdf5.filters.pipeline import BLOSC, DEFLATE, FLETCHER32, SHUFFLE, filters_of, pipeline_of
from wustore.backends.hdf5.presets import SIDES, declared, need_plugins, pipeline_for
from wustore.format.preset_names import LAYOUTS, PROFILES
from wustore.model.meta import LAYERS

PORTABLE = {1: (DEFLATE, FLETCHER32), 4: (SHUFFLE, DEFLATE, FLETCHER32)}
FILTERS = {
    "portable": PORTABLE,
    "compact": PORTABLE,
    "fast": dict.fromkeys((1, 4), (BLOSC, FLETCHER32)),
    "none": dict.fromkeys((1, 4), (FLETCHER32,)),
}


def test_every_profile_and_layout_has_a_meaning() -> None:
    assert set(FILTERS) == set(PROFILES)
    assert set(SIDES) == set(LAYOUTS)
    assert sorted(SIDES.values(), reverse=True) == [SIDES[name] for name in ("images", "balanced", "cutouts")]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", ["<f4", "i1"])
def test_filters_as_the_library_sees_them(tmp_path: Path, profile: str, dtype: str) -> None:
    """What is declared is what encodes: pipeline_of gives the same filters, so readers decode what writers store."""
    if profile == "fast":
        pytest.importorskip("hdf5plugin")
        need_plugins()
    pipeline = pipeline_for(profile, "science", np.dtype(dtype), (1, 8, 16))
    assert pipeline.filters == FILTERS[profile][np.dtype(dtype).itemsize]
    values = np.arange(128).reshape(1, 8, 16).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("a", values.shape, dtype, chunks=pipeline.chunks, **declared(pipeline))
        assert filters_of(made) == pipeline.filters
        found = pipeline_of(made)
        assert found is not None
        assert (found.filters, found.dtype, found.chunks) == (pipeline.filters, pipeline.dtype, pipeline.chunks)
        skipped, stored = pipeline.encode(values)
        made.id.write_direct_chunk((0, 0, 0), stored, skipped)
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["a"][()], values)


def test_noise_takes_the_lowest_level_and_the_rest_a_higher_one() -> None:
    levels = [pipeline_for("portable", layer, np.dtype("<f4"), (1, 8, 8)).level for layer in LAYERS]
    assert levels == [1, 6, 6, 6]
