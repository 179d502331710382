"""Every bit pattern survives every profile; the bytes do not depend on who writes; zarr-python reads the same."""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digests import digest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from unbound import unbind

from wustore.backends.memory import MemoryReader
from wustore.backends.zarr import reader as reader_module
from wustore.backends.zarr.backend import ZarrBackend, ZarrZipBackend
from wustore.backends.zarr.codecs import Hints
from wustore.backends.zarr.presets import grid_for, hints_for
from wustore.backends.zarr.shards import Box, ShardedLayer, encode_block, joined_blocks
from wustore.errors import CorruptError, UsageError
from wustore.format.preset_names import LAYOUTS, PROFILES
from wustore.model.compare import same_bits
from wustore.model.meta import LAYERS, ConstituentTable, Image, Meta
from wustore.ops.copy import copy
from wustore.storage.zarr_store import DirectoryKeys
from wustore.testing import assert_same, sample, with_capsule

FLOATS = ("<f2", "<f4", "<f8")
INTEGERS = ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8")


def reader_of(planes: list[NDArray[Any]], mask: NDArray[Any] | None = None) -> MemoryReader:
    """Return a WorkUnit whose science and variance are ``planes``."""
    n = len(planes)
    images = [Image(plane, plane[::-1].copy(), mask, np.ones((1, 1))) for plane in planes]
    dtypes = {
        "science": tuple(plane.dtype for plane in planes),
        "variance": tuple(plane.dtype for plane in planes),
        "mask": (None if mask is None else mask.dtype,) * n,
        "psf": (np.dtype("f8"),) * n,
    }
    shapes = np.array([plane.shape for plane in planes], np.int32)
    links = tuple((i,) for i in range(n))
    return MemoryReader(
        Meta(60000.0 + np.arange(n), shapes, np.ones((n, 2), np.int32), dtypes, links, ConstituentTable(n)), images
    )


def through_a_shard(
    tmp_path: Path, plane: NDArray[Any], profile: str, layer: str, chunks: tuple[int, int], hints: Hints | None = None
) -> NDArray[Any]:
    """Return ``plane`` after a shard was written and read."""
    grid = grid_for(layer, plane.shape, plane.dtype, profile=profile, chunks=chunks)
    fill = float("nan") if plane.dtype.kind == "f" else 0
    keys = DirectoryKeys(tmp_path)
    hints = hints_for(plane) if hints is None else hints
    encoded = [encode_block(plane, grid, fill, hints, block) for block in grid.blocks]
    keys.set_pieces("a/c.0.0.0", joined_blocks(grid, encoded))
    out = np.empty_like(plane)
    ShardedLayer(keys, "a", grid, ".").fill(0, [Box((0, plane.shape[0]), (0, plane.shape[1]), out)])
    return out


def adversarial(dtype: str) -> list[NDArray[Any]]:
    """Return planes made to break codecs that look for structure in floats."""
    kind = np.dtype(dtype)
    unsigned = np.dtype(f"u{kind.itemsize}")
    bits = 8 * kind.itemsize
    rng = np.random.default_rng(5)
    shape = (40, 50)
    random_bits = rng.integers(0, np.iinfo(unsigned).max, shape, dtype=unsigned, endpoint=True).view(kind)
    quantised = (np.rint(rng.normal(0, 500, shape)) * 0.01).astype(kind)
    exponent = ((1 << (bits - 1 - np.finfo(kind).nmant)) - 1) << np.finfo(kind).nmant
    payloads = (np.uint64(exponent) | rng.integers(1, 1 << np.finfo(kind).nmant, shape, dtype=np.uint64)).astype(
        unsigned
    )
    signs = (rng.integers(0, 2, shape, dtype=np.uint64) << np.uint64(bits - 1)).astype(unsigned)
    nans = (payloads | signs).view(kind)
    mixed = quantised.copy()
    where = rng.random(shape) < 0.3
    mixed[where] = nans[where]
    zeros = np.where(rng.random(shape) < 0.5, kind.type(0.0), kind.type(-0.0))
    specials = rng.choice(np.array([np.inf, -np.inf, 0.0, -0.0, 0.01, -0.01, 1.0], kind), shape)
    tiny = rng.integers(1, 200, shape, dtype=np.uint64).astype(unsigned).view(kind)
    huge = (np.finfo(kind).max * rng.choice(np.array([1.0, -1.0, 0.5], kind), shape)).astype(kind)
    nearly = np.nextafter(quantised, kind.type(np.inf))
    return [random_bits, quantised, nans, mixed, zeros, specials, tiny, huge, nearly, np.full(shape, kind.type(0.07))]


