from __future__ import annotations

import os
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fits_samples as samples
import numpy as np
import pytest
from astropy.io import fits
from calls import calls_of, loops_of

from wustore import ImageStack, SearchConfiguration, WorkUnit
from wustore.backends.fits import reader as reader_module
from wustore.backends.fits.backend import FitsBackend
from wustore.backends.fits.hdu.image import Plane
from wustore.backends.fits.hdu.scan import scan
from wustore.backends.fits.reader import FitsReader
from wustore.backends.fits.tiles.rice import coder as rice
from wustore.backends.registry import open_reader
from wustore.errors import FormatError, UsageError, WuStoreError
from wustore.model.meta import LAYERS, Image


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.unpack(tmp_path_factory.mktemp("golden"))


def open_any(path: Any) -> FitsReader:
    reader = open_reader(path)
    assert isinstance(reader, FitsReader)
    return reader


def same_bits(a: np.ndarray[Any, Any] | None, b: np.ndarray[Any, Any] | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes()


def native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*samples.SINGLES, *samples.SETS])
def test_planes_equal_astropys(golden: Path, path: str) -> None:
    reader = open_any(golden / path)
    names = dict(zip(LAYERS, ("SCI", "VAR", "MSK", "PSF"), strict=True))
    for i, image in reader.images():
        shard = golden / path if path not in samples.SETS else (golden / path).with_name(f"{i}_wu.fits")
        with fits.open(shard) as hdus:
            for layer, prefix in names.items():
                ours = image.layer(layer)
                assert ours is not None
                assert same_bits(ours, native(hdus[f"{prefix}_{i}"].data))
                assert ours.flags.c_contiguous
                assert ours.flags.writeable
                assert reader.meta.dtypes[layer][i] == ours.dtype


@pytest.mark.parametrize("path", [*samples.SINGLES, *samples.SETS])
def test_planes_equal_what_was_in_memory(golden: Path, path: str) -> None:
    truth = samples.truth_of(path)
    quantised = path >= "2025-04"
    for i, image in open_any(golden / path).images():
        for layer, key in (("science", "sci"), ("variance", "var"), ("psf", "psf")):
            plane, expected = image.layer(layer), truth[f"{key}_{i}"]
            assert plane is not None
            whole = np.isfinite(plane) & (plane != -9999) & np.isfinite(expected)
            assert whole.mean() > 0.9
            error = np.abs(plane[whole].astype(np.float64) - expected[whole]).max()
            assert error <= (0.3 if quantised and layer != "psf" else 0)


PIXELS = {
    "uint8": np.arange(48, dtype="u1"),
    "int8": np.arange(-24, 24, dtype="i1"),
    "uint16": (np.arange(48) * 1400).astype("u2"),
    "int16": np.arange(-24, 24, dtype="i2"),
    "uint32": (np.arange(48, dtype="u8") * 89478485).astype("u4"),
    "int32": np.arange(-24, 24, dtype="i4") * 2**26,
    "uint64": np.arange(48, dtype="u8") * 2**58,
    "int64": np.arange(-24, 24, dtype="i8") * 2**58,
    "float32": np.linspace(-1, 1, 48, dtype="f4"),
    "float64": np.linspace(-1, 1, 48, dtype="f8"),
}


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_pixel_type(tmp_path: Path, name: str, compressed: bool) -> None:
    if compressed and name in {"int64", "uint64", "int8"}:
        return  # astropy does not compress these
    hdus = [samples.primary_hdu(1), *samples.image_hdus(0)]
    plane = PIXELS[name].reshape(6, 8)
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    options = {"compression_type": "GZIP_1", "quantize_level": 0} if compressed else {}
    hdus[3] = kind(plane, name="MSK_0", **options)
    path = samples.write(tmp_path / "x.fits", hdus)
    reader = FitsBackend().open(path)
    with fits.open(path) as opened:
        expected = native(opened["MSK_0"].data)
    assert same_bits(reader.image(0).mask, expected)
    assert reader.meta.dtypes["mask"][0] == expected.dtype == plane.dtype
    box = reader.read("mask", (slice(0, 1), slice(1, 4), slice(2, 7)))
    np.testing.assert_array_equal(box[0], plane[1:4, 2:7])


