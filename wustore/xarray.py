"""WorkUnits as xarray datasets: lazy, with named dimensions; the xarray engine ``wustore`` for every format."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.backends.layer import Layer
from wustore.backends.registry import open_reader
from wustore.errors import MissingDependencyError, UsageError, WuStoreError
from wustore.format.document import CONVENTIONS, TIME_ATTRIBUTES
from wustore.format.planes import layers_of
from wustore.model.meta import Meta
from wustore.stamps.sky import image_wcs

try:
    import xarray as xr
    from xarray.backends import BackendArray, BackendEntrypoint
    from xarray.core import indexing
except ImportError as error:
    raise MissingDependencyError("xarray is not installed", hint="pip install 'wustore[xarray]' brings it.") from error

__all__ = ["WuStoreEntrypoint", "mjd_to_datetime", "to_xarray"]

_MJD_ZERO = np.datetime64("1858-11-17", "ns")
_DAY = 86_400_000_000_000
_FITS_FORMATS = ("fits", "sharded-fits")


class _LayerArray(BackendArray):
    """A `wustore.backends.layer.Layer` as xarray indexes it; read when values are needed, pickled by address."""

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
    """Return MJD [days, UTC] as datetime64[ns], NaT for NaN; None where a time is outside of the years 1678 to 2262."""
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
        the store has, values as stored (masked pixels keep theirs) and smaller images padded; ``chunk({})``
        makes them dask arrays of one image each. Coordinates: ``time`` (datetime64[ns], UTC; MJD as numbers where
        that does not reach) and ``mjd`` with the exact numbers. Attributes: ``wcs``, the header text of the
        global WCS; without one the coordinate ``image_wcs`` has that of each image.
    """
    meta = reader.meta
    variables: dict[str, Any] = {}
    for spec in layers_of(meta):
        data = indexing.LazilyIndexedArray(_LayerArray(Layer(reader, spec.name)))
        variable = xr.Variable(spec.dims, data, dict(spec.attributes))
        variable.encoding["preferred_chunks"] = dict(zip(spec.dims, (1, *spec.shape[1:]), strict=True))
        variables[spec.name] = variable
    dataset = xr.Dataset(variables, coords=_coordinates(meta), attrs=_attributes(meta))
    dataset.encoding["source"] = str(reader.path)
    return dataset


def _coordinates(meta: Meta) -> dict[str, xr.Variable]:
    mjd = {"units": "d", "long_name": "mid-exposure time (MJD, UTC)"}
    times = mjd_to_datetime(meta.times)
    coordinates = {
        "time": xr.Variable("time", meta.times, dict(TIME_ATTRIBUTES))
        if times is None
        else xr.Variable("time", times, {"standard_name": "time", "long_name": "mid-exposure time (UTC)"}),
        "mjd": xr.Variable("time", meta.times, mjd),
    }
    if meta.wcs is None:
        texts = [_wcs_or_empty(meta, i) for i in range(meta.n_images)]
        if any(texts):
            coordinates["image_wcs"] = xr.Variable(
                "time", np.array(texts, dtype=object), {"long_name": "WCS of each image, FITS header text"}
            )
    return coordinates


def _wcs_or_empty(meta: Meta, i: int) -> str:
    try:
        return image_wcs(meta, i)
    except UsageError:
        return ""


def _attributes(meta: Meta) -> dict[str, Any]:
    facts = {
        "Conventions": CONVENTIONS,
        "wcs": meta.wcs,
        "observatory": None if meta.observatory is None else list(meta.observatory.geodetic),
        "reprojection_frame": meta.reprojection_frame,
        "barycentric_distance": meta.barycentric_distance,
    }
    return {name: value for name, value in facts.items() if value is not None}


class WuStoreEntrypoint(BackendEntrypoint):
    """The engine ``wustore``: ``xarray.open_dataset(path, engine="wustore")`` for every format."""

    description: ClassVar[str] = "KBMOD WorkUnits in FITS, Zarr and HDF5"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables", "format")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        format: str | None = None,  # noqa: A002
    ) -> xr.Dataset:
        """Open a WorkUnit of any format; closing the dataset closes it.

        Parameters
        ----------
        filename_or_obj
            As ``path`` of `wustore.open`.
        drop_variables
            Variables to leave out.
        format
            Format name, where the content must not decide.
        """
        address = os.fspath(filename_or_obj) if isinstance(filename_or_obj, os.PathLike) else filename_or_obj
        reader = open_reader(address, format=format)
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        dataset = to_xarray(reader).drop_vars(dropped, errors="ignore")
        dataset.set_close(reader.close)
        return dataset

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether this is a FITS WorkUnit; Zarr and HDF5 stores are left to xarray's own engines."""
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