ALL_HINTS = [
    Hints(mode, base, order)
    for (mode, base), order in itertools.product((("auto", 1.0), ("classic", 1.0), ("multiples", 0.01)), (0, 1, 2))
]


class TestEveryBit:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("hints", [None, *ALL_HINTS], ids=str)
    def test_adversarial_floats(self, tmp_path: Path, dtype: str, hints: Hints | None) -> None:
        """NaN payloads, -0.0, infinities and denormals, under every hint pcodec may be given."""
        for k, plane in enumerate(adversarial(dtype)):
            back = through_a_shard(tmp_path, plane, "compact", "science", (16, 16), hints)
            assert same_bits(back, plane), (k, hints)

    @pytest.mark.parametrize("profile", PROFILES)
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_profiles(self, tmp_path: Path, profile: str, dtype: str) -> None:
        for plane, layer in itertools.product(adversarial(dtype), ("science", "variance", "psf")):
            assert same_bits(through_a_shard(tmp_path, plane, profile, layer, (16, 32)), plane)

    @pytest.mark.parametrize("profile", PROFILES)
    @pytest.mark.parametrize("dtype", INTEGERS)
    def test_integers(self, tmp_path: Path, profile: str, dtype: str) -> None:
        info = np.iinfo(np.dtype(dtype))
        plane = np.random.default_rng(1).integers(info.min, info.max, (30, 40), np.dtype(dtype), endpoint=True)
        for layer in ("mask", "science"):
            assert same_bits(through_a_shard(tmp_path, plane, profile, layer, (16, 32)), plane)

    @settings(max_examples=60)
    @given(
        bits=hnp.arrays(np.uint32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)),
        chunks=st.tuples(st.integers(1, 30), st.integers(1, 30)),
        profile=st.sampled_from(PROFILES),
        hints=st.sampled_from(ALL_HINTS),
    )
    def test_any_bits(
        self, tmp_path: Path, bits: NDArray[np.uint32], chunks: tuple[int, int], profile: str, hints: Hints
    ) -> None:
        plane = bits.view(np.float32)
        assert same_bits(through_a_shard(tmp_path, plane, profile, "science", chunks, hints), plane)

    def test_hints_follow_the_data(self) -> None:
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 5, (256, 256))
        assert hints_for(noise.astype("f4")) == Hints("classic", level=5)
        assert hints_for((np.rint(noise * 100) * 0.01).astype("f4")) == Hints("multiples", 0.01)
        assert hints_for((np.rint(noise * 10) * 0.1234).astype("f4")) == Hints("auto")
        slope = np.add.outer(np.zeros(256), 25 + 0.3 * np.arange(256) / 7)
        assert hints_for(slope.astype("f8")).order >= 1
        assert hints_for(np.full((3, 3), np.nan, "f4")) == Hints()


