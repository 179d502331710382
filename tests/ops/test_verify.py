"""Verification reads everything and names each place that is wrong."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from fits_samples import image_hdus, primary_hdu, small, write
from in_memory import in_memory

from wustore.backends.memory import MemoryReader
from wustore.backends.registry import open_reader
from wustore.cli import main
from wustore.errors import CorruptError, WuStoreError
from wustore.model.checksum import plane_checksum
from wustore.model.meta import LAYERS
from wustore.ops.convert import convert
from wustore.ops.copy import copy
from wustore.ops.verify import Problem, fits_problems, problems
from wustore.testing import SAMPLES, sample, with_capsule


class Reader(MemoryReader):
    """A memory reader with checksums, and damage where it is told."""

    def __init__(self, source, broken=None):
        super().__init__(source.meta, [source.image(i) for i in range(source.meta.n_images)], source.capsule())
        self._source = source
        self.broken = broken or {}

    def image(self, i, layers=LAYERS):
        if set(self.broken.get(i, ())) & set(layers):
            raise CorruptError("a chunk is damaged", path="here", where=f"image {i}")
        return super().image(i, layers)

    def checksums(self):
        planes = [[self._source.image(i).layer(layer) for layer in LAYERS] for i in range(self.meta.n_images)]
        return np.array([[plane_checksum(plane) for plane in row] for row in planes], dtype=np.uint32)

    def image_capsule(self, i, image=None):
        if i in self.broken:
            raise CorruptError("the piece is damaged", path="here")
        return b""


@pytest.mark.parametrize("name", list(SAMPLES))
def test_samples_are_sound(name):
    assert list(problems(Reader(sample(name)))) == []


def test_all_damage_is_found():
    reader = Reader(with_capsule(sample("ragged")), broken={1: ("science", "psf"), 3: ("mask",)})
    reader._images[2].variance[0, 0] += 1
    found = list(problems(reader))
    assert [(p.kind, p.where) for p in found] == [
        ("damaged", "image 1, science"),
        ("damaged", "image 1, psf"),
        ("damaged", "image 2, variance"),
        ("damaged", "image 3, mask"),
        ("damaged", "capsule of image 1"),
        ("damaged", "capsule of image 3"),
    ]


def test_an_image_of_another_shape():
    source = sample("simple")
    images = [source.image(i) for i in range(3)]
    images[1] = replace(images[1], mask=images[1].mask.astype(np.int16), psf=None)
    assert [p.where for p in problems(MemoryReader(source.meta, images))] == ["image 1, mask", "image 1, psf"]


def test_an_invalid_document():
    source = sample("simple")
    reader = MemoryReader(replace(source.meta, reprojected="yes"), [source.image(i) for i in range(3)])
    (problem,) = problems(reader)
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.where) == ("invalid", "$.reprojected")


def test_progress():
    seen = []
    list(problems(Reader(sample("simple")), workers=2, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- stores on disk -----------------------------------------------------------------------------------


@pytest.fixture(params=["zarr", "zarr.zip", "h5"])
def store(request, tmp_path):
    path = tmp_path / f"night.{request.param}"
    source = sample("rich")
    name = "ram:verify"
    from wustore.backends.memory import MemoryBackend

    copy(source, MemoryBackend().create(name, source.meta, overwrite=True))
    convert(name, path)
    MemoryBackend().remove(name)
    return path


def files_of(path):
    return sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]


def test_a_sound_store(store, capsys):
    assert main(["verify", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["checksums"] is True


def test_flipped_bits_are_found(store, capsys):
    """Whatever bit flips, verify says so or the values are the same as before."""
    rng = np.random.default_rng(1)
    with open_reader(store) as reader:
        expected = [reader.image(i) for i in range(reader.meta.n_images)]
        meta = reader.meta
    n_found = 0
    for _ in range(40):
        file = Path(rng.choice([str(f) for f in files_of(store)]))
        before = file.read_bytes()
        data = bytearray(before)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        code = main(["verify", str(store)])
        if code == 0:
            with open_reader(store) as reader:
                from wustore.ops.diff import differences

                same = MemoryReader(meta, expected)
                assert not list(map(str, differences(same, reader))), file
        else:
            assert code in {1, 2, 3}, file
            n_found += 1
        file.write_bytes(before)
    capsys.readouterr()
    assert n_found > 10
    assert main(["verify", str(store)]) == 0


def test_a_truncated_store(store, capsys):
    for file in files_of(store)[-3:]:
        before = file.read_bytes()
        file.write_bytes(before[: len(before) // 2])
        assert main(["verify", str(store)]) in {2, 3}, file
        assert "Traceback" not in capsys.readouterr().err
        file.write_bytes(before)


def test_a_missing_shard(tmp_path):
    source = sample("chunked")
    from wustore.backends.zarr.backend import ZarrBackend

    path = tmp_path / "night.zarr"
    copy(source, ZarrBackend().create(str(path), source.meta))
    shard = sorted(f for f in (path / "science").rglob("*") if f.is_file() and f.name != "zarr.json")[1]
    shard.unlink()
    try:
        with open_reader(path) as reader:
            found = list(problems(reader))
    except WuStoreError as error:
        assert isinstance(error, CorruptError)  # noqa: PT017 - either refused when opened, or found when read
    else:
        assert [p.where for p in found] == ["image 1, science"]


# --- the FITS files come back ---------------------------------------------------------------------------


@pytest.fixture
def fits_file(tmp_path):
    from wustore.cli.about import build

    path = tmp_path / "night.fits"
    build().to_fits(str(path))
    return path


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
def test_fits_come_back(fits_file, suffix, tmp_path, capsys):
    store = tmp_path / f"night.{suffix}"
    convert(fits_file, store)
    assert main(["verify", "--fits", str(store)]) == 0
    assert "come back" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["night.fits", store.name]


def test_a_compressed_file_of_the_name_that_verify_writes(fits_file, tmp_path):
    path = tmp_path / "verify.fits"
    path.write_bytes(gzip.compress(Path(fits_file).read_bytes(), 6, mtime=0))
    convert(path, tmp_path / "a.zarr")
    with open_reader(tmp_path / "a.zarr") as reader:
        assert reader.capsule().document["files"][0]["outer"]["exact"]
        assert not list(fits_problems(reader))


def test_fits_that_do_not_come_back(fits_file, tmp_path, capsys):
    store = tmp_path / "night.h5"
    convert(fits_file, store, capsule=False)
    assert main(["verify", "--fits", str(store)]) == 1
    assert "FITS reconstruction data" in capsys.readouterr().out


def test_fits_of_another_digest(fits_file, tmp_path):
    with open_reader(fits_file) as reader:
        capsule = reader.capsule()
        document = {**capsule.document, "files": [{**capsule.document["files"][0], "sha256": "0" * 64}]}
        held = in_memory(reader)
        held._capsule = replace(capsule, document=document)
        (problem,) = fits_problems(held)
    assert problem.kind == "damaged"
    assert problem.where.startswith("FITS")


def test_fits_of_an_edited_store(fits_file):
    with open_reader(fits_file) as reader:
        meta = replace(reader.meta, reprojected=not reader.meta.reprojected)
        (problem,) = fits_problems(in_memory(reader, meta=meta))
    assert problem.kind == "invalid"


# --- FITS ---------------------------------------------------------------------------------------------


def with_sums(path):
    """Write a WorkUnit whose HDUs all carry CHECKSUM and DATASUM, compressed ones too."""
    small(path, shape=(30, 20), compressed=True)
    with fits.open(path) as hdus:
        hdus.writeto(path, checksum=True, overwrite=True)
    return path


def test_sums_of_fits_that_hold(tmp_path, capsys):
    path = with_sums(tmp_path / "a.fits")
    assert b"DATASUM" in path.read_bytes()
    assert main(["verify", str(path)]) == 0
    path.write_bytes(path.read_bytes()[:-2001])  # the last block is not padded
    assert main(["verify", str(path)]) == 0


def test_empty_sums_say_nothing(tmp_path):
    path = Path(small(tmp_path / "a.fits"))
    with fits.open(path, mode="update") as hdus:
        for hdu in hdus:
            hdu.header["CHECKSUM"] = hdu.header["DATASUM"] = ""
    assert main(["verify", str(path)]) == 0


@pytest.mark.parametrize(
    ("name", "part", "cards"),
    [
        ("MSK_1", "data", ["DATASUM", "CHECKSUM"]),
        ("SCI_0", "header", ["CHECKSUM"]),
        ("PSF_0", "padding", ["DATASUM", "CHECKSUM"]),
        ("PRIMARY", "header", ["CHECKSUM"]),
    ],
)
def test_sums_of_fits_that_do_not_hold(name, part, cards, tmp_path, capsys):
    path = with_sums(tmp_path / "a.fits")
    with open_reader(path) as reader:
        hdu = reader.files[0].scan.get(name)
    at = {"header": hdu.data_start - 1, "data": hdu.data_start + 7, "padding": hdu.end - 1}[part]
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert main(["verify", str(path), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)["problems"]
    assert [p["where"] for p in found] == [f"HDU {hdu.index} ({name}), card {card}" for card in cards]
    # It is converted all the same, and comes back.
    convert(path, tmp_path / "a.zarr")
    convert(tmp_path / "a.zarr", tmp_path / "b.fits")
    assert (tmp_path / "b.fits").read_bytes() == bytes(raw)


def test_sums_of_a_shard_name_its_file(tmp_path, capsys):
    write(tmp_path / "wu.fits", [primary_hdu(1)])
    hdus = image_hdus(0)
    hdus[2].header["DATASUM"] = 5  # not even in quotes
    write(tmp_path / "0_wu.fits", [fits.PrimaryHDU(), *hdus])
    assert main(["verify", str(tmp_path / "wu.fits")]) == 3
    assert "damaged: 0_wu.fits, HDU 3 (MSK_0), card DATASUM: expected" in capsys.readouterr().out
