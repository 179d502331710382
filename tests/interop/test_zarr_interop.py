"""Our Zarr stores opened without wustore: zarr-python and xarray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wustore.backends.base import Reader
from wustore.backends.zarr.backend import ZarrBackend, ZarrZipBackend
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.testing import SAMPLES, sample, with_capsule

KINDS = list(SAMPLES)

# One process reads all stores: most of its time goes into imports.
PRELUDE = """
import sys, warnings
sys.modules["wustore"] = None   # importing it fails
import numpy as np
# What zarr says of every codec outside its core, and of strings, is known; nothing else may be said.
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
warnings.filterwarnings("ignore", message="The data type")
warnings.filterwarnings("ignore", message="The codec")
def bits(values):
    return np.ascontiguousarray(values).tobytes()
"""

READERS = {
    "zarr": """
import zarr
def open_group(path):
    if path.endswith(".zip"):
        return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    return zarr.open_group(path, mode="r")
def check(path, expected):
    group = open_group(path)
    assert group.attrs["Conventions"] == "CF-1.12" and group.attrs["zarr_conventions"] == []
    assert group.attrs["wustore"]["format"] == "wustore"
    assert group.metadata.consolidated_metadata is not None
    for name in expected.files:
        array = group[name]
        assert array.dtype == expected[name].dtype, name
        assert bits(array[...]) == bits(expected[name]), name   # NaN payloads too
        assert "_FillValue" not in array.attrs
    names = {name for name, _ in group.members(max_depth=None)}
    assert names >= {"time", "image_shape", "psf_shape", "checksum", "packed", "fits/data", "fits/bound"}
    for name, node in group.members(max_depth=None):
        if isinstance(node, zarr.Array):
            node[...]
            assert node.metadata.dimension_names and all(node.metadata.dimension_names), name
""",
    "zarr without consolidated metadata": """
import zarr
def check(path, expected):
    if path.endswith(".zip"):
        return
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    for name in expected.files:
        assert bits(group[name][...]) == bits(expected[name]), name
""",
    "xarray": """
import xarray, zarr
def check(path, expected):
    store = zarr.storage.ZipStore(path, mode="r") if path.endswith(".zip") else path
    with xarray.open_zarr(store, chunks=None) as dataset:
        for name in expected.files:
            if name != "time":
                assert bits(dataset[name].values) == bits(expected[name]), name
        assert dataset["science"].dims == ("time", "y", "x")
        assert "time" in dataset.coords
        times = expected["time"]
        if np.isfinite(times).all():
            assert dataset["time"].dtype.kind == "M"
            days = (dataset["time"].values - np.datetime64("1858-11-17")) / np.timedelta64(1, "D")
            assert np.allclose(days, times, rtol=0, atol=1e-8)
    raw = xarray.open_zarr(store, chunks=None, decode_times=False)
    assert bits(raw["time"].values) == bits(expected["time"])
    if "constituents" in {name for name, _ in zarr.open_group(store, mode="r").groups()}:
        xarray.open_zarr(store, group="constituents", chunks=None).load()
""",
}


def arrays_of_reader(reader: Reader) -> dict[str, np.ndarray]:
    """Return what the store's arrays must hold."""
    meta = reader.meta
    arrays: dict[str, np.ndarray] = {
        "time": meta.times,
        "image_shape": meta.image_shape,
        "psf_shape": meta.psf_shape,
    }
    for layer in LAYERS:
        if meta.has_layer(layer):
            arrays[layer] = reader.read(layer, tuple(slice(0, size) for size in meta.layer_shape(layer)))
    return arrays


@pytest.mark.parametrize("tool", READERS)
def test_opens_without_wustore(tmp_path: Path, tool: str) -> None:
    if tool == "xarray":
        pytest.importorskip("xarray")
    lines = [PRELUDE, READERS[tool]]
    for kind in KINDS:
        source = with_capsule(sample(kind))
        values = str(tmp_path / f"{kind}.npz")
        np.savez(values, **arrays_of_reader(source))
        for profile, backend, suffix in (
            ("compact", ZarrBackend(), "zarr"),
            ("portable", ZarrBackend(), "zarr"),
            ("fast", ZarrBackend(), "zarr"),
            ("compact", ZarrZipBackend(), "zip"),
        ):
            path = str(tmp_path / f"{kind}-{profile}.{suffix}")
            copy(source, backend.create(path, source.meta, capsule=source.capsule(), profile=profile))
            lines.append(f"check({path!r}, np.load({values!r}))")
    script = tmp_path / "read.py"
    script.write_text("\n".join(lines))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
