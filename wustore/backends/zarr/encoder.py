"""What a store of given metadata consists of: its arrays' documents, and the shards of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wustore.backends.zarr.codecs import Hints
from wustore.backends.zarr.metadata import (
    SEPARATOR,
    array_metadata,
    chunk_key,
    document_checksum,
    encode_small,
    group_metadata,
    small_metadata,
)
from wustore.backends.zarr.presets import grid_for, hints_for
from wustore.backends.zarr.shards import encode_shard
from wustore.format.arrays import ArraySpec
from wustore.format.document import CONVENTIONS, arrays_of, document_of
from wustore.format.packed import pack
from wustore.format.planes import LayerSpec, cast_plane, layers_of
from wustore.model.meta import Image, Meta

__all__ = ["Structure"]

_EMPTY_PLANE = np.empty((0, 0))


class Structure:
    """The arrays of a store.

    Parameters
    ----------
    meta
        What the store holds.
    profile, layout, chunks
        See `wustore.backends.zarr.writer.Options`.
    generation
        How often the store was appended to. Neighbouring generations keep their small arrays under different
        keys, so that who has read the old root document finds what it speaks of.

    Attributes
    ----------
    layers
        The big arrays.
    small
        The small arrays that follow from ``meta`` alone.
    packed
        These in one array.
    """

    def __init__(
        self,
        meta: Meta,
        *,
        profile: str,
        layout: str,
        chunks: Sequence[int] | None = None,
        generation: int = 0,
    ) -> None:
        self.meta = meta
        self.layers = layers_of(meta)
        self.small = arrays_of(meta)
        self._storage = {"profile": profile, "layout": layout if chunks is None else list(chunks)}
        self._generation = generation
        self.separator = SEPARATOR if generation % 2 == 0 else "/"
        self._grids = {
            spec.name: grid_for(spec.name, spec.shape[1:], spec.dtype, profile=profile, layout=layout, chunks=chunks)
            for spec in self.layers
        }
        self.packed = pack(self.small)

    def document(self, capsule: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the root document."""
        document = document_of(self.meta)
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
        )

    def shards(self, i: int, image: Image, workers: int) -> Iterator[tuple[str, bytes]]:
        """Yield key and bytes of each shard of an image; the same for the same image, whoever asks."""
        for spec in self.layers:
            if 0 in spec.shape:
                continue
            plane = image.layer(spec.name)
            stored = _EMPTY_PLANE.astype(spec.dtype) if plane is None else cast_plane(plane, spec.dtype)
            grid = self._grids[spec.name]
            hints = hints_for(stored) if grid.chain.method == "pcodec" else Hints()
            yield chunk_key(spec.name, (i, 0, 0)), encode_shard(stored, grid, spec.fill, hints, workers)

    def small_chunk(self, spec: ArraySpec) -> tuple[str, bytes | None]:
        """Return key and bytes of the one chunk of a small array; no bytes where it has no values."""
        return chunk_key(spec.name, (0,) * spec.data.ndim, self.separator), encode_small(spec.data)

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
        nodes |= {spec.name: small_metadata(spec, self.separator) for spec in small}
        nodes |= others
        for group in sorted({name.rpartition("/")[0] for name in nodes} - {""}):
            nodes[group] = group_metadata()
        return nodes

    def root(self, document: Mapping[str, Any], nodes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the root's metadata document, all others in it."""
        root = group_metadata({"Conventions": CONVENTIONS, "zarr_conventions": [], "wustore": document})
        root["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": {name: nodes[name] for name in sorted(nodes)},
        }
        return root
