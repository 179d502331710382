"""Reading a store: metadata in two requests, pixels chunk by chunk."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Index, Reader
from wustore.backends.chunk_grid import chunks_touched
from wustore.backends.state import content_state, one_state, reopen, replaced
from wustore.backends.zarr.audit import audit, foreign, outdated
from wustore.backends.zarr.capsule import BOUND, DATA, CapsuleBytes
from wustore.backends.zarr.filters.blocks import prepare
from wustore.backends.zarr.filters.decode import DamagedChunk
from wustore.backends.zarr.foreign import ForeignArray
from wustore.backends.zarr.metadata import (
    BINDING,
    PACKED_CHECKSUM,
    chunk_key,
    decode_small,
    document_checksum,
    is_node_name,
    packed_checksum,
    separator_of,
)
from wustore.backends.zarr.shards import Box, ShardedLayer, parse_grid
from wustore.errors import (
    CorruptError,
    FormatError,
    IncompleteError,
    OtherFormatError,
    StoreNotFoundError,
    UsageError,
    WuStoreError,
    located,
)
from wustore.format import tagged_json
from wustore.format.document import arrays_of, meta_from
from wustore.format.packed import PACKED, unpack
from wustore.format.planes import LayerSpec, layers_of
from wustore.format.version import check_version
from wustore.model.casting import cast_plane
from wustore.model.meta import LAYERS, Capsule, Image, Meta
from wustore.storage import buffers
from wustore.storage.journal import JOURNAL
from wustore.storage.locks import CLAIM
from wustore.storage.stores import open_keys
from wustore.storage.threads import in_threads, worker_count, worth
from wustore.storage.url_requests import CONCURRENCY
from wustore.storage.zarr_store import Keys, is_half_written

__all__ = ["ZarrReader", "open_reader"]

_FEW = 2
"""Threads for which the interpreter lock is no limit, so that importing numba is worth nothing."""

_MOST_AXES, _MOST_VALUES = 32, 1 << 56
"""Of a small array: numpy has more axes since 2.0 only, and no array of more bytes than an address has bits for."""

_IMAGES_AT_URL = 4
"""Images of a URL that are read at a time: 8 are 1.3 times as fast at 20 ms a request, and take twice the memory."""


def open_reader(address: Any, form: str, workers: int | None = None) -> ZarrReader:
    """Open a store; a reader pickles as a call of this."""
    return ZarrReader(open_keys(address), address, form, workers)


class ZarrReader(Reader):
    """An open Zarr store.

    Parameters
    ----------
    address
        What it was opened by.
    form
        Name of the backend.
    """

    def __init__(self, keys: Keys, address: Any, form: str, workers: int | None = None) -> None:
        self.format = form
        self.path = keys.name
        self._address = address
        self._keys = keys
        self._requested_workers = workers
        self._workers = CONCURRENCY if workers is None and keys.by_request else worker_count(workers)
        try:
            self._root = keys.get("zarr.json")
            with located(keys.name):
                self._document, self._nodes = _root(keys, self._root)
                packed = self._packed = self._read_packed()
                self._meta = meta_from(
                    self._document, lambda name: packed[name] if name in packed else self._small(name)
                )
        except DamagedChunk as error:
            keys.close()
            raise CorruptError("the metadata is damaged", path=self.path, where="array packed", found=error) from error
        except BaseException:
            keys.close()
            raise
        self._specs = {spec.name: spec for spec in layers_of(self._meta)}
        self._layers: dict[str, ShardedLayer | ForeignArray] = {}
        self._capsule: CapsuleBytes | None = None
        self._sums: NDArray[np.uint32] | None = None
        self._closed = False

    @property
    def meta(self) -> Meta:
        """The metadata, read when the store was opened."""
        return self._meta

    @property
    def counters(self) -> Counter[str]:
        """Inner chunks read so far by layer, and ``shards``: how many shards they were fetched from."""
        counted: Counter[str] = Counter()
        for name, layer in list(self._layers.items()):
            if isinstance(layer, ShardedLayer):
                counted[name] = layer.chunks_read
                counted["shards"] += layer.shards_opened
        return counted

    def _read_packed(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the packed one by name; none if the store has none that is to be used."""
        if not self._document.get("packed"):
            return {}
        stored = self._small(PACKED)
        expected = self._document.get(PACKED_CHECKSUM)
        found = packed_checksum(stored)
        if expected is not None and expected != found:
            raise CorruptError(
                "the packed array is not the one that the root document names: it is that of another store or state",
                path=self.path,
                where=f"array {PACKED}",
                expected=expected,
                found=found,
            )
        return unpack(stored)

    def bindings(self) -> NDArray[np.uint32] | None:
        """Return what binds the chunks of each shard, shape (n_images, 4), or None in a store that lacks it."""
        bindings = self._packed.get(BINDING) if PACKED_CHECKSUM in self._document else None
        return None if bindings is None else self._rows(bindings, BINDING)

    def _rows(self, rows: NDArray[Any], name: str) -> NDArray[np.uint32]:
        if rows.shape != (self._meta.n_images, len(LAYERS)) or rows.dtype != np.uint32:
            raise CorruptError("an array has the wrong shape or dtype", path=self.path, where=f"array {name}")
        return rows

    # --- metadata -----------------------------------------------------------------------------------------

    def _node(self, name: str) -> Mapping[str, Any]:
        node = self._nodes.get(name)
        if node is None:
            text = self._keys.get(f"{name}/zarr.json")
            if text is None:
                raise CorruptError("an array is missing", path=self.path, where=f"array {name}")
            node = _parse(text, self.path, f"{name}/zarr.json")
        if not isinstance(node, Mapping) or node.get("node_type") != "array":
            raise CorruptError("not an array", path=self.path, where=f"array {name}")
        return node

    def _small(self, name: str) -> NDArray[Any]:
        node = self._node(name)
        shape = node.get("shape")
        if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise CorruptError("an array without a shape", path=self.path, where=f"array {name}", found=shape)
        # That of no values may be anything, and numpy has no array of it all the same.
        if len(shape) > _MOST_AXES or math.prod(max(size, 1) for size in shape) > _MOST_VALUES:
            raise CorruptError("an array of a shape that cannot be", path=self.path, where=f"array {name}", found=shape)
        with located(self.path, f"array {name}"):
            key = chunk_key(name, (0,) * len(shape), separator_of(node))
        raw = self._keys.get(key) if 0 not in shape else None
        try:
            data = decode_small(node, raw)
        except DamagedChunk as error:
            raise CorruptError("a chunk is damaged", path=self.path, where=f"array {name}", found=error) from error
        if data is None:
            return ForeignArray(self._keys, name, shape).read_small()
        return data

    def _spec(self, layer: str) -> LayerSpec:
        if layer not in LAYERS:
            raise KeyError(layer)
        spec = self._specs.get(layer)
        if spec is None:
            raise FormatError("no image has this layer", path=self.path, where=layer)
        return spec

    def _layer(self, name: str) -> ShardedLayer | ForeignArray:
        if self._closed:
            raise UsageError("the store has been closed", path=self.path)
        layer = self._layers.get(name)
        if layer is None:
            spec = self._spec(name)
            node = self._node(name)
            expected = (list(spec.shape), spec.dtype.name)
            found = (node.get("shape"), node.get("data_type"))
            if expected != found:
                raise CorruptError(
                    "an array does not have the shape and dtype that the root document says",
                    path=self.path,
                    where=f"array {name}",
                    expected=expected,
                    found=found,
                )
            grid = parse_grid(node, spec.dtype)
            if grid is not None and all(a >= b for a, b in zip(grid.shape, spec.shape[1:], strict=True)):
                bindings = self.bindings()
                column = None if bindings is None else bindings[:, LAYERS.index(name)]
                layer = ShardedLayer(self._keys, name, grid, separator_of(node), column)
            else:
                layer = ForeignArray(self._keys, name, spec.shape, spec.dtype)
            # Two threads may both come here; one of the two layers stays, and both read the same.
            layer = self._layers.setdefault(name, layer)
        return layer

    # --- pixels -------------------------------------------------------------------------------------------

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box; see `wustore.backends.base.Reader.read`."""
        return self.read_boxes(layer, [index], None if out is None else [out])[0]

    @one_state
    def read_boxes(
        self, layer: str, boxes: Sequence[Index], out: Sequence[NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        """Read several boxes, every chunk once; see `wustore.backends.base.Reader.read_boxes`."""
        dtype, source = self._spec(layer).dtype, self._layer(layer)
        arrays = [np.empty([part.stop - part.start for part in box], dtype) for box in boxes] if out is None else out
        if isinstance(source, ForeignArray):
            for index, array in zip(boxes, arrays, strict=True):
                if array.size:
                    array[...] = source.read(index)
            return list(arrays)
        by_image: dict[int, list[Box]] = {}
        for (times, rows, columns), array in zip(boxes, arrays, strict=True):
            for k, i in enumerate(range(times.start, times.stop) if array.size else ()):
                box = Box((rows.start, rows.stop), (columns.start, columns.stop), array[k])
                by_image.setdefault(i, []).append(box)
        workers = self._workers
        if not self._keys.by_request:
            chunk = self.chunks(layer)
            work = chunks_touched(boxes, chunk) * math.prod(chunk) * dtype.itemsize
            workers = worker_count(self._requested_workers, work=work)
        if len(by_image) < workers and not self._keys.by_request:
            for i, wanted in by_image.items():
                source.fill(i, wanted, workers)
        else:
            in_threads(lambda i: source.fill(i, by_image[i]), list(by_image), workers)
        return list(arrays)

    def fills_chunks(self, layer: str) -> bool:
        """Return whether an array can be of whole chunks; see `wustore.backends.base.Reader.fills_chunks`."""
        source = self._layer(layer)
        return isinstance(source, ShardedLayer) and source.grid.chunk == self.chunks(layer)[1:]

    @one_state
    def _image(self, i: int, layers: Sequence[str], workers: int) -> Image:
        planes: dict[str, NDArray[Any] | None] = {}
        for name in LAYERS:
            dtype = self._meta.dtypes[name][i] if name in layers else None
            planes[name] = None if dtype is None else self._plane(name, i, dtype, workers)
        return Image.of(planes)

    def _plane(self, name: str, i: int, dtype: np.dtype[Any], workers: int) -> NDArray[Any]:
        height, width = self._meta.shape_of(name, i)
        spec = self._spec(name)
        plane = buffers.empty((height, width), spec.dtype)
        source = self._layer(name)
        if plane.size == 0:
            pass
        elif isinstance(source, ForeignArray):
            plane = source.read((slice(i, i + 1), slice(0, height), slice(0, width)))[0]
        else:
            source.fill(i, [Box((0, height), (0, width), plane)], workers)
        return cast_plane(plane, dtype)

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read one image, its chunks in threads; see `wustore.backends.base.Reader.image`."""
        # In one of several threads that read an image each only a part of the workers is left for its chunks.
        return self._image(i, layers, worker_count(self._workers))

    def images_at_once(self, n_images: int) -> int | None:
        """Return by how many threads so many images are best read: an image each, and several each if they are few."""
        if self._keys.by_request:
            return min(self._workers, _IMAGES_AT_URL)
        size = sum(math.prod(spec.shape[1:]) * spec.dtype.itemsize for spec in self._specs.values())
        workers = worth(self._workers, n_images * size)
        if workers > _FEW or "numba" in sys.modules:
            prepare(n_images * size)
        return workers

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the shape of an inner chunk (at most that of the layer)."""
        spec = self._spec(layer)
        source = self._layer(layer)
        if isinstance(source, ForeignArray):
            time, height, width = source.array.chunks
        else:
            time, (height, width) = 1, source.grid.chunk
        return min(time, spec.shape[0]), min(height, max(spec.shape[1], 1)), min(width, max(spec.shape[2], 1))

    def _capsule_bytes(self) -> CapsuleBytes:
        if self._capsule is None:
            self._capsule = CapsuleBytes(self._keys, self._node(DATA), self._small(BOUND), self._meta.n_images)
        return self._capsule

    @one_state
    def image_capsule(self, i: int, image: Image | None = None) -> bytes | None:
        """Return an image's part of the FITS reconstruction data."""
        if self._document.get("capsule") is None:
            return None
        return self._capsule_bytes().piece(i + 1) or None

    @one_state
    def capsule(self) -> Capsule | None:
        """Return the FITS reconstruction data."""
        document = self._document.get("capsule")
        if document is None:
            return None
        return Capsule(document=document, head=self._capsule_bytes().piece(0))

    @one_state
    def checksums(self) -> NDArray[np.uint32]:
        """Return the stored checksums of the planes."""
        return self._checksums()

    def _checksums(self) -> NDArray[np.uint32]:
        packed = self._packed
        return self._rows(packed["checksum"] if "checksum" in packed else self._small("checksum"), "checksum")

    def separators(self) -> tuple[str, str]:
        """Return the separators of the chunk keys, of layers and of small arrays."""
        return separator_of(self._node("science")), separator_of(self._node("time"))

    def document(self) -> Mapping[str, Any]:
        """Return the root document as it is stored."""
        return self._document

    def _identity(self, sums: NDArray[np.uint32] | None) -> str:
        return content_state(self._document, [spec.data for spec in arrays_of(self._meta)], sums)

    def state(self) -> str:
        """Return a digest of the root document, the small arrays and the checksums of the planes."""
        if self._state is None:
            self._sums = self.checksums()
            self._state = self._identity(self._sums)
        return self._state

    def check_state(self) -> None:
        """Check that the address still leads to this state; see `wustore.backends.base.Reader.check_state`."""
        same = self._keys.is_same()
        if same and self._keys.get("zarr.json") == self._root:
            return
        if same is False:
            raise replaced(self.path)
        # An append leaves the directory, and at a URL the root may be as it was while the pixels are others.
        try:
            now = open_reader(self._address, self.format, 1)
        except (FormatError, StoreNotFoundError) as error:
            raise replaced(self.path, error) from error
        with now:
            if now._identity(None) != self._identity(None):
                raise replaced(self.path)
            with suppress(CorruptError):
                if self._sums is not None and not np.array_equal(now._checksums(), self._sums):
                    raise replaced(self.path)

    def audit(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the copies that other readers of Zarr use; see `Reader.audit`."""
        packed = {name: self._packed[name] for name in ("checksum",) if name in self._packed}
        return audit(
            self._keys, self._nodes, {spec.name: spec.data for spec in arrays_of(self._meta)} | packed, self._small
        )

    def outdated(self) -> dict[str, Any]:
        """Return the metadata documents, by name, that an interrupted append has not written to their own places."""
        return {name: self._nodes[name] for name in outdated(self._keys, self._nodes)}

    def nodes(self) -> Mapping[str, Any]:
        """Return the consolidated metadata of the arrays and groups."""
        return self._nodes

    def foreign(self) -> Iterator[str]:
        """Yield in words what others added; see `wustore.backends.base.Reader.foreign`."""
        return foreign(self._keys, self._nodes, self._meta)

    def describe(self) -> dict[str, Any]:
        """Return profile, layout and the cut of every layer."""
        storage = self._document.get("storage", {})
        return {
            "profile": storage.get("profile"),
            "layout": storage.get("layout"),
            "chunks": {name: list(self.chunks(name)) for name in self._specs},
            "capsule": self._document.get("capsule") is not None,
        }

    def close(self) -> None:
        """Release files; see `wustore.backends.base.Reader.close`."""
        self._closed = True
        self._keys.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._keys.check_pickles()
        return reopen, (open_reader, (self._address, self.format, self._requested_workers), self.state())


def _parse(text: bytes, path: str, where: str) -> Any:
    with located(path, where):
        return tagged_json.parse(text, what="a metadata document")


def _root(keys: Keys, text: bytes | None) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the root document and the consolidated metadata of the nodes."""
    if text is None:
        raise _without_root(keys)
    root = _parse(text, keys.name, "zarr.json")
    if not isinstance(root, dict) or root.get("zarr_format") != 3 or root.get("node_type") != "group":
        raise FormatError(
            "the root is not a Zarr v3 group", path=keys.name, where="zarr.json", expected="a group with attributes"
        )
    attributes = root.get("attributes")
    document = attributes.get("wustore") if isinstance(attributes, dict) else None
    if document is None:
        raise FormatError(
            "a Zarr store, but not one of wustore",
            path=keys.name,
            where="zarr.json",
            expected="attribute 'wustore' of the root group",
            found="no such attribute",
            hint="Open it with zarr or xarray.",
        )
    if not isinstance(document, dict):
        raise CorruptError("the root document is not an object", path=keys.name, where="zarr.json, attribute wustore")
    check_version(document)
    if document.get("crc32c") != document_checksum(document):
        raise CorruptError(
            "the root document does not match its checksum",
            path=keys.name,
            where="zarr.json, attribute wustore",
            expected=document.get("crc32c"),
            found=document_checksum(document),
            hint="Restore the store from a copy, or convert again.",
        )
    consolidated = root.get("consolidated_metadata")
    nodes = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    nodes = nodes if isinstance(nodes, dict) else {}
    for name in nodes:
        if not is_node_name(name):
            raise CorruptError(
                "the consolidated metadata have a name that no array or group can have",
                path=keys.name,
                where="zarr.json, consolidated_metadata",
                found=repr(name),
            )
    return document, nodes


def _listed(keys: Keys, prefix: str) -> Iterator[str]:
    try:
        yield from keys.list(prefix)
    except (OSError, NotImplementedError):
        return  # web servers list nothing


def _without_root(keys: Keys) -> WuStoreError:
    if keys.get(f"{JOURNAL}plan.json") is not None:
        done = sum(key.endswith(".json") for key in _listed(keys, f"{JOURNAL}images/"))
        return IncompleteError(
            "the conversion to this store has not finished",
            path=keys.name,
            found=f"{done} images written",
            hint="Run the same conversion again with --resume; wustore info says what is left of one in parts.",
        )
    chunks = any(
        key.startswith("science/c") or is_half_written(key.rpartition("/")[2]) for key in _listed(keys, "science/")
    )
    if chunks or keys.size(CLAIM) is not None:
        return IncompleteError(
            "the store is not whole: it has no root document",
            path=keys.name,
            hint="Whoever writes it is at work, or was stopped: write it again.",
        )
    for name in (".zgroup", ".zarray", ".zmetadata", ".zattrs"):
        if keys.size(name) is not None:
            return FormatError(
                "a Zarr v2 store", path=keys.name, where=name, expected="Zarr v3", hint="It was not written by wustore."
            )
    if (keys.by_url or keys.transactional) and next(_listed(keys, ""), None) is None:
        return StoreNotFoundError("there is nothing at this path", path=keys.name, hint="Check the name.")
    return OtherFormatError("not a Zarr store", path=keys.name, expected="zarr.json", found="none")
