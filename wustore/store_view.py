"""The model as KBMOD sees it, and back: Meta and Image <-> WorkUnit.

Only here are masks applied and dtypes changed. Reading as KBMOD does: a pixel whose mask is greater than 0 is
NaN in science and variance (a negative flag does not mask), pixels are float32, an image without PSF has a
single pixel of 1, and the no-data value of the files of 2023 (-9999) is NaN. Unlike there, a PSF of float64
stays one.

Writing keeps what KBMOD's view does not show: as long as the pixels of a WorkUnit are still those in its
store, its reader is handed on, with the metadata that was changed since, if any.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Progress, Reader
from wustore.backends.memory import MemoryReader
from wustore.compat.configuration import SearchConfiguration, copied
from wustore.compat.image_metadata import STANDARD_COLUMNS, constituents_to_table, table_to_constituents
from wustore.compat.image_stack import ImageStack
from wustore.compat.layered_image import LazyPlanes
from wustore.compat.observatory import location_of, observatory_of
from wustore.compat.plane_list import PlaneList
from wustore.errors import FormatError, UsageError
from wustore.format.wcs import wcs_to_text
from wustore.model.compare import meta_differences, table_differences
from wustore.model.kbmod_rules import identity_psf, no_data_of
from wustore.model.meta import LAYERS, PIXEL_LAYERS, Column, ConstituentTable, Image, Meta
from wustore.stamps.cutting.masking import hide
from wustore.stamps.view import View
from wustore.storage.threads import read_ahead

if TYPE_CHECKING:
    from astropy.coordinates import EarthLocation
    from astropy.table import Table

__all__ = [
    "StoreSource",
    "WorkUnitLike",
    "configuration_of",
    "constituents_of",
    "links_of",
    "meta_of",
    "reader_of",
    "summary_of",
    "table_of",
]

_PIXELS = ("science", "variance", "mask", "psf")


class WorkUnitLike(Protocol):
    """What saving needs of a WorkUnit; see `wustore.work_unit.WorkUnit`."""

    n_constituents: int
    reprojected: bool
    reprojection_frame: str | None
    barycentric_distance: float | None
    observatory_given: bool
    wcs_decoded: bool
    _stored: Meta | None
    _observatory: EarthLocation | None
    _stored_observatory: EarthLocation | None
    _table: Table | None

    @property
    def im_stack(self) -> Any: ...  # noqa: D102
    @property
    def config(self) -> Any: ...  # noqa: D102
    @property
    def per_image_indices(self) -> list[list[int]]: ...  # noqa: D102
    @property
    def wcs(self) -> Any: ...  # noqa: D102
    @property
    def org_img_meta(self) -> Table: ...  # noqa: D102
    @property
    def observatory(self) -> EarthLocation: ...  # noqa: D102
    def load_if_lazy(self) -> None: ...  # noqa: D102


# --- from a store -------------------------------------------------------------------------------------


def _single(plane: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return plane.astype(np.float32, copy=False)


def _kernel(psf: NDArray[Any] | None) -> NDArray[Any]:
    if psf is None:
        return identity_psf()
    return psf if psf.dtype.kind == "f" else _single(psf)


def _of(image: Image, layer: str) -> NDArray[Any]:
    plane = image.layer(layer)
    assert plane is not None
    return plane


def _room(memory: Any, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return memory that a user gives as an array of planes, without a copy."""
    try:
        room: NDArray[Any] = np.asarray(memoryview(memory))
        if room.dtype == np.uint8 and room.ndim == 1:  # bytes, such as a mapped file or shared memory
            room = room.view(np.float32).reshape(shape)
    except (TypeError, ValueError) as error:
        raise UsageError("not memory for planes", where="out", expected=_room_text(shape), found=error) from error
    if room.shape != shape or room.dtype != np.float32 or not room.flags.writeable:
        found = f"{room.dtype}, {room.shape}{'' if room.flags.writeable else ', read-only'}"
        raise UsageError("not memory for planes", where="out", expected=_room_text(shape), found=found)
    return room


