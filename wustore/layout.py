"""How a WorkUnit is laid out in named arrays and one root document: the format, without the container.

The Zarr and HDF5 backends store what this module gives them under the same names, and FITS carries the
same document where its own layout cannot hold a value. Rules: docs/spec.md; shape of the document:
schemas/document.schema.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore import jsonio
from wustore.errors import CorruptError, FormatError, VersionError
from wustore.model import LAYERS, Column, ConstituentTable, Meta, Observatory

__all__ = [
    "CONVENTIONS",
    "FORMAT",
    "MIN_READER",
    "READER",
    "VERSION",
    "ArraySpec",
    "LayerSpec",
    "arrays_of",
    "cast_plane",
    "check_version",
    "checksum_array",
    "document_of",
    "fill_value",
    "layers_of",
    "meta_from",
    "plane_checksum",
]

FORMAT = "wustore"
VERSION = "0.1.0"
"""Version of the format written (semantic; 0.x may change until it is frozen)."""
READER = 1
"""What this code can read: stores whose ``min_reader`` is not above it."""
MIN_READER = 1
"""The oldest reader that understands what this code writes."""
CONVENTIONS = "CF-1.12"

TIME_ATTRIBUTES = {
    "units": "days since 1858-11-17T00:00:00",
    "calendar": "standard",
    "standard_name": "time",
    "long_name": "mid-exposure time (MJD, UTC)",
}
_LAYER_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "science": {"long_name": "science image", "ancillary_variables": "variance mask"},
    "variance": {"long_name": "variance of the science image"},
    "mask": {"long_name": "pixel mask: greater than 0 is masked"},
    "psf": {"long_name": "point spread function kernel"},
}


@dataclass(frozen=True, eq=False)
class ArraySpec:
    """A small array, whole: what a backend stores besides the layers.

    Attributes
    ----------
    name
        Path below the root, ``/`` between groups.
    data
        Native numpy array, or an object array of `str` for variable-length text.
    dims
        One dimension name per axis.
    attributes
        JSON attributes.
    """

    name: str
    data: NDArray[Any]
    dims: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """A big array, filled image by image.

    Attributes
    ----------
    name
        One of `wustore.model.LAYERS`.
    shape
        (time, y, x), padded to the largest image.
    dtype
        Native dtype that holds every image exactly.
    dims
        Dimension names.
    fill
        Value of the padding: NaN for floating dtypes, 0 for others.
    attributes
        JSON attributes.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    dims: tuple[str, str, str]
    fill: float | int
    attributes: Mapping[str, Any] = field(default_factory=dict)


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """Return the padding value of a layer of this dtype: NaN for floating dtypes, else 0."""
    return float("nan") if dtype.kind == "f" else 0


def layers_of(meta: Meta) -> list[LayerSpec]:
    """Return the layer arrays that a store of ``meta`` has, in the order to create them."""
    specs = []
    for name in LAYERS:
        if not meta.has_layer(name):
            continue
        dtype = meta.layer_dtype(name)
        attributes = dict(_LAYER_ATTRIBUTES[name])
        if name == "mask" and dtype.kind in "iu":
            # Bits that the dtype cannot hold (bit 31 of a signed one is its sign) stay out of the attribute.
            flags = {key: bit for key, bit in meta.mask_flags.items() if bit <= np.iinfo(dtype).max}
            if flags:
                attributes["flag_masks"] = list(flags.values())
                attributes["flag_meanings"] = " ".join(re.sub(r"\s+", "_", key) for key in flags)
        dims = ("time", "psf_y", "psf_x") if name == "psf" else ("time", "y", "x")
        specs.append(LayerSpec(name, meta.layer_shape(name), dtype, dims, fill_value(dtype), attributes))
    return specs


# --- the table of constituent images ------------------------------------------------------------------

_PLAIN_NODE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_MASK_SUFFIX = "__mask"


def _node_names(names: list[str]) -> list[str]:
    """Return an array name for every column: its own where that is safe in any container and file system."""
    taken: set[str] = set()
    nodes = []
    for k, name in enumerate(names):
        safe = _PLAIN_NODE.fullmatch(name) and not name.endswith(_MASK_SUFFIX)
        node = name if safe and name.lower() not in taken else f"column_{k}"
        while node.lower() in taken:
            node += "_"
        taken.add(node.lower())
        nodes.append(node)
    return nodes


