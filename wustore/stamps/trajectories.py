"""Linear motions through the pixels of a stack, and the many forms in which they come.

A trajectory is at pixel ``floor(x + vx * t + 0.5)`` (the same for y), ``t`` days after its zero time. That is
what KBMOD's search computes. (Its Python helpers cut the decimals off instead, which differs
only left of or below the frame.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore.errors import FormatError, MissingDependencyError, StoreNotFoundError, UsageError, WuStoreError
from wustore.model.meta import Meta
from wustore.model.units import has_unit, in_unit, mjd
from wustore.stamps.sky import shared_wcs, text_sky_to_pixel

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["NOWHERE", "Trajectories", "nearest_pixel", "trajectories_from"]

NOWHERE = -(2**31)
"""Pixel index of a position that is not a number or absurdly far away: outside of every frame."""

_PIXEL_UNITS = {"x": "pix", "y": "pix", "vx": "pix / d", "vy": "pix / d"}
_RATE_UNITS = {"ra": "deg", "dec": "deg", "v_ra": "deg / d", "v_dec": "deg / d"}
_TIME_COLUMNS = ("mjd", "time", "obstime", "mjd_mid")
_OBJECT_COLUMNS = ("object", "id", "name", "uuid")
_ZERO_TIME_KEYS = ("mjd_utc_mid", "mjd_mid")


def nearest_pixel(position: ArrayLike) -> NDArray[np.int64]:
    """Return the index of the pixel that holds a position, ``floor(position + 0.5)``; `NOWHERE` where there is none."""
    shifted = np.floor(np.asarray(position, np.float64) + 0.5)
    near = np.abs(shifted) < -NOWHERE  # False for NaN
    return np.where(near, shifted, NOWHERE).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Linear motions.

    Attributes
    ----------
    x, y
        Positions at the zero time [pixel, from 0]. Shape (n,).
    vx, vy
        Velocities [pixel / day]. Shape (n,).
    zero_time
        MJD [days, UTC] at which the trajectories are at (x, y); None for the time of the first image.
    ids
        Names of the trajectories, if they have any. Shape (n,).
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    vx: NDArray[np.float64]
    vy: NDArray[np.float64]
    zero_time: float | None = None
    ids: NDArray[Any] | None = None

    @property
    def names(self) -> NDArray[Any]:
        """The ids, or numbers from 0. Shape (n,)."""
        return np.arange(len(self)) if self.ids is None else self.ids

    def __post_init__(self) -> None:
        for name, unit in _PIXEL_UNITS.items():
            values = np.atleast_1d(in_unit(getattr(self, name), unit, name))
            if values.shape != (np.size(self.x),):
                raise UsageError(
                    "trajectories need as many values of each kind",
                    where=name,
                    expected=f"shape ({np.size(self.x)},)",
                    found=values.shape,
                )
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise UsageError("a trajectory is not finite", where=f"{name} of row {row}", found=values[row])
            object.__setattr__(self, name, values)
        if self.zero_time is not None:
            object.__setattr__(self, "zero_time", float(mjd(self.zero_time, "zero_time")))
        if self.ids is not None and np.shape(self.ids) != (len(self),):
            raise UsageError("trajectories need an id each", expected=f"shape ({len(self)},)", found=np.shape(self.ids))

    def __len__(self) -> int:
        return len(self.x)

    def pixels(self, times: ArrayLike, first_time: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pixels (x, y) that the trajectories are in.

        Parameters
        ----------
        times
            MJD [days, UTC], shape (time,). A trajectory is nowhere at NaN.
        first_time
            MJD of the first image, the zero time unless the trajectories have their own.

        Returns
        -------
        x, y : ndarray
            Shape (n, time).

        Raises
        ------
        UsageError
            If there is no zero time.
        """
        zero = first_time if self.zero_time is None else self.zero_time
        if not np.isfinite(zero):
            raise UsageError(
                "the first image has no time, so trajectories have no zero time",
                hint="Give the trajectories a zero_time.",
            )
        days = (np.asarray(times, np.float64) - zero).tolist()
        # Image by image: with all at once, the numbers in between would take several times the memory of the result.
        x, y = (np.empty((len(days), len(self)), np.int64) for _ in range(2))
        for k, day in enumerate(days):
            x[k] = nearest_pixel(self.x + self.vx * day)
            y[k] = nearest_pixel(self.y + self.vy * day)
        return x.T, y.T


