"""The YAML text that ``WorkUnit.to_yaml()`` of KBMOD wrote from November 2023 to October 2024: read only.

Everything, pixels included, is in nested lists under top-level names in block style. KBMOD held all layers
in float32 then, so that is what the numbers are read into.
"""

from __future__ import annotations

import json
import re
import textwrap
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from wustore.backends.base import Backend, Index, Reader, Writer
from wustore.backends.memory import padded_box
from wustore.backends.state import reopen, state_of_files
from wustore.compat.wcs import kbmod_json_to_text
from wustore.compat.yaml import load_mapping
from wustore.errors import CorruptError, OtherFormatError, UsageError, WuStoreError, located
from wustore.format.tagged_json import RawYaml
from wustore.model.meta import (
    LAYERS,
    Capsule,
    Column,
    ConstituentTable,
    Image,
    Meta,
    column_of,
    float_of,
    object_array,
)
from wustore.model.sizes import check_size
from wustore.storage.files import open_regular

__all__ = ["YamlDumpBackend", "YamlDumpReader"]

_SECTION = re.compile(r"^([A-Za-z_]\w*):", re.MULTILINE)
_MARKS = (b"num_images:", b"sci_imgs:", b"times:")
_PIXELS = {"science": "sci_imgs", "variance": "var_imgs", "mask": "msk_imgs"}
_LARGE = frozenset({*_PIXELS.values(), "psfs"})
"""Parts with pixels: read by a faster parser, and checked plane by plane."""
_MOST_IMAGES = 1_000_000
_NO_DATA = -9999.0
# The newest first: a name and a key that this and every later version wrote.
_ERAS = (("kbmod-2024-05", "per_image_indices"), ("kbmod-2024-02", "per_image_wcs"), ("kbmod-2023-11", "num_images"))


