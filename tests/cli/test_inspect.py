"""``wustore info``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wustore import errors
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.format.version import VERSION
from wustore.ops.copy import copy
from wustore.testing import sample


def test_info_json(store, run):
    meta = sample("rich").meta
    code, out, err = run("info", store(sample("rich")), "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["format"] == "memory"
    assert found["complete"] is True
    assert found["n_images"] == 4
    assert found["image_shape"] == [11, 13]
    assert found["psf_shape"] == {"smallest": [3, 3], "largest": [9, 9]}
    assert found["times"] == {
        "first": meta.times.min(),
        "last": meta.times.max(),
        "first_date": "2023-02-24T08:00:00.000",
        "last_date": "2023-02-25T02:24:00.000",
        "missing": 0,
    }
    assert found["wcs"] is True
    assert found["observatory"] == list(meta.observatory.geodetic)
    assert found["configuration"]["parameters"] == len(meta.configuration)
    assert found["n_constituents"] == 7
    assert list(found["columns"]) == [column.name for column in meta.constituents.columns]
    assert found["layers"]["science"]["dtype"] == "float32"
    assert found["layers"]["science"]["bytes_in_memory"] == 4 * 11 * 13 * 4
    assert found["layers"]["psf"]["bytes_in_memory"] == (9 + 25 + 49 + 81) * 4
    assert found["history"][0]["action"] == "made"


def test_info_of_what_is_not_there(store, run):
    found = json.loads(run("info", store(sample("missing")), "--json")[1])
    assert found["times"]["missing"] == 1
    assert found["layers"]["mask"]["missing"] == 1
    assert found["wcs"] is False
    assert found["configuration"] is None
    found = json.loads(run("info", store(sample("bare")), "--json")[1])
    assert list(found["layers"]) == ["science", "variance"]


def test_info_for_people(store, run):
    code, out, _ = run("info", store(sample("ragged")))
    assert code == 0
    assert "smallest 1 x 1, largest 300 x 280" in out
    assert "null" not in out
    assert "None" not in out


def test_info_reads_no_pixel(store, run, monkeypatch):
    name = store(sample("rich"))
    monkeypatch.delattr(MemoryReader, "image")
    monkeypatch.delattr(MemoryReader, "read")
    assert run("info", name)[0] == 0


@pytest.mark.parametrize("suffix", ["zarr", "zarr.zip", "h5"])
def test_info_of_an_import(run, tmp_path, suffix):
    import gzip
    import hashlib

    from wustore.cli.about import build

    path, packed, store = tmp_path / "night.fits", tmp_path / "night.fits.gz", tmp_path / f"night.{suffix}"
    build().to_fits(str(path))
    packed.write_bytes(gzip.compress(path.read_bytes(), 6))
    assert run("convert", packed, store, "--quiet") == (0, "", "")
    found = json.loads(run("info", store, "--json")[1])
    assert found["version"] == VERSION
    assert found["capsule"]["form"] == "fits"
    (file,) = found["capsule"]["files"]
    assert file["name"] == "night.fits.gz"
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file["compressed"] == "gzip"
    assert file["compressed_file_exact"] is True
    assert found["capsule"]["bytes_of_files"] == path.stat().st_size
    if suffix == "zarr":  # what the leftovers take, not what they give back
        assert found["capsule"]["bytes"] == sum(f.stat().st_size for f in (store / "fits").rglob("*") if f.is_file())
    assert found["source"]["layout"].startswith("kbmod-")
    assert found["bytes"] == sum(f.stat().st_size for f in [store, *store.rglob("*")] if f.is_file())
    if suffix != "zarr.zip":
        layers = found["layers"].values()
        assert 0 < sum(layer["bytes"] for layer in layers) < found["bytes"]
        assert all(layer["ratio"] == round(layer["bytes_in_memory"] / layer["bytes"], 2) for layer in layers)
    assert "night.fits.gz" in run("info", store)[1]


@pytest.mark.parametrize("capsule", [{}, {"files": 3}, {"files": [1, {}, {"name": [], "size": "x", "outer": 1}]}, 5])
def test_info_takes_nothing_for_granted(run, store, monkeypatch, capsule):
    monkeypatch.setattr(MemoryReader, "document", lambda self: {"capsule": capsule})
    assert run("info", store(sample("simple")))[0] == 0
    assert run("info", store(sample("simple")), "--json")[0] == 0


def test_info_of_an_unfinished_conversion(run, monkeypatch):
    def fail(*arguments, **options):
        raise errors.IncompleteError("the conversion has not finished", path="x", found="3 of 9 images", hint="Resume.")

    monkeypatch.setattr("wustore.backends.registry.open_reader", fail)
    code, out, err = run("info", "x", "--json")
    assert code == 4
    found = json.loads(out)
    assert found["complete"] is False
    assert found["found"] == "3 of 9 images"
    assert "Resume." in err
    code, out, _ = run("info", "x")
    assert code == 4
    assert "3 of 9 images" in out


def test_info_says_what_to_do_next(run, tmp_path):
    source, target = tmp_path / "a.h5", tmp_path / "x.zarr"
    reader = sample("ragged")
    copy(reader, backend_for_writing(str(source)).create(str(source), reader.meta))
    assert run("plan", source, target, "--parts", 4)[0] == 0
    for parts, left, text, step in (
        ([2], [0, 1, 3], "0-1,3", f"wustore part {target} K for each K of parts_left, then wustore finish {target}"),
        ([0, 1], [3], "3", f"wustore part {target} 3, then wustore finish {target}"),
        ([3], [], None, f"Run wustore finish {target}"),
    ):
        for part in parts:
            assert run("part", target, part)[0] == 0
        code, out, err = run("info", target, "--json")
        found = json.loads(out)
        assert code == 4
        assert (found["parts"], found["parts_left"]) == (4, left)
        assert step in found["hint"]
        assert step in err
        shown = [line.split()[1] for line in run("info", target)[1].splitlines() if line.startswith("parts_left")]
        assert shown == ([text] if text else [])
    assert run("finish", target)[0] == 0
    assert run("plan", source, tmp_path / "y.h5", "--parts", 1)[0] == 0
    assert "with --resume" in run("info", tmp_path / "y.h5")[2]


def test_info_is_quick_because_it_imports_little():
    program = (
        "import sys; from wustore.cli import main; main(['info', '--help']);"
        "print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"astropy", "zarr", "h5py", "dask", "xarray", "imagecodecs", "tqdm", "jsonschema", "pandas"}
