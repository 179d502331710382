"""The JSON Schemas say what a document and its arrays are, no more and no less."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import warnings
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, FormatError
from wustore.format import schema, tagged_json
from wustore.format.arrays import checksum_array
from wustore.format.document import arrays_of, document_of
from wustore.format.planes import layers_of
from wustore.format.version import OLDER, VERSION
from wustore.ops.copy import copy as copy_store
from wustore.testing import SAMPLES, sample, with_capsule


def wrong(listed):
    """What breaks the layout schema."""
    return list(jsonschema.Draft202012Validator(schema.load("layout")).iter_errors(listed))


def document(name):
    return json.loads(json.dumps(document_of(sample(name).meta), allow_nan=False))


def dtype_text(dtype):
    return "text" if dtype.hasobject else dtype.newbyteorder("<").str


def listing(meta):
    """The arrays of a store of ``meta`` as the layout schema lists them."""
    arrays = {
        spec.name: {"dims": list(spec.dims), "dtype": dtype_text(spec.dtype), "shape": list(spec.shape)}
        | {"attributes": dict(spec.attributes)}
        for spec in layers_of(meta)
    }
    for spec in [*arrays_of(meta), checksum_array(np.zeros((meta.n_images, 4), np.uint32))]:
        arrays[spec.name] = {
            "dims": list(spec.dims),
            "dtype": dtype_text(spec.data.dtype),
            "shape": list(spec.data.shape),
            "attributes": dict(spec.attributes),
        }
    return {"arrays": json.loads(json.dumps(arrays))}


@pytest.mark.parametrize("version", [VERSION, *OLDER])
@pytest.mark.parametrize("name", ["document", "layout"])
def test_schemas_are_valid(name, version):
    jsonschema.Draft202012Validator.check_schema(schema.load(name, version))


def test_schemas_of_released_versions_are_frozen():
    folder = Path(__file__).parents[2] / "schemas"
    ledger = json.loads((folder / "ledger.json").read_text())
    stored = {
        path.name: {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
        for path in folder.iterdir()
        if path.is_dir()
    }
    assert stored == ledger
    assert set(ledger) == {VERSION, *OLDER}


@pytest.mark.parametrize("name", list(SAMPLES))
def test_samples_follow_the_schemas(name):
    assert schema.violation(document(name)) is None
    assert not wrong(listing(sample(name).meta))


def test_every_key_written_is_described():
    described = schema.load("document")
    assert set(document("rich")) == set(described["required"]) <= set(described["properties"])


def zarr_listing(path):
    """The listing of a Zarr store, made with zarr-python alone."""
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # codecs outside the core
        root = zarr.open_group(str(path), mode="r")
        arrays = dict(root.members(max_depth=None))
    listed = {}
    for name, array in arrays.items():
        if isinstance(array, zarr.Array):
            text = array.metadata.to_dict()["data_type"] == "string"
            listed[name] = {
                "dims": list(array.metadata.dimension_names),
                "dtype": "text" if text else array.dtype.newbyteorder("<").str,
                "shape": list(array.shape),
                "attributes": dict(array.attrs),
            }
    return {"arrays": listed}, dict(root.attrs)["wustore"]


def hdf5_listing(path):
    """The listing of an HDF5 store, made with h5py alone."""
    import h5py

    listed = {}
    with h5py.File(path, "r") as file:
        document = json.loads(file.attrs["wustore"])

        def visit(name, node):
            if isinstance(node, h5py.Dataset) and not node.attrs.get("NAME", b"").startswith(b"This is a netCDF dim"):
                text = h5py.check_string_dtype(node.dtype) is not None
                dims = [dim[0].name.lstrip("/") if len(dim) else name for dim in node.dims]
                listed[name] = {
                    "dims": dims,
                    "dtype": "text" if text else node.dtype.newbyteorder("<").str,
                    "shape": list(node.shape),
                    "attributes": {key: plain(value) for key, value in node.attrs.items() if key not in SCALES},
                }

        file.visititems(visit)
    return {"arrays": listed}, document


SCALES = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "_Netcdf4Dimid", "_Netcdf4Coordinates"}


def plain(value):
    return value.decode() if isinstance(value, bytes) else value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("name", list(SAMPLES))
@pytest.mark.parametrize(("suffix", "list_store"), [("zarr", zarr_listing), ("h5", hdf5_listing)])
def test_stores_follow_the_schemas(name, suffix, list_store, tmp_path):
    """What other programs see in a store is what the schemas say, capsule included."""
    source = with_capsule(sample(name)) if name == "ragged" else sample(name)
    path = str(tmp_path / f"night.{suffix}")
    copy_store(source, backend_for_writing(path).create(path, source.meta, capsule=source.capsule()))
    listed, stored = list_store(path)
    assert schema.violation(stored) is None
    assert not wrong(listed)
    assert set(stored) <= set(schema.load("document")["properties"])
    expected = listing(source.meta)["arrays"]
    assert {key: value["dims"] for key, value in listed["arrays"].items() if key in expected} == {
        key: value["dims"] for key, value in expected.items()
    }


MUTATIONS = {
    "other format": lambda d: d.update(format="zarr"),
    "no version": lambda d: d.pop("version"),
    "version not semantic": lambda d: d.update(version="1"),
    "version of three parts": lambda d: d.update(version="1.0.0"),
    "version of another format": lambda d: d.update(version="2.0"),
    "no images": lambda d: d.update(n_images=0),
    "no variance layer": lambda d: d["layers"].pop("variance"),
    "unknown layer": lambda d: d["layers"].update(weight={"dtype": "<f4"}),
    "big-endian layer": lambda d: d["layers"]["science"].update(dtype=">f4"),
    "missing image below 0": lambda d: d["layers"]["mask"].update(missing=[-1]),
    "bare NaN as text": lambda d: d.update(barycentric_distance="nan"),
    "observatory of two numbers": lambda d: d["observatory"].update(geodetic=[1.0, 2.0]),
    "unknown tag": lambda d: d["configuration"].update(x={"$what": 1}),
    "tag with two keys": lambda d: d["configuration"].update(x={"$tuple": [], "y": 1}),
    "float tag with a number": lambda d: d["configuration"].update(x={"$float": 1}),
    "bytes that are not base64": lambda d: d["configuration"].update(x={"$bytes": "*"}),
    "pair of three": lambda d: d["configuration"].update(x={"$map": [[1, 2, 3]]}),
    "column without array": lambda d: d["constituents"]["columns"][0].pop("array"),
    "plain column without dtype": lambda d: d["constituents"]["columns"][0].pop("dtype"),
    "dtype on a wcs column": lambda d: d["constituents"]["columns"][1].update(dtype="<f4"),
    "unknown kind": lambda d: d["constituents"]["columns"][0].update(kind="pickle"),
    "array name with a slash": lambda d: d["constituents"]["columns"][0].update(array="a/b"),
    "flag as text": lambda d: d["mask_flags"].update(BAD="1"),
    "history not a list": lambda d: d.update(history={}),
    "a line feed after a dtype": lambda d: d["layers"]["science"].update(dtype="<f4\n"),
}


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_mutated_documents_do_not(name):
    mutated = copy.deepcopy(document("rich"))
    MUTATIONS[name](mutated)
    with pytest.raises(CorruptError) as caught:
        schema.check(mutated)
    assert caught.value.where.startswith("$")
    with pytest.raises(FormatError, match="does not hold"):
        schema.check(mutated, written=True)


LAYOUT_MUTATIONS = {
    "no time": lambda a: a.pop("time"),
    "time in seconds": lambda a: a["time"]["attributes"].update(units="s"),
    "axes swapped": lambda a: a["science"].update(dims=["time", "x", "y"]),
    "sizes as int64": lambda a: a["image_shape"].update(dtype="<i8"),
    "_FillValue attribute": lambda a: a["science"]["attributes"].update(_FillValue=0),
    "half of the links": lambda a: a.pop("link_start"),
    "meanings without masks": lambda a: a["mask"]["attributes"].pop("flag_masks"),
    "unknown array": lambda a: a.update(weight=a["science"]),
    "fixed-width text": lambda a: a["constituents/data_loc"].update(dtype="<U15"),
}


@pytest.mark.parametrize("name", list(LAYOUT_MUTATIONS))
def test_mutated_listings_do_not(name):
    listed = listing(sample("rich").meta)
    LAYOUT_MUTATIONS[name](listed["arrays"])
    assert wrong(listed)


def test_every_tag_of_json_is_described():
    text = json.dumps(schema.load("document"))
    tags = set(tagged_json._DECODERS)
    assert tags == {tag for tag in tags if f'"{tag}"' in text}


def test_an_appended_store_follows_the_schemas(tmp_path):
    from wustore.cli import main

    paths = [str(tmp_path / f"{name}.zarr") for name in ("night", "late")]
    for path in paths:
        source = sample("simple")
        copy_store(source, backend_for_writing(path).create(path, source.meta))
    for _ in range(2):
        assert main(["append", *paths, "--duplicates"]) == 0
        listed, stored = zarr_listing(paths[0])
        assert schema.violation(stored) is None
        assert not wrong(listed)
        assert set(stored) <= set(schema.load("document")["properties"])
        assert main(["verify", paths[0]]) == 0
    assert stored["generation"] == 2
    assert stored["n_images"] == 9


def test_newer_keys_are_allowed():
    later = document("rich") | {"later": {"any": 1}}
    later["layers"]["science"]["later"] = later["constituents"]["columns"][0]["later"] = 1
    assert schema.violation(later) is None


ODD = [None, True, -1, 0, 1.5, 10**400, "", "x", "\ud800", [], [1], {}, {"$tuple": [1]}, {"$what": 1}, {"a": {"b": []}}]


def places(value, place=()):
    """The place of everything in a document."""
    yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def test_the_validator_agrees_with_jsonschema():
    """One value of the document is replaced, removed or added to."""
    reference = jsonschema.Draft202012Validator(schema.load("document"))
    rng = random.Random(12)
    everywhere = [place for place in places(document("rich")) if place]
    counts = Counter()
    for _ in range(400):
        mutated = document("rich")
        *above, last = rng.choice(everywhere)
        parent = mutated
        for key in above:
            parent = parent[key]
        if rng.random() < 0.2:
            del parent[last]
        elif rng.random() < 0.2 and isinstance(parent, dict):
            parent["later"] = rng.choice(ODD)
        else:
            parent[last] = rng.choice(ODD)
        valid = schema.violation(mutated) is None
        assert valid == reference.is_valid(mutated), (
            above,
            last,
            parent.get(last) if isinstance(parent, dict) else parent,
        )
        counts[valid] += 1
    assert min(counts[True], counts[False]) > 50


def test_every_keyword_of_the_schema_is_known():
    with pytest.raises(AttributeError, match="multipleOf"):
        schema._Compiler({}).rule({"multipleOf": 2})


def test_depth():
    value = 1
    for _ in range(tagged_json.DEEPEST):
        value = [value]
    deepest = document("rich")
    deepest["configuration"]["x"] = tagged_json.encode(value)
    deepest["constituents"]["columns"][0]["meta"] = {"x": value[0]}
    assert schema.violation(deepest) is None
    for _ in range(20):
        value = [value]
    deepest["configuration"]["x"] = value
    assert "deep" in schema.violation(deepest).what
    with pytest.raises(FormatError, match="deep"):
        tagged_json.encode(value)
    with pytest.raises(CorruptError, match="deep"):
        tagged_json.decode(value)
