"""Our HDF5 files opened without wustore: h5py, netCDF4, h5netcdf, xarray, h5dump, ncdump."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.memory import padded_box
from wustore.ops.copy import copy
from wustore.testing import sample, with_capsule

KINDS = ["rich", "ragged", "missing", "bare", "dtypes", "flags", "empty"]

# One process reads all stores: most of its time goes into imports.
PRELUDE = """
import sys
sys.modules["wustore"] = None   # importing it fails
import numpy as np
def same(name, values):
    wanted = expected[name]
    values = np.asarray(values)
    assert values.shape == wanted.shape, (name, values.shape, wanted.shape)
    assert np.array_equal(values, wanted, equal_nan=wanted.dtype.kind == "f"), name
"""

READERS = {
    "h5py": """
import h5py
with h5py.File(path) as file:
    for name in expected.files:
        values = file[name][()]
        assert values.dtype == expected[name].dtype
        assert values.tobytes() == expected[name].tobytes(), name   # NaN payloads too
    assert file["science"].dims[0].keys() == ["time"]
    assert "Conventions" in file.attrs and "wustore" in file.attrs
""",
    "netCDF4": """
import netCDF4
with netCDF4.Dataset(path) as file:
    file.set_auto_mask(False)
    for name in expected.files:
        same(name, file[name][...])
    assert file["science"].dimensions == ("time", "y", "x")
    when = netCDF4.num2date(file["time"][0], file["time"].units, file["time"].calendar)
    assert np.isnan(expected["time"][0]) or abs((when - type(when)(1858, 11, 17)).days - expected["time"][0]) <= 1
""",
    "h5netcdf": """
import h5netcdf
with h5netcdf.File(path, "r") as file:
    for name in expected.files:
        same(name, file[name][...])
    assert file["science"].dimensions == ("time", "y", "x")
    assert set(file.dimensions) >= {"time", "y", "x"}
""",
    "xarray": """
import xarray
for engine in ("h5netcdf", "netcdf4"):
    with xarray.open_dataset(path, engine=engine) as dataset:
        assert dataset["science"].dims == ("time", "y", "x")
        for name in expected.files:
            if name != "time":
                same(name, dataset[name])
        time = dataset["time"].values
        assert time.dtype.kind == "M"
        days = (time - np.datetime64("1858-11-17T00:00:00", "ns")) / np.timedelta64(1, "D")
        known = np.isfinite(expected["time"])
        assert np.allclose(days[known], expected["time"][known], rtol=0, atol=1e-9)
        assert np.isnat(time[~known]).all()
    with xarray.open_dataset(path, engine=engine, group="constituents") as table:
        list(table.variables)
""",
}


def empty_table():
    """A WorkUnit with text columns of no rows, and links that name nothing."""
    from dataclasses import replace

    from wustore.backends.memory import MemoryReader
    from wustore.model.meta import Column, ConstituentTable

    source = sample("simple")
    columns = (Column("name", "plain", np.array([], "U5")), Column("value", "plain", np.zeros(0)))
    meta = replace(source.meta, links=((), (), ()), constituents=ConstituentTable(0, columns))
    return MemoryReader(meta, [source.image(i) for i in range(3)])


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("interop")
    for kind in KINDS:
        source = empty_table() if kind == "empty" else with_capsule(sample(kind))
        meta = source.meta
        path = str(directory / f"{kind}.h5")
        copy(source, Hdf5Backend().create(path, meta, capsule=source.capsule()))
        expected = {"time": meta.times, "image_shape": meta.image_shape}
        for layer in ("science", "variance", "mask", "psf"):
            if meta.has_layer(layer):
                index = tuple(slice(0, size) for size in meta.layer_shape(layer))
                planes = [source.image(i).layer(layer) for i in range(meta.n_images)]
                expected[layer] = padded_box(meta, layer, index, planes)
        np.savez(directory / f"{kind}.npz", **expected)
    return directory


@pytest.mark.parametrize("reader", list(READERS))
def test_opens_without_wustore(stores, reader):
    pytest.importorskip(reader)
    body = "".join(f"    {line}\n" for line in READERS[reader].strip().splitlines())
    load = "    path, expected = f'{kind}.h5', np.load(f'{kind}.npz')\n"
    code = f"{PRELUDE}for kind in {KINDS}:\n{load}{body}    print(kind)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=stores, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == KINDS


@pytest.mark.parametrize("tool", ["h5dump", "ncdump"])
@pytest.mark.parametrize("kind", KINDS)
def test_dumps(stores, kind, tool):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian: hdf5-tools, netcdf-bin)")
    done = subprocess.run([tool, str(stores / f"{kind}.h5")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "science" in done.stdout
    if tool == "ncdump":
        assert "science(time, y, x)" in done.stdout
        assert 'time:units = "days since 1858-11-17T00:00:00"' in done.stdout


def test_blosc_readable_with_the_plug_in(tmp_path):
    pytest.importorskip("hdf5plugin")
    source = sample("chunked")
    path = str(tmp_path / "a.h5")
    copy(source, Hdf5Backend().create(path, source.meta, profile="fast"))
    code = (
        "import sys; sys.modules['wustore'] = None\n"
        "import hdf5plugin, h5py\n"
        "with h5py.File(sys.argv[1]) as file: sys.stdout.buffer.write(file['science'][1].tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == source.image(1).science.tobytes()