@pytest.mark.parametrize(
    "cards",
    [
        {"BSCALE": 0.5, "BZERO": 3},
        {"BZERO": 7},
        {"BLANK": 3},
        {"BSCALE": 2.0, "BLANK": 5},
        {"BZERO": 32768.0},
        {"BZERO": 32768, "BLANK": -1},
    ],
)
@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "f4"])
def test_scaled_images(tmp_path: Path, cards: dict[str, Any], kind: str) -> None:
    hdus = [samples.primary_hdu(1), *samples.image_hdus(0)]
    hdus[3] = fits.ImageHDU(np.arange(48, dtype=kind).reshape(6, 8), name="MSK_0")
    path = samples.write(tmp_path / "x.fits", hdus)
    data = Path(path).read_bytes()
    new = "".join(f"{keyword:8}= {value!r:>20}".ljust(80) for keyword, value in cards.items())
    name = b"EXTNAME = 'MSK_0   '"
    at = data.index(name)
    end = data.index(b"END     ", at)
    data = data[:end] + new.encode() + data[end : end + 80] + data[end + 80 + len(new) :]
    Path(path).write_bytes(data)
    reader = FitsBackend().open(path)
    with warnings.catch_warnings(), fits.open(path) as opened:
        warnings.simplefilter("ignore")
        expected = native(opened["MSK_0"].data)
    assert same_bits(reader.image(0).mask, expected)
    assert reader.meta.dtypes["mask"][0] == expected.dtype


def test_values_of_the_corpus(corpus: Path) -> None:
    """Every file that KBMOD reads: the same pixels, once masks are applied, as bits."""
    compared = 0
    for path in sorted(corpus.glob("head/*/*.fits*")):
        stem = path.name.removesuffix(path.suffix) if path.suffix != ".fits" else path.stem
        candidates = [path.with_name(path.stem.removesuffix(".fits") + s + ".npz") for s in ("", path.suffix)]
        found = [p for p in candidates if p.exists()]
        if not found or stem.startswith("n_1100"):
            continue
        truth = np.load(found[-1])
        for i, image in open_any(path).images():
            for key, plane in (("sci", image.science), ("var", image.variance)):
                values = plane.astype(np.float32)
                if image.mask is not None:
                    values[image.mask > 0] = np.nan
                expected = truth[key][i] if key in truth.files else truth[f"{key}_{i}"]
                np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
                assert same_bits(np.nan_to_num(values, nan=0), np.nan_to_num(expected, nan=0))
                compared += 1
    assert compared > 300


# --- windows ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("large") / "wu.fits"
    return samples.small(path, 3, shape=(200, 150), compressed=True)


def test_windows_decode_only_the_tiles_they_touch(large: str) -> None:
    reader = FitsBackend().open(large)
    assert reader.pixels_decoded == 0
    box = reader.read("science", (slice(0, 3), slice(50, 71), slice(60, 81)))
    assert reader.pixels_decoded == 3 * 21 * 150  # tiles are rows
    for i in range(3):
        np.testing.assert_array_equal(box[i], samples.image_hdus(i, shape=(200, 150))[0].data[50:71, 60:81])
    before = reader.pixels_decoded
    reader.read("mask", (slice(1, 2), slice(50, 71), slice(60, 81)))
    assert reader.pixels_decoded - before == 21 * 21


