"""What a WorkUnit is, in memory: frozen dataclasses over numpy arrays, without any input or output.

Everything a backend reads or writes is said in these terms. They hold what the source held: masks are
not applied, headers are not interpreted and dtypes are not changed here. That happens only at the KBMOD
edge, in `wustore.work_unit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wustore.errors import FormatError
from wustore.model.casting import common_dtype

__all__ = [
    "LAYERS",
    "PIXEL_LAYERS",
    "Capsule",
    "Column",
    "ConstituentTable",
    "Image",
    "Meta",
    "Observatory",
]

PIXEL_LAYERS = ("science", "variance", "mask")
"""Layers with one value per pixel of an image."""

LAYERS = (*PIXEL_LAYERS, "psf")
"""All layers of an image."""

ColumnKind = Literal["plain", "wcs", "json"]


def object_array(values: Iterable[Any]) -> NDArray[Any]:
    """Return an array of Python objects, one axis; texts of any length, or mixed values, lists among them."""
    return np.fromiter(values, dtype=object)


def float_of(value: Any) -> float | None:
    """Return a number of a file as a float, whether the file has 41 or 41.0; None if it is no number.

    Metadata are floats from the moment they are read: digests and comparisons tell 41 from 41.0, and a store gives
    floats back.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


@dataclass(frozen=True, slots=True)
class Observatory:
    """Where the telescope is.

    Both forms are kept because turning one into the other rounds: FITS files hold the geodetic form,
    `astropy.coordinates.EarthLocation` holds the geocentric one.

    Attributes
    ----------
    geodetic
        Latitude [deg], longitude [deg] and height [m] on the WGS84 ellipsoid.
    geocentric
        X, Y, Z [m] in the ITRS, or None if the source holds only the geodetic form.
    """

    geodetic: tuple[float, float, float]
    geocentric: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class Column:
    """One column of the table of constituent images.

    Attributes
    ----------
    name
        The name as the user knows it; any string.
    kind
        ``plain``: a native numpy array (bool, integer, float, complex, datetime, ``U`` or ``S`` dtype),
        first axis the rows; ``wcs``: an object array of header text (cards of 80 characters, one string)
        or None; ``json``: an object array of Python values that strict JSON with tags can hold
        (`wustore.format.tagged_json`), mixed as they come.
    values
        The cells. Shape (n_rows, ...).
    mask
        True where a cell is masked, same shape as ``values``; None for a column without a mask.
    unit, description, format
        Attributes of an `astropy.table.Column`; None if not set.
    meta
        Free metadata of the column.
    """

    name: str
    kind: ColumnKind
    values: NDArray[Any]
    mask: NDArray[np.bool_] | None = None
    unit: str | None = None
    description: str | None = None
    format: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def column_of(name: str, values: Sequence[Any], *, is_quantity: bool = False) -> Column:
    """Return a column of values that a file holds one by one: plain if all are texts or all floats.

    Parameters
    ----------
    is_quantity
        Whether its numbers are floats, however they are written.
    """
    if is_quantity:
        values = [value if (number := float_of(value)) is None else number for value in values]
    if {type(value) for value in values} in ({str}, {float}):
        return Column(name, "plain", np.array(values))
    return Column(name, "json", object_array(values))


