"""What the HDUs of a file mean: from the tables of `eras` to metadata and planes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.eras import (
    PREFIXES,
    SOURCES,
    TABLES,
    ImagePlanes,
    Source,
    columns_of,
    era_of,
    is_empty,
    marks,
    text_of,
    wcs_text,
)
from wustore.backends.fits.hdu.compressed_table import unpacked_table
from wustore.backends.fits.hdu.image import Plane
from wustore.backends.fits.hdu.scan import Hdu, ScannedFile, Sliceable
from wustore.backends.fits.hdu.table import TableColumn, read_table
from wustore.compat.yaml import load_value
from wustore.errors import CorruptError, FormatError, WuStoreError
from wustore.model.meta import (
    LAYERS,
    Column,
    ConstituentTable,
    Meta,
    Observatory,
    column_of,
    float_of,
    object_array,
)

__all__ = ["Layout", "interpret"]


@dataclass(frozen=True)
class Layout:
    """What a FITS file or a sharded set means.

    Attributes
    ----------
    meta
        Everything but pixels.
    images
        Where the planes are.
    roles
        (file number, HDU number) to what the HDU is: ``primary``, ``configuration``, ``constituents``,
        ``constituent``, or a layer and its image as in ``science 3``. HDUs that are not in it are foreign.
    """

    meta: Meta
    images: tuple[ImagePlanes, ...]
    roles: Mapping[tuple[int, int], str]


class _Reading:
    """One pass over the scanned files of a WorkUnit."""

    def __init__(self, files: Sequence[ScannedFile], data: Callable[[int], Sliceable], form: str) -> None:
        self.files = files
        self.data = data
        self.form = form
        self.file = files[0]
        self.path = self.file.path
        self.header = self.file.hdus[0].header
        self.roles: dict[tuple[int, int], str] = {(0, 0): "primary"}
        self.n_images = self._count()
        self.images = tuple(self._image(i) for i in range(self.n_images))
        self.n_constituents = self._n_constituents()
        self.links = tuple(self._link(i) for i in range(self.n_images))

    # Counts and images.

    def _error(self, what: str, hdu: Hdu | None = None, **details: Any) -> FormatError:
        return FormatError(what, path=self.path, where=None if hdu is None else hdu.place, **details)

    def _count(self) -> int:
        if "NUMIMG" not in self.header:
            raise self._no_work_unit()
        count = self.header["NUMIMG"]
        if type(count) is not int or count < 1:
            raise self._error(
                "the primary header counts no images", expected="NUMIMG of 1 or more", found=repr(count)[:80]
            )
        return count

    def _no_work_unit(self) -> FormatError:
        unnamed = [hdu for hdu in self.file.hdus[1:] if not hdu.name and hdu.kind in {"IMAGE", "BINTABLE"}]
        if len(self.file.hdus) == 4 and len(unnamed) == 3:
            return self._error(
                "a single image in KBMOD's old form (science, mask and variance as unnamed HDUs), not a WorkUnit",
                expected="NUMIMG in the primary header, and HDUs SCI_0, VAR_0, …",
                found=f"{len(self.file.hdus)} HDUs, 3 of them unnamed images",
                hint="Build a WorkUnit of such images with KBMOD first.",
            )
        index = self.path.replace("\\", "/").rpartition("/")[2].partition("_")[0]
        if self.file.get(f"SCI_{index}") is not None:
            return self._error(
                "one shard of a sharded set, not a whole WorkUnit",
                found=f"SCI_{index} but no NUMIMG",
                hint="Name the set by its primary file, the one without a number in front.",
            )
        return self._error(
            "not a WorkUnit",
            expected="the card NUMIMG in the primary header",
            found=", ".join(self.file.names()[:8]),
        )

    def _image(self, i: int) -> ImagePlanes:
        number = 0 if self.form == "fits" else 1 + i
        file = self.files[number]
        planes: dict[str, Plane] = {}
        for layer, prefix in PREFIXES.items():
            hdu = file.get(f"{prefix}_{i}")
            if hdu is None:
                if layer in {"science", "variance"}:
                    raise self._missing(f"{prefix}_{i}", file)
                self._refuse_buried(f"{prefix}_{i}", number)
                continue
            plane = planes[layer] = Plane(hdu, file.path)
            self.roles[number, hdu.index] = f"{layer} {i}"
            if layer != "psf" and plane.shape != planes["science"].shape:
                raise FormatError(
                    "the layers of an image differ in size",
                    path=file.path,
                    where=hdu.place,
                    expected=planes["science"].shape,
                    found=plane.shape,
                )
        return ImagePlanes(number, planes)

    def _refuse_buried(self, name: str, number: int) -> None:
        """Refuse a file in which damage hides an HDU: then the image would seem to have no mask, say."""
        file = self.files[number]
        if file.trailing_start == file.size:
            return
        behind = bytes(self.data(number)[file.trailing_start : file.size])
        if re.search(rb"EXTNAME *= *'%b *'" % name.encode(), behind, re.IGNORECASE):
            raise CorruptError(
                f"the HDU {name} lies behind bytes that are no HDU: the file is damaged",
                path=file.path,
                where=f"byte {file.trailing_start}",
                expected="XTENSION",
                found=repr(behind[:8]),
                hint="Fetch the file again.",
            )

    def _missing(self, name: str, file: ScannedFile) -> FormatError:
        science = [other for other in file.names() if re.fullmatch(r"SCI_\d+", other)]
        if self.form == "sharded-fits" and science and name.startswith("SCI"):
            return FormatError(
                "a shard holds another image than its name says",
                path=file.path,
                expected=name,
                found=science[0],
                hint="Give each shard the number of its image: <i>_<name> holds SCI_<i>.",
            )
        more = file.size - file.trailing_start
        return FormatError(
            f"there is no HDU {name}",
            path=file.path,
            expected=f"{name}: the primary header says NUMIMG = {self.n_images}",
            found=f"{len(science)} science HDUs"
            + (f" and {more} bytes that are no HDU behind the last one" if more else ""),
            hint="The file is not whole: fetch it again, or write it again from its source.",
        )

    def _n_constituents(self) -> int:
        if "NCON" not in self.header:
            return self.n_images
        count = self.header["NCON"]
        # The bound keeps a damaged number from asking for more memory than the file's size can justify.
        if type(count) is not int or not 1 <= count <= max(self.file.size, self.n_images):
            raise self._error(
                "the number of constituent images cannot be", expected="NCON of 1 or more", found=repr(count)[:80]
            )
        return count

    def _link(self, i: int) -> tuple[int, ...]:
        image = self.images[i]
        hdu = image.planes["science"].hdu
        path = self.files[image.file].path
        if "NIND" not in hdu.header:
            return self._link_of_table(i, hdu, path)
        count = hdu.header["NIND"]
        if type(count) is not int or count < 0:
            raise FormatError("NIND is no count", path=path, where=hdu.place, found=repr(count)[:80])
        indices = []
        for j in range(count):
            index = hdu.header.get(f"IND_{j}")
            if type(index) is not int or not 0 <= index < self.n_constituents:
                raise FormatError(
                    "an image points to a constituent image that is not there",
                    path=path,
                    where=f"{hdu.place}, card IND_{j}",
                    expected=f"0 … {self.n_constituents - 1}",
                    found="no such card" if index is None else index,
                )
            indices.append(index)
        return tuple(indices)

    def _link_of_table(self, i: int, hdu: Hdu, path: str) -> tuple[int, ...]:
        """Return the link of an image whose header has none: from IMG_META if it has a row per image."""
        if self.file.get("ORG_META") is not None and i in self.image_rows:
            return self.image_rows[i]
        if self.n_constituents != self.n_images:
            raise FormatError(
                "an image does not say of which constituent images it is made",
                path=path,
                where=hdu.place,
                expected="cards NIND, IND_0, …",
                found=f"none, with {self.n_constituents} constituents of {self.n_images} images",
            )
        return (i,)

    @cached_property
    def image_rows(self) -> dict[int, tuple[int, ...]]:
        """Links in the column ``per_image_indices`` of a table with a row per image."""
        columns = {column.name: column.values for column in self._table("IMG_META")}
        cells = columns.get("per_image_indices")
        if cells is None or len(cells) != self.n_images:
            return {}
        hdu, order = self.file.get("IMG_META"), columns.get("_index", np.arange(self.n_images))
        if order.ndim != 1 or order.dtype.kind not in "iuf":
            raise self._error(
                "the column _index holds no numbers of images", hdu, found=f"{order.dtype}, {order.ndim}-d"
            )
        rows: dict[int, tuple[int, ...]] = {}
        for number, cell in zip(order.tolist(), cells, strict=True):
            is_text = cells.dtype.kind in "US"
            found = re.findall(r"-?\d+", text_of(cell)) if is_text else np.atleast_1d(cell).ravel().tolist()
            try:
                indices = [int(index) for index in found]
            except (ValueError, TypeError, OverflowError) as error:
                raise self._error("the column per_image_indices holds no numbers", hdu, found=str(error)) from error
            indices = [index for index in indices if index >= 0]  # shorter rows are filled with -1
            if max(indices, default=0) >= self.n_constituents:
                raise self._error(
                    "an image points to a constituent image that is not there",
                    hdu,
                    expected=f"0 … {self.n_constituents - 1}",
                    found=max(indices),
                )
            rows[number] = tuple(indices)
        return rows

    # Tables.

    def _table(self, name: str) -> list[TableColumn]:
        hdu = self.file.get(name)
        if hdu is None:
            return []
        if hdu.kind != "BINTABLE":
            raise self._error("an HDU that should hold a table does not", hdu, expected="BINTABLE", found=hdu.kind)
        body = bytes(self.data(0)[hdu.data_start : hdu.data_start + hdu.data_length])
        header = hdu.header
        if header.get("ZTABLE") is True:
            header, body = unpacked_table(header, body, path=self.path, where=hdu.place)
        return read_table(header, body, path=self.path, where=hdu.place)

    def constituents(self) -> ConstituentTable:
        columns: dict[str, Column] = {}
        for name in TABLES:
            hdu = self.file.get(name)
            if hdu is None:
                continue
            self.roles[0, hdu.index] = "constituents"
            if columns or (name == "IMG_META" and self.file.get("ORG_META") is not None):
                continue
            table = self._table(name)
            n_rows = len(table[0].values) if table else 0
            if n_rows not in {0, self.n_constituents}:
                raise self._error(
                    "the table of constituent images has the wrong length",
                    hdu,
                    expected=f"{self.n_constituents} rows, one per constituent image",
                    found=n_rows,
                )
            if n_rows:
                try:
                    columns = columns_of(table)
                except WuStoreError as error:
                    error.path, error.where = self.path, hdu.place
                    raise
        for source in SOURCES:
            if source.column in columns and not is_empty(columns[source.column]):
                continue
            values = self._gather(source)
            if all(value is None for value in values):
                continue
            if source.keyword:
                columns[source.column] = column_of(source.column, values, is_quantity=source.is_quantity)
            else:
                columns[source.column] = Column(source.column, "wcs", object_array(values))
        return ConstituentTable(self.n_constituents, tuple(columns.values()))

    def _gather(self, source: Source) -> list[Any]:
        """Return the value of every constituent at the place that ``source`` names; nothing if it is not there."""
        by_image = source.hdu.startswith("SCI")
        if by_image and self.links != tuple((i,) for i in range(self.n_constituents)):
            return []
        values: list[Any] = []
        for k in range(self.n_constituents):
            hdu = self.images[k].planes["science"].hdu if by_image else self.file.get(source.hdu.format(k))
            if hdu is None:
                return []
            if source.hdu != "PRIMARY" and not by_image:
                self.roles[0, hdu.index] = "constituent"
            if source.keyword:
                keyword = source.keyword.format(k)
                if keyword not in hdu.header:
                    return []
                values.append(hdu.header[keyword])
            else:
                values.append(wcs_text(hdu.header, self.images[k].planes["science"].shape if by_image else None))
        if source.copies_global and not by_image and "ILOC" in (hdu.header if hdu is not None else ()):
            return values
        if source.copies_global and self._all_global(values):
            return []
        return values

    def _all_global(self, values: list[Any]) -> bool:
        primary = wcs_text(self.header)
        return primary is not None and all(value is not None and _same_wcs(value, primary) for value in values)

    def configuration(self) -> dict[str, Any] | None:
        hdu = self.file.get("KBMOD_CONFIG")
        if hdu is None:
            return None
        self.roles[0, hdu.index] = "configuration"
        values: dict[str, Any] = {}
        for name, cells, _ in self._table("KBMOD_CONFIG"):
            if len(cells) == 0:
                raise self._error("the configuration table has no row", hdu, expected="1 row", found=0)
            cell = cells[0]
            if isinstance(cell, np.generic) and not isinstance(cell, str | bytes):
                values[name] = cell.item()
                continue
            if isinstance(cell, np.ndarray):
                values[name] = cell.tolist()
                continue
            try:
                values[name] = load_value(cell.decode("latin-1") if isinstance(cell, bytes) else str(cell))
            except WuStoreError as error:
                error.path, error.where = self.path, f"{hdu.place}, parameter {name}"
                raise
        return values

    # Values of the primary header.

    def number(self, *keywords: str) -> float | None:
        """Return the first of these cards that holds a number."""
        numbers = (float_of(self.header.get(keyword)) for keyword in keywords)
        return next((number for number in numbers if number is not None), None)

    def observatory(self) -> Observatory | None:
        latitude, longitude, height = (self.number(keyword) for keyword in ("OBS_LAT", "OBS_LON", "OBS_ELEV"))
        if latitude is None or longitude is None or height is None:
            return None
        return Observatory((latitude, longitude, height))

    def times(self) -> NDArray[np.float64]:
        return np.array([_time(image.planes["science"].hdu.header.get("MJD")) for image in self.images], np.float64)

    def meta(self) -> Meta:
        none = (0, 0)
        era = era_of(marks(self.file, self.images))
        source: dict[str, Any] = {"format": self.form, "layout": era.name}
        if era.no_data is not None:
            source["no_data"] = era.no_data
        configuration = self.configuration()
        reprojected, frame = self.header.get("REPRJCTD"), self.header.get("REPFRAME")
        return Meta(
            times=self.times(),
            image_shape=np.array([image.planes["science"].shape for image in self.images], np.int32),
            psf_shape=np.array(
                [image.planes["psf"].shape if "psf" in image.planes else none for image in self.images], np.int32
            ),
            dtypes={
                layer: tuple(image.planes[layer].dtype if layer in image.planes else None for image in self.images)
                for layer in LAYERS
            },
            links=self.links,
            constituents=self.constituents(),
            configuration=configuration,
            wcs=wcs_text(self.header),
            reprojected=reprojected if isinstance(reprojected, bool) else None,
            reprojection_frame=frame if isinstance(frame, str) else None,
            barycentric_distance=self.number("BARY", "HELIO"),
            observatory=self.observatory(),
            mask_flags=self._mask_flags(configuration or {}),
            source=source,
        )

    def _mask_flags(self, configuration: Mapping[str, Any]) -> dict[str, int]:
        """Return the meanings of the mask's bits: KBMOD's parameter gives the number of each bit.

        Only for masks that hold flags; since April 2025 KBMOD writes whether a pixel is masked, in int8.
        """
        bits = configuration.get("mask_bits_dict")
        masks = [image.planes["mask"] for image in self.images if "mask" in image.planes]
        if not isinstance(bits, Mapping) or not masks or all(mask.dtype == np.int8 for mask in masks):
            return {}
        return {
            name: 1 << bit for name, bit in bits.items() if isinstance(name, str) and type(bit) is int and 0 <= bit < 63
        }


def _same_wcs(a: str, b: str) -> bool:
    def cards(text: str) -> set[str]:
        lines = (text[at : at + 80] for at in range(0, len(text), 80))
        return {line for line in lines if not line.startswith("NAXIS")}

    return cards(a) == cards(b)


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def interpret(files: Sequence[ScannedFile], data: Callable[[int], Sliceable], form: str) -> Layout:
    """Tell what a FITS file or a sharded set means.

    Parameters
    ----------
    files
        The file; for a sharded set the primary file, then the shards in order.
    data
        Function of a file's number giving its bytes; only tables are looked at.
    form
        ``fits`` or ``sharded-fits``.

    Raises
    ------
    FormatError
        If it is not a WorkUnit, or not a whole one.
    CorruptError
        If a header or a table holds what cannot be.
    """
    reading = _Reading(files, data, form)
    try:
        meta = reading.meta()
    except FormatError as error:
        if error.path is None:
            error.path = reading.path
        raise
    except (OverflowError, MemoryError) as error:
        raise CorruptError("a header holds a number that cannot be", path=reading.path, found=error) from error
    return Layout(meta, reading.images, reading.roles)
