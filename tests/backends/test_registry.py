"""Which backend opens what: formats of other packages, content and names, files opened once, pipes and devices."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import wustore
from wustore.backends.fits.files import input as fits_input
from wustore.backends.fits.files import open_files
from wustore.backends.memory import MemoryBackend
from wustore.backends.registry import backend_named, open_reader
from wustore.errors import (
    FormatError,
    IncompleteError,
    OtherFormatError,
    StoreNotFoundError,
    UnknownFormatError,
    UsageError,
)
from wustore.ops.copy import copy
from wustore.storage import files
from wustore.storage.staging import Staging, partial_path, remove

HERE = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(HERE))

from wustore_npz import NpzBackend  # noqa: E402

from wustore.testing import BackendConformance, sample  # noqa: E402


class TestNpz(BackendConformance):
    backend = NpzBackend()
    suffix = ".npz"
    keeps_capsule = False


SCRIPT = """
import sys, wustore
from wustore.backends.registry import backend_named, format_names
from wustore.testing import assert_same, sample
assert "npz" in format_names()
from wustore.ops.copy import copy
source = sample("rich")
copy(source, backend_named("memory").create("ram:x", source.meta))
wustore.convert("ram:x", "night.npz")
wustore.convert("night.npz", "ram:y")
assert wustore.open_reader("night.npz").format == "npz"
assert_same(source, wustore.open_reader("ram:y"))
print("used")
"""


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip to install the example package")
def test_installed_and_used(tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(site)]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "wheel_builder.py", "wustore_npz.py"):
        (source / name).write_bytes((HERE / name).read_bytes())
    subprocess.run([*install, str(source)], check=True, cwd=tmp_path, capture_output=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}
    result = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.stdout.strip() == "used", result.stderr


# --- what is at a path --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each kind, and the FITS file compressed as a whole."""
    folder = tmp_path_factory.mktemp("stores")
    source = sample("simple")
    for name, kind in (
        ("n.fits", "fits"),
        ("n.zarr", "zarr"),
        ("n.zarr.zip", "zarr-zip"),
        ("n.h5", "hdf5"),
        ("set.fits", "sharded-fits"),
    ):
        copy(source, backend_named(kind).create(str(folder / name), source.meta))
    (folder / "n.fits.gz").write_bytes(gzip.compress((folder / "n.fits").read_bytes()))
    return folder


KINDS = [
    ("n.fits", "fits"),
    ("n.fits.gz", "fits"),
    ("n.h5", "hdf5"),
    ("n.zarr.zip", "zarr-zip"),
    ("set.fits", "sharded-fits"),
]


class Counting:
    """How often files are opened, FITS files scanned and compressed ones unpacked."""

    def __init__(self, monkeypatch):
        self.opened = Counter()
        self.scans = self.unpackings = 0
        handle, scan, unpacked = files.open_handle, open_files.scan, fits_input._unpacked

        def counting_handle(path):
            self.opened[Path(path).name] += 1
            return handle(path)

        def counting_scan(*arguments):
            self.scans += 1
            return scan(*arguments)

        def counting_unpacked(*arguments):
            self.unpackings += 1
            return unpacked(*arguments)

        monkeypatch.setattr(files, "open_handle", counting_handle)
        monkeypatch.setattr(open_files, "scan", counting_scan)
        monkeypatch.setattr(fits_input, "_unpacked", counting_unpacked)


def test_a_fits_file_is_opened_and_scanned_once(stores, monkeypatch):
    for name, unpackings in (("n.fits", 0), ("n.fits.gz", 1)):
        counting = Counting(monkeypatch)
        with open_reader(stores / name) as reader:
            assert reader.format == "fits"
        assert counting.opened == {name: 1}
        assert (counting.scans, counting.unpackings) == (1, unpackings)
        monkeypatch.undo()


def test_each_file_of_a_set_is_opened_and_scanned_once(stores, monkeypatch):
    counting = Counting(monkeypatch)
    with open_reader(stores / "set.fits") as reader:
        assert reader.format == "sharded-fits"
    assert counting.opened == {"set.fits": 1, "0_set.fits": 1, "1_set.fits": 1, "2_set.fits": 1}
    assert counting.scans == 4


def test_a_file_whose_name_says_nothing_is_looked_at_once(stores, tmp_path, monkeypatch):
    (tmp_path / "night").write_bytes((stores / "n.fits").read_bytes())
    counting = Counting(monkeypatch)
    with open_reader(tmp_path / "night") as reader:
        assert reader.format == "fits"
    assert counting.opened == {"night": 2}  # the first bytes, then the file
    assert counting.scans == 1


