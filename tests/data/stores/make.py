"""Make the golden stores of the current version of the format: ``python make.py``, once for each version, never again.

Every later version reads them (``tests/test_golden_stores.py``). Each is packed into a zip file, which is not a store
itself, and named by its content, container and settings:

- ``night``: the golden FITS file ``2026-01/perimage.fits`` with its FITS reconstruction data, in every container and
  profile;
- ``rich``: every kind of column, value and setting;
- ``twice``: the same appended to itself, so that the small arrays of the Zarr store have the keys of generation 1;
- ``flags``: flag masks of 32 bits, in the other layouts;
- ``dtypes``, ``missing``: dtypes that differ between images; layers, links and times that are not there.

``content.json`` has what they hold, in terms of Python and numpy; ``files.json`` the sha256 of every file, the versions
of the libraries that made them, and the sha256 of the FITS file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import wustore
from wustore.backends.base import Reader
from wustore.backends.registry import backend_for_writing
from wustore.format.version import VERSION
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.testing import sample

HERE = Path(__file__).parent
FITS = HERE.parent / "fits" / "2026-01" / "perimage.fits.gz"

STORES: dict[str, dict[str, str]] = {
    "night-compact.zarr": {},
    "night-portable.zarr": {"profile": "portable"},
    "night-fast.zarr": {"profile": "fast"},
    "night-none.zarr": {"profile": "none"},
    "night.zarr.zip": {},
    "night-portable.h5": {},
    "night-fast.h5": {"profile": "fast"},
    "night-none.h5": {"profile": "none"},
    "rich.zarr": {"profile": "portable"},
    "rich.zarr.zip": {"profile": "fast"},
    "rich.h5": {},
    "twice.zarr": {"profile": "portable"},
    "twice.h5": {},
    "flags.zarr": {"profile": "fast", "layout": "cutouts"},
    "flags.h5": {"layout": "balanced"},
    "dtypes.zarr": {},
    "dtypes.h5": {},
    "missing.zarr": {},
    "missing.h5": {},
}
"""The stores, and the options they are written with."""

LIBRARIES = ("numcodecs", "pcodec", "imagecodecs", "h5py", "hdf5plugin")
"""What the stored bytes may depend on."""


def content_of(reader: Reader) -> dict[str, Any]:
    """Return all that a store holds, as ``tests/interop/plain_reader.py`` does, which knows nothing of wustore."""
    meta = reader.meta
    images = [reader.image(i) for i in range(meta.n_images)]
    return {
        "planes": [{layer: image.layer(layer) for layer in LAYERS} for image in images],
        "times": meta.times,
        "has_links": meta.links is not None,
        "links": meta.links,
        "columns": {column.name: column.values for column in meta.constituents.columns},
        "constituents": {"columns": [vars(column) for column in meta.constituents.columns]},
        "masks": {column.name: column.mask for column in meta.constituents.columns if column.mask is not None},
        "table": meta.constituents.meta,
        "configuration": meta.configuration,
        "wcs": meta.wcs,
        "reprojected": meta.reprojected,
        "reprojection_frame": meta.reprojection_frame,
        "barycentric_distance": meta.barycentric_distance,
        "observatory": meta.observatory
        and {"geodetic": meta.observatory.geodetic, "geocentric": meta.observatory.geocentric},
        "mask_flags": meta.mask_flags,
    }


def described(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a content as JSON, long values as their sha256, so that no code of ours can hide a change."""
    place = content["observatory"]
    if place is not None:
        place = {key: value and tuple(value) for key, value in {"geocentric": None, **place}.items()}
        place = f"Observatory(geodetic={place['geodetic']}, geocentric={place['geocentric']})"
    table = zip(content["constituents"]["columns"], content["columns"].items(), strict=True)
    return {
        "planes": [
            {
                layer: f"{plane.dtype.str} {plane.shape} {hashlib.sha256(plane.tobytes()).hexdigest()}"
                for layer, plane in planes.items()
                if plane is not None
            }
            for planes in content["planes"]
        ],
        "times": [float(time).hex() for time in content["times"]],
        "links": [list(map(int, rows)) for rows in content["links"]] if content["has_links"] else None,
        "columns": [
            [name, entry["kind"], _short(repr(values.tolist())), values.dtype.str, str(entry.get("unit"))]
            for entry, (name, values) in table
        ],
        "masks": {name: mask.tolist() for name, mask in content["masks"].items()},
        "table": repr(dict(content["table"])),
        "configuration": None if content["configuration"] is None else _short(repr(dict(content["configuration"]))),
        "wcs": None if content["wcs"] is None else _short(content["wcs"]),
        "reprojected": [content[key] for key in ("reprojected", "reprojection_frame", "barycentric_distance")],
        "observatory": place,
        "mask_flags": dict(content["mask_flags"]),
    }


def _short(text: str) -> str:
    return text if len(text) <= 120 else hashlib.sha256(text.encode()).hexdigest()


def _history_entry(action: str, **facts: Any) -> dict[str, Any]:
    return {"action": action, "when": "2026-11-27T00:00:00+00:00", "version": "1.0.0", **facts}


def write(work: Path) -> None:
    """Write all stores into a directory: the same bytes each time, in every Python."""
    here = Path.cwd()
    os.chdir(work)  # the history names paths as they are given
    try:
        fits = Path("perimage.fits")
        fits.write_bytes(gzip.decompress(FITS.read_bytes()))
        for name, options in STORES.items():
            content = name.partition(".")[0].partition("-")[0]
            if content == "night":
                wustore.convert(fits, name, **options)
                continue
            source = sample("rich" if content == "twice" else content)
            copy(source, backend_for_writing(name).create(name, source.meta, **options))
            if content == "twice":
                with mock.patch("wustore.ops.edit.history_entry", _history_entry):
                    wustore.append(name, f"rich{Path(name).suffix}", duplicates=True)
        fits.unlink()
    finally:
        os.chdir(here)


def files_of(work: Path, name: str) -> dict[str, str]:
    """Return the sha256 of every file of a store."""
    store = work / name
    files = sorted(path for path in store.rglob("*") if path.is_file()) if store.is_dir() else [store]
    return {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != ".wustore-lock"
    }


def libraries() -> dict[str, str]:
    """Return the versions of what the stored bytes may depend on."""
    return {name: version(name) for name in LIBRARIES} | {"system": sys.platform}


def make(target: Path) -> None:
    """Write the packed stores, and what they hold, into ``target``."""
    content: dict[str, Any] = {}
    files: dict[str, Any] = {
        "libraries": libraries(),
        "perimage.fits": hashlib.sha256(gzip.decompress(FITS.read_bytes())).hexdigest(),
        "stores": {},
    }
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write(work)
        for name in STORES:
            with wustore.open_reader(work / name) as reader:
                found = json.loads(json.dumps(described(content_of(reader))))
            key = name.partition(".")[0].partition("-")[0]
            assert content.setdefault(key, found) == found
            files["stores"][name] = files_of(work, name)
            with zipfile.ZipFile(target / f"{name}.zip", "w") as archive:
                for path in files["stores"][name]:  # all dated 1980-01-01
                    archive.writestr(zipfile.ZipInfo(path), (work / path).read_bytes(), zipfile.ZIP_DEFLATED)
    (target / "content.json").write_text(json.dumps(content, indent=1) + "\n")
    (target / "files.json").write_text(json.dumps(files, indent=1) + "\n")


if __name__ == "__main__":
    folder = HERE / VERSION
    folder.mkdir()
    make(folder)
