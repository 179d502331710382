"""Tests for backends: sample WorkUnits and the conformance class that every backend inherits.

A plug-in proves itself with::

    from wustore.testing import BackendConformance

    class TestMyBackend(BackendConformance):
        backend = MyBackend()
        suffix = ".mine"

Needs pytest (extra ``test``).
"""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from wustore.backends.base import RECOGNISED, Backend, Index, Reader
from wustore.backends.memory import MemoryReader, padded_box
from wustore.errors import (
    IncompleteError,
    OtherFormatError,
    StoreExistsError,
    StoreNotFoundError,
    UsageError,
    WuStoreError,
)
from wustore.model.compare import same_bits
from wustore.model.meta import LAYERS, Capsule, Column, ConstituentTable, Image, Meta, Observatory, object_array
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.storage import threads

__all__ = ["SAMPLES", "BackendConformance", "assert_same", "sample"]

WCS_TEXT = "".join(
    card.ljust(80)
    for card in (
        "WCSAXES =                    2",
        "NAXIS1  =                   13",
        "NAXIS2  =                   11",
        "CTYPE1  = 'RA---TAN'",
        "CTYPE2  = 'DEC--TAN'",
        "CRVAL1  =  153.10000000000002 / one bit above what 15 digits hold",
        "CRVAL2  =                -10.2",
        "CRPIX1  =                  6.5",
        "CRPIX2  =                  5.5",
        "CD1_1   =             -7.2E-05",
        "CD2_2   =              7.2E-05",
        "RADESYS = 'ICRS    '",
    )
)