def _room_text(shape: tuple[int, int, int]) -> str:
    return f"float32, {shape}, or as many writeable bytes"


_Planes = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


class StoreSource:
    """The planes of a store as KBMOD sees them; see `wustore.compat.layered_image.PlaneSource`."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._no_data = no_data_of(reader.meta)

    def shape(self, layer: str, i: int) -> tuple[int, int]:
        """Return a plane's shape without reading it."""
        if layer == "psf" and self.reader.meta.dtypes["psf"][i] is None:
            return 1, 1
        return self.reader.meta.shape_of(layer, i)

    def plane(self, layer: str, i: int) -> NDArray[Any]:
        """Read one plane (and the mask that goes with it)."""
        return self._of_image(self.reader.image(i, (layer,) if layer == "psf" else (layer, "mask")), layer)

    def _of_image(self, image: Image, layer: str) -> NDArray[Any]:
        if layer == "psf":
            return _kernel(image.psf)
        return self._seen([_of(image, layer)], image.mask)[0]

    def _seen(self, planes: Sequence[NDArray[Any]], mask: NDArray[Any] | None) -> list[NDArray[Any]]:
        """Return planes as KBMOD sees them; the arrays themselves are changed if they can be."""
        seen = [plane if plane.flags.writeable else plane.copy() for plane in map(_single, planes)]
        hide(seen, mask, self._no_data)
        return seen

    def _finished(self, _: int, i: int) -> _Planes:
        """Read science, variance and PSF of an image as KBMOD sees them."""
        image = self.reader.image(i, _PIXELS)
        science, variance = self._seen([image.science, image.variance], image.mask)
        return science, variance, _kernel(image.psf)

    def planes(self, layer: str, indices: Sequence[int]) -> Generator[NDArray[Any], None, None]:
        """Yield one plane of each of these images, decoding several at once."""
        for _, image in self.reader.images(list(indices), (layer,) if layer == "psf" else (layer, "mask")):
            yield self._of_image(image, layer)

    def pairs(self, indices: Sequence[int]) -> Generator[tuple[NDArray[Any], NDArray[Any]], None, None]:
        """Yield science and variance of each of these images, decoding several at once."""
        for _, image in self.reader.images(list(indices), PIXEL_LAYERS):
            yield self._of_image(image, "science"), self._of_image(image, "variance")

    def load(
        self, indices: Sequence[int], progress: Progress | None = None, out: tuple[Any, Any] | None = None
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]], list[NDArray[Any]]]:
        """Read images, decoding several at once; memory: the result and a few images more.

        Parameters
        ----------
        out
            Memory for science and variance, instead of new arrays; see `wustore.WorkUnit.load_images`.

        Raises
        ------
        UsageError
            If ``out`` is not the memory that these images need.
        """
        planes = []
        read = self._finished if out is None else self._reading_into(indices, out)
        # Pixels are masked by the thread that has decoded them: done here, it would hold up the threads.
        n = len(indices)
        for k, finished in read_ahead(lambda k: read(k, indices[k]), range(n), self.reader.images_at_once(n), ahead=n):
            planes.append(finished)
            if progress is not None:
                progress(k + 1, n)
        return [p[0] for p in planes], [p[1] for p in planes], [p[2] for p in planes]

    def _reading_into(self, indices: Sequence[int], out: tuple[Any, Any]) -> Callable[[int, int], _Planes]:
        """Return a function as `_finished` that reads into given memory: science and variance are parts of it."""
        height, width = (int(size) for size in self.reader.meta.image_shape.max(axis=0))
        rooms = [_room(memory, (len(indices), height, width)) for memory in out]

        def fill(k: int, i: int) -> _Planes:
            rest = self.reader.image(i, ("mask", "psf"))
            rows, columns = self.reader.meta.shape_of("science", i)
            planes = []
            for layer, room in zip(("science", "variance"), rooms, strict=True):
                plane = room[k, :rows, :columns]
                if self.reader.meta.layer_dtype(layer) == plane.dtype:
                    self.reader.read(layer, (slice(i, i + 1), slice(0, rows), slice(0, columns)), plane[None])
                else:
                    plane[...] = _single(_of(self.reader.image(i, (layer,)), layer))
                planes.append(plane)
            hide(planes, rest.mask, self._no_data)
            return planes[0], planes[1], _kernel(rest.psf)

        return fill


