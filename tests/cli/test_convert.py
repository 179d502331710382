"""``wustore convert``."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pytest

import wustore
from wustore.backends.memory import MemoryBackend
from wustore.backends.registry import backend_for_writing, backend_named
from wustore.ops.copy import copy
from wustore.testing import sample


def test_convert_and_diff(store, run):
    source = store(sample("rich"))
    target = f"ram:{uuid.uuid4().hex}"
    try:
        code, out, err = run("convert", source, target)
        assert (code, out) == (0, "")
        assert err == f"{target}: {sample('rich').meta.n_images} images\n"
        code, out, err = run("diff", source, target)
        assert (code, out) == (0, "")
        assert err.endswith("every value, bit for bit\n")
        assert run("diff", source, target, "-q") == (0, "", "")
        code, out, err = run("convert", source, target)
        assert (code, out) == (2, "")
        assert "exists" in err
        assert run("convert", source, target, "--overwrite", "--workers", "1")[0] == 0
    finally:
        MemoryBackend().remove(target)


def test_convert_to_itself(store, run):
    name = store(sample("simple"))
    assert run("convert", name, name, "--overwrite")[0] == 2


def test_convert_needs_a_format(store, run, tmp_path):
    code, _, err = run("convert", store(sample("simple")), tmp_path / "night.what")
    assert code == 2
    assert "--format" in err


def test_convert_passes_options_on(store, run):
    name, target = store(sample("simple")), f"ram:{uuid.uuid4().hex}"
    code, _, err = run("convert", name, target, "--profile", "p", "-o", "step=2", "-o", "word=GZIP_2")
    assert code == 2
    assert "['profile', 'step', 'word']" in err
    assert run("convert", name, target, "-o", "what")[0] == 2


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Three FITS files and one that is damaged."""
    place = tmp_path_factory.mktemp("nights")
    for name in "abc":
        stack = wustore.ImageStack(times=[1.0], sci=[np.ones((8, 9), "f4")], var=[np.ones((8, 9), "f4")])
        with pytest.warns(UserWarning, match="WCS"):
            work_unit = wustore.WorkUnit(stack, wustore.SearchConfiguration())
        work_unit.to_fits(str(place / f"{name}.fits"))
    (place / "bad.fits").write_bytes((place / "a.fits").read_bytes()[:3000])
    return place


@pytest.mark.parametrize("jobs", [1, 2])
def test_several_inputs(nights, run, tmp_path, jobs):
    names = [nights / name for name in ("a.fits", "bad.fits", "b.fits", "c.fits")]
    code, out, err = run("convert", *names, tmp_path / "new", "--jobs", jobs, "--continue-on-error")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == "3 of 4 converted, 1 failed"
    assert err.count("wustore: error:") == 1
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["a.zarr", "b.zarr", "c.zarr"]
    code, _, err = run("convert", *names, tmp_path / "h5", "--format", "hdf5", "--jobs", jobs)
    assert code == 3
    assert "1 failed, 2 not tried" in err
    assert "a.h5" in {entry.name for entry in (tmp_path / "h5").iterdir()}
    assert run("verify", tmp_path / "new" / "a.zarr", tmp_path / "new" / "b.zarr", "--jobs", jobs)[0] == 0


def test_into_a_directory(nights, run, tmp_path):
    assert run("convert", nights / "a.fits", tmp_path)[0] == 0
    assert run("convert", nights / "a.fits", f"{tmp_path}/", "--format", "hdf5")[0] == 0
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.zarr", "a.h5"}


def test_options_are_listed(run):
    code, out, _ = run("convert", "a.fits", "a.zarr", "-o", "help")
    assert code == 0
    assert out.startswith("zarr:\n  profile ")
    assert "compression_type" in run("convert", "-o", "help", "--format", "fits", "x")[1]
    everything = run("convert", "-o", "help", "x")[1]
    assert [line for line in everything.splitlines() if line.endswith(":")] == [
        "zarr:", "zarr-zip:", "hdf5:", "fits:", "sharded-fits:",
    ]  # fmt: skip