@dataclass(frozen=True, eq=False)
class ConstituentTable:
    """The table with one row per constituent image, column order kept.

    Attributes
    ----------
    n_rows
        The number of constituent images.
    columns
        The columns, in order; every name occurs once (names differing only in case are different).
    meta
        Free metadata of the table.
    """

    n_rows: int
    columns: tuple[Column, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise FormatError("a column name occurs twice", where="constituents", found=sorted(names))
        for column in self.columns:
            if len(column.values) != self.n_rows:
                raise FormatError(
                    "a column has the wrong length",
                    where=f"constituents, column {column.name!r}",
                    expected=f"{self.n_rows} rows",
                    found=len(column.values),
                )

    def get(self, name: str) -> Column | None:
        """Return the column of that name, or None."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, eq=False)
class Image:
    """One image of the stack, all layers, as the source holds it.

    Attributes
    ----------
    science, variance
        Shape (y, x), native byte order, C-contiguous; the source's dtype (float32 as KBMOD writes).
        Pixels under the mask keep the value the source has.
    mask
        Shape (y, x), the source's dtype; None if the source has no mask layer.
        A pixel is masked where the value is greater than 0.
    psf
        Shape (psf_y, psf_x), the source's dtype; None if the source has no PSF layer.
    checksums
        Of the planes (`wustore.model.checksum.plane_checksum`), in the order of `LAYERS`, if whoever read the image
        computed them. Writers rely on them.
    """

    science: NDArray[Any]
    variance: NDArray[Any]
    mask: NDArray[Any] | None = None
    psf: NDArray[Any] | None = None
    checksums: tuple[int, ...] | None = None

    @classmethod
    def of(cls, planes: Mapping[str, NDArray[Any] | None]) -> Image:
        """Return the image of some layers by name; science and variance that are not there have shape (0, 0)."""
        science, variance, mask, psf = map(planes.get, LAYERS)
        nothing = np.empty((0, 0), np.float32)
        return cls(nothing if science is None else science, nothing if variance is None else variance, mask, psf)

    def layer(self, name: str) -> NDArray[Any] | None:
        """Return the layer of that name (one of `LAYERS`), or None if it is absent."""
        if name not in LAYERS:
            raise KeyError(name)
        return getattr(self, name)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Meta:
    """Everything of a WorkUnit except pixels, PSF values and the FITS reconstruction data (the capsule).

    Attributes
    ----------
    times
        Mid-exposure times, MJD [days, UTC]. Shape (n_images,), float64. NaN if the source has none.
    image_shape
        True sizes (y, x) of the images. Shape (n_images, 2), int32.
    psf_shape
        True sizes (y, x) of the PSF kernels; (0, 0) if an image has none. Shape (n_images, 2), int32.
    dtypes
        For each layer the dtype of every image in the source; None if an image lacks the layer.
        The array of a layer has the dtype `layer_dtype` gives, which holds each of them exactly.
    links
        For each image the indices of its constituent images; None if the source does not say.
    constituents
        The table with one row per constituent image.
    configuration
        Parameter name to value, in order; None if the source has no configuration.
    wcs
        The global WCS as header text (cards of 80 characters, one string); None if there is none.
    reprojected
        Whether the images were reprojected; None if the source never recorded it.
    reprojection_frame
        ``"original"``, ``"ebd"`` or None.
    barycentric_distance
        The distance used for the EBD reprojection [au], or None.
    observatory
        None if the source does not say.
    mask_flags
        Meaning to bit value of the mask flags, where known.
    source
        Where the data came from: free JSON (format, layout, software), never needed for reading.
    history
        What was done to the store since, oldest first: one JSON object per edit.
    additions
        What a later version of the format added to the document: place to JSON value. Copies keep it; whoever makes
        other metadata of these leaves it out.
    """

    times: NDArray[np.float64]
    image_shape: NDArray[np.int32]
    psf_shape: NDArray[np.int32]
    dtypes: Mapping[str, tuple[np.dtype[Any] | None, ...]]
    links: tuple[tuple[int, ...], ...] | None
    constituents: ConstituentTable
    configuration: Mapping[str, Any] | None = None
    wcs: str | None = None
    reprojected: bool | None = None
    reprojection_frame: str | None = None
    barycentric_distance: float | None = None
    observatory: Observatory | None = None
    mask_flags: Mapping[str, int] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    additions: Mapping[tuple[str, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.times)
        if n == 0:
            raise FormatError("a WorkUnit without images", expected="at least 1 image", found=0)
        for name, array in (("image_shape", self.image_shape), ("psf_shape", self.psf_shape)):
            if array.shape != (n, 2):
                raise FormatError("wrong shape", where=name, expected=(n, 2), found=array.shape)
        for layer in LAYERS:
            if len(self.dtypes.get(layer, ())) != n:
                raise FormatError(
                    "one dtype per image is needed",
                    where=f"dtypes of {layer}",
                    expected=n,
                    found=len(self.dtypes.get(layer, ())),
                )
        for layer in ("science", "variance"):
            if any(dtype is None for dtype in self.dtypes[layer]):
                raise FormatError("an image without this layer", where=layer, expected=f"{n} images")
        if self.links is not None:
            self._check_links(self.links)

    def _check_links(self, links: Sequence[Sequence[int]]) -> None:
        if len(links) != self.n_images:
            raise FormatError("one link list per image is needed", expected=self.n_images, found=len(links))
        for i, indices in enumerate(links):
            for index in indices:
                if not 0 <= index < self.n_constituents:
                    raise FormatError(
                        "an image points to a constituent image that is not there",
                        where=f"image {i}",
                        expected=f"an index below {self.n_constituents}",
                        found=index,
                    )

    @property
    def n_images(self) -> int:
        """The number of images in the stack."""
        return len(self.times)

    @property
    def n_constituents(self) -> int:
        """The number of constituent images."""
        return self.constituents.n_rows

    def links_of(self, i: int) -> tuple[int, ...]:
        """Return the constituents of image ``i``; one to one, as in KBMOD, if the source does not say."""
        if self.links is not None:
            return self.links[i]
        return (i,) if i < self.n_constituents else ()

    def has_layer(self, layer: str) -> bool:
        """Return whether any image has this layer."""
        return any(dtype is not None for dtype in self.dtypes[layer])

    def layer_dtype(self, layer: str) -> np.dtype[Any]:
        """Return the dtype that holds this layer of every image exactly.

        Raises
        ------
        FormatError
            If the images' dtypes have no common exact dtype (int64 and float64, say).
        """
        return common_dtype(self.dtypes[layer], layer)

    def layer_shape(self, layer: str) -> tuple[int, int, int]:
        """Return the shape (time, y, x) of the padded array that holds this layer."""
        shapes = self.psf_shape if layer == "psf" else self.image_shape
        height, width = (int(size) for size in shapes.max(axis=0))
        return self.n_images, height, width

    def shape_of(self, layer: str, i: int) -> tuple[int, int]:
        """Return the true shape (y, x) of this layer of image ``i``."""
        height, width = (self.psf_shape if layer == "psf" else self.image_shape)[i]
        return int(height), int(width)


@dataclass(frozen=True, eq=False)
class Capsule:
    """FITS reconstruction data of a WorkUnit: what regenerates the identical files; only FITS looks inside.

    Each image has a part of its own besides (`wustore.backends.base.Reader.image_capsule`).

    Attributes
    ----------
    document
        JSON: the form (``fits`` or ``sharded-fits``), the files with their sizes and sha256, the version of
        the capsule's own encoding.
    head
        Bytes that belong to no single image (HDUs before and behind the images, header templates).
    """

    document: Mapping[str, Any]
    head: bytes