@pytest.mark.parametrize("options", [{"resume": True}, {}])
def test_a_conversion_opens_and_scans_its_source_once(stores, tmp_path, monkeypatch, options):
    counting = Counting(monkeypatch)
    wustore.convert(stores / "n.fits", tmp_path / "a.zarr", workers=1, **options)
    assert counting.opened["n.fits"] == 1
    assert counting.scans == 1


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_content_decides_and_not_the_name(stores, tmp_path, name, kind):
    for other in ("night", "night.fits", "night.h5", "night.zarr", "night.npz"):
        for file in stores.glob(f"*{name}"):
            (tmp_path / file.name.replace(name, other)).write_bytes(file.read_bytes())
        with open_reader(tmp_path / other) as reader:
            assert reader.format == kind
            assert reader.meta.n_images == 3
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.mark.parametrize(("name", "kind"), KINDS[:4])
def test_what_several_formats_know_is_refused(stores, tmp_path, name, kind):
    class Any(MemoryBackend):
        name = "any"

        def recognises(self, start):
            return True

        def open(self, path, **options):
            return sample("simple")

    (tmp_path / "night").write_bytes((stores / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wustore.backends.registry._plug_ins", lambda: {"any": Any()})
        with pytest.raises(UnknownFormatError, match="several formats"):
            open_reader(tmp_path / "night")
        with open_reader(tmp_path / "night", format=kind) as reader:
            assert reader.format == kind


def test_nothing_that_a_format_knows(tmp_path):
    (tmp_path / "night").write_bytes(b"no store")
    with pytest.raises(UnknownFormatError, match="no format recognises"):
        open_reader(tmp_path / "night")
    with pytest.raises(UnknownFormatError, match="no format recognises"):
        open_reader(tmp_path)
    (tmp_path / "night.fits").write_bytes(b"no store")
    with pytest.raises(OtherFormatError, match="not a FITS file"):
        open_reader(tmp_path / "night.fits")


# --- what is no regular file --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("format_name", [None, "fits", "hdf5", "zarr-zip", "zarr", "sharded-fits", "kbmod-yaml"])
def test_pipes_and_devices_are_not_opened(tmp_path, format_name, monkeypatch):
    opened = []
    monkeypatch.setattr(files.os, "open", lambda path, *rest: opened.append(path))
    for name in ("night", "night.fits", "night.fits.gz", "night.h5", "night.zarr", "night.zarr.zip", "night.yaml"):
        path = tmp_path / name
        os.mkfifo(path)
        with pytest.raises(FormatError, match=r"not a regular file.*named pipe"):
            open_reader(path, format=format_name)
    with pytest.raises(FormatError, match=r"not a regular file.*device"):
        open_reader("/dev/null", format=format_name)
    assert opened == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["1_set.fits", "n.zarr/zarr.json", "n.zarr/science/c.1.0.0"])
def test_pipes_inside_of_a_store_are_not_opened(stores, tmp_path, name):
    shutil.copytree(stores, tmp_path / "stores")
    path = tmp_path / "stores" / name
    path.unlink()
    os.mkfifo(path)
    root = "set.fits" if name.endswith("fits") else "n.zarr"
    with pytest.raises(FormatError, match="named pipe"), open_reader(tmp_path / "stores" / root) as reader:
        reader.image(1)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_workers_is_refused_before_anything_is_opened(tmp_path: Path, workers: object) -> None:
    with pytest.raises(UsageError, match="workers"):
        open_reader(tmp_path / "nothing", workers=workers)


@pytest.mark.parametrize("name", ["x.zarr", "x.zarr.zip", "x.h5", "x.fits", "x.fits.gz"])
def test_what_writers_leave_is_unfinished_whatever_is_in_it(tmp_path: Path, name: str) -> None:
    for partial in (partial_path(tmp_path / name), Staging(tmp_path / name).path):
        for content in (None, b"", b"SIMPLE  =", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"other"):
            if content is None:
                partial.mkdir()
                (partial / "0_x.fits").touch()  # of a sharded set
                with pytest.raises(IncompleteError, match="clean"):
                    open_reader(partial / "0_x.fits")
            else:
                partial.write_bytes(content)
            with pytest.raises(IncompleteError, match="clean"):
                open_reader(partial)
            remove(partial)


def test_a_store_that_is_set_aside_is_named(tmp_path: Path) -> None:
    aside = tmp_path / ".x.zarr~host~1-0123abcd.wustore-partial-old"
    aside.mkdir()
    with pytest.raises(StoreNotFoundError):
        open_reader(tmp_path / "x.zarr")  # nothing is known of its process
    (tmp_path / ".x.zarr~host~1-0123abcd.wustore-partial-lock").touch()
    with pytest.raises(IncompleteError, match=aside.name):
        open_reader(tmp_path / "x.zarr")
