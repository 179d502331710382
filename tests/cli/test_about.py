"""``wustore demo``, ``formats``, ``doctor`` and ``completion``."""

from __future__ import annotations

import json

import numpy as np
import pytest

import wustore


def test_formats(run):
    code, out, _ = run("formats", "--json")
    assert code == 0
    assert {"zarr", "zarr-zip", "hdf5", "fits", "sharded-fits", "memory"} <= {row["name"] for row in json.loads(out)}
    assert ".zarr.zip" in run("formats")[1]


def test_demo_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("demo")
    assert (code, err) == (0, "")
    assert out.count("identical") == 3
    assert out.count("every value equal") == 2
    assert "\x1b" not in out
    assert list(tmp_path.iterdir()) == []


def test_demo_keeps_its_files(run, tmp_path):
    import imagecodecs

    code, out, _ = run("demo", "--keep", tmp_path / "new" / "demo")
    assert code == 0
    assert str(tmp_path / "new" / "demo") in out
    names = {entry.name for entry in (tmp_path / "new" / "demo").iterdir()}
    assert names == {"night.fits", "night.zarr", "night.h5", "from_zarr.fits", "from_hdf5.fits", "stamps.png"}
    picture = imagecodecs.png_decode((tmp_path / "new" / "demo" / "stamps.png").read_bytes())
    # The source is where it should be: the middle of each stamp is brighter than the sky.
    side = 21 * 6
    for k in range(8):
        stamp = picture[:, k * (side + 6) : k * (side + 6) + side]
        assert np.median(stamp[54:72, 54:72]) > np.median(stamp) + 60


def test_demo_says_so_when_a_byte_differs(run, tmp_path, monkeypatch):
    from wustore.cli import about as demo

    real = demo._sha256
    monkeypatch.setattr(demo, "_sha256", lambda path: real(path) if "hdf5" not in path.name else "0" * 64)
    code, out, _ = run("demo")
    assert code == 1
    assert "NOT identical" in out
    assert out.count("DIFFERENT") == 1


def test_doctor(run):
    code, out, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["ok"] is True
    assert found["wustore"] == wustore.__version__
    assert found["codecs"]["zarr compact"] == "ok"
    assert set(found["limits"]) == {"processors", "open_files", "memory", "temporary"}
    assert "hdf5 portable" in run("doctor")[1]


def test_doctor_looks_at_every_package():
    import re
    import tomllib

    from pages import ROOT

    from wustore.cli.about import _CORE, _EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {re.match(r"[\w-]+", text)[0] for text in project["dependencies"]} == {*_CORE, "numba"}
    extras = {use.split()[1].rstrip(":") for use in _EXTRAS.values() if use.startswith("extra ")}
    assert extras == set(project["optional-dependencies"]) - {"all", "test", "docs", "lint"}


def test_doctor_says_what_fails(run, monkeypatch):
    from wustore.errors import CorruptError

    def broken(*arguments, **options):
        raise CorruptError("no such codec")

    monkeypatch.setattr("wustore.ops.copy.copy", broken)
    code, out, _ = run("doctor")
    assert code == 1
    assert "no such codec" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run, shell):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert "_WUSTORE_COMPLETE" in out


def test_completion_completes(run, monkeypatch):
    monkeypatch.setenv("_WUSTORE_COMPLETE", "bash_complete")
    for words, number, expected in (
        ("wustore ver", 1, "plain,verify\n"),
        ("wustore verify --conti", 2, "plain,--continue-on-error\n"),
        ("wustore info nig", 2, "file,nig\n"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(number))
        assert run()[1] == expected