def _odd_floats(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return noise with NaN payloads, infinities, -0.0 and denormals in it."""
    plane: NDArray[np.float32] = rng.normal(0, 5, shape).astype(np.float32)
    bits = plane.view(np.uint32).reshape(-1)
    odd = np.array([0x7FC00000, 0x7FC0BEEF, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 1], np.uint32)
    places = rng.choice(bits.size, size=min(len(odd), bits.size), replace=False)
    bits[places] = odd[: len(places)]
    return plane


def _columns(n: int) -> tuple[Column, ...]:
    mixed = object_array([None, 41.5, "text", {"a": [1, 2.0]}, True, 7, float("nan")][:n] + ["x"] * max(0, n - 7))
    wcs = object_array(WCS_TEXT if k % 3 else None for k in range(n))
    return (
        Column("data_loc", "plain", np.array([f"/data/image {k} é" for k in range(n)])),
        Column("per_image_wcs", "wcs", wcs),
        Column("geocentric_distance", "json", mixed),
        Column("visit", "plain", np.arange(n, dtype=np.int64) * 10**12),
        Column("Filter", "plain", np.array(["g", "r ", ""] * n)[:n]),
        Column("filter", "plain", np.array([b"g", b"\xff", b""] * n)[:n]),
        Column("small", "plain", np.arange(n, dtype=np.int8) - 3),
        Column("big", "plain", np.full(n, 2**64 - 1, dtype=np.uint64)),
        Column("half", "plain", np.linspace(0, 1, n).astype(np.float16)),
        Column("seeing", "plain", np.full(n, np.nan), unit="arcsec", description="FWHM", format="%.2f", meta={"k": 1}),
        Column("flag", "plain", np.arange(n) % 2 == 0, mask=np.arange(n) % 3 == 0),
        Column("phase", "plain", (np.arange(n) + 1j * np.arange(n)).astype(np.complex64)),
        Column("corner", "plain", np.arange(n * 4, dtype=np.float64).reshape(n, 2, 2)),
        Column("taken", "plain", np.array(["2026-11-23T01:02:03"] * n, dtype="datetime64[ms]")),
        Column("a name / with 60 characters, blanks and a slash ............", "plain", np.arange(n, dtype=np.uint8)),
        Column("_index", "plain", np.arange(n, dtype=np.int32)),
    )


CONFIGURATION: dict[str, Any] = {
    "lh_level": 10.0,
    "num_obs": 10,
    "Num_Obs": 99,
    "cluster_type": None,
    "sigmaG_lims": [25, 75],
    "generator_config": {"name": "x", "angles": [-0.5, 0.5, 21]},
    "text": "several\nlines, é, and 'quotes'",
    "not_finite": [float("nan"), float("inf"), -float("inf"), -0.0],
    "pair": (1, 2.5),
    "raw": b"\x00\xff",
    "when": datetime.date(2026, 11, 23),
    "number": np.float64(0.1),
}


def _meta(images: list[Image], times: NDArray[np.float64], **fields: Any) -> Meta:
    def dtype(layer: str, image: Image) -> np.dtype[Any] | None:
        plane = image.layer(layer)
        return None if plane is None else plane.dtype

    n = len(images)
    base: dict[str, Any] = {
        "links": tuple((i,) for i in range(n)),
        "constituents": ConstituentTable(n),
    }
    return Meta(
        times=times,
        image_shape=np.array([image.science.shape for image in images], dtype=np.int32),
        psf_shape=np.array([(0, 0) if im.psf is None else im.psf.shape for im in images], dtype=np.int32),
        dtypes={layer: tuple(dtype(layer, image) for image in images) for layer in LAYERS},
        **(base | fields),
    )


def _plain(rng: np.random.Generator, shape: tuple[int, int] = (11, 13), psf: int = 3) -> Image:
    mask = (rng.random(shape) < 0.1).astype(np.int8)
    kernel = rng.random((psf, psf)).astype(np.float32)
    return Image(_odd_floats(rng, shape), np.abs(_odd_floats(rng, shape)), mask, kernel)


def _simple(rng: np.random.Generator) -> MemoryReader:
    images = [_plain(rng) for _ in range(3)]
    return MemoryReader(_meta(images, 60000 + np.arange(3.0)), images)


def _rich(rng: np.random.Generator) -> MemoryReader:
    """Mosaic with every kind of column, value and setting."""
    images = [_plain(rng, psf=3 + 2 * i) for i in range(4)]
    meta = _meta(
        images,
        np.array([60000.1, 60000.1, np.nextafter(60000.0, 0), 59999.333333333336]),
        links=((0, 1), (2,), (5, 3), ()),
        constituents=ConstituentTable(7, _columns(7), {"survey": "DEEP", "n": 3}),
        configuration=CONFIGURATION,
        wcs=WCS_TEXT,
        reprojected=True,
        reprojection_frame="ebd",
        barycentric_distance=41.5,
        observatory=Observatory((-30.16527778, -70.815, 2214.9999999990064), (1.0, -2.5, 3e6 + 0.1)),
        mask_flags={"BAD": 1, "SATURATED PIXEL": 2},
        source={"format": "sample"},
        history=({"action": "made", "when": "2026-11-23T00:00:00Z"},),
    )
    return MemoryReader(meta, images)


def _ragged(rng: np.random.Generator) -> MemoryReader:
    images = [_plain(rng, shape, psf) for shape, psf in (((5, 7), 1), ((1, 1), 5), ((300, 2), 3), ((9, 280), 7))]
    return MemoryReader(_meta(images, np.array([3.0, 1.0, 2.0, 2.0])), images)


def _missing(rng: np.random.Generator) -> MemoryReader:
    """Layers, links, settings and times that are not there."""
    full = [_plain(rng) for _ in range(3)]
    images = [full[0], replace(full[1], mask=None), replace(full[2], psf=None)]
    return MemoryReader(_meta(images, np.array([0.0, np.nan, 2.0]), links=None), images)


def _bare(rng: np.random.Generator) -> MemoryReader:
    """One image without mask and PSF."""
    images = [Image(_odd_floats(rng, (1, 4)), _odd_floats(rng, (1, 4)))]
    return MemoryReader(_meta(images, np.array([1e-8])), images)


def _dtypes(rng: np.random.Generator) -> MemoryReader:
    """Dtypes that differ from image to image."""
    a, b, c = (_plain(rng) for _ in range(3))
    images = [
        replace(a, science=rng.normal(0, 5, (11, 13)), mask=np.full((11, 13), 4097, np.int32)),
        replace(b, psf=rng.random((3, 4))),
        replace(c, variance=rng.random((11, 13)), mask=np.full((11, 13), 200, np.uint8)),
    ]
    return MemoryReader(_meta(images, np.arange(3.0)), images)


def _flags(rng: np.random.Generator) -> MemoryReader:
    """Full flag masks, the sign bit among them."""
    flags = (1 << rng.integers(0, 31, (11, 13))).astype(np.int32)
    flags[0, 0] = -(2**31)
    images = [replace(_plain(rng), mask=flags), replace(_plain(rng), mask=flags[::-1].copy())]
    return MemoryReader(_meta(images, np.arange(2.0), mask_flags={"BAD": 1, "EDGE": 16}), images)


def _chunked(rng: np.random.Generator) -> MemoryReader:
    """Large enough to need several chunks in each direction."""
    images = [_plain(rng, (600, 530)) for _ in range(3)]
    return MemoryReader(_meta(images, np.arange(3.0)), images)


SAMPLES = {
    "simple": _simple,
    "rich": _rich,
    "ragged": _ragged,
    "missing": _missing,
    "bare": _bare,
    "dtypes": _dtypes,
    "flags": _flags,
    "chunked": _chunked,
}
"""Sample WorkUnits by name: functions of a random generator."""


def sample(name: str, seed: int = 0) -> MemoryReader:
    """Return a sample WorkUnit (``name`` is a key of `SAMPLES`), the same for the same ``seed``."""
    return SAMPLES[name](np.random.default_rng(seed))


def with_capsule(reader: MemoryReader) -> MemoryReader:
    """Return ``reader`` with FITS reconstruction data of every size, from none to several chunks."""
    sizes = [0, 1, 5000, 70_000]
    images = [reader.image(i) for i in range(reader.meta.n_images)]
    pieces = [bytes([i % 256]) * sizes[i % 4] if i % 4 else None for i in range(len(images))]
    return MemoryReader(reader.meta, images, Capsule({"form": "sample", "n": 1.5}, b"head" * 1000), pieces)


def assert_same(left: Reader, right: Reader) -> None:
    """Fail with the first differences if two open stores, ``left`` and ``right``, are not equal bit for bit."""
    found = [str(difference) for _, difference in zip(range(8), differences(left, right), strict=False)]
    assert not found, "\n".join(found)


class BackendConformance:
    """What every backend must do. Inherit, name the backend, and run pytest.

    Attributes
    ----------
    backend
        The backend under test.
    suffix
        Ending of the stores made.
    options
        Options for `Backend.create`.
    lossless_samples
        Names of the samples that the format can hold (all of them for an archive format).
    keeps_capsule
        Whether the format keeps FITS reconstruction data.
    persistent
        Whether stores are files, which other processes see.
    """

    backend: ClassVar[Backend]
    suffix: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    lossless_samples: ClassVar[tuple[str, ...]] = tuple(SAMPLES)
    keeps_capsule: ClassVar[bool] = True
    persistent: ClassVar[bool] = True

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """Return where a test may make a store."""
        return str(tmp_path / f"store{self.suffix}")

    def make(self, path: str, source: Reader, **options: Any) -> Reader:
        """Return the store that ``source`` was written to, open."""
        options = {"capsule": source.capsule(), **self.options, **options}
        copy(source, self.backend.create(path, source.meta, **options))
        return self.backend.open(path)

    @pytest.mark.parametrize("name", list(SAMPLES))
    def test_round_trip(self, path: str, name: str) -> None:
        """Everything comes back bit for bit."""
        if name not in self.lossless_samples:
            pytest.skip(f"the format does not claim to hold {name}")
        source = sample(name)
        with self.make(path, source) as reader:
            assert_same(source, reader)

    @pytest.mark.parametrize("name", ["ragged", "chunked", "missing"])
    def test_boxes(self, path: str, name: str) -> None:
        """A box equals the same part of the padded array."""
        source = sample(name)
        rng = np.random.default_rng(5)
        with self.make(path, source) as reader:
            for layer in LAYERS:
                shape = source.meta.layer_shape(layer)
                planes = [source.image(i).layer(layer) for i in range(shape[0])]
                whole: Index = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
                expected = padded_box(source.meta, layer, whole, planes)
                for index in [whole, *_random_boxes(rng, shape, 6)]:
                    box = reader.read(layer, index)
                    assert box.flags.c_contiguous
                    assert box.dtype.isnative
                    assert same_bits(box, np.ascontiguousarray(expected[index])), (layer, index)
                    out = np.empty_like(box)
                    assert reader.read(layer, index, out) is out
                    assert same_bits(out, box)

    def test_layers_asked_for(self, path: str) -> None:
        """Only the layers asked for are read."""
        source = sample("simple")
        with self.make(path, source) as reader:
            image = reader.image(1, ("variance",))
            assert same_bits(image.variance, source.image(1).variance)
            assert image.science.shape == (0, 0)
            assert image.mask is None
            assert image.psf is None

    def test_images_in_order(self, path: str) -> None:
        """Images come in the order asked for, whatever the number of threads."""
        source = sample("chunked")
        with self.make(path, source) as reader:
            for workers in (1, 3, None):
                assert [i for i, _ in reader.images([2, 0, 1, 0], workers=workers)] == [2, 0, 1, 0]
            for i, image in reader.images([2, 0], workers=2):
                assert same_bits(image.science, source.image(i).science)

    def test_workers(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """``workers=1`` reads in the calling thread alone."""
        source = sample("chunked")
        self.make(path, source).close()
        with self.backend.open(path, workers=1) as reader, monkeypatch.context() as patch:
            patch.setattr(threads, "_pool", lambda _: pytest.fail("another thread"))
            for i, found in reader.images():
                assert same_bits(found.science, source.image(i).science)
            reader.read("science", (slice(0, 3), slice(0, 50), slice(0, 50)))

    def test_threads(self, path: str) -> None:
        """A reader may be used from several threads."""
        source = sample("chunked")
        with self.make(path, source) as reader, ThreadPoolExecutor(4) as pool:
            images = list(pool.map(reader.image, [0, 1, 2] * 4))
            assert all(same_bits(im.science, source.image(k % 3).science) for k, im in enumerate(images))

    def test_write_order_and_threads(self, path: str) -> None:
        """Images may be written in any order, from several threads."""
        source = sample("ragged")
        writer = self.backend.create(path, source.meta, **self.options)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda i: writer.write(i, source.image(i)), [3, 0, 2, 1]))
        writer.commit()
        with self.backend.open(path) as reader:
            assert_same(source, reader)

    def test_capsule(self, path: str) -> None:
        """FITS reconstruction data come back as they were."""
        if not self.keeps_capsule:
            pytest.skip("the format keeps no capsule")
        source = with_capsule(sample("ragged"))
        with self.make(path, source) as reader:
            capsule = reader.capsule()
            expected = source.capsule()
            assert capsule is not None
            assert expected is not None
            assert capsule.head == expected.head
            assert dict(capsule.document) == dict(expected.document)
            for i in range(4):
                assert (reader.image_capsule(i) or b"") == (source.image_capsule(i) or b"")

    def test_pickle(self, path: str) -> None:
        """A reader pickles by address."""
        source = sample("simple")
        with self.make(path, source) as reader:
            text = pickle.dumps(reader)
            assert len(text) < 10_000
            with pickle.loads(text) as other:
                assert_same(source, other)

    def test_nothing_before_commit(self, path: str) -> None:
        """The target appears at commit, not before; abort leaves nothing."""
        source = sample("simple")
        before = set(Path(path).parent.iterdir()) if self.persistent else set()
        writer = self.backend.create(path, source.meta, **self.options)
        writer.write(0, source.image(0))
        with pytest.raises(WuStoreError):
            self.backend.open(path)
        with pytest.raises(IncompleteError):
            writer.commit()
        writer.abort()
        writer.abort()
        with pytest.raises(StoreNotFoundError):
            self.backend.open(path)
        if self.persistent:
            assert set(Path(path).parent.iterdir()) == before

    def test_existing_target(self, path: str) -> None:
        """An existing store is refused, and replaced only when asked, when the new one is whole."""
        old, new = sample("simple"), sample("ragged")
        self.make(path, old).close()
        with pytest.raises(StoreExistsError) as caught:
            self.backend.create(path, new.meta, **self.options)
        assert caught.value.path is not None
        assert caught.value.hint
        writer = self.backend.create(path, new.meta, overwrite=True, **self.options)
        writer.write(0, new.image(0))
        with self.backend.open(path) as reader:
            assert_same(old, reader)
        writer.abort()
        with self.backend.open(path) as reader:
            assert_same(old, reader)
        with self.make(path, new, overwrite=True) as reader:
            assert_same(new, reader)

    @pytest.mark.parametrize("name", ["ragged", "dtypes", "missing"])
    def test_in_pieces(self, path: str, tmp_path: Path, name: str) -> None:
        """Several writers, some doing the same, make the store that one writer makes in one go."""
        if not self.backend.resumes(path):
            pytest.skip("the format is not written in pieces")
        options = {"overwrite": True, "workers": 1, **self.options}
        source = sample(name)
        images = range(source.meta.n_images)
        with self.make(path, source) as reader:
            files = [Path(place) for place in reader.places()]
        expected = {place: _content(place) for place in files}
        for k, order in enumerate([images[1:], images[:2], images]):
            writer = self.backend.resume(path, source.meta, fingerprint="f", **options)
            assert writer.unwritten(images) == ([*images], [0], [])[k]
            for i in order:
                writer.write(i, source.image(i))
            if k == 0:
                with pytest.raises(IncompleteError):
                    writer.commit()
            writer.abort()
        with pytest.raises(UsageError):
            self.backend.resume(path, source.meta, fingerprint="g", **options)
        writer = self.backend.resume(path, source.meta, fingerprint="f", **options)
        writer.commit()
        assert {place: _content(place) for place in files} == expected
        assert not list(tmp_path.glob(".*"))

    def test_nothing_there(self, path: str) -> None:
        """A missing store is our error, with its place."""
        with pytest.raises(StoreNotFoundError) as caught:
            self.backend.open(path)
        assert path in str(caught.value)

    def test_unknown_option(self, path: str) -> None:
        """An option nobody knows is an error, not ignored."""
        with pytest.raises(UsageError):
            self.backend.create(path, sample("simple").meta, no_such_option=1)

    def test_closed(self, path: str) -> None:
        """Reading after closing is an error, not whatever the file holds by then."""
        if not self.persistent:
            pytest.skip("stores of this format are no files")
        reader = self.make(path, sample("simple"))
        reader.close()
        with pytest.raises(UsageError):
            reader.image(0)

    def test_recognised(self, path: str) -> None:
        """The backend knows its own stores from their content."""
        self.make(path, sample("simple")).close()
        if Path(path).is_file():
            assert self.backend.recognises(Path(path).read_bytes()[:RECOGNISED])
        reader = self.backend.try_open(path)
        assert reader is not None
        reader.close()

    def test_not_a_store(self, path: str, tmp_path: Path) -> None:
        """A file of another format is not opened, and an error that says so if the format was named."""
        if not self.persistent:
            pytest.skip("stores of this format are no files")
        other = tmp_path / f"other{self.suffix}"
        other.write_bytes(b"nothing of the kind" * 100)
        assert self.backend.try_open(str(other)) is None
        with pytest.raises(OtherFormatError):
            self.backend.open(str(other))

    def test_checksums(self, path: str) -> None:
        """Checksums, if they are stored, are those of the planes."""
        from wustore.model.checksum import plane_checksum

        source = sample("missing")
        with self.make(path, source) as reader:
            sums = reader.checksums()
            if sums is None:
                return  # a format need not store them
            expected = [[plane_checksum(source.image(i).layer(layer)) for layer in LAYERS] for i in range(3)]
            assert sums.tolist() == expected


def _content(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files below a directory."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _random_boxes(rng: np.random.Generator, shape: tuple[int, int, int], n: int) -> Iterator[Index]:
    for _ in range(n):
        low = [int(rng.integers(0, size)) for size in shape]
        high = [int(rng.integers(a + 1, size + 1)) for a, size in zip(low, shape, strict=True)]
        yield slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])
