"""How a WorkUnit is laid out in named arrays and one root document: the format, without the container.

The Zarr and HDF5 backends store what this module gives them under the same names, and FITS carries the
same document if its own layout cannot hold a value. Rules: docs/spec.md; shape of the document:
schemas/1.0/document.schema.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError, WuStoreError, located
from wustore.format import schema, tagged_json
from wustore.format.additions import additions_of, restore_additions
from wustore.format.arrays import ArraySpec
from wustore.format.columns import column_from, table_parts
from wustore.format.version import FORMAT, VERSION, check_version
from wustore.model.meta import LAYERS, ConstituentTable, Meta, Observatory

__all__ = [
    "CONVENTIONS",
    "NAMES",
    "arrays_of",
    "document_of",
    "meta_from",
]

CONVENTIONS = "CF-1.12"
NAMES = frozenset(
    (
        *LAYERS,
        "time",
        "image_shape",
        "psf_shape",
        "link_start",
        "link_index",
        "checksum",
        "packed",
        "constituents",
        "fits",
    )
)
"""What the root of a store may hold, in any container; everything else there is somebody else's."""


_MOST_ROWS = 1_000_000
"""Rows of a constituent table without columns, whose number nothing in the store backs."""


def document_of(meta: Meta) -> dict[str, Any]:
    """Return the root document of a store of ``meta``: JSON values only (tags for what JSON does not know).

    Raises
    ------
    FormatError
        If a value has no place in the format.
    """
    entries, _ = table_parts(meta.constituents)
    layers: dict[str, Any] = {}
    for name in LAYERS:
        dtypes = meta.dtypes[name]
        if not meta.has_layer(name):
            continue
        layer: dict[str, Any] = {"dtype": meta.layer_dtype(name).newbyteorder("<").str}
        missing = [i for i, dtype in enumerate(dtypes) if dtype is None]
        if missing:
            layer["missing"] = missing
        if len({dtype for dtype in dtypes if dtype is not None}) > 1:
            layer["dtypes"] = [None if dtype is None else dtype.newbyteorder("<").str for dtype in dtypes]
        layers[name] = layer
    observatory = None
    if meta.observatory is not None:
        observatory = {"geodetic": tagged_json.encode(list(meta.observatory.geodetic))}
        if meta.observatory.geocentric is not None:
            observatory["geocentric"] = tagged_json.encode(list(meta.observatory.geocentric))
    document = {
        "format": FORMAT,
        "version": VERSION,
        "n_images": meta.n_images,
        "n_constituents": meta.n_constituents,
        "layers": layers,
        "has_links": meta.links is not None,
        "reprojected": meta.reprojected,
        "reprojection_frame": meta.reprojection_frame,
        "barycentric_distance": tagged_json.encode(meta.barycentric_distance),
        "observatory": observatory,
        "wcs": meta.wcs,
        "configuration": None if meta.configuration is None else tagged_json.encode(dict(meta.configuration)),
        "constituents": {"columns": entries, "meta": tagged_json.encode(dict(meta.constituents.meta))},
        "mask_flags": dict(meta.mask_flags),
        "source": tagged_json.encode(dict(meta.source)),
        "history": [tagged_json.encode(dict(edit)) for edit in meta.history],
    }
    restore_additions(document, meta.additions)
    schema.check(document, written=True)
    return document


def meta_from(document: Any, array: Callable[[str], NDArray[Any]], *, path: str | None = None) -> Meta:
    """Return the `Meta` of a store: the one place where a document and its small arrays are validated.

    Code behind it relies on the types of the schema, and on shapes, indices and dtypes that fit each other.

    Parameters
    ----------
    document
        The root document as it was parsed.
    array
        Function giving a small array of the store by its name (text arrays as object arrays of `str`);
        raises CorruptError if it is missing.
    """
    with located(path):
        check_version(document)
        schema.check(document)
        try:
            return _meta_from(document, array)
        except WuStoreError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"[:200]
            raise CorruptError("the metadata do not follow the format", found=found) from error


def _dtypes_from(layers: Mapping[str, Any], n_images: int) -> dict[str, tuple[np.dtype[Any] | None, ...]]:
    dtypes: dict[str, tuple[np.dtype[Any] | None, ...]] = {}
    for name in LAYERS:
        layer = layers.get(name)
        if layer is None:
            dtypes[name] = (None,) * n_images
            continue
        listed = layer.get("dtypes", [layer["dtype"]] * n_images)
        missing = set(layer.get("missing", ()))
        known = {text: tagged_json.dtype_from(text) for text in {*listed, layer["dtype"]} - {None}}
        dtypes[name] = tuple(None if i in missing or text is None else known[text] for i, text in enumerate(listed))
    return dtypes


def _check_dtypes(layers: Mapping[str, Any], meta: Meta) -> None:
    """Refuse a layer whose images' dtypes do not give the dtype of its array."""
    for name, layer in layers.items():
        if not meta.has_layer(name):
            raise CorruptError("a layer that no image has", where=name)
        if meta.layer_dtype(name) != tagged_json.dtype_from(layer["dtype"]):
            raise CorruptError(
                "the dtypes of the images do not fit their layer",
                where=name,
                expected=layer["dtype"],
                found=meta.layer_dtype(name).str,
            )