def trajectories_from(source: Any, meta: Meta) -> Trajectories:
    """Return trajectories, whatever form they come in.

    Parameters
    ----------
    source
        One of

        - `Trajectories`;
        - rows ``(x, y, vx, vy)``: an array of shape (n, 4), or a list or tuple of rows, which are never columns;
        - KBMOD's ``Results``, an astropy Table, structured array, pandas DataFrame or mapping with columns
          ``x, y, vx, vy``, or ``ra, dec, v_ra, v_dec`` [deg, deg / day] at the first image's time, or ``ra,
          dec`` and a time column (``mjd``, ``time``) with a row per position, ``object`` (or ``id``) telling
          the objects apart: each is fitted with a straight line in pixels;
        - objects with attributes ``x, y, vx, vy`` (KBMOD's ``Trajectory``), one or many, or its ``TrajectoryList``;
        - the path of a KBMOD results file (.ecsv, .parquet, .parq, .hdf5) or a .csv file with such columns.
          If it records the times of its images, the first of them is the zero time.
    meta
        Metadata of the store, for its WCS and the time of its first image.

    Raises
    ------
    UsageError
        If the form is unknown, columns are missing, values are not finite or a unit cannot be converted.
    StoreNotFoundError, FormatError
        If the file is missing or not a table.
    MissingDependencyError
        For Parquet without pyarrow (extra ``parquet``).
    """
    if isinstance(source, Trajectories):
        return source
    if isinstance(source, str | PathLike):
        columns, zero_time = _read_file(fspath(source))
        return _from_columns(columns, meta, zero_time)
    table = getattr(source, "table", source)  # KBMOD's Results hold a table, and times
    if hasattr(table, "colnames"):
        times = {key: getattr(source, key) for key in _ZERO_TIME_KEYS if getattr(source, key, None) is not None}
        return _from_columns({name: table[name] for name in table.colnames}, meta, _zero_time(times | table.meta))
    if isinstance(source, np.ndarray) and source.dtype.names is not None:
        return _from_columns({name: source[name] for name in source.dtype.names}, meta, None)
    if isinstance(source, Mapping):
        return _from_columns(source, meta, None)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return _from_columns({str(name): source[name].to_numpy() for name in source.columns}, meta, None)
    if hasattr(source, "vx") and hasattr(source, "vy"):
        return Trajectories(*(getattr(source, name) for name in _PIXEL_UNITS))
    return _from_sequence(source)


def _from_sequence(source: Any) -> Trajectories:
    if callable(getattr(source, "get_list", None)):  # KBMOD's TrajectoryList cannot be iterated
        source = source.get_list()
    if not isinstance(source, np.ndarray):
        if not isinstance(source, Iterable):
            raise UsageError("not trajectories", expected="rows (x, y, vx, vy), a table or a file", found=repr(source))
        source = list(source)
        if source and all(hasattr(item, "vx") for item in source):
            return Trajectories(*([getattr(item, name) for item in source] for name in _PIXEL_UNITS))  # type: ignore[arg-type]
        if any(has_unit(item) for row in source for item in (row if isinstance(row, list | tuple) else [row])):
            raise UsageError(
                "rows of trajectories are plain numbers",
                expected="x, y [pixel], vx, vy [pixel / day]",
                found="values with units",
                hint="Give a table, or Trajectories(x, y, vx, vy).",
            )
    try:
        rows = np.asarray(source, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError("not trajectories", expected="rows (x, y, vx, vy)", found=str(error)) from error
    if rows.shape == (4,):
        rows = rows[None]
    if rows.size == 0:
        rows = rows.reshape(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise UsageError(
            "not trajectories",
            expected="rows, shape (n, 4): x, y, vx, vy",
            found=rows.shape,
            hint="Columns are given as a mapping {'x': …, 'y': …, 'vx': …, 'vy': …} or as Trajectories(x, y, vx, vy).",
        )
    return Trajectories(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])


def _from_columns(columns: Mapping[str, Any], meta: Meta, zero_time: float | None) -> Trajectories:
    group = next((name for name in _OBJECT_COLUMNS if name in columns), None)
    ids = None if group is None else np.asarray(columns[group])
    if all(name in columns for name in _PIXEL_UNITS):
        x, y, vx, vy = (_numbers(columns, name, unit) for name, unit in _PIXEL_UNITS.items())
        return Trajectories(x, y, vx, vy, zero_time, ids)
    first = float(meta.times[0]) if zero_time is None else zero_time
    if all(name in columns for name in _RATE_UNITS):
        ra, dec, v_ra, v_dec = (_numbers(columns, name, unit) for name, unit in _RATE_UNITS.items())
        text = _one_wcs(meta)
        x, y = text_sky_to_pixel(text, ra, dec)
        later_x, later_y = text_sky_to_pixel(text, ra + v_ra, dec + v_dec)
        return Trajectories(x, y, later_x - x, later_y - y, zero_time, ids)
    time_column = next((name for name in _TIME_COLUMNS if name in columns), None)
    if "ra" in columns and "dec" in columns and time_column is not None:
        x, y = text_sky_to_pixel(_one_wcs(meta), _numbers(columns, "ra", "deg"), _numbers(columns, "dec", "deg"))
        times = mjd(_unmasked(columns, time_column), f"column {time_column}")
        return _fitted(x, y, times, np.zeros(len(x), int) if ids is None else ids, first, named=ids is not None)
    raise UsageError(
        "these columns do not describe trajectories",
        expected="x, y, vx, vy; or ra, dec, v_ra, v_dec; or ra, dec and mjd",
        found=", ".join(map(str, columns)) or "none",
    )


def _unmasked(columns: Mapping[str, Any], name: str) -> Any:
    values = columns[name]
    if np.any(getattr(values, "mask", False)):
        row = int(np.flatnonzero(values.mask)[0])
        raise UsageError("a trajectory has a masked value", where=f"{name} of row {row}")
    return values


def _numbers(columns: Mapping[str, Any], name: str, unit: str) -> NDArray[np.float64]:
    return in_unit(_unmasked(columns, name), unit, f"column {name}")


def _one_wcs(meta: Meta) -> str:
    """Return the WCS that all images share: motions in the pixels of a stack mean nothing without it."""
    return shared_wcs(
        meta,
        "a motion on the sky is no straight line through the stack",
        "Reproject the images first, or take stamps at a sky position.",
    )


def _fitted(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    times: NDArray[np.float64],
    labels: NDArray[Any],
    zero: float,
    *,
    named: bool,
) -> Trajectories:
    """Return the least-squares straight line of each object, in the order in which they first occur."""
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(times).all()):
        raise UsageError("a position or time is not finite, or the WCS does not reach it")
    names, starts, group = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(starts, kind="stable")
    lines = []
    for number in order:
        rows = np.flatnonzero(group.reshape(-1) == number)
        days = times[rows] - zero
        middle = days.mean()
        spread = float(((days - middle) ** 2).sum())
        line = []
        for values in (x[rows], y[rows]):
            slope = float(((days - middle) * values).sum()) / spread if spread > 0 else 0.0
            line.append((values.mean() - slope * middle, slope))
        lines.append((line[0][0], line[1][0], line[0][1], line[1][1]))
    table = np.array(lines).reshape(-1, 4)
    return Trajectories(table[:, 0], table[:, 1], table[:, 2], table[:, 3], zero, names[order] if named else None)


