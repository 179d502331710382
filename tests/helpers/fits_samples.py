"""The golden FITS files unpacked, and tiny WorkUnits made with astropy in any layout a test needs."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

DATA = Path(__file__).parents[1] / "data" / "fits"

SINGLES = sorted(str(p.relative_to(DATA))[:-3] for p in DATA.glob("*/*.fits.gz"))
SETS = sorted(str(p.relative_to(DATA))[:-3] for p in DATA.glob("*/*/wu.fits.gz"))
DUMPS = sorted(str(p.relative_to(DATA))[:-3] for p in DATA.glob("*/*.yaml.gz"))


def unpack(target: Path) -> Path:
    """Unpack all golden files below ``target``."""
    for packed in DATA.rglob("*.gz"):
        path = target / packed.relative_to(DATA).with_suffix("")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.decompress(packed.read_bytes()))
    return target


def truth_of(path: str) -> dict[str, np.ndarray]:
    """Return what was in memory when a golden file was written."""
    name = Path(path)
    kind = name.parent.name.removeprefix("shard_") if name.stem == "wu" else name.stem
    with np.load(DATA / f"truth_{kind}.npz") as arrays:
        return dict(arrays)


def image_hdus(i: int, *, shape: tuple[int, int] = (6, 8), compressed: bool = False, **cards: Any) -> list[Any]:
    """Return SCI, VAR, MSK and PSF HDUs of an image; ``cards`` go into the SCI header (None leaves one out)."""
    rng = np.random.default_rng(i)
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    hdus = []
    for name in ("SCI", "VAR"):
        options = {"compression_type": "GZIP_2", "quantize_level": 0} if compressed else {}
        hdus.append(kind(rng.normal(10, 3, shape).astype(np.float32), name=f"{name}_{i}", **options))
    mask = np.zeros(shape, np.int8)
    mask[i % shape[0], 1] = 1
    hdus.append(fits.ImageHDU(mask, name=f"MSK_{i}"))
    hdus.append(fits.ImageHDU(np.full((3, 3), 1 / 9), name=f"PSF_{i}"))
    header = {"MJD": 60000.0 + i, "NIND": 1, "IND_0": i, **cards}
    for keyword, value in header.items():
        if value is not None:
            hdus[0].header[keyword] = value
    return hdus


def primary_hdu(n_images: int, **cards: Any) -> fits.PrimaryHDU:
    """Return a primary HDU of today's layout; a card given as ``...`` is left out."""
    hdu = fits.PrimaryHDU()
    header = {"NUMIMG": n_images, "NCON": n_images, "REPRJCTD": False, "REPFRAME": None, "BARY": None, **cards}
    for keyword, value in header.items():
        if value is not ...:
            hdu.header[keyword] = value
    return hdu


def table_hdu(name: str, **columns: Any) -> fits.BinTableHDU:
    """Return a binary table."""
    from astropy.table import Table

    return fits.BinTableHDU(Table(columns), name=name)


def write(path: Path, hdus: list[Any]) -> str:
    """Write a file and return its path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList(hdus).writeto(path, overwrite=True)
    return str(path)


def small(path: Path, n_images: int = 2, **options: Any) -> str:
    """Write a small WorkUnit of today's layout."""
    hdus = [primary_hdu(n_images), table_hdu("IMG_META", visit=np.arange(n_images))]
    for i in range(n_images):
        hdus += image_hdus(i, **options)
    return write(path, hdus)
