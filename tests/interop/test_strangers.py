"""Readers that know nothing of wustore read the golden stores: Python, TensorStore, JavaScript, HDF5 and GDAL tools."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from numpy.typing import NDArray

import wustore
from wustore.model.meta import LAYERS

HERE = Path(__file__).parent
VERSION = golden.VERSIONS[-1]
STORES = [name for name in golden.NEWEST if golden.MAKER.STORES[name].get("profile") != "fast"]
ZARR_CORE = [name for name in golden.NEWEST if name.endswith(".zarr") and "profile" in golden.MAKER.STORES[name]]
"""Zarr directories whose layers need no codec outside the core and Blosc: all profiles but `compact`."""
HDF5_CORE = [name for name in STORES if name.endswith(".h5")]
"""HDF5 files without plug-in filters: all profiles but `fast`."""


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return times and whole layers, padding included, as wustore reads them."""
    with wustore.open_reader(path) as reader:
        meta = reader.meta
        layers = {
            layer: reader.read(layer, tuple(slice(0, size) for size in meta.layer_shape(layer)))
            for layer in LAYERS
            if meta.has_layer(layer)
        }
        return {"time": meta.times, **layers}


def ran(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(tool: str, package: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian: {package})")


class TestPlainPython:
    """``plain_reader.py``: fewer than 100 lines of zarr-python, h5py and numpy, written from docs/spec.md."""

    @pytest.mark.parametrize("name", golden.NEWEST)
    def test_reads_everything(self, name: str, tmp_path: Path) -> None:
        reader = golden.module_at(HERE / "plain_reader.py")
        path = golden.unpacked(f"{VERSION}/{name}", tmp_path)
        golden.same_content(reader.read(str(path)), f"{VERSION}/{name}")

    def test_is_short_and_on_its_own(self, tmp_path: Path) -> None:
        source = HERE / "plain_reader.py"
        assert len(source.read_text("utf-8").splitlines()) < 100
        path = golden.unpacked(f"{VERSION}/night-fast.h5", tmp_path)
        code = (
            "import sys; sys.modules['wustore'] = None; import plain_reader\n"
            f"assert len(plain_reader.read({str(path)!r})['planes']) == 3"
        )
        ran(sys.executable, "-c", code, env=os.environ | {"PYTHONPATH": str(HERE)})


@pytest.mark.parametrize("name", ZARR_CORE)
def test_tensorstore(name: str, tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="needs tensorstore")
    path = golden.unpacked(f"{VERSION}/{name}", tmp_path)
    for key, expected in arrays(path).items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/{key}/"}}
        array = tensorstore.open(spec, open=True, read=True).result()
        assert array.domain.labels[0] == "time"
        found = array.read().result()
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes(), key


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = os.environ.get("WUSTORE_NODE_MODULES")
    if shutil.which("node") is None or modules is None:
        pytest.skip("needs node: npm install zarrita h5wasm, and WUSTORE_NODE_MODULES=…/node_modules")
    folder = tmp_path_factory.mktemp("node")
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(modules)
    return folder


class TestJavaScript:
    def agrees(self, script: Path, path: Path) -> None:
        found = json.loads(ran("node", script, path))
        expected = arrays(path)
        times = expected.pop("time")
        assert found["times"] == [None if np.isnan(time) else time for time in times.tolist()]
        assert found["layers"].keys() == expected.keys()
        for layer, planes in expected.items():
            assert found["layers"][layer]["shape"] == list(planes.shape)
            assert found["layers"][layer]["planes"] == [hashlib.sha256(plane.tobytes()).hexdigest() for plane in planes]

    @pytest.mark.parametrize("name", ZARR_CORE)
    def test_zarrita(self, scripts: Path, name: str, tmp_path: Path) -> None:
        self.agrees(scripts / "read_zarr.mjs", golden.unpacked(f"{VERSION}/{name}", tmp_path))

    @pytest.mark.parametrize("name", HDF5_CORE)
    def test_h5wasm(self, scripts: Path, name: str, tmp_path: Path) -> None:
        self.agrees(scripts / "read_hdf5.mjs", golden.unpacked(f"{VERSION}/{name}", tmp_path))


@pytest.mark.parametrize("name", HDF5_CORE)
class TestTools:
    def test_h5dump(self, name: str, tmp_path: Path) -> None:
        needs("h5dump", "hdf5-tools")
        path, raw = golden.unpacked(f"{VERSION}/{name}", tmp_path), tmp_path / "raw"
        for key, expected in arrays(path).items():
            ran("h5dump", "-d", f"/{key}", "-b", "LE", "-o", raw, path)
            assert raw.read_bytes() == expected.tobytes(), key

    def test_ncdump(self, name: str, tmp_path: Path) -> None:
        needs("ncdump", "netcdf-bin")
        path = golden.unpacked(f"{VERSION}/{name}", tmp_path)
        expected = arrays(path)
        text = ran("ncdump", "-v", "time,variance", "-p", "9,17", path)
        for key in ("time", "variance"):
            values = re.search(rf"^ {key} =([^;]*);", text[text.index("\ndata:") :], re.MULTILINE)
            assert values is not None
            numbers = [float(word.replace("_", "nan").rstrip("f")) for word in values[1].split(",")]
            found = np.array(numbers, expected[key].dtype).reshape(expected[key].shape)
            assert np.array_equal(found, expected[key], equal_nan=True), key
        assert "science(time, y, x)" in text

    def test_gdal(self, name: str, tmp_path: Path) -> None:
        needs("gdal_translate", "gdal-bin")
        path, raw = golden.unpacked(f"{VERSION}/{name}", tmp_path), tmp_path / "raw"
        for key, planes in arrays(path).items():
            if key not in {"science", "variance"}:
                continue
            for band, plane in enumerate(planes, 1):
                ran("gdal_translate", "-q", "-of", "ENVI", "-b", str(band), f'HDF5:"{path}"://{key}', raw)
                assert raw.read_bytes() == plane.tobytes(), (key, band)
