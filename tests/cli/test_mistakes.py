"""Typical mistakes: each gives one block that says what is wrong and what to do, and the right exit code."""

from __future__ import annotations

import shutil

import pytest

from wustore.cli import main
from wustore.cli.about import build

USAGE, DAMAGED, INCOMPLETE = 2, 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a user's directory holds: good and damaged stores, files of other kinds, an unfinished conversion."""
    place = tmp_path_factory.mktemp("mistakes")
    build().to_fits(str(place / "night.fits"))
    for target in ("night.zarr", "night.h5"):
        assert main(["convert", str(place / "night.fits"), str(place / target), "-q"]) == 0
    whole = (place / "night.fits").read_bytes()
    (place / "cut.fits").write_bytes(whole[: len(whole) // 2])
    (place / "notes.txt").write_text("nothing to see")
    (place / "text.fits").write_text("no FITS file")
    (place / "empty.fits").touch()
    (place / "empty.zarr").mkdir()
    (place / "other").mkdir()
    (place / "other" / "file.txt").write_text("mine")
    shutil.copytree(place / "night.zarr", place / "torn.zarr")
    shard = max((place / "torn.zarr" / "science").rglob("c*"), key=lambda entry: entry.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    (place / "flat.h5").write_bytes((place / "night.h5").read_bytes()[:4000])
    (place / "trajectories.csv").write_text("a,b\n1,2\n")
    assert main(["plan", str(place / "night.fits"), str(place / "half.zarr"), "--parts", "2", "-q"]) == 0
    return place


MISTAKES = [
    # the command itself
    (["infos", "night.zarr"], USAGE, "Did you mean info"),
    (["frobnicate"], USAGE, "wustore --help lists"),
    (["--what"], USAGE, "--help"),
    (["info"], USAGE, "Missing argument 'PATH"),
    (["info", "night.zarr", "--jsn"], USAGE, "Did you mean '--json'"),
    (["diff", "night.fits"], USAGE, "Missing argument 'B'"),
    (["convert", "night.fits"], USAGE, "Say where to write"),
    (["stamp", "night.zarr", "--x", "5", "--y", "5"], USAGE, "--output"),
    (["convert", "night.fits", "a.zarr", "--workers", "0"], USAGE, "range x>=1"),
    (["convert", "night.fits", "a.zarr", "--workers", "two"], USAGE, "not a valid integer"),
    (["convert", "night.fits", "a.zarr", "--max-memory", "lots"], USAGE, "such as 500M"),
    (["completion", "tcsh"], USAGE, "'bash', 'zsh', 'fish'"),
    (["verify", "night.zarr", "--jobs", "-1"], USAGE, "range x>=1"),
    # names
    (["info", "nihgt.zarr"], USAGE, "Check the name"),
    (["info", ""], USAGE, "is a variable empty?"),
    (["verify", "nihgt.zarr", "night.zarr"], USAGE, "--continue-on-error"),
    (["convert", "none.fits", "a.zarr"], USAGE, "Check the name"),
    (["diff", "night.fits", "none.zarr"], USAGE, "Check the name"),
    (["append", "none.zarr", "night.fits"], USAGE, "Check the name"),
    (["header", "night.fits", "--image", "99"], USAGE, "0 to 7"),
    (["bench", "none.fits"], USAGE, "Check the name"),
    # targets
    (["convert", "night.fits", "night.zarr"], USAGE, "--overwrite"),
    (["convert", "night.fits", "night.fits"], USAGE, "another name"),
    (["convert", "night.fits", "night"], USAGE, "--format"),
    (["convert", "night.fits", "a.zarr", "--format", "zar"], USAGE, "zarr"),
    (["convert", "night.fits", "no/such/place/a.zarr"], USAGE, "directory"),
    (["convert", "night.fits", "night.h5", "other"], USAGE, "one by one"),
    (["convert", "night.fits", "notes.txt/a.zarr"], USAGE, "directory"),
    (["cutout", "night.zarr", "a.zarr"], USAGE, "--width"),
    (["cutout", "night.zarr", "a.zarr", "--images", "3;4"], USAGE, "such as 0,3-7"),
    (["cutout", "night.zarr", "a.zarr", "--filters", "z"], USAGE, "filter"),
    (["stamp", "night.zarr", "--x", "5", "--y", "5", "-o", "a.jpeg"], USAGE, ".npy"),
    (["stamp", "night.zarr", "-o", "a.npy"], USAGE, "x and y"),
    (["stamp", "night.zarr", "--trajectories", "trajectories.csv", "-o", "a.npy"], USAGE, "vx"),
    (["stamp", "night.zarr", "--trajectories", "none.csv", "-o", "a.npy"], USAGE, "none.csv"),
    # options of formats
    (["convert", "night.fits", "a.zarr", "--profile", "tiny"], USAGE, "compact"),
    (["convert", "night.fits", "a.zarr", "--layout", "rows"], USAGE, "cutouts"),
    (["convert", "night.fits", "a.h5", "-o", "profile"], USAGE, "-o help"),
    (["convert", "night.fits", "a.h5", "-o", "overwrite=true"], USAGE, "-o help"),
    (["convert", "night.zarr", "a.fits", "-o", "compression_type=ZIP"], USAGE, "GZIP_2"),
    (["convert", "night.zarr", "a.fits", "--profile", "fast"], USAGE, "profile"),
    (["convert", "night.fits", "a.zarr", "--json"], USAGE, "--dry-run"),
    (["info", "night.zarr", "--table", "--json"], USAGE, "Leave out"),
    (["images", "night.zarr", "--csv", "--json"], USAGE, "Leave out"),
    (["repack", "night.zarr"], USAGE, "--profile"),
    (["repack", "night.fits", "--profile", "fast"], USAGE, "zarr"),
    (["drop", "night.zarr", "science"], USAGE, "mask"),
    (["append", "night.fits", "night.zarr"], USAGE, "Zarr or HDF5"),
    # parts
    (["part", "night.zarr", "0"], USAGE, "Nothing is left to do"),
    (["part", "never.zarr", "0"], INCOMPLETE, "wustore plan"),
    (["finish", "half.zarr"], INCOMPLETE, "images"),
    (["info", "half.zarr"], INCOMPLETE, "wustore finish"),
    (["plan", "night.fits", "half.zarr", "--parts", "5"], USAGE, "Go on as planned"),
    # other files, and damage
    (["info", "notes.txt"], USAGE, "Is it a WorkUnit?"),
    (["info", "other"], USAGE, "Is it a WorkUnit?"),
    (["info", "text.fits"], DAMAGED, "FITS"),
    (["info", "empty.fits"], DAMAGED, "empty"),
    (["info", "empty.zarr"], DAMAGED, "empty.zarr"),
    (["info", "cut.fits"], DAMAGED, "cut.fits"),
    (["info", "flat.h5"], DAMAGED, "flat.h5"),
    (["convert", "torn.zarr", "a.h5"], DAMAGED, "image"),
    (["images", "torn.zarr"], DAMAGED, "image"),
]


@pytest.mark.parametrize(("words", "code", "hint"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES])
def test_mistake(words, code, hint, folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    before = {entry.relative_to(folder) for entry in folder.rglob("*")}
    found, out, err = run(*words)
    assert found == code, err
    assert "Traceback" not in err
    assert hint in err
    # One block: a message of ours is one line, after which only a summary may come; click's begins with the usage.
    lines = err.splitlines()
    assert sum(line.startswith(("wustore: error:", "Error:")) for line in lines) == 1
    assert len(lines) <= 5
    if code != INCOMPLETE:
        assert out == ""
    assert {entry.relative_to(folder) for entry in folder.rglob("*")} == before


@pytest.mark.slow
def test_mistakes_in_a_terminal(folder):
    from terminal import in_terminal

    before = {entry.relative_to(folder) for entry in folder.rglob("*")}
    for words, code, hint in MISTAKES:
        found, shown, _ = in_terminal(["wustore", *words], folder, columns=200)
        assert found == code, f"{words}\n{shown}"
        # The terminal breaks lines, at blanks or within words.
        assert "".join(hint.split()) in "".join(shown.split()), f"{words}\n{shown}"
        assert "Traceback" not in shown
        assert "image/s" not in shown, f"{words} leaves its bar:\n{shown}"
        assert sum(line.startswith(("wustore: error:", "Error:")) for line in shown.splitlines()) == 1, words
    assert {entry.relative_to(folder) for entry in folder.rglob("*")} == before
