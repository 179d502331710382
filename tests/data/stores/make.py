"""Make the stores of the format version of this checkout: ``python make.py``, once for each version, never again.

Later versions read them in ``tests/test_old_stores.py``. Each is packed into a zip file (which is not a store
itself, but for the members to be unpacked):

- ``night.zarr``, ``night.h5``: the golden FITS file ``2026-01/perimage.fits`` with its capsule;
- ``rich.h5``, ``rich.zarr``: every kind of column, value and setting, profile ``portable``; the Zarr store was
  appended to, so its small arrays have the keys of generation 1;
- ``flags.zarr``: flag masks of 32 bits in profile ``fast``, layout ``cutouts``;
- ``told.json``: what they hold, as `told` tells it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import wustore
from wustore.backends.base import Reader
from wustore.backends.registry import backend_named
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.ops.edit import append
from wustore.testing import sample

HERE = Path(__file__).parent
FITS = HERE.parent / "fits" / "2026-01" / "perimage.fits.gz"


def told(reader: Reader) -> dict[str, Any]:
    """Return all that a store holds in terms of Python and numpy alone, so that no code of ours can hide a change."""
    meta = reader.meta
    planes = []
    for i in range(meta.n_images):
        image = reader.image(i)
        found = {layer: getattr(image, layer) for layer in LAYERS}
        planes.append(
            {
                layer: f"{plane.dtype.str} {plane.shape} {hashlib.sha256(plane.tobytes()).hexdigest()}"
                for layer, plane in found.items()
                if plane is not None
            }
        )
    return {
        "planes": planes,
        "times": [float(time).hex() for time in meta.times],
        "links": None if meta.links is None else [list(rows) for rows in meta.links],
        "columns": [
            [column.name, column.kind, _short(repr(column.values.tolist())), column.values.dtype.str, str(column.unit)]
            for column in meta.constituents.columns
        ],
        "table": repr(dict(meta.constituents.meta)),
        "configuration": None if meta.configuration is None else _short(repr(dict(meta.configuration))),
        "wcs": None if meta.wcs is None else _short(meta.wcs),
        "reprojected": [meta.reprojected, meta.reprojection_frame, meta.barycentric_distance],
        "observatory": None if meta.observatory is None else repr(meta.observatory),
        "mask_flags": dict(meta.mask_flags),
    }


def _short(text: str) -> str:
    return text if len(text) <= 120 else hashlib.sha256(text.encode()).hexdigest()


def _write(name: str, path: Path, **options: Any) -> None:
    reader = sample(name)
    format_name = "hdf5" if path.suffix == ".h5" else "zarr"
    copy(reader, backend_named(format_name).create(str(path), reader.meta, **options))


def _pack(store: Path, target: Path) -> None:
    files = sorted(path for path in store.rglob("*") if path.is_file()) if store.is_dir() else [store]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            if path.name != ".wustore-lock":
                archive.write(path, path.relative_to(store.parent))


def make(target: Path) -> None:
    """Write the packed stores and what they hold into ``target``."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        fits, more = work / "perimage.fits", work / "more"
        fits.write_bytes(gzip.decompress(FITS.read_bytes()))
        for name in ("night.zarr", "night.h5"):
            wustore.convert(fits, work / name)
        _write("rich", work / "rich.h5", profile="portable")
        _write("rich", work / "rich.zarr", profile="portable")
        _write("rich", more)
        append(work / "rich.zarr", more)
        _write("flags", work / "flags.zarr", profile="fast", layout="cutouts")
        for path in sorted([*work.glob("*.h5"), *work.glob("*.zarr")]):
            with wustore.open_reader(path) as reader:
                found[path.name] = told(reader)
            _pack(path, target / f"{path.name}.zip")
    (target / "told.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    version = HERE / "0.1.0"
    version.mkdir()
    make(version)
