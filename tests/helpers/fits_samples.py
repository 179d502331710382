"""The golden FITS files unpacked, and tiny WorkUnits made with astropy in any layout a test needs."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from wustore.model.meta import LAYERS, ConstituentTable, Image, Meta, Observatory

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


# --- compressed images ------------------------------------------------------------------------------------

NOISE = np.random.default_rng(3).normal(10, 5, (24, 40)).astype(np.float32)
NOISE[3, 4] = np.nan
NOISE[7] = 1e30 * NOISE[7]


def compressed(name: str, plane: np.ndarray = NOISE, **options: object) -> fits.CompImageHDU:
    """Return a compressed image HDU; see `COMPRESSIONS`."""
    return fits.CompImageHDU(plane.copy(), name=name, **options)


COMPRESSIONS: dict[str, dict[str, Any]] = {
    "rice": {"compression_type": "RICE_1", "quantize_level": -0.01},
    "rice-relative": {"compression_type": "RICE_1", "quantize_level": 16},
    "rice-dither-1": {"compression_type": "RICE_1", "quantize_level": 16, "quantize_method": 1, "dither_seed": 42},
    "rice-dither-2": {"compression_type": "RICE_1", "quantize_level": -0.1, "quantize_method": 2, "dither_seed": 7},
    "rice-tiles": {"compression_type": "RICE_1", "quantize_level": -0.01, "tile_shape": (8, 16)},
    "gzip-1": {"compression_type": "GZIP_1", "quantize_level": -0.01},
    "gzip-2": {"compression_type": "GZIP_2", "quantize_level": 0},
    "hcompress": {"compression_type": "HCOMPRESS_1", "quantize_level": -0.01},
    "none": {"compression_type": "NOCOMPRESS", "quantize_level": -0.01},
}


# --- images and metadata of KBMOD's layout ----------------------------------------------------------------


def image(shape: tuple[int, int] = (20, 30), scale: float = 5) -> Image:
    """Return an image of noise as KBMOD holds it; of each shape another one."""
    rng = np.random.default_rng([11, *shape])
    science = rng.normal(0, scale, shape).astype(np.float32)
    variance = rng.normal(25 * scale, scale, shape).astype(np.float32)
    mask = (rng.random(shape) < 0.05).astype(np.float32)
    science[mask > 0] = variance[mask > 0] = np.nan
    return Image(science, variance, mask, rng.random((5, 3)).astype(np.float32))


def meta_of(images: list[Image], **fields: Any) -> Meta:
    """Return the metadata of images."""
    n = len(images)
    base: dict[str, Any] = {
        "links": tuple((i,) for i in range(n)),
        "constituents": ConstituentTable(n),
        "configuration": {"num_obs": 7, "lh_level": 12.5, "name": None},
        "reprojected": False,
        "observatory": Observatory((-30.244633330000003, -70.74941667000002, 2662.749999997793)),
    }
    return Meta(
        times=60300.1 + np.arange(n) / 3,
        image_shape=np.array([im.science.shape for im in images], np.int32),
        psf_shape=np.array([im.psf.shape for im in images if im.psf is not None], np.int32),
        dtypes={name: tuple(im.layer(name).dtype for im in images) for name in LAYERS},  # type: ignore[union-attr]
        **(base | fields),
    )
