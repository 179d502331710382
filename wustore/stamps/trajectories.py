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
from wustore.stamps.sky import shared_wcs, text_sky_to_pixel

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["NOWHERE", "Trajectories", "nearest_pixel", "trajectories_from"]

NOWHERE = -(2**31)
"""Pixel index of a position that is not a number or absurdly far away: outside of every frame."""

_PIXEL_COLUMNS = ("x", "y", "vx", "vy")
_RATE_COLUMNS = ("ra", "dec", "v_ra", "v_dec")
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
        for name in _PIXEL_COLUMNS:
            try:
                values = np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise UsageError("trajectories need numbers", where=name, found=str(error)) from error
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

    def __len__(self) -> int:
        return len(self.x)

    def pixels(self, times: ArrayLike, first_time: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pixels (x, y) that the trajectories are in.

        Parameters
        ----------
        times
            MJD [days, UTC], shape (time,). Where NaN, a trajectory is nowhere.
        first_time
            MJD of the first image, the zero time unless the trajectories have their own.

        Returns
        -------
        x, y : ndarray
            Shape (n, time).

        Raises
        ------
        UsageError
            Where there is no zero time.
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
        - an array of shape (n, 4) or a sequence of four arrays ``(x, y, vx, vy)``;
        - KBMOD's ``Results``, an astropy Table, structured array, pandas DataFrame or mapping with columns
          ``x, y, vx, vy``, or ``ra, dec, v_ra, v_dec`` [deg, deg / day] at the first image's time, or ``ra,
          dec`` and a time column (``mjd``, ``time``) with a row per position, ``object`` (or ``id``) telling
          the objects apart: each is fitted with a straight line in pixels;
        - objects with attributes ``x, y, vx, vy`` (KBMOD's ``Trajectory``), one or many;
        - the path of a KBMOD results file (.ecsv, .parquet, .parq, .hdf5) or a .csv file with such columns.
          Where it records the times of its images, the first of them is the zero time.
    meta
        Metadata of the store, for its WCS and the time of its first image.

    Raises
    ------
    UsageError
        Where the form is unknown, columns are missing or values are not finite.
    StoreNotFoundError, FormatError
        Where the file is missing or not a table.
    MissingDependencyError
        For Parquet without pyarrow (extra ``parquet``).
    """
    if isinstance(source, Trajectories):
        return source
    if isinstance(source, str | PathLike):
        columns, zero_time = _read_file(fspath(source))
        return _from_columns(columns, meta, zero_time)
    table = getattr(source, "table", source)  # KBMOD's Results hold a table, and the times beside it
    if hasattr(table, "colnames"):
        beside = {key: getattr(source, key) for key in _ZERO_TIME_KEYS if getattr(source, key, None) is not None}
        return _from_columns({name: table[name] for name in table.colnames}, meta, _zero_time(beside | table.meta))
    if isinstance(source, np.ndarray) and source.dtype.names is not None:
        return _from_columns({name: source[name] for name in source.dtype.names}, meta, None)
    if isinstance(source, Mapping):
        return _from_columns(source, meta, None)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return _from_columns({str(name): source[name].to_numpy() for name in source.columns}, meta, None)
    if hasattr(source, "vx") and hasattr(source, "vy"):
        source = [source]
    return _from_sequence(source)


def _from_sequence(source: Any) -> Trajectories:
    if not isinstance(source, np.ndarray):
        if not isinstance(source, Iterable):
            raise UsageError("not trajectories", expected="rows (x, y, vx, vy), a table or a file", found=repr(source))
        source = list(source)
        if source and all(hasattr(item, "vx") for item in source):
            x, y, vx, vy = ([getattr(item, name) for item in source] for name in _PIXEL_COLUMNS)
            return Trajectories(np.array(x), np.array(y), np.array(vx), np.array(vy))
        # A tuple of four equally long arrays reads as columns, a list of rows of four as rows.
        if len(source) == 4 and all(np.ndim(part) == 1 and isinstance(part, np.ndarray) for part in source):
            return Trajectories(*source)
    try:
        rows = np.asarray(source, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError("not trajectories", expected="rows (x, y, vx, vy)", found=str(error)) from error
    if rows.shape == (4,):
        rows = rows[None]
    if rows.size == 0:
        rows = rows.reshape(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise UsageError("not trajectories", expected="shape (n, 4): x, y, vx, vy", found=rows.shape)
    return Trajectories(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])


def _from_columns(columns: Mapping[str, Any], meta: Meta, zero_time: float | None) -> Trajectories:
    if all(name in columns for name in _PIXEL_COLUMNS):
        x, y, vx, vy = (_numbers(columns, name) for name in _PIXEL_COLUMNS)
        return Trajectories(x, y, vx, vy, zero_time)
    first = float(meta.times[0]) if zero_time is None else zero_time
    if all(name in columns for name in _RATE_COLUMNS):
        ra, dec, v_ra, v_dec = (_numbers(columns, name) for name in _RATE_COLUMNS)
        text = _one_wcs(meta)
        x, y = text_sky_to_pixel(text, ra, dec)
        later_x, later_y = text_sky_to_pixel(text, ra + v_ra, dec + v_dec)
        return Trajectories(x, y, later_x - x, later_y - y, zero_time=zero_time)
    time_column = next((name for name in _TIME_COLUMNS if name in columns), None)
    if "ra" in columns and "dec" in columns and time_column is not None:
        x, y = text_sky_to_pixel(_one_wcs(meta), _numbers(columns, "ra"), _numbers(columns, "dec"))
        group = next((name for name in _OBJECT_COLUMNS if name in columns), None)
        labels = np.zeros(len(x), int) if group is None else np.asarray(columns[group])
        return _fitted(x, y, _numbers(columns, time_column), labels, first)
    raise UsageError(
        "these columns do not describe trajectories",
        expected="x, y, vx, vy; or ra, dec, v_ra, v_dec; or ra, dec and mjd",
        found=", ".join(map(str, columns)) or "none",
    )


def _numbers(columns: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    values = columns[name]
    if np.any(getattr(values, "mask", False)):
        row = int(np.flatnonzero(values.mask)[0])
        raise UsageError("a trajectory has a masked value", where=f"{name} of row {row}")
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError("trajectories need numbers", where=f"column {name}", found=str(error)) from error


def _one_wcs(meta: Meta) -> str:
    """Return the WCS that all images share: motions in the pixels of a stack mean nothing without it."""
    return shared_wcs(
        meta,
        "a motion on the sky is no straight line through the stack",
        "Reproject the images first, or take stamps at a sky position.",
    )


def _fitted(
    x: NDArray[np.float64], y: NDArray[np.float64], times: NDArray[np.float64], labels: NDArray[Any], zero: float
) -> Trajectories:
    """Return the least-squares straight line of each object, in the order in which they first occur."""
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(times).all()):
        raise UsageError("a position or time is not finite, or the WCS does not reach it")
    _, starts, group = np.unique(labels, return_index=True, return_inverse=True)
    lines = []
    for number in np.argsort(starts, kind="stable"):
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
    return Trajectories(table[:, 0], table[:, 1], table[:, 2], table[:, 3], zero_time=zero)


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
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            "pyarrow is not installed", path=path, hint="pip install 'wustore[parquet]' brings it."
        ) from error
    wanted = {*_PIXEL_COLUMNS, *_RATE_COLUMNS, *_TIME_COLUMNS, *_OBJECT_COLUMNS}
    with pq.ParquetFile(path) as file:
        # A results file may hold stamps by the gigabyte: only the columns that matter are read.
        names = [name for name in file.schema_arrow.names if name in wanted]
        columns = {name: file.read([name]).column(name).to_numpy() for name in names}
        metadata = file.schema_arrow.metadata or {}
    return columns, _zero_time(_table_meta(metadata.get(b"table_meta_yaml")))


def _table_meta(text: bytes | None) -> Mapping[str, Any]:
    """Return the metadata that astropy keeps in a Parquet file."""
    if text is None:
        return {}
    from astropy.table.meta import get_header_from_yaml

    header = get_header_from_yaml(text.decode().splitlines())
    return dict(header.get("meta", {}))


def _zero_time(meta: Mapping[str, Any]) -> float | None:
    """Return the time of the first image that KBMOD notes in its results, or None."""
    for key in _ZERO_TIME_KEYS:
        if key in meta:
            times = np.asarray(meta[key], np.float64).reshape(-1)
            if times.size and np.isfinite(times[0]):
                return float(times[0])
    return None