def constituents_of(meta: Meta) -> ConstituentTable:
    """Return the table of constituent images as KBMOD completes it; see `table_of`."""
    named = {column.name: column for column in meta.constituents.columns}
    n = meta.n_constituents
    for name in STANDARD_COLUMNS:
        column = named.get(name)
        if column is None or (column.values.dtype == object and all(cell is None for cell in column.values)):
            kept = {} if column is None else {"unit": column.unit, "description": column.description}
            named[name] = Column(name, "json", np.full(n, None), **kept)  # type: ignore[arg-type]
    if meta.wcs is not None and all(cell is None for cell in named["per_image_wcs"].values):
        named["per_image_wcs"] = dataclasses.replace(
            named["per_image_wcs"], kind="wcs", values=np.full(n, meta.wcs, dtype=object)
        )
    distance = named["geocentric_distance"]
    if distance.values.dtype.kind in "US":
        values = _numbers(distance.values.tolist())
        named["geocentric_distance"] = dataclasses.replace(
            distance, kind="json" if values.dtype == object else "plain", values=values
        )
    order = [*STANDARD_COLUMNS, *(name for name in named if name not in STANDARD_COLUMNS)]
    return ConstituentTable(n, tuple(named[name] for name in order), meta.constituents.meta)


def table_of(meta: Meta) -> Table:
    """Return the table of constituent images as KBMOD completes it.

    The standard columns come first; if no constituent has a WCS each gets the global one;
    ``geocentric_distance``, which KBMOD's files hold as text, is numbers again.
    """
    return constituents_to_table(constituents_of(meta))


def _numbers(texts: list[Any]) -> NDArray[Any]:
    values = np.empty(len(texts), dtype=object)
    for k, text in enumerate(texts):
        try:
            values[k] = None if text in {"None", ""} else float(text)
        except ValueError:
            values[k] = text
    return values.astype(float) if all(isinstance(value, float) for value in values) else values


def configuration_of(meta: Meta) -> SearchConfiguration | None:
    """Return the configuration of a store as KBMOD reads it.

    A FITS file without one has KBMOD's defaults; a store of a WorkUnit that had none (``config=None``) has none.
    """
    if meta.configuration is None:
        return SearchConfiguration() if meta.source else None
    return SearchConfiguration(copied(dict(meta.configuration)))


def links_of(meta: Meta) -> list[list[int]]:
    """Return the constituents of each image; one to one if the source does not say."""
    return [list(meta.links_of(i)) for i in range(meta.n_images)]


def summary_of(work_unit: WorkUnitLike) -> list[tuple[str, str]]:
    """Return what a WorkUnit holds, as (name, text); no pixel is read and no WCS decoded."""
    stack, stored = work_unit.im_stack, work_unit._stored
    times = np.asarray(stack.times, dtype=float)
    rows = [("size", f"{stack.height} x {stack.width} pixels (y, x)")] if stack.num_times else []
    source = _pixel_source(stack) if isinstance(getattr(stack, "sci", None), LazyPlanes) else None
    if source is not None:
        rows.append(("store", f"{source[0].reader.path} ({source[0].reader.format})"))
    if np.isfinite(times).any():
        rows.append(("times", f"MJD {np.nanmin(times):.5f} to {np.nanmax(times):.5f}"))
    names = (
        [column.name for column in stored.constituents.columns]
        if stored is not None and work_unit._table is None
        else work_unit.org_img_meta.colnames
    )
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    rows.append(("constituents", f"{work_unit.n_constituents} rows: {shown}"))
    has_wcs = not work_unit.wcs_decoded or work_unit.wcs is not None
    rows.append(("WCS", "one for all images" if has_wcs else "one for each constituent image"))
    if work_unit.reprojected:
        distance = work_unit.barycentric_distance
        at = "" if distance is None else f", at {distance:g} au"
        rows.append(("reprojected", f"{work_unit.reprojection_frame or 'frame not recorded'}{at}"))
    latitude, longitude, height = observatory_of(work_unit.observatory).geodetic
    assumed = "" if work_unit.observatory_given else " (assumed)"
    rows.append(("observatory", f"{latitude:.4f}, {longitude:.4f} deg, {height:.0f} m{assumed}"))
    rows.append(("configuration", "none" if work_unit.config is None else _changes(work_unit.config)))
    return rows


