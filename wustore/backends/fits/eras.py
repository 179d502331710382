"""KBMOD's FITS layouts since 2023, all of them, as tables: where each thing of a WorkUnit may stand.

No reader per era: every fact has a list of places, the newest first, and comes from the first that
holds it. What an era never stored is absent, not invented. The era's name (`ERAS`) is recorded and
decides nothing but which value meant "no data".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from wustore.backends.fits.hdu.header import Header
from wustore.backends.fits.hdu.image import Plane
from wustore.backends.fits.hdu.scan import ScannedFile
from wustore.backends.fits.hdu.table import TableColumn
from wustore.compat.wcs import kbmod_json_to_text
from wustore.errors import FormatError
from wustore.model.meta import Column, object_array

__all__ = ["ERAS", "PREFIXES", "Era", "ImagePlanes", "wcs_text"]

PREFIXES = {"science": "SCI", "variance": "VAR", "mask": "MSK", "psf": "PSF"}
"""Layer to the prefix of the names of its HDUs, ``SCI_0``, ``SCI_1``, …"""

_WCS_COLUMN = "_WCSSTR_"
_EMPTY_COLUMN = "_EMPTY_"
_RENAMED = {"original_wcs": "per_image_wcs"}
"""Columns that had another name for a few days of November 2024."""

_NO_DATA = -9999.0
"""Value of pixels without data before March 2024; NaN since."""

# --- eras ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Era:
    """A layout that KBMOD wrote for some time.

    Attributes
    ----------
    name
        ``kbmod-`` and the date from which it was written.
    has, lacks
        Marks of its files: ``KEY:`` a card of the primary header, ``HDU:`` an HDU, other words as in `marks`.
    no_data
        Value of pixels without data, if it was not NaN.
    """

    name: str
    has: frozenset[str]
    lacks: frozenset[str] = frozenset()
    no_data: float | None = None


def _era(name: str, has: str = "", lacks: str = "", no_data: float | None = None) -> Era:
    return Era(name, frozenset(has.split()), frozenset(lacks.split()), no_data)


ERAS = (
    _era("kbmod-2026-01", "KEY:OBS_LAT HDU:IMG_META"),
    _era("kbmod-2025-05", "KEY:BARY compressed-science int8-mask"),
    _era("kbmod-2025-04", "KEY:BARY compressed-science"),
    _era("kbmod-2025-03", "KEY:BARY HDU:IMG_META"),
    _era("kbmod-2025-01", "KEY:HELIO KEY:REPFRAME HDU:IMG_META"),
    _era("kbmod-2024-11-14-original", "KEY:HELIO HDU:ORG_META HDU:IMG_META"),
    _era("kbmod-2024-11-13", "KEY:HELIO HDU:IMG_META HDU:WCS_0 HDU:EBD_0"),
    _era("kbmod-2024-11-14", "KEY:HELIO HDU:IMG_META HDU:WCS_0"),
    _era("kbmod-2024-11-18", "KEY:HELIO HDU:IMG_META"),
    _era("kbmod-2024-11-11", "KEY:HELIO HDU:METADATA HDU:WCS_0 count-first"),
    _era("kbmod-2024-05", "KEY:HELIO HDU:METADATA HDU:WCS_0"),
    _era("kbmod-2024-02", "HDU:METADATA global-wcs image-wcs", "KEY:REPRJCTD HDU:IMG_META", _NO_DATA),
    _era("kbmod-2023-12", "HDU:METADATA global-wcs", "KEY:REPRJCTD HDU:IMG_META", _NO_DATA),
    _era("kbmod-2023-12", "HDU:METADATA image-wcs", "KEY:REPRJCTD HDU:IMG_META", _NO_DATA),
    _era("kbmod-2023-10", "HDU:METADATA", "KEY:REPRJCTD HDU:IMG_META", _NO_DATA),
)
"""Eras that differ in their content, the most special first. A file gets the first that fits it, so
one written later without any of the later marks (no WCS, say) gets the earlier name."""

UNKNOWN_ERA = Era("kbmod", frozenset())
"""For files that fit none: edited ones."""


# --- WCS ----------------------------------------------------------------------------------------------

# Keywords that wcslib and astropy take as part of a celestial WCS: FITS standard 4.0, tables 22, 23, 26, 35;
# SIP and the distortion papers. The letter at the end names an alternate description.
_WCS_KEYWORD = re.compile(
    r"(?:WCSAXES|WCSNAME|CRPIX\d+|CRVAL\d+|CDELT\d+|CTYPE\d+|CUNIT\d+|CNAME\d+|CRDER\d+|CSYER\d+|CZPHS\d+|CPERI\d+"
    r"|PC\d+_\d+|CD\d+_\d+|PV\d+_\d+|PS\d+_\d+|LONPOLE|LATPOLE|RADESYS|EQUINOX|SPECSYS|SSYSOBS|SSYSSRC|VELOSYS"
    r"|ZSOURCE|VELANGL|RESTFRQ|RESTWAV|OBSGEO-[XYZBLH])[A-Z]?"
    r"|CROTA\d+|PC\d{6}|CD\d{6}|RADECSYS|EPOCH|RESTFREQ|VELREF|VSOURCE"
    r"|(?:A|B|AP|BP)_(?:ORDER|DMAX|\d+_\d+)"
    r"|MJDREF[IF]?|DATEREF|MJD-OBS|MJD-AVG|MJD-BEG|MJD-END|DATE-OBS|DATE-AVG|DATE-BEG|DATE-END|JEPOCH|BEPOCH"
    r"|TIMESYS|TREFPOS|TREFDIR|PLEPHEM|TIMEUNIT|TIMEOFFS|TIMSYER|TIMRDER|TIMEDEL|TIMEPIXR|TSTART|TSTOP|TELAPSE"
    r"|XPOSURE|OBSORBIT|D[PQ]\d+.*|C[PQ]DIS\d+|C[PQ]ERR\d+|D2IM.*|AXISCORR"
)
_THIRD_AXIS = re.compile(
    r"(?:CRPIX|CRVAL|CTYPE|CDELT|CUNIT|CNAME|CROTA)[3-9]|(?:PC|CD)(?:[3-9]_\d+|\d+_[3-9])|P[VS][3-9]_\d+"
)
"""Each of these makes wcslib see more axes, whatever WCSAXES says."""
_NEEDED = ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def wcs_text(header: Header, shape: tuple[int, int] | None = None) -> str | None:
    """Return the header text of the WCS in an HDU's header, or None if KBMOD sees none.

    Parameters
    ----------
    shape
        (y, x) of the HDU's image, for ``NAXIS1`` and ``NAXIS2`` if the header has no ``DIMM1`` and ``DIMM2``.

    Returns
    -------
    str or None
        The WCS cards as they stand, behind two cards with the size of the image if it is known. None
        if one of CRVAL1, CRVAL2, CRPIX1 and CRPIX2 is missing, or if there are not two axes.
    """
    if any(keyword not in header for keyword in _NEEDED) or header.get("WCSAXES", 2) != 2:
        return None
    if any(_THIRD_AXIS.fullmatch(keyword) for keyword in header):
        return None
    width, height = header.get("DIMM1"), header.get("DIMM2")
    if not (_is_count(width) and _is_count(height)):
        height, width = (None, None) if shape is None else shape
    size = "" if width is None else "".join(f"NAXIS{k}  = {n:20d}".ljust(80) for k, n in ((1, width), (2, height)))
    cards = "".join(text for keyword, text in header.texts() if _WCS_KEYWORD.fullmatch(keyword))
    return size + cards.encode("ascii", "replace").decode("ascii")


# --- the constituent table ----------------------------------------------------------------------------

TABLES = ("ORG_META", "IMG_META", "METADATA")
"""HDUs with a row per constituent image. Where there is ORG_META, IMG_META has a row per image of the stack."""


class Source(NamedTuple):
    """Where eras without a table kept a value of each constituent ``k``.

    Attributes
    ----------
    column
        Today's column.
    hdu
        Name of the HDU, ``{}`` standing for ``k``.
    keyword
        Of the card (``{}`` standing for ``k``); empty for the WCS of the header.
    copies_global
        Whether the place also held mere copies of the global WCS, which say nothing about the constituent.
    is_quantity
        Whether its numbers are floats; a card may hold one without a point.
    """

    column: str
    hdu: str
    keyword: str = ""
    copies_global: bool = False
    is_quantity: bool = False


SOURCES = (
    Source("data_loc", "WCS_{}", "ILOC"),
    Source("ebd_wcs", "EBD_{}"),
    Source("geocentric_distance", "PRIMARY", "GEO_{}", is_quantity=True),
    Source("per_image_wcs", "WCS_{}", copies_global=True),
    Source("per_image_wcs", "SCI_{}", copies_global=True),
)


def text_of(cell: Any) -> str:
    return cell.decode("latin-1") if isinstance(cell, bytes) else str(cell)


def columns_of(columns: Iterable[TableColumn]) -> dict[str, Column]:
    """Return a table's columns under today's names."""
    found: dict[str, Column] = {}
    for name, values, unit in columns:
        if name.startswith(_WCS_COLUMN) and values.dtype.kind in "US" and values.ndim == 1:
            try:
                texts = [kbmod_json_to_text(text_of(cell)) for cell in values]
            except FormatError:
                pass  # it only looks like KBMOD's: it stays as it is
            else:
                column = Column(name.removeprefix(_WCS_COLUMN), "wcs", object_array(texts))
                found[column.name] = column
                continue
        if name.startswith(_EMPTY_COLUMN):
            column = Column(name.removeprefix(_EMPTY_COLUMN), "json", object_array([None] * len(values)))
            found.setdefault(column.name, column)
            continue
        if name in found and found[name].kind != "wcs":
            raise FormatError("a table has two columns of the same name", found=name)
        found.setdefault(name, Column(name, "plain", values, unit=unit))
    for old, new in _RENAMED.items():
        if old in found and found[old].kind != "plain":
            column = found.pop(old)
            if new not in found and not is_empty(column):
                found[new] = Column(new, column.kind, column.values)
    return found


def is_empty(column: Column) -> bool:
    return column.kind != "plain" and all(value is None for value in column.values)


# --- the whole ----------------------------------------------------------------------------------------


def marks(file: ScannedFile, images: Sequence[ImagePlanes]) -> set[str]:
    """Return what tells the eras apart in a file; see `Era.has`."""
    header = file.hdus[0].header
    science, mask = images[0].planes["science"], images[0].planes.get("mask")
    marks = {f"KEY:{keyword}" for keyword in header}
    marks |= {f"HDU:{name}" for name in file.names()}
    if science.hdu.kind == "BINTABLE":
        marks.add("compressed-science")
    if mask is not None and mask.dtype == np.int8:
        marks.add("int8-mask")
    if header.places.get("NCON", math.inf) < header.places.get("REPRJCTD", -1):
        marks.add("count-first")
    if "CRVAL1" in header:
        marks.add("global-wcs")
    if any("CRVAL1" in image.planes["science"].hdu.header for image in images):
        marks.add("image-wcs")
    return marks


def era_of(marks: set[str]) -> Era:
    """Return the newest era whose files have such marks."""
    return next((era for era in ERAS if era.has <= marks and not era.lacks & marks), UNKNOWN_ERA)


@dataclass(frozen=True)
class ImagePlanes:
    """The HDUs of one image.

    Attributes
    ----------
    file
        Number of the file they are in: 0 the primary one, 1 + i shard i.
    planes
        Layer to its plane; a layer that the image lacks is not in it.
    """

    file: int
    planes: Mapping[str, Plane]