def _sizes_from(name: str, n_images: int, array: Callable[[str], NDArray[Any]]) -> NDArray[np.int32]:
    sizes = array(name)
    if sizes.shape != (n_images, 2) or sizes.dtype.kind not in "iu" or np.any(sizes < 0) or np.any(sizes >> 31):
        raise CorruptError("not the sizes of images", where=name, expected=f"({n_images}, 2) of 0 … {2**31 - 1}")
    return sizes.astype(np.int32, copy=False)


def _links_from(
    has_links: bool, n_images: int, array: Callable[[str], NDArray[Any]]
) -> tuple[tuple[int, ...], ...] | None:
    if not has_links:
        return None
    bounds, flat = array("link_start"), array("link_index")
    for name, indices in (("link_start", bounds), ("link_index", flat)):
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise CorruptError("not a list of indices", where=name, found=f"{indices.dtype}, shape {indices.shape}")
    if len(bounds) != n_images + 1 or bounds[0] != 0 or bounds[-1] != len(flat) or np.any(bounds[1:] < bounds[:-1]):
        raise CorruptError("link_start does not bound link_index", where="link_start", expected=f"0 … {len(flat)}")
    values = flat.tolist()
    return tuple(tuple(values[a:b]) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _constituents_from(document: Mapping[str, Any], array: Callable[[str], NDArray[Any]]) -> ConstituentTable:
    table, n_rows = document["constituents"], document["n_constituents"]
    if not table["columns"] and n_rows > _MOST_ROWS:
        raise CorruptError("more constituents than can be", where="n_constituents", expected=_MOST_ROWS, found=n_rows)
    columns = tuple(column_from(entry, n_rows, array) for entry in table["columns"])
    return ConstituentTable(n_rows, columns, tagged_json.decode(table["meta"]))


def _observatory_from(place: Mapping[str, Any] | None) -> Observatory | None:
    if place is None:
        return None
    latitude, longitude, height = map(float, tagged_json.decode(place["geodetic"]))
    if place.get("geocentric") is None:
        return Observatory((latitude, longitude, height))
    x, y, z = map(float, tagged_json.decode(place["geocentric"]))
    return Observatory((latitude, longitude, height), (x, y, z))


def _meta_from(document: dict[str, Any], array: Callable[[str], NDArray[Any]]) -> Meta:
    n_images = document["n_images"]
    times = array("time")
    if times.shape != (n_images,) or times.dtype.kind not in "fiu":
        raise CorruptError(
            "not the times of the images",
            where="time",
            expected=f"{n_images} numbers",
            found=f"{times.dtype}, shape {times.shape}",
        )
    distance, configuration = document["barycentric_distance"], document["configuration"]
    meta = Meta(
        times=times.astype(np.float64, copy=False),
        image_shape=_sizes_from("image_shape", n_images, array),
        psf_shape=_sizes_from("psf_shape", n_images, array),
        dtypes=_dtypes_from(document["layers"], n_images),
        links=_links_from(document["has_links"], n_images, array),
        constituents=_constituents_from(document, array),
        configuration=None if configuration is None else tagged_json.decode(configuration),
        wcs=document["wcs"],
        reprojected=document["reprojected"],
        reprojection_frame=document["reprojection_frame"],
        barycentric_distance=None if distance is None else float(tagged_json.decode(distance)),
        observatory=_observatory_from(document["observatory"]),
        mask_flags=document["mask_flags"],
        source=tagged_json.decode(document["source"]),
        history=tuple(tagged_json.decode(edit) for edit in document["history"]),
        additions=additions_of(document),
    )
    _check_dtypes(document["layers"], meta)
    return meta


TIME_ATTRIBUTES = {
    "units": "days since 1858-11-17T00:00:00",
    "calendar": "standard",
    "standard_name": "time",
    "long_name": "mid-exposure time (MJD, UTC)",
}


def arrays_of(meta: Meta) -> list[ArraySpec]:
    """Return all arrays of a store of ``meta`` except the layers and the capsule."""
    arrays = [
        ArraySpec("time", meta.times, ("time",), TIME_ATTRIBUTES),
        ArraySpec(
            "image_shape",
            meta.image_shape,
            ("time", "axis"),
            {"long_name": "true size (y, x) of each image [pixel]"},
        ),
        ArraySpec(
            "psf_shape",
            meta.psf_shape,
            ("time", "axis"),
            {"long_name": "true size (y, x) of each PSF [pixel]"},
        ),
    ]
    if meta.links is not None:
        bounds = np.cumsum([0, *(len(indices) for indices in meta.links)], dtype=np.int64)
        flat = np.array([index for indices in meta.links for index in indices], dtype=np.int64)
        arrays += [
            ArraySpec(
                "link_start",
                bounds,
                ("bound",),
                {"long_name": "image i is made of constituents link_index[link_start[i]:link_start[i + 1]]"},
            ),
            ArraySpec("link_index", flat, ("link",), {"long_name": "index of a constituent image"}),
        ]
    return arrays + table_parts(meta.constituents)[1]
