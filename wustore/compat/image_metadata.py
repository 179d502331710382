"""The table of constituent images: astropy `Table` <-> `wustore.model.meta.ConstituentTable` <-> KBMOD's IMG_META.

The model keeps every column with its dtype, unit, description, mask and place. KBMOD's FITS form keeps less:
WCS columns are JSON text under ``_WCSSTR_<name>``, object columns become text, columns of None are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wustore.compat.wcs import kbmod_json_to_text, text_to_kbmod_json
from wustore.errors import FormatError
from wustore.format import tagged_json
from wustore.format.wcs import text_to_wcs, wcs_to_text
from wustore.model.meta import Column, ConstituentTable, object_array
from wustore.model.quiet import quiet

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU
    from astropy.table import Table

__all__ = [
    "STANDARD_COLUMNS",
    "constituents_to_hdu",
    "constituents_to_table",
    "create_image_metadata",
    "fits_text",
    "hdu_to_constituents",
    "hdu_to_image_metadata_table",
    "image_metadata_table_to_hdu",
    "table_to_constituents",
]

STANDARD_COLUMNS = ("data_loc", "ebd_wcs", "geocentric_distance", "per_image_wcs")
"""Columns that every WorkUnit's table has, filled with None if nothing is known."""

_WCS_PREFIX = "_WCSSTR_"
_EMPTY_PREFIX = "_EMPTY_"
_WCS_TAG = "wustore:wcs"
"""Key of the mapping that represents a WCS inside a column of mixed values."""


# --- cells --------------------------------------------------------------------------------------------


def _is_wcs(value: Any) -> bool:
    from astropy.wcs import WCS

    return isinstance(value, WCS)


def _cell_to_json(value: Any, text_of: Callable[[Any], str]) -> Any:
    if _is_wcs(value):
        return {_WCS_TAG: text_of(value)}
    if type(value) is dict:
        return {key: _cell_to_json(item, text_of) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_cell_to_json(item, text_of) for item in value)
    return value


def _cell_from_json(value: Any, wcs_of: Callable[[str], Any]) -> Any:
    if type(value) is dict:
        if list(value) == [_WCS_TAG]:
            return wcs_of(value[_WCS_TAG])
        return {key: _cell_from_json(item, wcs_of) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_cell_from_json(item, wcs_of) for item in value)
    return value


# --- astropy table <-> model --------------------------------------------------------------------------


def _object_column(name: str, values: NDArray[Any], text_of: Callable[[Any], str]) -> tuple[str, NDArray[Any]]:
    cells = [row.tolist() if isinstance(row, np.ndarray) and row.dtype == object else row for row in values]
    if any(_is_wcs(cell) for cell in cells) and all(cell is None or _is_wcs(cell) for cell in cells):
        return "wcs", object_array([None if cell is None else text_of(cell) for cell in cells])
    converted = [_cell_to_json(cell, text_of) for cell in cells]
    for row, cell in enumerate(converted):
        try:
            tagged_json.encode(cell)
        except FormatError as error:
            raise FormatError(
                "a table cell holds an object that cannot be stored",
                where=f"constituents, column {name!r}, row {row}",
                expected="numbers, text, lists, mappings, WCS",
                found=type(cells[row]).__name__,
            ) from error
    return "json", object_array(converted)