class TestDeterminism:
    @pytest.mark.parametrize("backend", [ZarrBackend(), ZarrZipBackend()], ids=["zarr", "zip"])
    def test_same_bytes_whoever_writes(self, tmp_path: Path, backend: ZarrBackend) -> None:
        """Neither the number of workers nor the order of images changes a byte."""
        source = with_capsule(sample("ragged"))
        digests = []
        for k, (workers, order) in enumerate(((1, [0, 1, 2, 3]), (3, [3, 1, 0, 2]), (2, [2, 3, 1, 0]))):
            path = tmp_path / f"{k}"
            writer = backend.create(str(path), source.meta, capsule=source.capsule(), workers=workers)
            for i in order:
                writer.write(i, source.image(i), source.image_capsule(i))
            writer.commit()
            digests.append(digest(path))
        assert digests[0] == digests[1] == digests[2]

    def test_layouts_give_equal_values(self, tmp_path: Path) -> None:
        source = reader_of(adversarial("<f4")[:3])
        cuts = set()
        for layout, profile in itertools.product(LAYOUTS, PROFILES):
            path = str(tmp_path / f"{layout}-{profile}.zarr")
            copy(source, ZarrBackend().create(path, source.meta, layout=layout, profile=profile))
            with ZarrBackend().open(path) as reader:
                assert_same(source, reader)
                cuts.add(reader.chunks("science"))
                assert reader.describe()["profile"] == profile
        assert cuts

    def test_presets_differ(self) -> None:
        shapes = {name: grid_for("science", (2048, 4096), np.dtype("f4"), layout=name).chunk for name in LAYOUTS}
        assert shapes == {"images": (256, 256), "balanced": (128, 128), "cutouts": (64, 64)}
        odd = grid_for("science", (2046, 4094), np.dtype("f4"))
        assert odd.chunk == (256, 256)
        assert odd.counts == (8, 16)

    @pytest.mark.parametrize(
        "options", [{"profile": "tiny"}, {"layout": "odd"}, {"chunks": (0, 4)}, {"chunks": (4,)}, {"level": 3}]
    )
    def test_wrong_options(self, tmp_path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            ZarrBackend().create(str(tmp_path / "x.zarr"), sample("simple").meta, **options)
        assert not list(tmp_path.iterdir())


class TestPipelines:
    """Our reader and zarr-python give equal bits, both ways."""

    @pytest.mark.parametrize("profile", PROFILES)
    def test_zarr_python_reads_ours(self, tmp_path: Path, profile: str) -> None:
        import zarr

        mask = (np.random.default_rng(2).random((40, 50)) < 0.1).astype(np.int8)
        source = reader_of(adversarial("<f4"), mask)
        path = str(tmp_path / "x.zarr")
        copy(source, ZarrBackend().create(path, source.meta, profile=profile, chunks=(16, 16)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(path, mode="r")
            with ZarrBackend().open(path) as reader:
                for layer in LAYERS:
                    whole = tuple(slice(0, size) for size in reader.meta.layer_shape(layer))
                    theirs = np.asarray(group[layer][:])  # type: ignore[index]
                    assert same_bits(np.ascontiguousarray(theirs), reader.read(layer, whole)), layer

    def test_zarr_python_writes_the_same_chunks(self, tmp_path: Path) -> None:
        """A layer that zarr-python wrote anew, with its own pipeline, reads the same through ours."""
        import zarr

        source = reader_of(adversarial("<f4"))
        path = str(tmp_path / "x.zarr")
        copy(source, ZarrBackend().create(path, source.meta, chunks=(16, 16)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zarr.config.set({"array.write_empty_chunks": True}):
                array = zarr.open_array(path, path="science", mode="r+")
                array[:] = np.asarray(array[:])
        with ZarrBackend().open(path) as reader, pytest.raises(CorruptError, match="does not belong here"):
            reader.image(0)
        unbind(path)
        with ZarrBackend().open(path) as reader:
            assert_same(source, reader)
            assert reader.counters["science"] > 0, "the shards were not read by our own reader"

    def test_unknown_codecs_are_left_to_zarr_python(self, tmp_path: Path) -> None:
        import zarr

        source = reader_of(adversarial("<f4")[:4])
        path = str(tmp_path / "x.zarr")
        copy(source, ZarrBackend().create(path, source.meta, profile="none"))
        group = zarr.open_group(path, mode="r+", use_consolidated=False)
        values = np.asarray(group["science"][:])  # type: ignore[index]
        group.create_array(
            "science",
            shape=values.shape,
            dtype="f4",
            chunks=(2, 20, 30),
            compressors=[zarr.codecs.GzipCodec(level=1)],
            fill_value=np.nan,
            overwrite=True,
            config={"write_empty_chunks": True},
        )[:] = values
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(path)
        with ZarrBackend().open(path) as reader:
            assert_same(source, reader)
            assert reader.counters["science"] == 0
            box = (slice(1, 3), slice(5, 25), slice(3, 33))
            assert same_bits(reader.read_boxes("science", [box, box])[1], np.ascontiguousarray(values[box]))


class TestCounts:
    """Reading touches the chunks it must, each once."""

    def store(self, tmp_path: Path) -> str:
        rng = np.random.default_rng(8)
        source = reader_of([rng.normal(0, 5, (100, 120)).astype("f4") for _ in range(4)], np.zeros((100, 120), "i1"))
        path = str(tmp_path / "x.zarr")
        copy(source, ZarrBackend().create(path, source.meta, chunks=(32, 32)))
        return path

    def test_opening_reads_no_chunk(self, tmp_path: Path) -> None:
        with ZarrBackend().open(self.store(tmp_path)) as reader:
            assert reader.meta.n_images == 4
            reader.chunks("science")
            assert not +reader.counters

    def test_one_image(self, tmp_path: Path) -> None:
        with ZarrBackend().open(self.store(tmp_path)) as reader:
            reader.image(2, ("science",))
            assert reader.counters == {"science": 16, "shards": 1}

    @pytest.mark.parametrize("workers", [1, 2, 5])
    def test_boxes(self, tmp_path: Path, workers: int) -> None:
        path = self.store(tmp_path)
        with ZarrBackend().open(path, workers=workers) as reader:
            reader.read("science", (slice(0, 4), slice(30, 34), slice(40, 61)))
            assert reader.counters == {"science": 4 * 2 * 1, "shards": 4}
        with ZarrBackend().open(path, workers=workers) as reader:
            whole = reader.read("science", (slice(0, 4), slice(0, 100), slice(0, 120)))
        with ZarrBackend().open(path, workers=workers) as reader:
            boxes = [(slice(0, 4), slice(k, k + 11), slice(k, k + 11)) for k in range(0, 60, 3)]
            boxes += [(slice(1, 2), slice(0, 0), slice(3, 9)), (slice(3, 4), slice(99, 100), slice(0, 120))]
            read = reader.read_boxes("science", boxes)
            touched = {
                (t, y // 32, x // 32)
                for times, rows, columns in boxes
                for t, y, x in itertools.product(*(range(s.start, s.stop) for s in (times, rows, columns)))
            }
            assert reader.counters == {"science": len(touched), "shards": 4}
        for box, array in zip(boxes, read, strict=True):
            assert same_bits(array, np.ascontiguousarray(whole[box]))


@pytest.mark.parametrize(
    ("workers", "has_numba", "asked"), [(1, False, []), (2, False, []), (2, True, [3]), (8, False, [3])]
)
def test_loops_are_imported_before_many_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, has_numba: bool, asked: list[int]
) -> None:
    """By one thread, ahead: importing numba is worth it for more than two threads, or if it is there."""
    path = str(tmp_path / "w.zarr")
    copy(sample("simple"), ZarrBackend().create(path, sample("simple").meta))
    sizes: list[int] = []
    monkeypatch.setattr(reader_module, "prepare", sizes.append)
    monkeypatch.setattr(reader_module, "worth", lambda workers, work: workers)
    if has_numba:
        monkeypatch.setitem(sys.modules, "numba", sys)
    else:
        monkeypatch.delitem(sys.modules, "numba", raising=False)
    with ZarrBackend().open(path, workers=workers) as reader:
        pixels = sum(spec.shape[1] * spec.shape[2] * spec.dtype.itemsize for spec in reader._specs.values())
        assert reader.images_at_once(3) == workers
        assert sizes == [n * pixels for n in asked]
        assert len(list(reader.images(workers=1))) == 3
    assert sizes == [n * pixels for n in asked * 2], "also if the number of threads is given"
