"""The HDF5 backend: conformance, exactness, counts of chunks, options."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from in_memory import in_memory

from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.memory import MemoryReader
from wustore.errors import FormatError, MissingDependencyError, UsageError
from wustore.format import tagged_json
from wustore.format.preset_names import LAYOUTS, PROFILES
from wustore.model.compare import same_bits
from wustore.model.meta import LAYERS, Capsule, Column, ConstituentTable, Image, Meta
from wustore.ops.copy import copy
from wustore.testing import BackendConformance, assert_same, sample, with_capsule


def save(path, source: MemoryReader, **options) -> str:
    copy(source, Hdf5Backend().create(str(path), source.meta, capsule=source.capsule(), **options))
    return str(path)


class TestHdf5(BackendConformance):
    backend = Hdf5Backend()
    suffix = ".h5"


class TestHdf5Fast(BackendConformance):
    backend = Hdf5Backend()
    suffix = ".h5"
    options: ClassVar = {"profile": "fast", "layout": "balanced"}


class TestHdf5None(BackendConformance):
    backend = Hdf5Backend()
    suffix = ".h5"
    options: ClassVar = {"profile": "none", "chunks": (100, 70)}


# --- exactness ----------------------------------------------------------------------------------------


def stack(images: list[Image], **fields) -> MemoryReader:
    n = len(images)
    meta = Meta(
        times=np.arange(float(n)),
        image_shape=np.array([image.science.shape for image in images], np.int32),
        psf_shape=np.array([(0, 0) if im.psf is None else im.psf.shape for im in images], np.int32),
        dtypes={
            name: tuple(None if im.layer(name) is None else im.layer(name).dtype for im in images) for name in LAYERS
        },
        links=fields.pop("links", None),
        constituents=fields.pop("constituents", ConstituentTable(n)),
        **fields,
    )
    return MemoryReader(meta, images)


FLOATS = st.sampled_from([np.dtype("f4"), np.dtype("f8")])
MASKS = st.sampled_from([np.dtype(code) for code in ("i1", "u1", "i2", "i4", "u4", "i8")])


@st.composite
def planes(draw, dtypes, shape):
    """Any bit pattern: NaN payloads, signalling NaNs, denormals, -0.0."""
    dtype = draw(dtypes)
    bits = draw(hnp.arrays(np.dtype(f"u{dtype.itemsize}"), shape, elements={"min_value": 0}))
    return bits.view(dtype)


@st.composite
def images(draw):
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    psf = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(lambda s: planes(FLOATS, s)))
    mask = draw(st.none() | planes(MASKS, shape))
    return Image(draw(planes(FLOATS, shape)), draw(planes(FLOATS, shape)), mask, psf)


@settings(max_examples=40)
@given(stack_=st.lists(images(), min_size=1, max_size=4), profile=st.sampled_from(PROFILES), side=st.integers(1, 5))
def test_any_bits_come_back(tmp_path, stack_, profile, side):
    source = stack(stack_)
    path = save(tmp_path / "any.h5", source, profile=profile, chunks=(side, 3), overwrite=True)
    with Hdf5Backend().open(path) as reader:
        assert_same(source, reader)


@settings(max_examples=60)
@given(texts=st.lists(st.text(st.characters()), min_size=1, max_size=5))
def test_any_text_comes_back(tmp_path, texts):
    """Zero characters and lone surrogates too, which HDF5 text cannot hold."""
    column = np.empty(len(texts), object)
    column[:] = texts
    image = Image(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))
    source = stack([image], constituents=ConstituentTable(len(texts), (Column("c", "json", column),)))
    source = replace_meta(source, configuration={"key": texts[0]}, wcs=texts[-1] or None)
    with Hdf5Backend().open(save(tmp_path / "text.h5", source, overwrite=True)) as reader:
        assert reader.meta.constituents.columns[0].values.tolist() == texts
        assert reader.meta.configuration == {"key": texts[0]}
        assert reader.meta.wcs == (texts[-1] or None)


def replace_meta(source: MemoryReader, **fields) -> MemoryReader:
    meta = replace(source.meta, **fields)
    return in_memory(source, meta=meta)


def test_plain_text_with_what_hdf5_cannot_hold(tmp_path):
    values = np.array(["a\0b", "\ud800", "é"])
    source = replace_meta(sample("simple"), constituents=ConstituentTable(3, (Column("c", "plain", values),)))
    with Hdf5Backend().open(save(tmp_path / "a.h5", source)) as reader:
        assert reader.meta.constituents.columns[0].values.tolist() == values.tolist()


def test_every_half_float_comes_back(tmp_path):
    """They are stored as float32, the smallest that netCDF knows: NaN payloads must survive that."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    table = ConstituentTable(len(halves), (Column("h", "plain", halves),))
    source = replace_meta(sample("simple"), constituents=table)
    with Hdf5Backend().open(save(tmp_path / "a.h5", source)) as reader:
        assert same_bits(reader.meta.constituents.columns[0].values, halves)


