"""Read a store with zarr-python or h5py, and numpy: everything but the FITS reconstruction data (docs/spec.md)."""

import base64
import datetime
import json
import struct
import warnings

import h5py
import hdf5plugin  # noqa: F401 - profile `fast` in HDF5
import numpy as np
import zarr


def open_zarr(path):
    warnings.simplefilter("ignore")  # zarr warns of codecs and data types outside its core
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r") if path.endswith(".zip") else path, mode="r")
    return group.attrs["wustore"], lambda name, index=...: np.asarray(group[name][index])


def open_hdf5(path):
    file = h5py.File(path, "r")

    def array(name, index=...):
        dataset = file[name]
        if h5py.check_string_dtype(dataset.dtype) is None:
            return dataset[index]
        plain = json.loads if "wustore_escaped" in dataset.attrs else str
        return np.array([plain(text.decode()) for text in dataset[()].ravel()], object).reshape(dataset.shape)

    return json.loads(file.attrs["wustore"]), array


TAGS = {
    "$float": lambda text: struct.unpack(">d", bytes.fromhex(text[2:]))[0] if text[:2] == "0x" else float(text),
    "$bytes": base64.b64decode,
    "$tuple": lambda items: tuple(map(decode, items)),
    "$set": lambda items: set(map(decode, items)),
    "$complex": lambda parts: complex(*map(decode, parts)),
    "$date": datetime.date.fromisoformat,
    "$datetime": datetime.datetime.fromisoformat,
    "$numpy": lambda parts: np.frombuffer(base64.b64decode(parts[1]), parts[0])[0],
    "$ndarray": lambda parts: np.frombuffer(base64.b64decode(parts[2]), parts[0]).reshape(parts[1]),
    "$yaml": str,
    "$map": lambda pairs: {decode(key): decode(value) for key, value in pairs},
}


def decode(value):
    if isinstance(value, dict):
        first = next(iter(value), "")
        return TAGS[first](value[first]) if first[:1] == "$" else {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value


def column(entry, array):
    stored = array(f"constituents/{entry['array']}")
    if entry["kind"] != "plain":
        cell = {"wcs": lambda text: text or None, "json": lambda text: decode(json.loads(text))}[entry["kind"]]
        return np.fromiter(map(cell, stored), object, len(stored))
    dtype, stored = np.dtype(entry["dtype"]), np.ascontiguousarray(stored)
    if entry["encoding"] == "bytes":
        return stored.view(f"S{stored.shape[-1]}")[..., 0].astype(dtype)
    stored = stored.view(dtype) if entry["encoding"] in {"complex", "ticks"} else stored.astype(dtype)
    return stored[..., 0] if entry["encoding"] == "complex" else stored


@np.errstate(invalid="ignore")
def cast(plane, dtype):
    cast, nan = plane.astype(dtype), np.isnan(plane)
    if plane.dtype == "f8" and cast.dtype == "f4":
        bits = plane[nan].view("u8")  # sign, all ones, and the upper bits of the payload
        cast[nan] = (bits >> 32 & 0x80000000 | 0x7F800000 | bits >> 29 & 0x7FFFFF).astype("u4").view("f4")
    return cast


def read(path):
    document, array = (open_hdf5 if path.endswith(".h5") else open_zarr)(path)
    assert document["format"] == "wustore" and document["version"].split(".")[0] == "1"  # noqa: PT018
    planes = [{} for _ in range(document["n_images"])]
    for name, layer in document["layers"].items():
        sizes = array("psf_shape" if name == "psf" else "image_shape")
        for i in set(range(document["n_images"])) - set(layer.get("missing", [])):
            plane = array(name, (i, slice(sizes[i, 0]), slice(sizes[i, 1])))
            planes[i][name] = cast(plane, layer.get("dtypes", {i: layer["dtype"]})[i])
    entries = document["constituents"]["columns"]
    plain = {key: decode(document[key]) for key in ("configuration", "barycentric_distance", "observatory")}
    return (
        document
        | plain
        | {
            "planes": planes,
            "times": array("time"),
            "links": document["has_links"] and np.split(array("link_index"), array("link_start")[1:-1]),
            "columns": {entry["name"]: column(entry, array) for entry in entries},
            "masks": {e["name"]: array(f"constituents/{e['array']}__mask") > 0 for e in entries if "masked" in e},
            "table": decode(document["constituents"]["meta"]),
        }
    )