def _changes(config: Any) -> str:
    text = repr(SearchConfiguration.of(config)).removeprefix("SearchConfiguration(").removesuffix(")")
    text = "KBMOD's defaults" if text == "{}" else text
    return text if len(text) <= 100 else text[:97] + "..."


# --- to a store ---------------------------------------------------------------------------------------


def reader_of(work_unit: WorkUnitLike) -> Reader:
    """Return a reader over a WorkUnit: the way to save it.

    A lazy WorkUnit that nobody changed gives its own reader, so that full masks, values under them, source
    dtypes and FITS reconstruction data go on. A lazy one with changed metadata or fewer images reads the same pixels
    under the new metadata. A loaded one is read from its arrays.

    Raises
    ------
    FormatError
        If something cannot be stored; the message names it.
    """
    source = _pixel_source(work_unit.im_stack)
    if source is None:
        return _memory_reader(work_unit)
    planes, indices = source
    meta = meta_of(work_unit)
    whole = indices == tuple(range(planes.reader.meta.n_images))
    if meta is planes.reader.meta and whole:
        return planes.reader
    return View(planes.reader, None if whole else indices, meta=meta)


def _pixel_source(stack: Any) -> tuple[StoreSource, tuple[int, ...]] | None:
    """Return the store in which a stack's pixels still are, and which of its images they are."""
    found = [
        planes.origin() if isinstance(planes, PlaneList) else planes for planes in (stack.sci, stack.var, stack.psfs)
    ]
    first = found[0]
    if not isinstance(first, LazyPlanes) or not isinstance(first.source, StoreSource):
        return None
    for planes in found:
        if not isinstance(planes, LazyPlanes) or (planes.source, planes.indices) != (first.source, first.indices):
            return None
    return first.source, first.indices


def _memory_reader(work_unit: WorkUnitLike) -> MemoryReader:
    work_unit.load_if_lazy()
    stack = ImageStack.of(work_unit.im_stack)
    images = []
    for k in range(stack.num_times):
        psf = np.asarray(stack.psfs[k])
        if psf.ndim != 2:
            raise FormatError("a PSF kernel must have two axes", where=f"image {k}", found=psf.shape)
        # No mask layer: what is masked in memory is NaN, in one layer or both, and stays exactly that.
        images.append(Image(np.asarray(stack.sci[k]), np.asarray(stack.var[k]), None, psf))
    return MemoryReader(meta_of(work_unit), images, shared=True)


def _constituents(work_unit: WorkUnitLike, stored: Meta | None) -> ConstituentTable:
    table = work_unit._table
    if stored is not None and table is None:
        return stored.constituents  # never looked at
    current = table_to_constituents(work_unit.org_img_meta)
    if stored is not None and next(table_differences(current, constituents_of(stored)), None) is None:
        return stored.constituents
    return current


def _pixel_meta(stack: Any) -> dict[str, Any]:
    """Return the parts of `Meta` that describe the arrays, and what goes with their values."""
    source = _pixel_source(stack)
    if source is not None:
        stored, chosen = source[0].reader.meta, list(source[1])
        return {
            "image_shape": stored.image_shape[chosen],
            "psf_shape": stored.psf_shape[chosen],
            "dtypes": {layer: tuple(stored.dtypes[layer][i] for i in chosen) for layer in LAYERS},
            "mask_flags": stored.mask_flags,
            "source": stored.source,
            "history": stored.history,
        }
    stack, n = ImageStack.of(stack), stack.num_times
    return {
        "image_shape": np.array([plane.shape for plane in stack.sci], dtype=np.int32).reshape(n, 2),
        "psf_shape": np.array([np.shape(psf) for psf in stack.psfs], dtype=np.int32).reshape(n, 2),
        "dtypes": {
            "science": tuple(plane.dtype for plane in stack.sci),
            "variance": tuple(plane.dtype for plane in stack.var),
            "mask": (None,) * n,
            "psf": tuple(np.asarray(psf).dtype for psf in stack.psfs),
        },
    }


