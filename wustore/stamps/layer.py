"""Lazy arrays: numpy indexing over a reader, one request per subscript."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wustore.backends.base import Index, Reader
from wustore.backends.state import digest
from wustore.errors import MissingDependencyError, WuStoreError
from wustore.model.casting import cast_plane
from wustore.stamps.notebook import facts_html, facts_text, text_of_bytes
from wustore.stamps.picture import coloured, shrunk

if TYPE_CHECKING:
    import dask.array

__all__ = ["Layer"]


_THUMBNAIL, _THUMBNAIL_BYTES = 200, 1 << 28
"""Side of the picture in a notebook [pixel], and the largest image that is read for it [bytes]."""


class Layer:
    """A layer of all images as one lazy array with axes (time, y, x).

    Opening it reads nothing; a subscript reads the chunks it touches. Images smaller than the largest one
    are padded (NaN for floating dtypes, 0 for integers).

    Parameters
    ----------
    reader
        The open store.
    name
        One of `wustore.model.meta.LAYERS`.

    Attributes
    ----------
    shape
        (time, y, x).
    dtype
        Native dtype.
    """

    ndim = 3

    def __init__(self, reader: Reader, name: str) -> None:
        self.reader = reader
        self.name = name
        self.shape = reader.meta.layer_shape(name)
        self.dtype = reader.meta.layer_dtype(name)

    @property
    def chunks(self) -> tuple[int, int, int]:
        """Shape (time, y, x) of the smallest unit that is read."""
        return self.reader.chunks(self.name)

    @property
    def size(self) -> int:
        """Number of values, padding included."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def _facts(self) -> dict[str, Any]:
        return {
            "shape": "{} images, {} rows, {} columns".format(*self.shape),
            "dtype": self.dtype,
            "chunks": " x ".join(map(str, self.chunks)),
            "memory": f"{text_of_bytes(self.nbytes)} if it is all read",
            "source": self.reader.path,
        }

    def __repr__(self) -> str:
        return facts_text(f"Layer {self.name}, not read", self._facts())

    def _repr_html_(self) -> str:
        return facts_html(f"Layer {self.name}, not read", self._facts(), self.thumbnail())

    def thumbnail(self) -> NDArray[np.uint8] | None:
        """Return a small picture of the first image, or None if there is none or it cannot be read."""
        if not self.size or self.nbytes // len(self) > _THUMBNAIL_BYTES:
            return None
        try:
            first = self[0]
        except (WuStoreError, OSError):
            return None
        return coloured(shrunk(first, max(-(-max(first.shape) // _THUMBNAIL), 1)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Layer, (self.reader, self.name)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a lazy layer has no array in memory to share: np.asarray(layer) copies")
        array = self[...]
        return array if dtype is None else cast_plane(array, np.dtype(dtype))

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Read part of the layer.

        Parameters
        ----------
        key
            Integers, slices and an ellipsis as numpy takes them; on the time axis also a sequence or boolean
            array of indices.

        Returns
        -------
        ndarray
            What ``np.asarray(layer)[key]`` gives, C-contiguous.

        Raises
        ------
        IndexError
            As numpy.
        """
        times, rows, columns = _expanded(key)
        if isinstance(times, list | np.ndarray):
            return self._select(np.asarray(times), rows, columns)
        axes = [_axis(part, size) for part, size in zip((times, rows, columns), self.shape, strict=True)]
        return self._box(axes)

    def _box(self, axes: Sequence[_Axis]) -> NDArray[Any]:
        """Read the hull of three normalised axes and take the strided part of it."""
        if any(axis.length == 0 for axis in axes):
            return np.empty(tuple(axis.length for axis in axes if not axis.dropped), self.dtype)
        index: Index = (axes[0].hull, axes[1].hull, axes[2].hull)
        box = self.reader.read(self.name, index)
        return np.asarray(box[tuple(axis.within for axis in axes)], order="C")

    def _select(self, wanted: NDArray[Any], rows: Any, columns: Any) -> NDArray[Any]:
        if wanted.dtype == bool:
            if wanted.shape != self.shape[:1]:
                raise IndexError(f"boolean index of shape {wanted.shape} for {self.shape[0]} images")
            wanted = np.flatnonzero(wanted)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise IndexError("the time axis takes integers, a slice, or a one-dimensional sequence of integers")
        row_axis, column_axis = _axis(rows, self.shape[1]), _axis(columns, self.shape[2])
        tail = tuple(axis.length for axis in (row_axis, column_axis) if not axis.dropped)
        out = np.empty((len(wanted), *tail), self.dtype)
        for k, i in enumerate(wanted.tolist()):
            out[k] = self._box([_axis(i, self.shape[0]), row_axis, column_axis])
        return out

    def dask(self, chunks: tuple[int, int, int] | None = None) -> dask.array.Array:
        """Return the layer as a dask array, which reads when it is computed, on any worker.

        Parameters
        ----------
        chunks
            Chunk shape; by default one image, which is one request to the store.

        Raises
        ------
        MissingDependencyError
            Without dask (extra ``xarray``).
        """
        try:
            import dask.array as da
        except ImportError as error:
            raise MissingDependencyError(
                "dask is not installed", hint="pip install 'wustore[xarray]' brings it."
            ) from error
        shape = (1, *self.shape[1:]) if chunks is None else chunks
        empty = np.empty((0, 0, 0), self.dtype)
        array: dask.array.Array = da.from_array(  # type: ignore[no-untyped-call]
            self, chunks=shape, name=f"wustore-{self.token()}", asarray=False, meta=empty
        )
        return array

    def token(self) -> str:
        """Return a name that is the same for the same data in every process."""
        parts = (self.reader.format, self.reader.path, self.name, self.shape, str(self.dtype), self.reader.state())
        return digest(parts)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "wustore.stamps.layer.Layer", self.token()


class _Axis:
    """One axis of a subscript: the hull to read, and what to take from it."""

    def __init__(self, hull: slice, within: int | slice, length: int) -> None:
        self.hull = hull
        self.within = within
        self.length = length
        self.dropped = isinstance(within, int)


def _axis(part: Any, size: int) -> _Axis:
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        positions = range(start, stop, step)
        if not positions:
            return _Axis(slice(0, 0), slice(None), 0)
        low, high = min(positions[0], positions[-1]), max(positions[0], positions[-1])
        # The hull begins and ends on taken positions, so the step alone picks them, in either direction.
        return _Axis(slice(low, high + 1), slice(None, None, step), len(positions))
    if isinstance(part, bool | np.bool_):
        raise IndexError("a boolean is not an index of this axis")
    try:
        i = operator.index(part)
    except TypeError:
        raise IndexError(f"only integers, slices and an ellipsis index this axis, not {part!r}") from None
    if not -size <= i < size:
        raise IndexError(f"index {i} is out of bounds for an axis of size {size}")
    i %= size
    return _Axis(slice(i, i + 1), 0, 1)


def _expanded(key: Any) -> tuple[Any, Any, Any]:
    """Return the three parts of a subscript, its ellipsis filled in."""
    parts = list(key) if isinstance(key, tuple) else [key]
    places = [k for k, part in enumerate(parts) if part is Ellipsis]
    if len(places) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if places:
        missing = 3 - (len(parts) - 1)
        parts[places[0] : places[0] + 1] = [slice(None)] * max(missing, 0)
    parts += [slice(None)] * (3 - len(parts))
    if len(parts) > 3:
        raise IndexError(f"too many indices: the layer has 3 axes, {len(parts)} were given")
    return parts[0], parts[1], parts[2]
