"""WorkUnits in memory: the simplest backend, and the reader over arrays that are at hand."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Backend, Index, Reader, Writer
from wustore.backends.state import reopen, replaced
from wustore.errors import IncompleteError, StoreExistsError, StoreNotFoundError, UsageError
from wustore.format.planes import fill_value
from wustore.model.casting import cast_plane
from wustore.model.meta import LAYERS, Capsule, Image, Meta

__all__ = ["MemoryBackend", "MemoryReader", "padded_box"]

PREFIX = "ram:"


@dataclass(frozen=True, eq=False)
class _Store:
    meta: Meta
    images: tuple[Image, ...]
    capsule: Capsule | None
    pieces: tuple[bytes | None, ...]
    state: str


_STORES: dict[str, _Store] = {}
"""Stores of this process by their path (``ram:`` and a name)."""


def padded_box(
    meta: Meta, layer: str, index: Index, planes: Sequence[NDArray[Any] | None], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return the box ``index`` of the padded array of a layer, from the true-shape planes of its images.

    Parameters
    ----------
    meta
        Metadata of the WorkUnit.
    layer
        One of `wustore.model.meta.LAYERS`.
    index
        Slices (time, y, x), step 1.
    planes
        The plane of each image that ``index[0]`` names, or None if it has none.
    out
        Array to fill instead of a new one.
    """
    times, rows, columns = index
    dtype = meta.layer_dtype(layer)
    shape = (times.stop - times.start, rows.stop - rows.start, columns.stop - columns.start)
    box = np.empty(shape, dtype) if out is None else out
    box[...] = fill_value(dtype)
    for k, plane in enumerate(planes):
        if plane is not None:
            part = cast_plane(plane[rows, columns], dtype)
            box[k, : part.shape[0], : part.shape[1]] = part
    return box


class MemoryReader(Reader):
    """A reader over images in memory.

    Parameters
    ----------
    meta
        Metadata that describes ``images``.
    images
        One per time.
    capsule, pieces
        FITS reconstruction data, if there are any, and the part of each image.
    path
        Its ``ram:`` name if it is registered, and pickles by address; others get a name of their own, so that
        no two are taken for the same, and pickle with their images.
    state
        What identifies the images (`Reader.state`); its name by default.
    shared
        Let `image` give the arrays themselves, for reading only, in place of copies: for a reader that is used at
        once, by a copy.
    """

    format = "memory"

    def __init__(
        self,
        meta: Meta,
        images: Sequence[Image],
        capsule: Capsule | None = None,
        pieces: Sequence[bytes | None] = (),
        path: str = "",
        state: str | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self._meta = meta
        self._shared = shared
        self._images = images
        self._capsule = capsule
        self._pieces = pieces
        self.path = path or f"{PREFIX}unnamed-{uuid.uuid4().hex}"
        self._state = state or self.path

    @property
    def meta(self) -> Meta:
        """The metadata given."""
        return self._meta

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box; see `wustore.backends.base.Reader.read`."""
        planes = [self._images[i].layer(layer) for i in range(index[0].start, index[0].stop)]
        return padded_box(self._meta, layer, index, planes, out)

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Return image ``i``; see `wustore.backends.base.Reader.image`."""
        image = self._images[i]
        return Image.of({layer: self._handed_out(image.layer(layer)) for layer in LAYERS if layer in layers})

    def _handed_out(self, plane: NDArray[Any] | None) -> NDArray[Any] | None:
        if plane is None:
            return None
        if not self._shared:
            return np.array(plane, order="C")
        view = np.ascontiguousarray(plane).view()
        view.flags.writeable = False
        return view

    def images_at_once(self, n_images: int) -> int:
        """Return 1: there is nothing to wait for."""
        return 1

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return a single pixel: memory has no chunks."""
        return 1, 1, 1

    def capsule(self) -> Capsule | None:
        """Return the FITS reconstruction data given."""
        return self._capsule

    def image_capsule(self, i: int, image: Image | None = None) -> bytes | None:
        """Return the part of image ``i`` that was given."""
        return self._pieces[i] if self._pieces else None

    def _is_named(self) -> bool:
        store = _STORES.get(self.path)
        return store is not None and store.state == self._state

    def check_state(self) -> None:
        """Check that the name, if it has one, still means these images."""
        if self._state != self.path and not self._is_named():
            raise replaced(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_named():
            return reopen, (MemoryBackend().open, (self.path,), self._state)
        return MemoryReader, (self._meta, tuple(self._images), None, (), self.path, self._state)


class _MemoryWriter(Writer):
    def __init__(self, path: str, meta: Meta, capsule: Capsule | None) -> None:
        self._path = path
        self._meta = meta
        self._capsule = capsule
        self.keeps_capsule = capsule is not None
        self._images: list[Image | None] = [None] * meta.n_images
        self._pieces: list[bytes | None] = [None] * meta.n_images

    def write(self, i: int, image: Image, capsule: bytes | None = None) -> None:
        # A copy: the caller may reuse its arrays.
        planes = {
            layer: None if (plane := image.layer(layer)) is None else np.array(plane, order="C") for layer in LAYERS
        }
        self._images[i] = replace(image, **planes)  # type: ignore[arg-type]
        self._pieces[i] = capsule

    def commit(self) -> None:
        images = [image for image in self._images if image is not None]
        if len(images) != self._meta.n_images:
            raise IncompleteError(
                "not every image was written", path=self._path, expected=self._meta.n_images, found=len(images)
            )
        state = uuid.uuid4().hex
        _STORES[self._path] = _Store(self._meta, tuple(images), self._capsule, tuple(self._pieces), state)

    def abort(self) -> None:
        self._images = [None] * self._meta.n_images


class MemoryBackend(Backend):
    """Stores in this process under ``ram:`` names."""

    name = "memory"
    description = "in this process's memory, under a name that starts with ram:"

    def recognises(self, start: bytes) -> bool:
        """Return False: what is in memory is no file."""
        return False

    def open(self, path: str, *, workers: int | None = None, **options: Any) -> MemoryReader:
        """Open a store of this process; see `wustore.backends.base.Backend.open`."""
        _refuse(options)
        if path not in _STORES:
            raise StoreNotFoundError("no store of this name in memory", path=path, found=sorted(_STORES) or "none")
        store = _STORES[path]
        return MemoryReader(store.meta, store.images, store.capsule, store.pieces, path, store.state)

    def create(
        self,
        path: str,
        meta: Meta,
        *,
        capsule: Capsule | None = None,
        overwrite: bool = False,
        workers: int | None = None,
        **options: Any,
    ) -> Writer:
        """Start a store; see `wustore.backends.base.Backend.create`."""
        _refuse(options)
        if path in _STORES and not overwrite:
            raise StoreExistsError("the target exists already", path=path, hint="Allow overwriting.")
        return _MemoryWriter(path, meta, capsule)

    def remove(self, path: str) -> None:
        """Forget a store; nothing happens if there is none."""
        _STORES.pop(path, None)


def _refuse(options: dict[str, Any]) -> None:
    if options:
        raise UsageError("unknown options", where="memory", expected="none", found=sorted(options))