def test_options_that_are_listed_are_taken(nights, run, tmp_path):
    # Each option of the list is one that the format knows.
    values = {"profile": "none", "layout": "images", "chunks": "[8,8]", "mode": "archive", "lossless": "true",
              "compression_type": "GZIP_2", "quantize_level": "0", "checksum": "true"}  # fmt: skip
    for name, ending in (("zarr", "zarr"), ("hdf5", "h5"), ("fits", "fits")):
        for k, option in enumerate(backend_named(name).options):
            target = tmp_path / f"{k}.{ending}"
            assert run("convert", nights / "a.fits", target, "-o", f"{option}={values[option]}")[0] == 0, option


def test_resume_says_what_it_kept(nights, run, tmp_path):
    from wustore.ops import plans, run_parts

    source, target = tmp_path / "source.zarr", tmp_path / "x.zarr"
    reader = sample("chunked")
    copy(reader, backend_for_writing(str(source)).create(str(source), reader.meta))
    plans.plan(str(source), str(target), parts=3)
    run_parts.part(str(target), 1)
    found = [json.loads(run("convert", source, target, "--dry-run", "--json", *more)[1]) for more in ([], ["--resume"])]
    assert [estimate["kept"] for estimate in found] == [0, 1]
    assert found[0].keys() == found[1].keys()
    assert "kept     1 of them" in run("convert", source, target, "--dry-run", "--resume")[1]
    code, _, err = run("convert", source, target, "--resume")
    assert code == 0
    assert err.startswith(f"{target}: 3 images, 1 of them kept from the interrupted conversion")


def test_part_numbers_beyond_the_images(nights, run, tmp_path):
    target = tmp_path / "x.zarr"
    assert run("plan", nights / "a.fits", target, "--parts", "20")[0] == 0
    assert run("part", target, "7") == (0, "", "part 7: 0 images written\n")
    assert run("part", target, "0")[0] == 0
    assert run("finish", target)[0] == 0


@pytest.mark.filterwarnings("default")
def test_lossy_options(tmp_path, run, store):
    name, target = store(sample("simple")), tmp_path / "a.fits"
    code, _, err = run("convert", name, target, "-o", "quantize_level=-0.5")
    assert code == 2
    assert "--lossy" in err
    assert not target.exists()
    code, _, err = run("convert", name, target, "-o", "quantize_level=-0.5", "--lossy")
    assert code == 1
    assert "pixels changed, by 0.2" in err


def test_estimate_of_files_that_come_back(nights, run, tmp_path):
    store = tmp_path / "a.zarr"
    assert run("convert", nights / "a.fits", store)[0] == 0
    found = json.loads(run("convert", store, tmp_path / "b.fits", "--dry-run", "--json")[1])
    assert found["target_bytes"] == (nights / "a.fits").stat().st_size
    assert found["seconds"] > 0


def test_index(run, tmp_path):
    for name in ("a.fits", "b.fits"):
        source = sample("simple")
        copy(source, backend_for_writing(name).create(str(tmp_path / name), source.meta), workers=1)
    code, out, err = run("index", tmp_path / "a.fits", tmp_path / "b.fits")
    assert (code, out) == (0, "")
    assert "a.fits.wuindex: " in err
    assert "2 of 2 indexed" in err
    assert run("index", tmp_path / "a.fits")[0] == 2
    assert run("index", tmp_path / "a.fits", "--overwrite", "--quiet") == (0, "", "")
    assert run("index", tmp_path / "a.fits", tmp_path / "b.fits", "-o", tmp_path / "c")[0] == 2
    assert run("index", tmp_path / "a.fits", "-o", tmp_path / "c.fits.wuindex")[0] == 0
    assert run("verify", tmp_path / "a.fits.wuindex")[0] == 0
    assert run("info", tmp_path / "a.fits.wuindex")[0] == 0
    code, _, err = run("info", tmp_path / "c.fits.wuindex")
    assert code == 2
    assert "index=" in err
