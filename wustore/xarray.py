"""WorkUnits as xarray datasets: lazy, with named dimensions; the xarray engine ``wustore`` for every format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.backends.registry import open_reader
from wustore.errors import MissingDependencyError, UsageError, WuStoreError
from wustore.format.document import CONVENTIONS, TIME_ATTRIBUTES
from wustore.format.planes import layers_of
from wustore.format.wcs import text_to_wcs
from wustore.model.meta import LAYERS, PIXEL_LAYERS, Meta
from wustore.model.select import image_column
from wustore.model.units import whole_pixels
from wustore.stamps.layer import Layer
from wustore.stamps.sky import WCS_COLUMN, linked_wcs_or_none, numbers_alike, texts_sky_to_pixel
from wustore.stamps.trajectories import nearest_pixel

if TYPE_CHECKING:
    from astropy.coordinates import SkyCoord
    from astropy.wcs import WCS

try:
    import xarray as xr
    from xarray.backends import BackendArray, BackendEntrypoint
    from xarray.core import indexing
except ImportError as error:
    raise MissingDependencyError("xarray is not installed", hint="pip install 'wustore[xarray]' brings it.") from error

__all__ = ["WuStoreAccessor", "WuStoreEntrypoint", "mjd_to_datetime", "to_xarray"]

_MJD_ZERO = np.datetime64("1858-11-17", "ns")
_DAY = 86_400_000_000_000
_FITS_FORMATS = ("fits", "sharded-fits")


class _LayerArray(BackendArray):
    """A `wustore.stamps.layer.Layer` as xarray indexes it: read when values are needed, pickled by address."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.shape = layer.shape
        self.dtype = layer.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Read what integers, slices and arrays of integers, each on its own axis, pick."""
        hull: list[Any] = [key[0]]
        within: list[Any] = []
        for axis, part in enumerate(key):
            if axis > 0 and isinstance(part, np.ndarray):
                low = int(part.min()) if part.size else 0
                hull.append(slice(low, int(part.max()) + 1) if part.size else slice(0, 0))
                within.append(part - low)
            else:
                if axis > 0:
                    hull.append(part)
                within.append(slice(None))
        box = self.layer[tuple(hull)]
        kept = [part for part, of_key in zip(within, key, strict=True) if np.ndim(of_key) or isinstance(of_key, slice)]
        for axis, part in enumerate(kept):
            if isinstance(part, np.ndarray):
                box = np.take(box, part, axis=axis)
        return box

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "wustore.xarray", self.layer.token()


def mjd_to_datetime(mjd: NDArray[np.float64]) -> NDArray[np.datetime64] | None:
    """Return MJD [days, UTC] as datetime64[ns], NaT for NaN; None if a time is outside of the years 1678 to 2262.

    Parameters
    ----------
    mjd
        Times. Any shape.
    """
    known = np.isfinite(mjd)
    if np.any(np.isinf(mjd)) or np.any(np.abs(mjd[known] - 40587) > 106_000):  # days on either side of 1970
        return None
    days = np.floor(np.where(known, mjd, 0))
    rest = np.rint((np.where(known, mjd, 0) - days) * _DAY).astype(np.int64)
    times: NDArray[np.datetime64] = _MJD_ZERO + (days.astype(np.int64) * _DAY + rest).astype("timedelta64[ns]")
    times[~known] = np.datetime64("NaT", "ns")
    return times


def to_xarray(reader: Reader) -> xr.Dataset:
    """Return a store as a lazy dataset: no pixel is read until values are asked for.

    Parameters
    ----------
    reader
        An open store, which must stay open as long as the dataset is used.

    Returns
    -------
    xarray.Dataset
        Variables ``science``, ``variance``, ``mask`` (time, y, x) and ``psf`` (time, psf_y, psf_x), those that
        the store has, values as stored (masked pixels keep theirs) and smaller images padded. ``chunk({})``
        makes them dask arrays of one image each, which is what one shard of a Zarr store holds.

        Coordinates along ``time``: ``time`` (datetime64[ns], UTC; MJD as numbers beyond its range), ``mjd`` with the
        exact numbers, ``image_wcs`` (the header text of the WCS that an image's pixels have), ``observatory_latitude``,
        ``observatory_longitude`` [deg] and ``observatory_height`` [m], ``barycentric_distance`` [au],
        ``reprojection_frame``, and the columns of the table of constituents (``filter``, ``visit``, …) that have one
        value for each image. ``y`` and ``x`` are pixel positions from 0. So datasets of several nights can be joined,
        and each image keeps its own. The accessor ``ds.wustore`` uses them (`WuStoreAccessor`).
    """
    meta = reader.meta
    variables: dict[str, Any] = {}
    for spec in layers_of(meta):
        data = indexing.LazilyIndexedArray(_LayerArray(Layer(reader, spec.name)))
        variable = xr.Variable(spec.dims, data, dict(spec.attributes))
        variable.encoding["preferred_chunks"] = dict(zip(spec.dims, (1, *spec.shape[1:]), strict=True))
        variables[spec.name] = variable
    dataset = xr.Dataset(variables, coords=_coordinates(meta), attrs={"Conventions": CONVENTIONS})
    dataset.encoding["source"] = str(reader.path)
    return dataset


def _coordinates(meta: Meta) -> dict[str, xr.Variable]:
    mjd = {"units": "d", "long_name": "mid-exposure time (MJD, UTC)"}
    times = mjd_to_datetime(meta.times)
    _, height, width = meta.layer_shape("science")
    coordinates = {
        "time": xr.Variable("time", meta.times, dict(TIME_ATTRIBUTES))
        if times is None
        else xr.Variable("time", times, {"standard_name": "time", "long_name": "mid-exposure time (UTC)"}),
        "mjd": xr.Variable("time", meta.times, mjd),
        "y": xr.Variable("y", np.arange(height), {"units": "pixel"}),
        "x": xr.Variable("x", np.arange(width), {"units": "pixel"}),
    }
    texts = [linked_wcs_or_none(meta, i) or "" for i in range(meta.n_images)]
    if any(texts):
        coordinates["image_wcs"] = xr.Variable(
            "time", np.array(texts, dtype=object), {"long_name": "WCS of each image, FITS header text"}
        )
    for name, (value, unit) in _facts_of_all(meta).items():
        if value is not None:
            coordinates[name] = xr.Variable("time", np.full(meta.n_images, value), {"units": unit} if unit else {})
    taken = {*coordinates, *LAYERS, WCS_COLUMN}
    for column in meta.constituents.columns:
        if column.kind == "plain" and column.values.ndim == 1 and column.name not in taken:
            values = _array(image_column(meta, [column.name]))
            if values is not None:
                coordinates[column.name] = xr.Variable("time", values, {"units": column.unit} if column.unit else {})
    return coordinates


def _facts_of_all(meta: Meta) -> dict[str, tuple[Any, str]]:
    """Return what is the same for all images of a store, but not for those of several: name to (value, unit)."""
    latitude, longitude, height = (None, None, None) if meta.observatory is None else meta.observatory.geodetic
    return {
        "observatory_latitude": (latitude, "deg"),
        "observatory_longitude": (longitude, "deg"),
        "observatory_height": (height, "m"),
        "barycentric_distance": (meta.barycentric_distance, "au"),
        "reprojection_frame": (meta.reprojection_frame, ""),
    }


def _array(values: list[Any]) -> NDArray[Any] | None:
    """Return values of one kind as an array, NaN or empty text for None; None if there is nothing to show."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if all(isinstance(value, int | float) for value in known):
        if len(known) == len(values):
            return np.array(values)
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array(["" if value is None else str(value) for value in values])


@xr.register_dataset_accessor("wustore")  # type: ignore[no-untyped-call]
class WuStoreAccessor:
    """``ds.wustore``: the sky in a dataset of WorkUnits, also of several that were joined along ``time``.

    Parameters
    ----------
    dataset
        From `to_xarray` or the engine ``wustore``; a part of one, as long as the pixels of ``x`` and ``y`` are
        neighbours.

    Examples
    --------
    >>> import xarray as xr
    >>> ds = xr.open_mfdataset(["a.zarr", "b.zarr"], engine="wustore")  # doctest: +SKIP
    >>> ds.wustore.stamps(ra=351.3, dec=-5.1, radius=10).science.mean("time")  # doctest: +SKIP
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def wcs(self, image: int = 0) -> WCS:
        """Return the WCS of an image, in pixels of the coordinates ``x`` and ``y``.

        Parameters
        ----------
        image
            Its index along ``time``.

        Raises
        ------
        UsageError
            If it has none.
        """
        return text_to_wcs(self._text(image))

    def sky(self, x: Any, y: Any, image: int = 0) -> SkyCoord:
        """Return where pixels are on the sky.

        Parameters
        ----------
        x, y
            Positions in the coordinates ``x`` and ``y`` [pixel, from 0].
        image
            Index of the image along ``time``.

        Returns
        -------
        astropy.coordinates.SkyCoord

        Raises
        ------
        UsageError
            If the image has no WCS.
        """
        return self.wcs(image).pixel_to_world(x, y)

    def cutout(
        self,
        x: Any = None,
        y: Any = None,
        width: Any = 64,
        height: Any = None,
        *,
        ra: Any = None,
        dec: Any = None,
    ) -> xr.Dataset:
        """Return a window of all images, lazily: the same pixels of each.

        Parameters
        ----------
        x, y
            Centre [pixel]. The window's middle pixel is the nearest one.
        width, height
            Size [pixel]; the height is the width by default.
        ra, dec
            Centre [deg, ICRS] instead, if all images have the same WCS.

        Raises
        ------
        UsageError
            If the window reaches beyond the images, the position is missing or given twice, or there are several WCSes.
        """
        width = whole_pixels(width, "width")
        height = width if height is None else whole_pixels(height, "height")
        xs, ys = self._positions(x, y, ra, dec)
        if (xs != xs[0]).any() or (ys != ys[0]).any():
            raise UsageError("the images have different WCSes", hint="Use stamps, or give x and y.")
        first_x, first_y = int(nearest_pixel(xs[0])) - width // 2, int(nearest_pixel(ys[0])) - height // 2
        x0, y0 = self._origin()
        sizes = self._dataset.sizes
        left, top = first_x - x0, first_y - y0
        if left < 0 or top < 0 or left + width > sizes["x"] or top + height > sizes["y"]:
            raise UsageError(
                "the window reaches beyond the images",
                expected=f"x from {x0} to {x0 + sizes['x']}, y from {y0} to {y0 + sizes['y']}",
                found=f"x from {first_x} to {first_x + width}, y from {first_y} to {first_y + height}",
            )
        return self._dataset.isel(x=slice(left, left + width), y=slice(top, top + height))

    def stamps(self, x: Any = None, y: Any = None, radius: int = 10, *, ra: Any = None, dec: Any = None) -> xr.Dataset:
        """Return a stamp of each image around a position; pixels outside of an image are NaN, and 1 in the mask.

        Parameters
        ----------
        x, y
            Centre [pixel]: a number, or one for each image.
        radius
            Pixels around the central one.
        ra, dec
            Centre [deg, ICRS] instead; each image's own WCS says where that is.

        Returns
        -------
        xarray.Dataset
            Layers (time, stamp_y, stamp_x) with the coordinates of the images, and ``stamp_centre_x``,
            ``stamp_centre_y`` [pixel].

        Raises
        ------
        UsageError
            If the position is missing or given twice, or an image has no WCS.
        """
        xs, ys = self._positions(x, y, ra, dec)
        self._origin()  # or it says that pixels are missing in between
        radius = whole_pixels(radius, "radius")
        side = 2 * radius + 1
        images = self._dataset[[name for name in PIXEL_LAYERS if name in self._dataset]]
        # Integers have no NaN; in a mask, what is not there is masked.
        fill: dict[Any, Any] = {
            name: 1 if name == "mask" else np.nan if layer.dtype.kind == "f" else 0 for name, layer in images.items()
        }
        made = {name: np.empty((len(xs), side, side), layer.dtype) for name, layer in images.items()}
        offsets = np.arange(side) - radius
        for i, (in_x, in_y) in enumerate(zip(nearest_pixel(xs), nearest_pixel(ys), strict=True)):
            stamp = images.isel(time=i).reindex(y=in_y + offsets, x=in_x + offsets, fill_value=fill)
            for name, layer in stamp.items():
                made[name][i] = layer.values
        along_time = {name: c.variable for name, c in self._dataset.coords.items() if c.dims == ("time",)}
        centres = {"stamp_centre_x": ("time", xs), "stamp_centre_y": ("time", ys)}
        dims = ("time", "stamp_y", "stamp_x")
        return xr.Dataset({name: (dims, values) for name, values in made.items()}, coords=along_time | centres)

    def _text(self, image: int) -> str:
        if "image_wcs" in self._dataset.coords:
            text = str(np.atleast_1d(self._dataset.coords["image_wcs"].values)[image])
            if text:
                return text
        raise UsageError("an image has no WCS", where=f"image {image}", hint="Give positions in pixels.")

    def _origin(self) -> tuple[int, int]:
        """Return the coordinates (x, y) of the first pixel."""
        for name in ("x", "y"):
            values = self._dataset[name].values
            if not values.size or (np.diff(values) != 1).any():
                raise UsageError("the pixels are no longer neighbours", where=name, hint="Select slices without steps.")
        return int(self._dataset["x"].values[0]), int(self._dataset["y"].values[0])

    def _positions(self, x: Any, y: Any, ra: Any, dec: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the position in each image [pixel]."""
        n = self._dataset.sizes.get("time", 1)
        in_pixels, on_sky = x is not None and y is not None, ra is not None and dec is not None
        if in_pixels == on_sky:
            raise UsageError("a position is needed, once", expected="x and y, or ra and dec")
        if in_pixels:
            x, y = numbers_alike("pix", x=x, y=y)
            return np.broadcast_to(x, (n,)), np.broadcast_to(y, (n,))
        return texts_sky_to_pixel([self._text(i) for i in range(n)], ra, dec)


class WuStoreEntrypoint(BackendEntrypoint):
    """The engine ``wustore``: ``xarray.open_dataset(path, engine="wustore")`` for every format."""

    description: ClassVar[str] = "KBMOD WorkUnits in FITS, Zarr and HDF5"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = (
        "filename_or_obj",
        "drop_variables",
        "format",
        "storage_options",
    )

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        format: str | None = None,  # noqa: A002
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open a WorkUnit of any format; closing the dataset closes it.

        Parameters
        ----------
        filename_or_obj
            As ``path`` of `wustore.open`.
        drop_variables
            Variables to leave out.
        format
            Format name, if the content must not decide.
        storage_options
            Of a URL, such as ``{"anon": True}`` for a public bucket; as in `wustore.open`.
        """
        address = os.fspath(filename_or_obj) if isinstance(filename_or_obj, os.PathLike) else filename_or_obj
        reader = open_reader(address, format=format, storage_options=storage_options)
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        dataset = to_xarray(reader).drop_vars(dropped, errors="ignore")
        dataset.set_close(reader.close)
        return dataset

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether this is a FITS WorkUnit; Zarr and HDF5 stores are left to xarray's own engines.

        Parameters
        ----------
        filename_or_obj
            What xarray was given: a path, a URL or an open file.
        """
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = os.fspath(filename_or_obj)
        if ".fit" not in os.path.basename(path).lower():  # noqa: PTH119 - may be a URL
            return False
        try:  # any FITS file looks like one: only its metadata tell
            with open_reader(path) as reader:
                return reader.format in _FITS_FORMATS
        except (WuStoreError, OSError):
            return False
