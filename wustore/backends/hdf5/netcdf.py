"""Small arrays, text and dimension scales, as netCDF-4 lays them out in HDF5.

Any netCDF tool then shows named dimensions. Reference: "NetCDF-4 format specification" (NetCDF Users
Guide, appendix B) and the HDF5 Dimension Scales specification.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError, WuStoreError, located
from wustore.format.arrays import ESCAPED, ArraySpec, escaped, unescaped
from wustore.format.content import foreign_content, own_content
from wustore.model.checksum import crc32c
from wustore.model.meta import Meta, object_array
from wustore.model.sizes import check_size

__all__ = [
    "add_array",
    "add_dimension",
    "add_group",
    "attach_dimensions",
    "create_file",
    "dataset_at",
    "foreign",
    "read_array",
    "set_attributes",
    "set_text",
    "stored_dtype",
    "stored_layer_dtype",
    "unreadable",
    "values_of",
    "wrapped",
]

TEXT_CHECKSUM = "crc32c"
"""Attribute of text arrays: CRC-32C of their strings, each as UTF-8 followed by a zero byte. HDF5 keeps
variable-length strings in its global heap, the one place that the metadata checksums do not cover,
and allows no fletcher32 for them."""
"""Attribute (1) of text arrays whose strings are JSON string literals, because one of them holds what
HDF5 text cannot: a zero character or a lone surrogate."""

_COMPRESS_FROM = 4096
"""Bytes above which a small array is compressed: below, the filter's header eats the gain."""
_LARGEST_CHUNK = 1 << 16
_LARGEST_TEXT_ATTRIBUTE = 16_000
"""Bytes of text kept inside the object header; HDF5 allows 64 kB for all compact attributes together."""
_PLACEHOLDER = "This is a netCDF dimension but not a netCDF variable.{:>10}"


_RAISED_BY_H5PY = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)


@contextmanager
def wrapped(path: str, where: str) -> Iterator[None]:
    """Turn what h5py raises on damaged bytes into CorruptError; errors of the system pass."""
    try:
        yield
    except (WuStoreError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise CorruptError("HDF5 cannot read this", path=path, where=where, found=str(error)) from error
    except _RAISED_BY_H5PY as error:
        found = f"{type(error).__name__}: {error}"
        raise CorruptError("HDF5 cannot read this", path=path, where=where, found=found) from error


# --- writing ------------------------------------------------------------------------------------------


def create_file(target: io.RawIOBase) -> h5py.File:
    """Create an HDF5 file whose bytes depend on its content only: no times of creation.

    The file format is that of HDF5 1.10: superblock 3, so that all metadata carries checksums.

    Parameters
    ----------
    target
        Empty, open for reading and writing. None of its methods may raise: HDF5 crashes the process when it ends if
        what it has in memory could not be written.
    """
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    order = h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED
    properties.set_link_creation_order(order)
    properties.set_attr_creation_order(order)
    properties.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, target)
    return h5py.File(h5py.h5f.create(b"wustore", h5py.h5f.ACC_TRUNC, fcpl=properties, fapl=access))


def add_group(file: h5py.File, name: str) -> h5py.Group:
    """Return the group of that name, made if it is not there yet."""
    if name in file:
        return file[name]
    properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    order = h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED
    properties.set_link_creation_order(order)
    properties.set_attr_creation_order(order)
    properties.set_obj_track_times(False)
    return h5py.Group(h5py.h5g.create(file.id, name.encode(), gcpl=properties))


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian dtype that netCDF tools know and that holds ``dtype`` exactly."""
    if dtype.kind == "b":
        return np.dtype("u1")  # h5py would make an enumeration of it
    if dtype == np.float16:
        return np.dtype("<f4")
    return dtype.newbyteorder("<")


def stored_layer_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian dtype of a layer: every number is kept as it is, a boolean as a byte."""
    return np.dtype("u1") if dtype.kind == "b" else dtype.newbyteorder("<")