class _Dump:
    """The text of a dump, cut at its top-level names; each part is parsed when asked for."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                text = file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise OtherFormatError("not a YAML text", path=path, found=str(error)) from error
        starts = [(match[1], match.start()) for match in _SECTION.finditer(text)]
        ends = [start for _, start in starts[1:]] + [len(text)]
        self._taken: Counter[str] = Counter()
        self.parts = {name: text[start:end] for (name, start), end in zip(starts, ends, strict=False)}
        missing = [mark.decode()[:-1] for mark in _MARKS if mark.decode()[:-1] not in self.parts]
        if missing:
            raise OtherFormatError(
                "not a WorkUnit's YAML dump",
                path=path,
                expected="num_images, times, sci_imgs, var_imgs, …",
                found=", ".join(list(self.parts)[:8]) or "no top-level names",
            )

    def error(self, what: str, name: str, **details: Any) -> CorruptError:
        return CorruptError(what, path=self.path, where=name, **details)

    def value(self, name: str) -> Any:
        """Return the value under a top-level name, None if it is not there."""
        if name not in self.parts:
            return None
        try:
            if name not in _LARGE:
                value = load_mapping(self.parts[name])[name]
                if isinstance(value, RawYaml):
                    raise self.error("a part of the dump is not plain values", name)
                return value
            return yaml.load(self.parts[name], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))[name]
        except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise self.error(
                "a part of the dump is not YAML text", name, found=str(error).replace("\n", " ")[:200]
            ) from error

    def items(self, name: str, count: int) -> list[Any] | None:
        """Return a list of ``count`` values; None if the dump has no such list."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            raise self.error(
                "a list of the dump has the wrong length",
                name,
                expected=f"{count} values",
                found=len(value) if isinstance(value, list) else type(value).__name__,
            )
        return value

    def count(self, name: str, most: int) -> int:
        value = self.value(name)
        if type(value) is not int or not 1 <= value <= most:
            raise self.error("a count of the dump cannot be", name, expected=f"1 … {most}", found=repr(value)[:60])
        return value

    def plane(self, value: Any, name: str, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return a nested list as a plane."""
        rows = value if isinstance(value, list) else []
        widths = {len(row) if isinstance(row, list) else -1 for row in rows}
        found = (len(rows), widths.pop()) if len(widths) == 1 else None
        if found is None or found[1] < 1 or shape not in {None, found}:
            raise self.error("an image of the dump has the wrong shape", name, expected=shape, found=found)
        # A number takes two characters at least, unless an alias means many.
        self._taken[name] += found[0] * found[1] * 8
        with located(self.path, name):
            check_size(self._taken[name], 4 * len(self.parts[name]))
        if not all(type(item) in {float, int} for row in rows for item in row):
            raise self.error("an image of the dump holds what is no number", name)
        with np.errstate(over="ignore"):
            return np.array(rows, dtype=np.float64).astype(np.float32)

    def wcs(self, value: Any, name: str) -> str | None:
        """Return the header text of a WCS written as keywords and values."""
        if not value:
            return None
        if not isinstance(value, Mapping):
            raise self.error("a WCS of the dump is no mapping", name, found=repr(value)[:60])
        try:
            return kbmod_json_to_text(json.dumps(value))
        except (WuStoreError, TypeError, ValueError) as error:
            raise self.error("a WCS of the dump cannot be read", name, found=str(error)) from error


def _constituents(dump: _Dump, n_images: int) -> ConstituentTable:
    sources = dump.value("constituent_images")
    count = len(sources) if isinstance(sources, list) and sources else n_images
    columns = [
        column_of("data_loc", dump.items("constituent_images", count) or ()),
        column_of("geocentric_distance", dump.items("geocentric_distances", count) or (), is_quantity=True),
    ]
    for name, key in (("ebd_wcs", "per_image_ebd_wcs"), ("per_image_wcs", "per_image_wcs")):
        texts = [dump.wcs(value, key) for value in dump.items(key, count) or ()]
        columns.append(Column(name, "wcs", object_array(texts)))
    return ConstituentTable(
        count, tuple(column for column in columns if any(value is not None for value in column.values))
    )


def _links(dump: _Dump, n_images: int, n_constituents: int) -> tuple[tuple[int, ...], ...]:
    lists = dump.items("per_image_indices", n_images)
    if lists is None:
        return tuple((i,) for i in range(n_images))
    for indices in lists:
        if not isinstance(indices, list) or not all(
            type(index) is int and 0 <= index < n_constituents for index in indices
        ):
            raise dump.error(
                "an image points to a constituent image that is not there",
                "per_image_indices",
                expected=f"0 … {n_constituents - 1}",
                found=repr(indices)[:60],
            )
    return tuple(tuple(indices) for indices in lists)


class YamlDumpReader(Reader):
    """A reader of a YAML dump; pixels are parsed when first asked for, all images of a layer at once."""

    format = "kbmod-yaml"

    def __init__(self, path: str) -> None:
        self.path = path
        self._state = state_of_files([path])
        self._dump = _Dump(path)
        self._lock = threading.Lock()
        self._planes: dict[str, list[NDArray[np.float32]]] = {}
        self._meta = self._read_meta()

    def _read_meta(self) -> Meta:
        dump = self._dump
        n_images = dump.count("num_images", _MOST_IMAGES)
        shape = dump.count("height", 2**31 - 1), dump.count("width", 2**31 - 1)
        times = dump.items("times", n_images)
        psfs = dump.items("psfs", n_images)
        if psfs is not None:
            self._planes["psf"] = [dump.plane(value, "psfs") for value in psfs]
        constituents = _constituents(dump, n_images)
        present = [layer for layer in ("science", "variance", "mask") if _PIXELS[layer] in dump.parts]
        if psfs is not None:
            present.append("psf")
        dtype = np.dtype(np.float32)
        configuration = None
        if "config" in dump.parts:
            body = dump.parts["config"].partition("\n")[2]
            configuration = load_mapping(textwrap.dedent(body)) if body.strip() else {}
        layout = next(name for name, key in _ERAS if key in dump.parts)
        source: dict[str, Any] = {"format": self.format, "layout": layout}
        if "reprojected" not in dump.parts:
            source["no_data"] = _NO_DATA
        reprojected = dump.value("reprojected")
        return Meta(
            times=np.array([_time(dump, value) for value in times or ()], dtype=np.float64),
            image_shape=np.array([shape] * n_images, dtype=np.int32),
            psf_shape=np.array([plane.shape for plane in self._planes.get("psf", ())] or [(0, 0)] * n_images, np.int32),
            dtypes={layer: (dtype if layer in present else None,) * n_images for layer in LAYERS},
            links=_links(dump, n_images, constituents.n_rows),
            constituents=constituents,
            configuration=configuration,
            wcs=dump.wcs(dump.value("wcs"), "wcs"),
            reprojected=reprojected if isinstance(reprojected, bool) else None,
            barycentric_distance=float_of(dump.value("heliocentric_distance")),
            source=source,
        )

    @property
    def meta(self) -> Meta:
        """Everything but pixels."""
        return self._meta

    def _layer(self, layer: str) -> list[NDArray[np.float32]]:
        with self._lock:
            if layer not in self._planes:
                dump, name = self._dump, _PIXELS[layer]
                values = dump.items(name, self._meta.n_images)
                if values is None:
                    raise dump.error("a layer of the dump is empty", name)
                self._planes[layer] = [
                    dump.plane(value, name, self._meta.shape_of(layer, i)) for i, value in enumerate(values)
                ]
            return self._planes[layer]

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box; see `wustore.backends.base.Reader.read`."""
        planes = self._layer(layer)[index[0]]
        return padded_box(self._meta, layer, index, planes, out)

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read one image; see `wustore.backends.base.Reader.image`."""
        planes = {layer: self._layer(layer)[i].copy() for layer in layers if self._meta.dtypes[layer][i] is not None}
        return Image.of(planes)

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the whole layer: text has no parts that can be read alone."""
        return self._meta.layer_shape(layer)

    def describe(self) -> dict[str, Any]:
        """Return the layout; see `wustore.backends.base.Reader.describe`."""
        return {"layout": self._meta.source["layout"]}

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (YamlDumpReader, (self.path,), self.state())


def _time(dump: _Dump, value: Any) -> float:
    number = float_of(value)
    if number is None:
        raise dump.error("a time of the dump is no number", "times", found=repr(value)[:60])
    return number


class YamlDumpBackend(Backend):
    """YAML dumps of KBMOD's WorkUnits, read only."""

    name = "kbmod-yaml"
    suffixes = (".yaml", ".yml")
    description = "YAML text of KBMOD's WorkUnit.to_yaml(), November 2023 to October 2024; read only"

    def recognises(self, start: bytes) -> bool:
        """Return whether it may be a text with names at the starts of lines."""
        return b"\0" not in start and _SECTION.search(start.decode("latin-1")) is not None

    def open(self, path: str, *, workers: int | None = None, **options: Any) -> YamlDumpReader:
        """Open a dump; see `wustore.backends.base.Backend.open`."""
        reader = YamlDumpReader(path)
        if options:
            raise UsageError("unknown options", where=self.name, expected="none", found=sorted(options))
        return reader

    def create(
        self, path: str, meta: Meta, *, capsule: Capsule | None = None, overwrite: bool = False, **options: Any
    ) -> Writer:
        """Refuse: no KBMOD of today reads such a file."""
        raise UsageError("YAML dumps are only read", path=path, hint="Write FITS, Zarr or HDF5.")