def table_to_constituents(table: Table) -> ConstituentTable:
    """Return an astropy table as the model's table, exactly.

    Parameters
    ----------
    table
        One row per constituent image. Columns of WCS objects (and None) become kind ``wcs``, other object
        columns kind ``json``; masked columns keep the values under the mask.

    Raises
    ------
    FormatError
        For structured or mixin columns and for cells that hold an object without a JSON form.
    FidelityError
        For a WCS that header text cannot hold.
    """
    from astropy.units import Quantity

    text_of = cache(wcs_to_text)  # a WCS that is in many rows is written once
    columns = []
    for name in table.colnames:
        column = table[name]
        # A column of quantities has a unit, which is kept; other mixin columns (times, coordinates) mean more.
        values = np.asarray(column.value) if isinstance(column, Quantity) else getattr(column, "data", None)
        mask = None
        if isinstance(values, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(values).copy()
            values = values.data
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufcMmUSO":
            raise FormatError(
                "a table column cannot be stored",
                where=f"constituents, column {name!r}",
                expected="numbers, text, times or objects",
                found=type(column).__name__,
                hint="Turn it into plain columns first.",
            )
        if hasattr(column, "mask") and mask is None:
            mask = np.array(column.mask, dtype=bool)
        if values.dtype == object:
            kind, values = _object_column(name, values, text_of)
        else:
            kind, values = "plain", np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="))
        info = column.info
        columns.append(
            Column(
                name=name,
                kind=kind,  # type: ignore[arg-type]
                values=values,
                mask=mask,
                unit=None if info.unit is None else info.unit.to_string(),
                description=info.description,
                format=info.format if isinstance(info.format, str) else None,
                meta=dict(info.meta or {}),
            )
        )
    return ConstituentTable(len(table), tuple(columns), dict(table.meta))


def constituents_to_table(constituents: ConstituentTable) -> Table:
    """Return the model's table as an astropy table: the inverse of `table_to_constituents`.

    Equal WCS texts give the same WCS object. A cell that holds a text which is no WCS raises FormatError.
    """
    from astropy.table import Column as TableColumn
    from astropy.table import MaskedColumn, Table

    wcs_of = cache(text_to_wcs)
    columns = []
    for column in constituents.columns:
        values = column.values
        if column.kind == "wcs":
            values = object_array([None if text is None else wcs_of(text) for text in values])
        elif column.kind == "json":
            values = object_array([_cell_from_json(cell, wcs_of) for cell in values])
        else:
            values = values.copy()
        described: dict[str, Any] = {
            "name": column.name,
            "unit": column.unit,
            "description": column.description,
            "format": column.format,
            "meta": dict(column.meta),
        }
        if column.mask is None:
            columns.append(TableColumn(values, **described))
        else:
            columns.append(MaskedColumn(values, mask=column.mask, **described))
    if not columns:
        return Table(meta=dict(constituents.meta))
    return Table(columns, meta=dict(constituents.meta), copy=False)


def create_image_metadata(n_images: int, data: Table | None = None) -> Table:
    """Return a table with the standard columns, filled from ``data`` if given.

    Parameters
    ----------
    n_images
        The number of rows.
    data
        Columns to take over; those it lacks hold None.

    Returns
    -------
    astropy.table.Table
        ``data_loc``, ``ebd_wcs``, ``geocentric_distance``, ``per_image_wcs``, then the other columns.

    Raises
    ------
    FormatError
        If ``n_images`` is not positive or ``data`` has another number of rows.
    """
    from astropy.table import Table

    if n_images <= 0:
        raise FormatError("a table of constituent images needs rows", expected="at least 1", found=n_images)
    table = Table()
    for name in STANDARD_COLUMNS:
        table[name] = np.full(n_images, None)
    if data is not None and len(data) > 0:
        if len(data) != n_images:
            raise FormatError("Metadata size mismatch", where="constituents", expected=n_images, found=len(data))
        for name in data.colnames:
            table[name] = data[name]
        table.meta.update(data.meta)
    return table


# --- KBMOD's FITS form --------------------------------------------------------------------------------


def fits_text(text: str) -> str:
    """Return a text as FITS can hold it: other characters than ASCII become escapes."""
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode("ascii")


def _fits_texts(values: NDArray[Any]) -> NDArray[Any]:
    texts = np.array([fits_text(str(value)) for value in values.ravel()], dtype=np.str_).reshape(values.shape)
    return texts if texts.dtype.itemsize else texts.astype("U1")


def _fits_values(column: Column) -> tuple[str, NDArray[Any]] | None:
    """Return name and values of a column in KBMOD's table, or None for one that it leaves out."""
    name, values = fits_text(column.name), column.values
    if column.kind == "wcs":
        if all(not text for text in values):
            return None
        jsons = np.array([text_to_kbmod_json(text or None) for text in values], dtype=np.str_)
        return _WCS_PREFIX + name, _fits_texts(jsons)
    if column.kind == "json":
        if all(cell is None for cell in values):
            return None
        return name, _fits_texts(object_array(map(_object_text, values)))
    if values.dtype.kind == "U":
        return name, _fits_texts(values)
    if values.dtype.kind in "Mm":
        return name, _fits_texts(values.astype(str))
    if values.dtype.kind == "S" and values.dtype.itemsize == 0:
        return name, values.astype("S1")
    if values.dtype == np.float16:
        return name, values.astype(np.float32)
    if values.dtype.itemsize > 8 * (1 + (values.dtype.kind == "c")) and values.dtype.kind in "fc":
        return name, values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    return name, values


def _object_text(cell: Any) -> str:
    if type(cell) is dict and list(cell) == [_WCS_TAG]:
        return text_to_kbmod_json(cell[_WCS_TAG])
    return str(cell)


def constituents_to_hdu(constituents: ConstituentTable, layer_name: str | None = None) -> BinTableHDU:
    """Return the table HDU that KBMOD writes for the table of constituent images.

    Parameters
    ----------
    layer_name
        EXTNAME (KBMOD: ``IMG_META``).

    Notes
    -----
    WCS columns become JSON text named ``_WCSSTR_<name>``, other object columns text, columns of None are
    left out, int8 becomes logical values. Better than KBMOD: a WCS column may start with None, and text that is not
    ASCII is escaped.
    """
    from astropy.io import fits
    from astropy.table import Table

    saved = Table()
    for column in constituents.columns:
        written = _fits_values(column)
        if written is not None:
            name, values = written
            saved[name] = values
            if column.unit is not None:
                saved[name].unit = column.unit
    with quiet():  # astropy: column names differing only in case; units outside the standard
        hdu = fits.BinTableHDU(saved)
    if layer_name is not None:
        hdu.name = layer_name
    return hdu


def hdu_to_constituents(hdu: BinTableHDU) -> ConstituentTable:
    """Return the table of constituent images of KBMOD's table HDU, columns in file order.

    Parameters
    ----------
    hdu
        Table HDU; ``_WCSSTR_<name>`` columns are WCSes, ``_EMPTY_<name>`` ones (November 2024) hold nothing.

    Raises
    ------
    FormatError
        If a WCS cell is not what KBMOD writes.
    """
    data = hdu.data
    n_rows = 0 if data is None else len(data)
    columns = []
    for fits_column in hdu.columns:
        name = fits_column.name
        if name.startswith(_EMPTY_PREFIX):
            columns.append(Column(name.removeprefix(_EMPTY_PREFIX), "json", object_array([None] * n_rows)))
            continue
        values = _native(data, name)
        if fits_column.bzero == -128 and fits_column.format.endswith("B"):
            values = (data.view(np.ndarray)[name] ^ 0x80).astype(np.uint8).view(np.int8)
        if name.startswith(_WCS_PREFIX):
            texts = [kbmod_json_to_text(text) for text in values.astype(str).tolist()]
            columns.append(Column(name.removeprefix(_WCS_PREFIX), "wcs", object_array(texts)))
            continue
        mask = None
        if fits_column.null is not None and values.dtype.kind in "iu":
            mask = values == fits_column.null
        columns.append(Column(name, "plain", values, mask=mask, unit=fits_column.unit or None))
    return ConstituentTable(n_rows, tuple(columns))


def _native(data: Any, name: str) -> NDArray[Any]:
    raw = data.view(np.ndarray)[name] if data.dtype.fields is not None else data[name]
    if raw.dtype.kind == "S":
        try:
            return np.char.decode(np.char.rstrip(raw), "ascii")
        except UnicodeDecodeError:
            return np.ascontiguousarray(raw)
    values = np.asarray(data[name])
    return np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="))


def image_metadata_table_to_hdu(data: Table, layer_name: str | None = None) -> BinTableHDU:
    """Return the HDU that KBMOD writes for an astropy table of constituent images (`constituents_to_hdu`).

    Parameters
    ----------
    data
        A row for each constituent image.
    layer_name
        Name of the HDU.

    Warns
    -----
    UserWarning
        If the HDU cannot hold a column's values: text that is not ASCII, and int8, which becomes logical values.
    """
    constituents = table_to_constituents(data)
    for column in constituents.columns:
        if column.kind != "wcs" and column.values.dtype == np.int8:
            warnings.warn(f"column {column.name!r}: KBMOD writes int8 as logical values", UserWarning, stacklevel=2)
        elif column.kind != "wcs" and not all(str(value).isascii() for value in column.values.ravel()):
            warnings.warn(
                f"column {column.name!r}: FITS tables hold ASCII only; other characters are written as \\x.. escapes",
                UserWarning,
                stacklevel=2,
            )
    return constituents_to_hdu(constituents, layer_name)


def hdu_to_image_metadata_table(hdu: BinTableHDU) -> Table:
    """Return the astropy table of KBMOD's table HDU (`hdu_to_constituents`), WCS columns decoded.

    Parameters
    ----------
    hdu
        A table as KBMOD's ``to_fits`` writes it.
    """
    return constituents_to_table(hdu_to_constituents(hdu))