def test_large_document(tmp_path):
    """HDF5 limits what an object header holds to 64 kB; the document may be larger."""
    configuration = {f"parameter {k}": "x" * 1000 for k in range(2000)}
    source = replace_meta(sample("simple"), configuration=configuration)
    path = save(tmp_path / "a.h5", source)
    with Hdf5Backend().open(path) as reader:
        assert reader.meta.configuration == configuration
    with h5py.File(path) as file:
        assert json.loads(file.attrs["wustore"])["configuration"] == tagged_json.encode(configuration)


def test_large_capsule_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    pieces = [rng.bytes(700_000), b"", bytes(300_000)]
    source = sample("simple")
    source = MemoryReader(
        source.meta,
        [source.image(i) for i in range(3)],
        Capsule({"form": "x"}, rng.bytes(300_000)),
        pieces,
    )
    path = str(tmp_path / "a.h5")
    writer = Hdf5Backend().create(path, source.meta, capsule=source.capsule())
    for i in (2, 0, 1):
        writer.write(i, source.image(i), source.image_capsule(i))
    writer.commit()
    with Hdf5Backend().open(path) as reader:
        capsule = reader.capsule()
        assert capsule.head == source.capsule().head
        assert [reader.image_capsule(i) for i in range(3)] == pieces
        before = reader.chunks_read
        assert reader.image_capsule(2) == pieces[2]
        assert reader.chunks_read == before  # of layers
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("profile", PROFILES)
def test_library_reads_what_we_encode(tmp_path, profile):
    if profile == "fast":
        pytest.importorskip("hdf5plugin").register("blosc", force=True)
    source = sample("chunked")
    path = save(tmp_path / "a.h5", source, profile=profile)
    with h5py.File(path) as file:
        for i in range(3):
            for layer in LAYERS:
                plane = source.image(i).layer(layer)
                assert same_bits(np.ascontiguousarray(file[layer][i]), plane)
        assert file["science"].fletcher32


@pytest.mark.parametrize(
    "options", [{"shuffle": True, "compression": "gzip"}, {"compression": "lzf"}, {"chunks": None}]
)
def test_rewritten_by_another_tool(tmp_path, options):
    """Other filters, or none, are left to the library; values stay the same."""
    source = sample("chunked")
    path = save(tmp_path / "a.h5", source)
    with h5py.File(path, "r+") as file:
        for layer in ("science", "mask"):
            values, chunks = file[layer][()], file[layer].chunks
            del file[layer]
            file.create_dataset(layer, data=values, **{"chunks": chunks, **options})
    with Hdf5Backend().open(path) as reader:
        assert_same(source, reader)


def test_same_bytes_for_any_order_and_number_of_threads(tmp_path, monkeypatch):
    source = with_capsule(sample("rich"))
    paths = [save(tmp_path / f"{n}.h5", source, workers=n) for n in (1, 2, 5)]
    for limit in (1 << 26, 0):  # in memory, through the unnamed file
        monkeypatch.setattr("wustore.backends.hdf5.writer._EARLY_IN_MEMORY", limit)
        for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
            paths.append(str(tmp_path / f"{limit}-{order}.h5"))
            writer = Hdf5Backend().create(paths[-1], source.meta, capsule=source.capsule())
            for i in order:
                writer.write(i, source.image(i), source.image_capsule(i))
            writer.commit()
    assert len({Path(path).read_bytes() for path in paths}) == 1


