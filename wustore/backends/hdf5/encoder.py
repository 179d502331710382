"""What an image becomes before it goes into a file: stored chunks, checksums, FITS reconstruction data.

An `Encoder` needs no file and no library call, so it works in any thread and process. An encoded image can be kept as
one piece of bytes (`Encoder.encode`) and taken apart again (`Encoder.parse`), with nothing in it that is executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends import base
from wustore.backends.chunk_grid import split_axis
from wustore.backends.hdf5 import netcdf
from wustore.backends.hdf5.chunks import Job
from wustore.backends.hdf5.presets import SIDES, pipeline_for
from wustore.errors import CorruptError, FormatError, UsageError, located
from wustore.format.arrays import ArraySpec
from wustore.format.packed import pack, unpack
from wustore.format.planes import LayerSpec, layers_of, plane_checksums, plane_problems
from wustore.model.casting import cast_plane
from wustore.model.meta import LAYERS, Image, Meta
from wustore.storage.threads import in_threads, worker_count

__all__ = ["Chunk", "EncodedImage", "Encoder", "LayerEncoder"]

Chunk = tuple[int, bytes | memoryview]
"""Mask of the filters left out, stored bytes."""


@dataclass(frozen=True)
class EncodedImage:
    """An image as it goes into the file.

    Attributes
    ----------
    layers
        The chunks of each layer that the file has, in the order of `LayerEncoder.corners`.
    checksums
        Of each plane (`wustore.model.checksum.plane_checksum`), in the order of `wustore.model.meta.LAYERS`.
    capsule
        FITS reconstruction data; empty if there are none.
    """

    layers: Sequence[Sequence[Chunk]]
    checksums: Sequence[int]
    capsule: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return sum(len(data) for layer in self.layers for _, data in layer)


class LayerEncoder:
    """The chunks of one layer.

    Parameters
    ----------
    chunks
        (y, x) of a chunk.
    exact
        Whether these are the sides; by default an axis is cut into equal parts of about so many pixels.

    Attributes
    ----------
    chunks
        Shape of a chunk.
    corners
        (y, x) of each chunk of an image, in the order in which they are stored.
    pipeline
        The filters.
    """

    def __init__(self, spec: LayerSpec, profile: str, chunks: tuple[int, int], *, exact: bool) -> None:
        self.spec = spec
        _, height, width = spec.shape
        rows, columns = max(height, 1), max(width, 1)
        if exact:
            sides = min(chunks[0], rows), min(chunks[1], columns)
        else:
            sides = split_axis(rows, chunks[0])[0], split_axis(columns, chunks[1])[0]
        self.chunks = (1, *sides)
        self.corners = [(y, x) for y in range(0, height, sides[0]) for x in range(0, width, sides[1])]
        self.pipeline = pipeline_for(profile, spec.name, netcdf.stored_layer_dtype(spec.dtype), self.chunks)
        self._places = np.array(self.corners, np.int64).reshape(-1, 2)
        self._fill: Chunk | None = None

    def jobs(self, plane: NDArray[Any] | None, parts: int) -> tuple[list[Job], list[Chunk]]:
        """Return the work of encoding a plane, in so many parts, and the list of chunks that it fills."""
        chunks: list[Chunk] = [(0, b"")] * len(self.corners)
        if plane is not None:
            plane = cast_plane(plane, self.spec.dtype)
        groups = np.array_split(np.arange(len(chunks)), min(parts, max(len(chunks), 1)))
        return [partial(self._encode, plane, group, chunks) for group in groups], chunks

    def _encode(self, plane: NDArray[Any] | None, group: NDArray[np.int64], chunks: list[Chunk]) -> None:
        sides = self.chunks[1:]
        corners = self._places[group]
        shape = np.array((0, 0) if plane is None else plane.shape)
        is_whole = (corners + sides <= shape).all(axis=1)
        if plane is not None and is_whole.any():
            found = self.pipeline.encode_all(plane, corners[is_whole])
            for k, chunk in zip(group[is_whole].tolist(), found, strict=True):
                chunks[k] = chunk
        for k, (y, x) in zip(group[~is_whole].tolist(), corners[~is_whole].tolist(), strict=True):
            if plane is None or y >= len(plane) or x >= plane.shape[1]:
                if self._fill is None:
                    self._fill = self.pipeline.encode(np.full(sides, self.spec.fill, self.pipeline.dtype))
                chunks[k] = self._fill
                continue
            whole = np.full(sides, self.spec.fill, self.spec.dtype)
            part = plane[y : y + sides[0], x : x + sides[1]]
            whole[: part.shape[0], : part.shape[1]] = part
            chunks[k] = self.pipeline.encode(whole)


@dataclass
class Encoder(base.Encoder):
    """Encodes the images of a file.

    Parameters
    ----------
    meta
        What the file holds.
    workers
        Threads that encode the chunks of an image.
    stored
        Sides (y, x) of the chunks of layers that are stored already.

    Attributes
    ----------
    layers
        The layers that the file has.
    """

    path: str
    meta: Meta
    profile: str
    layout: str
    chunks: tuple[int, int] | None
    workers: int | None
    stored: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    layers: list[LayerEncoder] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = []
        for spec in layers_of(self.meta):
            exact = self.stored.get(spec.name, self.chunks)
            sides = SIDES[self.layout] if exact is None else exact
            self.layers.append(LayerEncoder(spec, self.profile, sides, exact=exact is not None))

    def make(self, i: int, image: Image, capsule: bytes | None = None) -> EncodedImage:
        """Encode image ``i``, and carry along its part of the FITS reconstruction data.

        Raises
        ------
        UsageError
            If there is no such image.
        FormatError
            If it is not what the metadata says.
        """
        self.check_index(i)
        self._check(i, image)
        layers: list[list[Chunk]] = []
        jobs: list[Job] = []
        for layer in self.layers:
            more, chunks = layer.jobs(image.layer(layer.spec.name), worker_count(self.workers))
            jobs += more
            layers.append(chunks)
        in_threads(_do, jobs, self.workers)
        return EncodedImage(layers, list(plane_checksums(image)), capsule or b"")

    def check_index(self, i: int) -> None:
        """Refuse an image that the file does not have."""
        if not 0 <= i < self.meta.n_images:
            raise UsageError("no such image", path=self.path, expected=f"0 … {self.meta.n_images - 1}", found=i)

    def _check(self, i: int, image: Image) -> None:
        for wrong in plane_problems(self.meta, i, image):
            raise FormatError(
                wrong.what,
                path=self.path,
                where=f"image {i}, {wrong.layer}",
                expected=wrong.expected,
                found=wrong.found,
            )

    def encode(self, i: int, image: Image, capsule: bytes | None = None) -> bytes:
        """Encode image ``i`` into one piece of bytes; see `wustore.backends.base.Encoder.encode`."""
        return self.pack(self.make(i, image, capsule))

    def pack(self, image: EncodedImage) -> bytes:
        """Return an encoded image as one piece of bytes."""
        chunks = [chunk for layer in image.layers for chunk in layer]
        arrays: dict[str, NDArray[Any]] = {
            "skipped": np.array([skipped for skipped, _ in chunks], np.uint32),
            "sizes": np.array([len(data) for _, data in chunks], np.int64),
            "checksums": np.array(image.checksums, np.uint32),
            "capsule": np.frombuffer(image.capsule, np.uint8),
            "data": np.frombuffer(b"".join(data for _, data in chunks), np.uint8),
        }
        return pack(ArraySpec(name, array, (name,)) for name, array in arrays.items()).data.tobytes()

    def parse(self, piece: bytes) -> EncodedImage:
        """Return the encoded image that `pack` was given.

        Raises
        ------
        CorruptError
            If it is no piece of this file.
        """
        with located(self.path):
            arrays = unpack(np.frombuffer(piece, np.uint8))
        try:
            skipped, sizes, checksums = (arrays[name].tolist() for name in ("skipped", "sizes", "checksums"))
            data, capsule = arrays["data"].data, arrays["capsule"].tobytes()
        except (KeyError, ValueError) as error:
            raise CorruptError("an encoded image is damaged", path=self.path, found=repr(error)) from error
        counts = [len(layer.corners) for layer in self.layers]
        whole = len(skipped) == len(sizes) == sum(counts) and sum(sizes) == len(data) and min(sizes, default=0) >= 0
        if not whole or len(checksums) != len(LAYERS):
            raise CorruptError(
                "an encoded image is damaged",
                path=self.path,
                expected=f"{sum(counts)} chunks in {len(data)} bytes",
                found=f"{len(sizes)} chunks in {sum(sizes)} bytes",
            )
        layers: list[list[Chunk]] = []
        k = at = 0
        for count in counts:
            chunks: list[Chunk] = []
            for size, mask in zip(sizes[k : k + count], skipped[k : k + count], strict=True):
                chunks.append((mask, bytes(data[at : at + size])))
                at += size
            k += count
            layers.append(chunks)
        return EncodedImage(layers, checksums, capsule)


def _do(job: Job) -> None:
    job()
