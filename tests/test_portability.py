"""What other systems lack, or do differently, is not needed: the table in docs/design.md."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import golden
import pytest

import wustore

HELPERS = Path(__file__).parent / "helpers"

ROUND = """
import other_system, sys, warnings
import wustore
from wustore.ops.edit import EditWarning

warnings.simplefilter("ignore", EditWarning)
suffix = sys.argv[1]
store = f"a{suffix}"
for options in ({}, {"overwrite": True}):
    wustore.convert("night.fits", store, **options)
    assert wustore.verify(store) == []
wustore.convert("night.fits", f"b{suffix}", resume=True)
wustore.convert(store, "again.fits", overwrite=True)
assert open("again.fits", "rb").read() == open("night.fits", "rb").read()
if suffix != ".fits":
    wustore.repack(store, profile="none")
    if suffix != ".zarr.zip":
        assert wustore.migrate(f"old/night{suffix}")
        wustore.append(store, f"old/night{suffix}", duplicates=True, drop_capsule=True)
        wustore.drop(store, ["psf"])
    with wustore.open(store) as work_unit:
        work_unit.load_images()
        assert len(work_unit.stamps(x=5, y=5, radius=2)) == len(work_unit)
with wustore.open_reader(f"b{suffix}") as reader:  # who has a store open keeps it
    reader.image(0)
    try:
        wustore.convert("night.fits", f"b{suffix}", overwrite=True)
    except PermissionError:
        assert suffix != ".zarr"
    else:
        assert suffix == ".zarr"  # its files are open only while they are read
assert wustore.verify(f"b{suffix}") == []
"""


@pytest.mark.skipif(sys.platform != "linux", reason="by design: the other system is imitated on Linux")
@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip", ".h5", ".fits"])
def test_a_system_without_the_calls(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "night.fits").write_bytes(gzip.decompress(golden.MAKER.FITS.read_bytes()))
    for name in ("night.zarr", "night.h5"):
        golden.unpacked(f"0.1.0/{name}", tmp_path / "old")
    done = subprocess.run(
        [sys.executable, "-c", ROUND, suffix],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPERS), str(Path(wustore.__file__).parents[1])])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"night", "old", "a", "b", "again"}


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip", ".h5", ".fits"])
def test_paths_that_the_system_finds_too_long(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "night.fits").write_bytes(gzip.decompress(golden.MAKER.FITS.read_bytes()))
    with pytest.raises(OSError, match="too long"):
        wustore.convert(tmp_path / "night.fits", tmp_path / f"{'n' * 240}{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["night.fits"]


def test_names_differ_in_more_than_case() -> None:
    for files in golden.RECORDED["stores"].values():
        assert len({name.casefold() for name in files}) == len(files)
        assert not any(re.search(r'[<>:"|?*\\]|[. ](/|$)', name) for name in files)


def test_every_call_is_in_the_table() -> None:
    """Calls that not all systems have are in the table of docs/design.md."""
    design = (Path(__file__).parents[1] / "docs" / "design.md").read_text("utf-8")
    table = design[design.index("## What differs between systems") :].partition("\n## ")[0]
    known = {"O_RDONLY", "O_RDWR", "O_WRONLY", "O_CREAT"}  # everywhere
    rare = re.compile(
        r"\b(O_[A-Z]+|pread|preadv|fdatasync|chown|kill|dir_fd|flock|renameat2|renamex_np|syncfs|madvise"
        r"|sched_getaffinity|resource|fcntl|sec2|getpgid|statvfs|sendfile|fork|mkfifo|posix_\w+)\b"
    )
    package = Path(wustore.__file__).parent
    found: set[str] = set()
    for path in package.rglob("*.py"):
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text("utf-8"))
        calls = re.findall(r"\b(?:os|mmap|libc|fcntl|data)\.(\w+)|import (\w+)$|getattr\(os, \"(\w+)\"", code, re.M)
        found |= {name for names in calls for name in names if name and rare.fullmatch(name)}
    assert len(found) > 10
    assert {name for name in found - known if name not in table} == set()