def test_noise_is_not_made_larger(tmp_path):
    """A chunk that deflate would enlarge is stored without it, marked for every reader."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2**31, (64, 64)).astype(np.int32).view(np.float32)
    source = stack([Image(noise, noise)])
    path = save(tmp_path / "a.h5", source)
    with h5py.File(path) as file:
        info = file["science"].id.get_chunk_info(0)
        assert info.size <= noise.nbytes + 4
        assert same_bits(file["science"][0], noise)
    with Hdf5Backend().open(path) as reader:
        assert_same(source, reader)


# --- counts -------------------------------------------------------------------------------------------


def test_layouts_and_chunks(tmp_path):
    source = sample("chunked")
    sides = {}
    for layout in LAYOUTS:
        with Hdf5Backend().open(save(tmp_path / f"{layout}.h5", source, layout=layout)) as reader:
            assert_same(source, reader)
            sides[layout] = reader.chunks("science")
    assert sides["images"] > sides["balanced"] > sides["cutouts"]
    with Hdf5Backend().open(save(tmp_path / "a.h5", source, chunks=(1, 50, 5000))) as reader:
        assert reader.chunks("science") == (1, 50, 530)


# --- options and errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "no such"},
        {"layout": "no such"},
        {"chunks": (2, 5, 5)},
        {"chunks": (0, 5)},
        {"chunks": "55"},
        {"workers": 0},
        {"workers": "2"},
    ],
)
def test_bad_options(tmp_path, options):
    with pytest.raises(UsageError):
        Hdf5Backend().create(str(tmp_path / "a.h5"), sample("simple").meta, **options)
    assert not list(tmp_path.iterdir())


def test_plug_in_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hdf5plugin", None)
    with pytest.raises(MissingDependencyError, match="plugins"):
        Hdf5Backend().create(str(tmp_path / "a.h5"), sample("simple").meta, profile="fast")
    assert not list(tmp_path.iterdir())


def test_wrong_images_are_refused(tmp_path):
    source = sample("simple")
    writer = Hdf5Backend().create(str(tmp_path / "a.h5"), source.meta)
    writer.write(0, source.image(0))
    with pytest.raises(UsageError):
        writer.write(0, source.image(0))
    with pytest.raises(UsageError):
        writer.write(3, source.image(0))
    with pytest.raises(FormatError):
        writer.write(1, replace(source.image(1), mask=None))
    writer.abort()
    with pytest.raises(UsageError):
        writer.write(1, source.image(1))
    with pytest.raises(UsageError):
        writer.commit()


def test_use_after_close(tmp_path):
    reader = Hdf5Backend().open(save(tmp_path / "a.h5", sample("simple")))
    reader.close()
    reader.close()
    with pytest.raises(UsageError):
        reader.image(0)
    with pytest.raises(UsageError):
        reader.read("science", (slice(0, 1), slice(0, 1), slice(0, 1)))


def test_bad_boxes_and_images(tmp_path):
    with Hdf5Backend().open(save(tmp_path / "a.h5", sample("simple"))) as reader:
        for i in (-1, 3):
            with pytest.raises(UsageError):
                reader.image(i)
        for box in ((slice(0, 4), slice(0, 1), slice(0, 1)), (slice(-1, 1), slice(0, 1), slice(0, 1))):
            with pytest.raises(UsageError):
                reader.read("science", box)


def test_pickle_keeps_the_number_of_threads(tmp_path):
    with Hdf5Backend().open(save(tmp_path / "a.h5", sample("simple")), workers=1) as reader:
        other = pickle.loads(pickle.dumps(reader))
        assert_same(reader, other)
        other.close()


def test_foreign_file(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["science"] = np.zeros((2, 3, 4))
    assert Hdf5Backend().try_open(str(path)) is None
    with pytest.raises(FormatError, match="not a wustore store"):
        Hdf5Backend().open(str(path))
    with pytest.raises(FormatError, match="not an HDF5 file"):
        Hdf5Backend().open(str(tmp_path))


def test_user_block(tmp_path):
    """The signature may lie behind a user block; such a file is read through the library."""
    source = sample("chunked")
    path = save(tmp_path / "a.h5", source)
    with h5py.File(path) as file, h5py.File(tmp_path / "b.h5", "w", userblock_size=1024) as other:
        for name in file:
            file.copy(name, other)
        for name in ("wustore", "wustore_sha256", "Conventions"):
            other.attrs[name] = file.attrs[name]
    assert Hdf5Backend().recognises((tmp_path / "b.h5").read_bytes()[:4096])
    with Hdf5Backend().open(str(tmp_path / "b.h5")) as reader:
        assert_same(source, reader)


def test_what_we_write_is_not_foreign(tmp_path):
    for name in ("rich", "chunked", "bare"):
        path = str(tmp_path / f"{name}.h5")
        source = sample(name)
        copy(source, Hdf5Backend().create(path, source.meta))
        with Hdf5Backend().open(path) as reader:
            assert list(reader.foreign()) == [], name