# --- files ----------------------------------------------------------------------------------------------


def _read_file(path: str) -> tuple[dict[str, Any], float | None]:
    place = Path(path)
    if not place.is_file():
        raise StoreNotFoundError("there is no file of trajectories", path=path)
    suffix = place.suffix.lower()
    try:
        if suffix in {".parquet", ".parq"}:
            return _read_parquet(path)
        return _read_table(path, suffix)
    except (WuStoreError, MemoryError):
        raise
    except Exception as error:  # the table readers of astropy, h5py and pyarrow raise whatever they like
        raise FormatError("the file of trajectories cannot be read", path=path, found=str(error)[:300]) from error


def _read_table(path: str, suffix: str) -> tuple[dict[str, Any], float | None]:
    from astropy.table import Table as AstropyTable

    table: Table
    if suffix == ".ecsv":
        table = AstropyTable.read(path, format="ascii.ecsv")
    elif suffix == ".csv":
        table = AstropyTable.read(path, format="ascii.csv")
    elif suffix in {".hdf5", ".h5"}:
        table = AstropyTable.read(path, format="hdf5", path="__astropy_table__")
    else:
        raise UsageError(
            "the file name does not say what kind of table it is",
            path=path,
            expected=".ecsv, .parquet, .parq, .hdf5 or .csv",
        )
    return {name: table[name] for name in table.colnames}, _zero_time(table.meta)


def _read_parquet(path: str) -> tuple[dict[str, Any], float | None]:
    from astropy.table import Column

    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            "pyarrow is not installed", path=path, hint="pip install 'wustore[parquet]' brings it."
        ) from error
    wanted = {*_PIXEL_UNITS, *_RATE_UNITS, *_TIME_COLUMNS, *_OBJECT_COLUMNS}
    with pq.ParquetFile(path) as file:
        # A results file may hold stamps by the gigabyte: only the columns that matter are read.
        names = [name for name in file.schema_arrow.names if name in wanted]
        columns = {name: file.read([name]).column(name).to_numpy() for name in names}
        header = _table_header((file.schema_arrow.metadata or {}).get(b"table_meta_yaml"))
    for described in header.get("datatype", []):
        if described.get("unit") is not None and described["name"] in columns:
            columns[described["name"]] = Column(columns[described["name"]], unit=described["unit"])
    return columns, _zero_time(header.get("meta", {}))


def _table_header(text: bytes | None) -> Mapping[str, Any]:
    """Return what astropy keeps in a Parquet file about a table: units, metadata."""
    if text is None:
        return {}
    from astropy.table.meta import get_header_from_yaml

    return dict(get_header_from_yaml(text.decode().splitlines()))


def _zero_time(meta: Mapping[str, Any]) -> float | None:
    """Return the time of the first image that KBMOD notes in its results, or None."""
    for key in _ZERO_TIME_KEYS:
        if key in meta:
            times = mjd(meta[key], key).reshape(-1)
            if times.size and np.isfinite(times[0]):
                return float(times[0])
    return None