def meta_of(work_unit: WorkUnitLike) -> Meta:
    """Return the metadata of a WorkUnit; each part that is as its store has it is the store's own.

    Raises
    ------
    FormatError, FidelityError
        If a part has no stored form.
    """
    stored = work_unit._stored
    if stored is not None and _untouched(work_unit, stored):
        return stored
    links: tuple[tuple[int, ...], ...] | None = tuple(
        tuple(int(j) for j in indices) for indices in work_unit.per_image_indices
    )
    config = None if work_unit.config is None else SearchConfiguration.of(work_unit.config)
    configuration = None if config is None else config.to_dict()
    parts: dict[str, Any] = _pixel_meta(work_unit.im_stack) | {
        "times": np.array(work_unit.im_stack.times, dtype=np.float64),
        "constituents": _constituents(work_unit, stored),
        "wcs": _wcs_text(work_unit),
        "reprojected": bool(work_unit.reprojected),
        "reprojection_frame": work_unit.reprojection_frame,
        "barycentric_distance": _number(work_unit.barycentric_distance),
        "observatory": observatory_of(work_unit.observatory) if work_unit.observatory_given else None,
    }
    if stored is None:
        return Meta(links=links, configuration=configuration, **parts)
    if links == tuple(tuple(indices) for indices in links_of(stored)):
        links = stored.links
    if config == configuration_of(stored):
        configuration = None if stored.configuration is None else dict(stored.configuration)
    if not work_unit.reprojected and not stored.reprojected:
        parts["reprojected"] = stored.reprojected
    if work_unit.observatory_given and stored.observatory is not None:
        same = observatory_of(location_of(stored.observatory)) == parts["observatory"]
        parts["observatory"] = stored.observatory if same else parts["observatory"]
    meta = Meta(links=links, configuration=configuration, **parts)
    same = dataclasses.replace(meta, additions=stored.additions)
    return stored if _pixel_source(work_unit.im_stack) is not None and _same_meta(same, stored) else meta


def _untouched(work_unit: WorkUnitLike, stored: Meta) -> bool:
    """Return whether nobody changed, or looked closely at, anything of a WorkUnit: answered without building a Meta."""
    source = _pixel_source(work_unit.im_stack)
    return (
        source is not None
        and source[0].reader.meta is stored
        and source[1] == tuple(range(stored.n_images))
        and work_unit._table is None
        and ((stored.wcs is None and work_unit.wcs is None) or not work_unit.wcs_decoded)
        and np.array_equal(work_unit.im_stack.times, stored.times, equal_nan=True)
        and work_unit.reprojected == bool(stored.reprojected)
        and work_unit.reprojection_frame == stored.reprojection_frame
        and work_unit.barycentric_distance == stored.barycentric_distance
        and work_unit.observatory_given == (stored.observatory is not None)
        and (
            stored.observatory is None
            or work_unit._observatory is work_unit._stored_observatory  # astropy takes 4 ms to compare, a stamp 8
            or observatory_of(location_of(stored.observatory)) == observatory_of(work_unit.observatory)
        )
        and work_unit.per_image_indices == links_of(stored)
        and work_unit.config == configuration_of(stored)
    )


def _wcs_text(work_unit: WorkUnitLike) -> str | None:
    if work_unit._stored is not None and not work_unit.wcs_decoded:
        return work_unit._stored.wcs
    return None if work_unit.wcs is None else wcs_to_text(work_unit.wcs)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _same_meta(a: Meta, b: Meta) -> bool:
    same_origin = a.source == b.source and a.history == b.history
    return a.constituents is b.constituents and same_origin and next(meta_differences(a, b), None) is None
