"""Stamps as files, and the commands that cut."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.table import Table
from pictures import night

from wustore.backends.registry import backend_for_writing, open_reader
from wustore.cli import main
from wustore.errors import StoreExistsError, UsageError
from wustore.ops.copy import copy
from wustore.stamps.files import SUFFIXES, write_stamps
from wustore.stamps.trajectory_stamps import stamps, trajectory_stamps
from wustore.stamps.view import cutout, select
from wustore.testing import assert_same, sample

MOTIONS = [(100, 200, 3, 4), (0, 0, 1, 1)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("stamps") / "wu.zarr")
    source = sample("chunked")
    copy(source, backend_for_writing(path).create(path, source.meta))
    return path


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", [None, "median"])
def test_every_form_holds_the_same(store, tmp_path, many, kind):
    source = sample("chunked")
    made = trajectory_stamps(source, MOTIONS, 4) if many else stamps(source, 100, 200, 4)
    expected = made.science if kind is None else made.coadd(kind)
    name = "science" if kind is None else "coadd"
    for suffix in SUFFIXES:
        write_stamps(made, tmp_path / f"s{suffix}", coadd=kind)
    assert np.load(tmp_path / "s.npy").tobytes() == expected.tobytes()
    with np.load(tmp_path / "s.npz") as file:
        assert file[name].tobytes() == expected.tobytes()
        assert file["centre_x"].tolist() == made.x.tolist()
        if kind is None:
            assert file["mask"].tobytes() == made.mask.tobytes()
            assert file["inside"].tobytes() == made.inside.tobytes()
    with fits.open(tmp_path / "s.fits", checksum=True) as hdus:
        hdus.verify("exception")
        assert hdus[name.upper()].header["AXES"].split()[-2:] == ["y", "x"]
        assert np.array_equal(hdus[name.upper()].data, expected, equal_nan=True)
        assert hdus["MJD"].data.tolist() == made.times.tolist()
    with xr.open_zarr(tmp_path / "s.zarr") as dataset:
        assert dataset[name].dims[-2:] == ("y", "x")
        assert np.array_equal(dataset[name].values, expected, equal_nan=True)
        assert dataset["centre_y"].values.tolist() == made.y.tolist()
    picture = imagecodecs.png_decode((tmp_path / "s.png").read_bytes())
    assert picture.ndim == 3
    assert picture.max() == 255


def test_files_appear_whole_or_not(tmp_path, monkeypatch):
    made = stamps(sample("simple"), 5, 5, 2)
    write_stamps(made, tmp_path / "a.npz")
    with pytest.raises(StoreExistsError):
        write_stamps(made, tmp_path / "a.npz")
    write_stamps(made, tmp_path / "a.npz", overwrite=True)
    with pytest.raises(UsageError, match="how to write"):
        write_stamps(made, tmp_path / "a.txt")
    without = stamps(sample("simple"), 5, 5, 2, layers=("mask",))
    for name in ("b.npy", "b.png"):
        with pytest.raises(UsageError):
            write_stamps(without, tmp_path / name)
    with pytest.raises(UsageError):
        write_stamps(trajectory_stamps(sample("simple"), [], 2), tmp_path / "c.png")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_stamps(made, tmp_path / "d.npy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npz"]


def test_stamp_command(store, tmp_path, capsys):
    out = str(tmp_path / "s.npz")
    assert main(["stamp", store, "--x", "100", "--y", "200", "--radius", "3", "-o", out]) == 0
    with np.load(out) as file:
        assert file["science"].tobytes() == stamps(sample("chunked"), 100, 200, 3).science.tobytes()
    table = tmp_path / "t.csv"
    table.write_text("x,y,vx,vy\n" + "\n".join(",".join(map(str, row)) for row in MOTIONS))
    out = str(tmp_path / "t.npy")
    command = ["stamp", store, "--trajectories", str(table), "--radius", "4", "--coadd", "sum", "-o", out]
    assert main(command) == 0
    assert np.load(out).tobytes() == trajectory_stamps(sample("chunked"), MOTIONS, 4).coadd("sum").tobytes()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 coadds of 9 x 9 pixels, from 3 images" in captured.err
    assert main([*command, "--x", "5"]) == 2
    assert main(["stamp", store, "--x", "5", "-o", str(tmp_path / "u.npy")]) == 2
    assert main(["stamp", store, "--ra", "5", "--dec", "5", "-o", str(tmp_path / "u.npy")]) == 2  # no WCS
    assert main(["stamp", store, "--x", "5", "--y", "5", "-o", str(tmp_path / "u.txt")]) == 2


def test_no_command_writes_over_its_source(store, capsys):
    before = sorted(path.name for path in Path(store).rglob("*"))
    where = ["--x", "9", "--y", "9"]
    for target in (store, f"{store}/", str(Path(store).parent / "." / "wu.zarr")):
        assert main(["stamp", store, *where, "-o", target, "--overwrite"]) == 2
        assert main(["cutout", store, target, *where, "--width", "5", "--overwrite"]) == 2
    assert "source and target are the same" in capsys.readouterr().err
    assert sorted(path.name for path in Path(store).rglob("*")) == before


def test_cutout_command(store, tmp_path):
    out = str(tmp_path / "c.h5")
    window = ["--x", "100", "--y", "200", "--width", "30", "--height", "20"]
    assert main(["cutout", store, out, *window, "--times", "1", "2"]) == 0
    with open_reader(out) as reader:
        assert_same(reader, cutout(select(sample("chunked"), (1, 2)), 100, 200, 30, 20))
    assert main(["cutout", store, out, "--images", "0-1,2", *window]) != 0  # exists
    assert main(["cutout", store, out, "--images", "2,0", "--overwrite"]) == 0
    with open_reader(out) as reader:
        assert reader.meta.times.tolist() == [2, 0]
        assert reader.meta.image_shape.tolist() == [[600, 530]] * 2
    assert main(["cutout", store, str(tmp_path / "d.zarr")]) == 2
    assert main(["cutout", store, str(tmp_path / "d.zarr"), "--images", "0-x"]) == 2
    assert main(["cutout", store, str(tmp_path / "d.zarr"), "--filters", "g"]) == 2
    assert main(["cutout", store, store, *window, "--overwrite"]) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c.h5"]


@pytest.mark.parametrize("suffix", [".npz", ".fits", ".zarr"])
def test_files_say_where_the_stamps_come_from(tmp_path, suffix):
    reader = night()
    table = Table(rows=[(10.0, 20.0, 10.0, 0.0), (500.0, 10.0, 0.0, 0.0)], names=("x", "y", "vx", "vy"))
    table["uuid"] = ["first", "second"]
    made = trajectory_stamps(reader, table, 2)
    path = tmp_path / f"s{suffix}"
    write_stamps(made, path)
    ra, dec = made.sky()
    if suffix == ".npz":
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
            source, ids, texts = str(found["source"]), found["id"].tolist(), found["wcs"].tolist()
    elif suffix == ".fits":
        with fits.open(path) as hdus:
            found = {hdu.name.lower(): hdu.data for hdu in hdus[1:]}
            source = hdus[0].header["SOURCE"]
            ids, texts = (hdus[name].data[name].tolist() for name in ("ID", "WCS"))
            assert hdus[0].header["RADIUS"] == 2
    else:
        with xr.open_zarr(path) as dataset:
            found = {name: dataset[name].values for name in dataset}
            source, ids, texts = (dataset.attrs[name] for name in ("source", "id", "wcs"))
    assert source == "night"
    assert ids == ["first", "second"]
    assert [text.rstrip() for text in texts] == [text.rstrip() for text in made.wcs]
    assert np.array_equal(found["centre_ra"], ra)
    assert np.array_equal(found["centre_dec"], dec)
    write_stamps(made, tmp_path / f"c{suffix}", coadd="sum")
