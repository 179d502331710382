"""The structure of a store: documents, keys, rows, and what follows from options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wustore.backends.zarr import shards
from wustore.backends.zarr.codecs import Hints
from wustore.backends.zarr.encoder import Structure
from wustore.backends.zarr.metadata import BINDING, PACKED_CHECKSUM, document_checksum, packed_checksum
from wustore.backends.zarr.presets import grid_for
from wustore.backends.zarr.shards import binding_of, encode_block, joined_blocks, parse_grid
from wustore.format.packed import PACKED, unpack
from wustore.format.planes import plane_checksums
from wustore.model.checksum import crc32c
from wustore.model.meta import LAYERS
from wustore.testing import sample


def structure(name: str = "simple", **options: object) -> Structure:
    return Structure(sample(name).meta, **{"profile": "portable", "layout": "images", **options})


def rows(of: Structure, name: str = "simple") -> np.ndarray:
    source = sample(name)
    return np.array([of.encode(i, source.image(i))[1] for i in range(source.meta.n_images)], np.uint32)


def test_a_row_has_checksums_and_bindings() -> None:
    image, made = sample("simple").image(1), structure()
    shards, row = made.encode(1, image)
    assert list(shards) == [f"{layer}/c.1.0.0" for layer in LAYERS]
    assert row[:4] == tuple(plane_checksums(image))
    for layer, value in zip(made.layers, shards.values(), strict=True):
        grid = parse_grid(made.layer_metadata(layer), layer.dtype)
        assert grid is not None
        assert row[4 + LAYERS.index(layer.name)] == binding_of(value) != 0
        stored = b"".join(value)
        table = stored[-grid.table_size - grid.index_size : -grid.index_size]
        assert binding_of(value) == crc32c(table + stored[-4:])


def test_the_same_whoever_asks() -> None:
    image = sample("chunked").image(0)
    one, many = (structure("chunked").encode(0, image, workers) for workers in (1, 4))
    assert one == many


def test_an_image_without_a_layer_has_a_shard_of_padding() -> None:
    source, made = sample("missing"), structure("missing")
    shards, row = made.encode(1, source.image(1))
    empty, _ = made.encode(1, replace(source.image(0), mask=np.zeros_like(source.image(0).mask)))
    assert shards["mask/c.1.0.0"] == empty["mask/c.1.0.0"]
    assert row[LAYERS.index("mask")] == 0
    assert row[4 + LAYERS.index("mask")] != 0


def test_a_layer_that_no_image_has_has_no_shard() -> None:
    made = structure("bare")
    shards, row = made.encode(0, sample("bare").image(0))
    assert list(shards) == ["science/c.0.0.0", "variance/c.0.0.0"]
    assert [bool(value) for value in row[4:]] == [True, True, False, False]
    assert not {"mask", "psf"} & made.nodes(made.arrays(rows(made, "bare")), {}).keys()


@pytest.mark.parametrize("bound", [True, False])
def test_what_binds_is_in_packed_and_the_document(bound: bool) -> None:
    made = structure(bound=bound)
    small = made.arrays(rows(made))
    packed = unpack(small[-1].data)
    document = made.document(None, small[-1])
    assert small[-1].name == PACKED
    assert (BINDING in packed, "checksum" in packed, PACKED_CHECKSUM in document) == (bound, bound, bound)
    if bound:
        assert document[PACKED_CHECKSUM] == packed_checksum(small[-1].data)
        assert packed[BINDING].tolist() == rows(made)[:, 4:].tolist()
    assert BINDING not in {spec.name for spec in small}
    assert document["crc32c"] == document_checksum(document)


@pytest.mark.parametrize("generation", [0, 3])
def test_the_document_says_how_it_was_written(generation: int) -> None:
    document = structure(generation=generation, chunks=(5, 7)).document({"form": "sample"})
    assert document.get("generation", 0) == generation
    assert ("generation" in document) == bool(generation)
    assert document["storage"] == {"profile": "portable", "layout": [5, 7]}
    assert document["capsule"] == {"form": "sample"}
    assert structure().document(None)["storage"]["layout"] == "images"


def test_nodes() -> None:
    """Every group above an array has a document; the root lists all nodes in order."""
    made = structure("rich", separators=("/", "."))
    small = made.arrays(rows(made, "rich"))
    nodes = made.nodes(small, {"fits/data": {"node_type": "array"}})
    groups = {name for name, node in nodes.items() if node["node_type"] == "group"}
    assert groups == {"constituents", "fits"}
    listed = made.root({}, nodes)["consolidated_metadata"]["metadata"]
    assert list(listed) == sorted(nodes)
    separators = {
        name: node["chunk_key_encoding"]["configuration"]["separator"]
        for name, node in nodes.items()
        if name in LAYERS or name == "time"
    }
    assert separators == dict.fromkeys(LAYERS, "/") | {"time": "."}
    key, chunk = made.small_chunk(small[0])
    assert key == f"{small[0].name}/c" + ".0" * small[0].data.ndim
    assert chunk


def test_planes_are_cast_to_the_dtype_of_the_array() -> None:
    source = sample("dtypes")
    made = structure("dtypes")
    image = replace(source.image(1), science=np.arange(143, dtype=np.float32).reshape(11, 13))
    assert image.science.dtype != made.layers[0].dtype == np.dtype("f8")
    wide = replace(image, science=image.science.astype("f8"))
    assert made.encode(1, image)[0]["science/c.1.0.0"] == made.encode(1, wide)[0]["science/c.1.0.0"]


@pytest.mark.parametrize("together", [1, 2, 8, 1 << 21])
@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (7, 30), (8, 24), (20, 23), (24, 30), (17, 8), (16, 0)])
@pytest.mark.parametrize("profile", ["compact", "portable", "fast", "none"])
def test_chunks_of_a_block_are_encoded_as_each_by_itself(
    profile: str, shape: tuple[int, int], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planes that are smaller than their shard, and whose rows are not contiguous."""
    grid = grid_for("science", (24, 30), np.dtype(np.float32), profile=profile, chunks=(8, 8))
    assert grid.counts == (3, 4)
    monkeypatch.setattr(shards, "_ENCODED_BYTES", together * grid.chunk_bytes)
    noise = np.random.default_rng(5).normal(0, 5, (48, 60)).astype(np.float32)
    plane = noise[::2, ::2][: shape[0], : shape[1]]
    padded = np.full(grid.shape, -1, np.float32)
    padded[: shape[0], : shape[1]] = plane
    compress = grid.chain.compressor(Hints())
    chunks = []
    for k in range(grid.n_chunks):
        y, x = k // 4 * 8, k % 4 * 8
        chunks.append(bytes(compress(np.ascontiguousarray(padded[y : y + 8, x : x + 8]).reshape(-1))))
    sums = [crc32c(chunk).to_bytes(4, "little") for chunk in chunks]
    encoded = [encode_block(plane, grid, -1, Hints(), block) for block in grid.blocks]
    pieces = joined_blocks(grid, encoded)
    assert b"".join(pieces[:-2]) == b"".join(a + b for a, b in zip(chunks, sums, strict=True))
    assert pieces[-2] == b"".join(sums)
    index = np.frombuffer(pieces[-1][:-4], "<u8").reshape(-1, 2)
    stored = b"".join(pieces)
    found = [stored[start : start + size] for start, size in index.tolist()]
    assert found == [a + b for a, b in zip(chunks, sums, strict=True)]
    assert pieces[-1][-4:] == crc32c(pieces[-1][:-4]).to_bytes(4, "little")
    assert joined_blocks(grid, encoded, bound=False) == [*pieces[:-2], b"", pieces[-1]]
