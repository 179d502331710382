"""How a WorkUnit is laid out in named arrays and one root document: the format, without the container.

The Zarr and HDF5 backends store what this module gives them under the same names, and FITS carries the
same document where its own layout cannot hold a value. Rules: docs/spec.md; shape of the document:
schemas/document.schema.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError, FormatError, VersionError
from wustore.format import tagged_json
from wustore.format.arrays import ArraySpec
from wustore.format.columns import column_from, table_parts
from wustore.model.meta import LAYERS, ConstituentTable, Meta, Observatory

__all__ = [
    "CONVENTIONS",
    "FORMAT",
    "MIN_READER",
    "READER",
    "VERSION",
    "arrays_of",
    "check_version",
    "document_of",
    "meta_from",
]

FORMAT = "wustore"
VERSION = "0.1.0"
"""Version of the format written (semantic; 0.x may change until it is frozen)."""
READER = 1
"""What this code can read: stores whose ``min_reader`` is not above it."""
MIN_READER = 1
"""The oldest reader that understands what this code writes."""
CONVENTIONS = "CF-1.12"


# --- the table of constituent images ------------------------------------------------------------------


# --- the whole ----------------------------------------------------------------------------------------


def document_of(meta: Meta) -> dict[str, Any]:
    """Return the root document of a store of ``meta``: JSON values only (tags for what JSON does not know)."""
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
    return {
        "format": FORMAT,
        "version": VERSION,
        "min_reader": MIN_READER,
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


def check_version(document: Mapping[str, Any], path: str | None = None) -> None:
    """Refuse a document that is not ours or that this code is too old for.

    Raises
    ------
    FormatError, VersionError
    """
    if document.get("format") != FORMAT:
        raise FormatError(
            "not a wustore store",
            path=path,
            where="root document",
            expected=FORMAT,
            found=document.get("format"),
        )
    minimum = document.get("min_reader")
    if not isinstance(minimum, int) or isinstance(minimum, bool):
        raise CorruptError("the root document names no reader version", path=path, where="min_reader", found=minimum)
    if minimum > READER:
        raise VersionError(
            "the store was written by a newer wustore",
            path=path,
            expected=f"min_reader at most {READER} (format {VERSION})",
            found=f"min_reader {minimum} (format {document.get('version')})",
            hint="Update wustore to read it.",
        )


def meta_from(document: Mapping[str, Any], array: Callable[[str], NDArray[Any]], *, path: str | None = None) -> Meta:
    """Return the `Meta` of a store.

    Parameters
    ----------
    document
        The root document.
    array
        Function giving a small array of the store by its name (text arrays as object arrays of `str`);
        raises CorruptError where it is missing.
    path
        For messages.

    Raises
    ------
    FormatError, VersionError, CorruptError
    """
    check_version(document, path)
    try:
        return _meta_from(document, array)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, FormatError):
            if error.path is None:
                error.path = path
            raise
        raise CorruptError(
            "the root document does not follow the format",
            path=path,
            found=f"{type(error).__name__}: {error}",
        ) from error


def _dtypes_from(layers: Mapping[str, Any], n_images: int) -> dict[str, tuple[np.dtype[Any] | None, ...]]:
    dtypes: dict[str, tuple[np.dtype[Any] | None, ...]] = {}
    for name in LAYERS:
        layer = layers.get(name)
        if layer is None:
            dtypes[name] = (None,) * n_images
            continue
        listed = layer.get("dtypes", [layer["dtype"]] * n_images)
        missing = set(layer.get("missing", ()))
        dtypes[name] = tuple(
            None if i in missing or text is None else np.dtype(text).newbyteorder("=") for i, text in enumerate(listed)
        )
    return dtypes


def _links_from(
    has_links: bool, n_images: int, array: Callable[[str], NDArray[Any]]
) -> tuple[tuple[int, ...], ...] | None:
    if not has_links:
        return None
    bounds, flat = array("link_start"), array("link_index")
    if len(bounds) != n_images + 1 or bounds[0] != 0 or bounds[-1] != len(flat) or np.any(np.diff(bounds) < 0):
        raise CorruptError("link_start does not bound link_index", where="link_start", expected=f"0 … {len(flat)}")
    values = flat.tolist()
    return tuple(tuple(values[a:b]) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _meta_from(document: Mapping[str, Any], array: Callable[[str], NDArray[Any]]) -> Meta:
    n_images = document["n_images"]
    times = array("time").astype(np.float64, copy=False)
    if len(times) != n_images:
        raise CorruptError("the time array has the wrong length", where="time", expected=n_images, found=len(times))
    place = document["observatory"]
    observatory = None
    if place is not None:
        geocentric = place.get("geocentric")
        latitude, longitude, height = tagged_json.decode(place["geodetic"])
        if geocentric is not None:
            x, y, z = tagged_json.decode(geocentric)
            geocentric = (x, y, z)
        observatory = Observatory((latitude, longitude, height), geocentric)
    table = document["constituents"]
    configuration = document["configuration"]
    return Meta(
        times=times,
        image_shape=array("image_shape").astype(np.int32, copy=False),
        psf_shape=array("psf_shape").astype(np.int32, copy=False),
        dtypes=_dtypes_from(document["layers"], n_images),
        links=_links_from(bool(document["has_links"]), n_images, array),
        constituents=ConstituentTable(
            document["n_constituents"],
            tuple(column_from(entry, array) for entry in table["columns"]),
            tagged_json.decode(table.get("meta", {})),
        ),
        configuration=None if configuration is None else tagged_json.decode(configuration),
        wcs=document["wcs"],
        reprojected=document["reprojected"],
        reprojection_frame=document["reprojection_frame"],
        barycentric_distance=tagged_json.decode(document["barycentric_distance"]),
        observatory=observatory,
        mask_flags=document.get("mask_flags", {}),
        source=tagged_json.decode(document.get("source", {})),
        history=tuple(tagged_json.decode(edit) for edit in document.get("history", ())),
    )


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
