"""What a store of given metadata consists of: its arrays' documents, and the shards of an image."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.zarr.codecs import Hints
from wustore.backends.zarr.filters.decode import Bytes
from wustore.backends.zarr.filters.encode import EncodedBlock
from wustore.backends.zarr.metadata import (
    BINDING,
    CONSOLIDATED,
    PACKED_CHECKSUM,
    SEPARATOR,
    array_metadata,
    chunk_key,
    document_checksum,
    encode_small,
    group_metadata,
    packed_checksum,
    small_metadata,
)
from wustore.backends.zarr.presets import grid_for, hints_for
from wustore.backends.zarr.shards import Block, binding_of, encode_block, joined_blocks
from wustore.format.arrays import CHECKSUM_DIMS, ArraySpec, checksum_array
from wustore.format.document import CONVENTIONS, arrays_of, document_of
from wustore.format.packed import pack
from wustore.format.planes import LayerSpec, layers_of, plane_checksums
from wustore.model.casting import cast_plane
from wustore.model.meta import LAYERS, Image, Meta
from wustore.storage.threads import in_threads

__all__ = ["Structure"]

_EMPTY_PLANE = np.empty((0, 0))


class Structure:
    """The arrays of a store.

    Parameters
    ----------
    bound
        Whether shards are bound to their places; a store that was begun without it goes on without it.
    generation
        How often the store was appended to.
    separators
        Of the chunk keys, of layers and of small arrays; the attribute may be set until something is encoded.

    Attributes
    ----------
    layers
        The big arrays.
    small
        The small arrays that follow from ``meta``.
    separators
        As given.
    """

    def __init__(
        self,
        meta: Meta,
        *,
        profile: str,
        layout: str,
        chunks: Sequence[int] | None = None,
        generation: int = 0,
        bound: bool = True,
        separators: tuple[str, str] = (SEPARATOR, SEPARATOR),
    ) -> None:
        self.meta = meta
        self.layers = layers_of(meta)
        self.small = arrays_of(meta)
        self._storage = {"profile": profile, "layout": layout if chunks is None else list(chunks)}
        self._generation = generation
        self._bound = bound
        self.separators = separators
        self._grids = {
            spec.name: grid_for(spec.name, spec.shape[1:], spec.dtype, profile=profile, layout=layout, chunks=chunks)
            for spec in self.layers
        }

    def arrays(self, rows: NDArray[np.uint32]) -> list[ArraySpec]:
        """Return the small arrays; the last one is `packed`, which holds the others and what binds the shards.

        Parameters
        ----------
        rows
            What `encode` says of each image.
        """
        arrays = [*self.small, checksum_array(rows[:, : len(LAYERS)])]
        if not self._bound:
            return [*arrays, pack(self.small)]
        return [*arrays, pack([*arrays, ArraySpec(BINDING, rows[:, len(LAYERS) :], CHECKSUM_DIMS)])]

    def document(self, capsule: Mapping[str, Any] | None, packed: ArraySpec | None = None) -> dict[str, Any]:
        """Return the root document.

        Parameters
        ----------
        capsule
            The document of the FITS reconstruction data.
        packed
            The packed array, once it is known.
        """
        document = document_of(self.meta)
        if self._bound and packed is not None:
            document[PACKED_CHECKSUM] = packed_checksum(packed.data)
        document["storage"] = self._storage
        document["packed"] = True
        if self._generation:
            document["generation"] = self._generation
        if capsule is not None:
            document["capsule"] = dict(capsule)
        document["crc32c"] = document_checksum(document)
        return document

    def layer_metadata(self, spec: LayerSpec) -> dict[str, Any]:
        """Return the metadata document of a layer's array."""
        grid = self._grids[spec.name]
        return array_metadata(
            spec.shape,
            spec.dtype,
            spec.dims,
            chunk=(1, *grid.shape),
            codecs=[grid.codec()],
            fill=spec.fill,
            attributes=spec.attributes,
            separator=self.separators[0],
        )

    def encode(
        self, i: int, image: Image, workers: int | None = None
    ) -> tuple[dict[str, list[Bytes]], tuple[int, ...]]:
        """Return the shards of an image by key, each in pieces, and its row: the same whoever asks.

        A row has the checksums of the planes, then what binds the chunks of each shard (0 without a shard), both in
        the order of `wustore.model.meta.LAYERS`.
        """
        layers = [spec for spec in self.layers if 0 not in spec.shape]
        encoders = in_threads(partial(self._encoder, image), layers, workers)
        grids = [self._grids[spec.name] for spec in layers]
        jobs = [partial(encode, block) for encode, grid in zip(encoders, grids, strict=True) for block in grid.blocks]
        encoded = iter(in_threads(_do, jobs, workers))
        shards: dict[str, list[Bytes]] = {}
        bindings = dict.fromkeys(LAYERS, 0)
        for spec, grid in zip(layers, grids, strict=True):
            shard = joined_blocks(grid, list(itertools.islice(encoded, len(grid.blocks))), bound=self._bound)
            shards[chunk_key(spec.name, (i, 0, 0), self.separators[0])] = shard
            if self._bound:
                bindings[spec.name] = binding_of(shard)
        return shards, (*plane_checksums(image), *bindings.values())

    def _encoder(self, image: Image, spec: LayerSpec) -> Callable[[Block], EncodedBlock]:
        """Return the function that encodes blocks of a layer of an image."""
        plane, grid = image.layer(spec.name), self._grids[spec.name]
        stored = _EMPTY_PLANE.astype(spec.dtype) if plane is None else cast_plane(plane, spec.dtype)
        hints = hints_for(stored) if grid.chain.method == "pcodec" else Hints()
        return partial(encode_block, stored, grid, spec.fill, hints)

    def small_chunk(self, spec: ArraySpec) -> tuple[str, bytes | None]:
        """Return key and bytes of the one chunk of a small array; no bytes if it has no values."""
        return chunk_key(spec.name, (0,) * spec.data.ndim, self.separators[1]), encode_small(spec.data)

    def nodes(self, small: Sequence[ArraySpec], others: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the metadata document of every array and group below the root.

        Parameters
        ----------
        small
            All small arrays.
        others
            Metadata documents of arrays besides these and the layers.
        """
        nodes: dict[str, dict[str, Any]] = {spec.name: self.layer_metadata(spec) for spec in self.layers}
        nodes |= {spec.name: small_metadata(spec, self.separators[1]) for spec in small}
        nodes |= others
        for group in sorted({name.rpartition("/")[0] for name in nodes} - {""}):
            nodes[group] = group_metadata()
        return nodes

    def root(self, document: Mapping[str, Any], nodes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the root's metadata document, all others in it."""
        root = group_metadata({"Conventions": CONVENTIONS, "zarr_conventions": [], "wustore": document})
        root["consolidated_metadata"] = {**CONSOLIDATED, "metadata": {name: nodes[name] for name in sorted(nodes)}}
        return root


def _do(job: Callable[[], EncodedBlock]) -> EncodedBlock:
    return job()