def _text_array(values: list[str]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _encode_plain(values: NDArray[Any]) -> tuple[str, NDArray[Any], str | None]:
    """Return (encoding, stored array, name of the extra last dimension) of a plain column."""
    kind = values.dtype.kind
    if kind == "U":
        return "text", _text_array([str(v) for v in values.ravel()]).reshape(values.shape), None
    if kind == "S":
        width = max(values.dtype.itemsize, 1)
        flat = np.ascontiguousarray(values.astype(f"S{width}"))
        return "bytes", flat.view(np.uint8).reshape(*values.shape, width), "byte"
    if kind == "c":
        part = np.dtype(f"f{values.dtype.itemsize // 2}")
        return "complex", np.ascontiguousarray(values).view(part).reshape(*values.shape, 2), "complex"
    if kind in "mM":
        return "ticks", np.ascontiguousarray(values).view(np.int64), None
    if kind in "biu" or (kind == "f" and values.dtype.itemsize <= 8):
        return "number", np.ascontiguousarray(values), None
    raise FormatError("a column has a dtype that the format does not hold", found=values.dtype)


def _decode_plain(encoding: str, stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if encoding == "text":
        return np.array(stored.tolist(), dtype=dtype).reshape(stored.shape)
    if encoding == "bytes":
        width = stored.shape[-1]
        flat: NDArray[Any] = np.ascontiguousarray(stored).view(f"S{width}").reshape(stored.shape[:-1])
        return flat.astype(dtype)
    if encoding == "complex":
        return np.ascontiguousarray(stored).view(dtype).reshape(stored.shape[:-1])
    if encoding == "ticks":
        return np.ascontiguousarray(stored).view(dtype)
    if encoding == "number":
        return np.ascontiguousarray(stored.astype(dtype, copy=False))
    raise CorruptError("an unknown column encoding", found=encoding)


def _column_parts(column: Column, node: str) -> tuple[dict[str, Any], list[ArraySpec]]:
    """Return the document's entry of a column, and its arrays."""
    name = f"constituents/{node}"
    entry: dict[str, Any] = {"name": column.name, "array": node, "kind": column.kind}
    attributes = {
        key: value
        for key, value in (("units", column.unit), ("long_name", column.description or column.name))
        if value is not None
    }
    extra: str | None = None
    if column.kind == "wcs":
        stored = _text_array(["" if text is None else str(text) for text in column.values])
    elif column.kind == "json":
        stored = _text_array([jsonio.dumps(value) for value in column.values])
    else:
        entry["encoding"], stored, extra = _encode_plain(column.values)
        entry["dtype"] = column.values.dtype.newbyteorder("<").str
    dims = ["constituent"]
    dims += [f"{node}_{axis}" for axis in range(1, stored.ndim)]
    if extra is not None:
        dims[-1] = f"{node}_{extra}"
    described = {"unit": column.unit, "description": column.description, "format": column.format}
    entry |= {key: value for key, value in described.items() if value is not None}
    if column.meta:
        entry["meta"] = jsonio.encode(dict(column.meta))
    arrays = [ArraySpec(name, stored, tuple(dims), attributes)]
    if column.mask is not None:
        entry["masked"] = True
        mask = np.ascontiguousarray(column.mask)
        mask_dims = ("constituent", *(f"{node}_{axis}" for axis in range(1, mask.ndim)))
        arrays.append(
            ArraySpec(name + _MASK_SUFFIX, mask.astype(np.uint8), mask_dims, {"long_name": "true where masked"})
        )
    return entry, arrays


def _column_from(entry: Mapping[str, Any], array: Callable[[str], NDArray[Any]]) -> Column:
    name = f"constituents/{entry['array']}"
    stored = array(name)
    kind = entry["kind"]
    values: NDArray[Any]
    if kind == "wcs":
        values = _text_array([text or None for text in stored.tolist()])  # type: ignore[misc]
    elif kind == "json":
        values = np.empty(len(stored), dtype=object)
        for k, text in enumerate(stored.tolist()):
            values[k] = jsonio.loads(text)
    elif kind == "plain":
        values = _decode_plain(entry["encoding"], stored, np.dtype(entry["dtype"]).newbyteorder("="))
    else:
        raise CorruptError("an unknown kind of column", where=name, found=kind)
    mask = array(name + _MASK_SUFFIX).astype(bool) if entry.get("masked") else None
    return Column(
        name=entry["name"],
        kind=kind,
        values=values,
        mask=mask,
        unit=entry.get("unit"),
        description=entry.get("description"),
        format=entry.get("format"),
        meta=jsonio.decode(entry.get("meta", {})),
    )


def _table_parts(table: ConstituentTable) -> tuple[list[dict[str, Any]], list[ArraySpec]]:
    entries, arrays = [], []
    for column, node in zip(table.columns, _node_names([c.name for c in table.columns]), strict=True):
        entry, parts = _column_parts(column, node)
        entries.append(entry)
        arrays += parts
    return entries, arrays


# --- the whole ----------------------------------------------------------------------------------------


def document_of(meta: Meta) -> dict[str, Any]:
    """Return the root document of a store of ``meta``: JSON values only (tags for what JSON does not know)."""
    entries, _ = _table_parts(meta.constituents)
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
        observatory = {"geodetic": jsonio.encode(list(meta.observatory.geodetic))}
        if meta.observatory.geocentric is not None:
            observatory["geocentric"] = jsonio.encode(list(meta.observatory.geocentric))
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
        "barycentric_distance": jsonio.encode(meta.barycentric_distance),
        "observatory": observatory,
        "wcs": meta.wcs,
        "configuration": None if meta.configuration is None else jsonio.encode(dict(meta.configuration)),
        "constituents": {"columns": entries, "meta": jsonio.encode(dict(meta.constituents.meta))},
        "mask_flags": dict(meta.mask_flags),
        "source": jsonio.encode(dict(meta.source)),
        "history": [jsonio.encode(dict(edit)) for edit in meta.history],
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
    return arrays + _table_parts(meta.constituents)[1]


def cast_plane(plane: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return ``plane`` in a wider or narrower dtype, exactly, NaN payloads and signalling NaNs included.

    Used where images of one layer differ in dtype: each goes into the array's common dtype and comes back.
    A floating-point unit quietens a signalling NaN that it converts, so NaNs are moved as bits: a binary32
    fraction is the upper 23 of the 52 bits of a binary64 one (IEEE 754-2019, 3.4).
    """
    if plane.dtype == dtype:
        return plane
    with np.errstate(invalid="ignore"):
        cast = plane.astype(dtype)
    pair = (plane.dtype.str[1:], cast.dtype.str[1:])
    if pair not in {("f4", "f8"), ("f8", "f4")}:
        return cast
    where = np.isnan(plane)
    if pair == ("f4", "f8"):
        bits = np.ascontiguousarray(plane).view(np.uint32)[where].astype(np.uint64)
        moved = (bits >> 31 << 63) | np.uint64(0x7FF << 52) | ((bits & 0x7FFFFF) << 29)
        cast.view(np.uint64)[where] = moved
    else:
        wide = np.ascontiguousarray(plane).view(np.uint64)[where]
        narrow = (wide >> 63 << 31) | np.uint64(0xFF << 23) | ((wide >> 29) & 0x7FFFFF)
        cast.view(np.uint32)[where] = narrow.astype(np.uint32)
    return cast


CHECKSUM_DIMS = ("time", "checksum_layer")


def plane_checksum(plane: NDArray[Any] | None) -> int:
    """Return the CRC-32C of a plane's values: true shape, source dtype, little-endian, C order; 0 for None.

    Stored for every image and layer in the array ``checksum`` (uint32, (time, layer)), so that a change
    or a loss can be found and named without the source. CRC-32C as in RFC 3720.
    """
    if plane is None:
        return 0
    import google_crc32c

    little = np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<"), copy=False)
    return int(google_crc32c.value(little.reshape(-1).view(np.uint8)))


def checksum_array(rows: NDArray[np.uint32]) -> ArraySpec:
    """Return the array of checksums, shape (n_images, 4), as it is stored."""
    return ArraySpec(
        "checksum", rows, CHECKSUM_DIMS, {"long_name": "CRC-32C of each plane's values", "layers": " ".join(LAYERS)}
    )


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
            cure="Update wustore to read it.",
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
        latitude, longitude, height = jsonio.decode(place["geodetic"])
        if geocentric is not None:
            x, y, z = jsonio.decode(geocentric)
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
            tuple(_column_from(entry, array) for entry in table["columns"]),
            jsonio.decode(table.get("meta", {})),
        ),
        configuration=None if configuration is None else jsonio.decode(configuration),
        wcs=document["wcs"],
        reprojected=document["reprojected"],
        reprojection_frame=document["reprojection_frame"],
        barycentric_distance=jsonio.decode(document["barycentric_distance"]),
        observatory=observatory,
        mask_flags=document.get("mask_flags", {}),
        source=jsonio.decode(document.get("source", {})),
        history=tuple(jsonio.decode(edit) for edit in document.get("history", ())),
    )