def test_opening_decodes_nothing(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pixel was read")

    monkeypatch.setattr(Plane, "read", refuse)
    reader = FitsBackend().open(large)
    assert reader.meta.n_images == 3
    assert reader.pixels_decoded == 0


def test_padded_boxes(tmp_path: Path) -> None:
    hdus = [samples.primary_hdu(2), *samples.image_hdus(0, shape=(4, 9)), *samples.image_hdus(1, shape=(7, 5))]
    hdus[7] = fits.ImageHDU(np.ones((7, 5), np.int16), name="MSK_1")
    reader = FitsBackend().open(samples.write(tmp_path / "x.fits", hdus))
    science = reader.read("science", (slice(0, 2), slice(0, 7), slice(0, 9)))
    assert np.isnan(science[0, 4:]).all()
    assert np.isnan(science[1, :, 5:]).all()
    np.testing.assert_array_equal(science[1, :, :5], hdus[5].data)
    mask = reader.read("mask", (slice(0, 2), slice(2, 7), slice(4, 9)))
    assert mask.dtype == np.int16
    assert mask[0, 2:].sum() == 0
    assert mask[1].tolist() == [[1, 0, 0, 0, 0]] * 5
    out = np.empty((1, 7, 9), np.float32)
    assert reader.read("science", (slice(1, 2), slice(0, 7), slice(0, 9)), out) is out
    np.testing.assert_array_equal(out[0], science[1])
    empty = reader.read("science", (slice(0, 1), slice(5, 7), slice(0, 3)))
    assert np.isnan(empty).all()


def test_only_the_wanted_layers_are_read(large: str) -> None:
    reader = FitsBackend().open(large)
    image = reader.image(0, ("mask",))
    assert image.science.shape == image.variance.shape == (0, 0)
    assert image.psf is None
    assert image.mask is not None
    assert reader.pixels_decoded == 200 * 150


def python_calls(path: Path, shape: tuple[int, int]) -> int:
    """Return the Python-level calls of reading an image of KBMOD's default compression when everything is warm."""
    planes = [np.random.default_rng(i).normal(10, 3, shape).astype(np.float32) for i in range(2)]
    with pytest.warns(UserWarning, match="WCS"):
        unit = WorkUnit(ImageStack(times=[60000.0, 60001.0], sci=planes, var=planes), SearchConfiguration())
    unit.to_fits(path)
    reader = FitsBackend().open(str(path))
    reader.image(1)
    return calls_of(lambda: reader.image(1))


def test_python_per_plane_and_not_per_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that only one thread at a time can do bounds how reading scales: counted, so the same on any machine."""
    monkeypatch.setattr(rice, "_loops", loops_of("backends.fits.tiles.rice.loops_numba", compiled=True))
    few, many = (python_calls(tmp_path / f"{n}.fits", (n, 150)) for n in (100, 4000))
    assert many - few < 10, "large planes are in memory of their own"
    assert few <= 330


def test_the_bytes_of_an_image_are_given_back_at_once(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(reader_module, "release", lambda data, start, stop: given.append((start, stop)))
    reader = FitsBackend().open(large)
    reader.image(1)
    hdus = [plane.hdu for plane in reader.layout.images[1].planes.values()]
    assert given == [(min(hdu.data_start for hdu in hdus), max(hdu.end for hdu in hdus))]


def test_chunks(large: str) -> None:
    reader = FitsBackend().open(large)
    assert reader.chunks("science") == (1, 1, 150)
    assert reader.chunks("mask") == (1, 1, 150)


# --- the reader as a whole ----------------------------------------------------------------------------


def all_bits(reader: Any) -> list[bytes]:
    return [plane.tobytes() for _, image in reader.images() for plane in planes_of(image)]


def planes_of(image: Image) -> list[np.ndarray[Any, Any]]:
    return [plane for layer in LAYERS if (plane := image.layer(layer)) is not None]


def test_pickles_by_address(golden: Path) -> None:
    for path in ("2026-01/mosaic.fits", "2024-07/shard_mosaic/wu.fits"):
        reader = open_any(golden / path)
        again = pickle.loads(pickle.dumps(reader))
        assert all_bits(again) == all_bits(reader)
        assert again.format == reader.format


def test_threads_read_the_same(large: str) -> None:
    reader = FitsBackend().open(large)
    expected = all_bits(reader)[:4]
    with ThreadPoolExecutor(8) as pool:
        for image in pool.map(reader.image, [0] * 24):
            assert [plane.tobytes() for plane in planes_of(image)] == expected


def test_a_closed_reader_reads_nothing(large: str) -> None:
    with FitsBackend().open(large) as reader:
        pass
    with pytest.raises(UsageError, match="closed"):
        reader.image(0)


def test_describe(golden: Path) -> None:
    facts = open_any(golden / "2026-01/mosaic.fits").describe()
    assert facts["layout"] == "kbmod-2026-01"
    assert facts["science_compression"] == "RICE_1"


# --- whole-file compression ---------------------------------------------------------------------------


# --- damage -------------------------------------------------------------------------------------------


def read_everything(path: Path) -> None:
    """Read a file whole; anything but our errors is a failure."""
    try:
        with open_reader(path, format="fits") as reader:
            for i in range(reader.meta.n_images):
                reader.image(i)
    except (WuStoreError, OSError, MemoryError):
        pass


def seeds(golden: Path) -> list[bytes]:
    return [
        (golden / path).read_bytes() for path in ("2026-01/mosaic.fits", "2024-11/mosaic.fits", "2024-02/perimage.fits")
    ]


def test_truncated_files(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.fits"
    for data in seeds(golden)[:1]:
        scanned = scan(data, "x")
        cuts = {hdu.data_start + k for hdu in scanned.hdus for k in (-2880, -1, 0, 1)} | set(range(0, len(data), 3001))
        # Whole science and variance planes make a WorkUnit: mask and PSF may be missing, also at the end.
        needed = max(hdu.data_start + hdu.data_length for hdu in scanned.hdus if hdu.name[:3] in {"SCI", "VAR"})
        for cut in sorted(cut for cut in cuts if 0 <= cut < needed):
            path.write_bytes(data[:cut])
            with pytest.raises(FormatError):
                FitsBackend().open(str(path))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits(golden: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = seeds(golden)[seed]
    headers = [(hdu.header_start, hdu.data_start) for hdu in scan(data, "x").hdus]
    path = tmp_path / "x.fits"
    for k in range(60):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 3, 20])):
            low, high = rng.choice(headers) if k % 3 else (0, len(data))
            damaged[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        read_everything(path)


@pytest.mark.parametrize("seed", range(3))
def test_changed_cards(golden: Path, tmp_path: Path, seed: int) -> None:
    """Structural cards with values that cannot be: no hang, no allocation that the file does not justify."""
    rng = random.Random(seed)
    data = seeds(golden)[seed]
    keywords = sorted({keyword for hdu in scan(data, "x").hdus for keyword in hdu.header if len(keyword) < 9})
    structural = [
        k for k in keywords if k.startswith(("Z", "T", "NAXIS", "PCOUNT", "GCOUNT", "BITPIX", "N", "IND", "B"))
    ]
    values = [
        0,
        -1,
        1,
        2,
        3,
        255,
        2**31,
        2**40,
        2**62,
        -(2**63),
        10**25,
        "''",
        "'1PB(3)'",
        "'A'",
        "T",
        "1E300",
        "NaN",
        "(1,2)",
        "",
    ]
    path = tmp_path / "x.fits"
    for _ in range(80):
        damaged = data
        for _ in range(rng.choice([1, 1, 2])):
            keyword = rng.choice(structural).ljust(8).encode() + b"="
            places = [at for at in range(0, len(damaged), 80) if damaged[at : at + 9] == keyword]
            if not places:
                continue
            at = rng.choice(places)
            card = keyword + f" {rng.choice(values)!s:>20}".encode()
            damaged = damaged[:at] + card.ljust(80) + damaged[at + 80 :]
        path.write_bytes(damaged)
        read_everything(path)


def test_foreign_files_are_not_claimed(tmp_path: Path) -> None:
    for content in (b"", b"hello", os.urandom(5000), b"\x1f\x8b", b"BZh9", b"PK\x03\x04"):
        path = tmp_path / "x.fits"
        path.write_bytes(content)
        with pytest.raises(FormatError):
            FitsBackend().open(str(path))
    assert FitsBackend().try_open(str(tmp_path)) is None