def set_attributes(dataset: h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Set attributes: text as netCDF writes it, numbers as arrays."""
    for name, value in attributes.items():
        if isinstance(value, str):
            set_text(dataset, name, value)
        elif name == "flag_masks":  # CF-1.12, 3.5: of the variable's own type
            dataset.attrs.create(name, np.asarray(value, dtype=dataset.dtype))
        else:
            dataset.attrs.create(name, np.asarray(value))


def set_text(target: h5py.HLObject, name: str, text: str) -> None:
    """Set a text attribute: in the object header if it fits (checksummed there), else in the heap."""
    data = text.encode("utf-8", "replace").replace(b"\0", b"")
    if 0 < len(data) <= _LARGEST_TEXT_ATTRIBUTE:
        target.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))
    else:
        target.attrs.create(name, data.decode(), dtype=h5py.string_dtype())


def add_array(file: h5py.File, spec: ArraySpec, *, compress: bool = True) -> h5py.Dataset:
    """Write a small array whole: numbers under fletcher32 (compressed if large), text as variable-length UTF-8."""
    group, _, _ = spec.name.rpartition("/")
    if group:
        add_group(file, group)
    if spec.data.dtype == object:
        dataset = _add_text(file, spec)
    else:
        data = np.ascontiguousarray(spec.data).astype(stored_dtype(spec.data.dtype), copy=False)
        filters: dict[str, Any] = {}
        if data.size:
            filters = {"chunks": _small_chunks(data), "fletcher32": True}
            if compress and data.nbytes > _COMPRESS_FROM:
                filters |= {"compression": "gzip", "compression_opts": 6, "shuffle": data.dtype.itemsize > 1}
        dataset = file.create_dataset(spec.name, data=data, track_times=False, **filters)
    set_attributes(dataset, spec.attributes)
    return dataset


def _small_chunks(data: NDArray[Any]) -> tuple[int, ...]:
    row = max(data.nbytes // data.shape[0], 1)
    return min(data.shape[0], max(_LARGEST_CHUNK // row, 1)), *data.shape[1:]


def _add_text(file: h5py.File, spec: ArraySpec) -> h5py.Dataset:
    texts = spec.data.ravel().tolist()
    literals = list(map(json.dumps, texts)) if any("\0" in text for text in texts) else escaped(texts)
    cells = [text.encode() for text in literals or texts]
    dataset = file.create_dataset(
        spec.name, data=object_array(cells).reshape(spec.data.shape), dtype=h5py.string_dtype(), track_times=False
    )
    dataset.attrs.create(TEXT_CHECKSUM, np.uint32(crc32c(b"".join(cell + b"\0" for cell in cells))))
    if literals is not None:
        dataset.attrs.create(ESCAPED, np.uint8(1))
    return dataset


def add_dimension(file: h5py.File, name: str, size: int) -> None:
    """Add a dimension without coordinate values: a scale that takes no space, named as netCDF-4 does."""
    dataset = file.create_dataset(name, shape=(size,), dtype=">f4", track_times=False)
    dataset.make_scale(_PLACEHOLDER.format(size))


def attach_dimensions(file: h5py.File, dims: Mapping[str, tuple[str, ...]]) -> None:
    """Give every array its dimension scales, making those that are not arrays themselves.

    Parameters
    ----------
    file
        The file, with all arrays in place.
    dims
        Dimension names of each array. An array that is its own one dimension is a coordinate.
    """
    for name, axes in dims.items():
        if axes == (name,):
            file[name].make_scale(name)
    for name, axes in dims.items():
        dataset = file[name]
        for k, axis in enumerate(axes):
            if axis not in file:
                add_dimension(file, axis, dataset.shape[k])
            if axis != name:
                dataset.dims[k].attach_scale(file[axis])


# --- reading ------------------------------------------------------------------------------------------


def dataset_at(file: h5py.File, name: str, path: str) -> h5py.Dataset:
    """Return a dataset whose values are in this file.

    Raises
    ------
    CorruptError
        If there is none, if a link leads to it from elsewhere, or if its values are in other files or nowhere.
    """
    with wrapped(path, name):
        node: Any = file.id  # the library's own objects: those of h5py take several times as long
        for part in name.split("/"):
            key = part.encode()
            if not isinstance(node, h5py.h5g.GroupID) or not node.links.exists(key):
                raise CorruptError("an array is missing", path=path, where=name)
            if node.links.get_info(key).type != h5py.h5l.TYPE_HARD:
                target = node.links.get_val(key)
                found = (target[1] if isinstance(target, tuple) else target).decode(errors="replace")
                raise CorruptError("a link instead of an array", path=path, where=name, found=found)
            node = h5py.h5o.open(node, key)
        if not isinstance(node, h5py.h5d.DatasetID):
            kind = "Group" if isinstance(node, h5py.h5g.GroupID) else "Datatype"
            raise CorruptError("an array is missing", path=path, where=name, found=kind)
        # HDF5 2.0 crashes when the process ends if the property list of a virtual dataset is still open then.
        properties = node.get_create_plist()
        layout, elsewhere = properties.get_layout(), properties.get_external_count() > 0
        properties.close()
        if elsewhere or layout == h5py.h5d.VIRTUAL:
            raise CorruptError("the values of an array are in other files", path=path, where=name)
        stored, size = int(node.get_storage_size()), math.prod(node.shape)
        # Without chunks every value takes its bytes. What was never written would read as fill values.
        least = 1 if layout == h5py.h5d.CHUNKED else size * node.get_type().get_size()
        if size and stored < least:
            raise CorruptError("an array has no storage", path=path, where=name, found=f"{stored} bytes")
        return h5py.Dataset(node, readonly=True)


def read_array(file: h5py.File, name: str, path: str) -> NDArray[Any]:
    """Return a small array: native numbers, or an object array of `str`.

    Raises
    ------
    CorruptError
        If it is missing or damaged, or claims more values than its bytes can hold.
    """
    return values_of(dataset_at(file, name, path), int(file.id.get_filesize()), path, name)


def values_of(dataset: h5py.Dataset, file_size: int, path: str, name: str) -> NDArray[Any]:
    """Do `read_array` for a dataset that is open."""
    with wrapped(path, name):
        dtype = dataset.dtype
        if dtype.kind in "biuf":
            stored = int(dataset.id.get_storage_size())
            with located(path, name):
                check_size(dataset.size * dtype.itemsize, stored, file_size)
            data: NDArray[Any] = dataset[()]
            return np.asarray(data.astype(data.dtype.newbyteorder("="), copy=False), order="C")
        if h5py.check_string_dtype(dtype) is None:
            raise CorruptError("an array of neither numbers nor text", path=path, where=name, found=dtype)
        return _read_text(dataset, name, path)


def _read_text(dataset: h5py.Dataset, name: str, path: str) -> NDArray[Any]:
    stored = dataset[()]
    cells: list[bytes] = stored.ravel().tolist()
    joined = b"".join(cell + b"\0" for cell in cells)
    checksum = dataset.attrs.get(TEXT_CHECKSUM)
    if checksum is not None and checksum != (found := np.uint32(crc32c(joined))):
        raise CorruptError(
            "text does not match its checksum",
            path=path,
            where=name,
            expected=f"CRC-32C {int(checksum):08x}",
            found=f"{int(found):08x}",
            hint=f"Remove the attribute {TEXT_CHECKSUM!r} if the text was changed on purpose.",
        )
    texts = joined.decode().split("\0")[:-1]  # one call for all: three times as fast as one for each
    if ESCAPED in dataset.attrs:
        try:
            texts = unescaped(texts)
        except ValueError as error:
            raise CorruptError("a text is no JSON literal of a string", path=path, where=name, found=error) from error
    return object_array(texts).reshape(stored.shape)


def unreadable(file: h5py.File, path: str) -> Iterator[tuple[str, str]]:
    """Yield (name, what is wrong) of the objects whose header or attributes do not read; arrays are not read."""
    names: list[str] = ["/"]
    try:
        with wrapped(path, "links"):
            file.visit(names.append)
    except CorruptError as error:
        yield "links", str(error)
    for name in names:
        try:
            with wrapped(path, name):
                for key in file[name].attrs:
                    file[name].attrs.get_id(key)
        except CorruptError as error:
            yield name, str(error)


_INFRASTRUCTURE = {
    TEXT_CHECKSUM,
    ESCAPED,
    *("CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS"),
    *("_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties", "_nc3_strict", "_FillValue"),
}
"""Attributes that HDF5's dimension scales and netCDF put onto arrays."""


def foreign(
    file: h5py.File, meta: Meta, root_attributes: set[str], ours: Mapping[str, set[str]], path: str
) -> Iterator[str]:
    """Yield in words what others added to a file: arrays, groups, attributes, but for ``ours``, those of HDF5 alone."""
    own = own_content(meta) | dict(ours)
    found: list[tuple[str, str, list[str]]] = []
    with wrapped(path, "links"):
        names: list[str] = []
        file.visit_links(names.append)
        for name in names:
            link = file.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                found.append((name, "link", []))
                continue
            node = file[name]
            kind = "array" if isinstance(node, h5py.Dataset) else "group"
            if kind == "group" or not _is_dimension(node):
                found.append((name, kind, list(node.attrs)))
        at_root = set(file.attrs) - root_attributes - _INFRASTRUCTURE
    yield from (f"root attribute {name}" for name in sorted(at_root))
    yield from foreign_content(own, found, _INFRASTRUCTURE)


def _is_dimension(dataset: h5py.Dataset) -> bool:
    """Return whether a dataset is a dimension without coordinate values, which `add_dimension` makes."""
    name = dataset.attrs.get("NAME", b"")
    return bool(dataset.is_scale) and bytes(np.bytes_(name)).startswith(_PLACEHOLDER[:40].encode())
