"""KBMOD's current FITS layout, HDU by HDU, as KBMOD itself writes it.

PRIMARY, KBMOD_CONFIG, IMG_META, then SCI_i, VAR_i, MSK_i, PSF_i of each image; or shards of the last four, one file
per image. Card order, comments and compressed bytes are those of KBMOD's main branch of April 2026 with
astropy 8, whatever astropy is installed: headers are built as text, pixels by `wustore.backends.fits.tiles`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.hdu.checksum import with_sums
from wustore.backends.fits.hdu.header import BLOCK
from wustore.backends.fits.hdu.header_writer import HeaderText, card, padding
from wustore.backends.fits.tiles import EncodedPlane, encode_plane
from wustore.backends.fits.tiles.dtypes import big_endian_bytes, to_stored
from wustore.compat.configuration import cells_to_hdu, configuration_cells
from wustore.compat.image_metadata import constituents_to_hdu
from wustore.compat.wcs import kbmod_header_cards
from wustore.errors import UsageError
from wustore.model.kbmod_rules import identity_psf, is_masked
from wustore.model.meta import Column, ConstituentTable, Image, Meta, object_array
from wustore.storage import buffers

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU

__all__ = ["COMPRESSION_TYPES", "KBMOD_COLUMNS", "FitsOptions", "head_hdus", "image_hdus", "kbmod_mask"]

_PARAMETER_COMMENTS = {
    "BLOCKSIZE": ("compression block size", "pixels per block"),
    "BYTEPIX": ("bytes per pixel (1, 2, 4, or 8)",) * 2,
    "SCALE": ("HCOMPRESS scale factor",) * 2,
    "SMOOTH": ("HCOMPRESS smooth option",) * 2,
    "NOISEBIT": ("floating point quantization level",) * 2,
}


_BLOCK = 65536
"""Pixels worked on at a time: they stay in the processor's cache, and fresh pages cost more than the arithmetic."""


# --- metadata HDUs ------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _wcs_cards(text: str) -> dict[str, str]:
    """Return the cards that KBMOD copies into headers for a WCS, by keyword."""
    return {key: card(key, value) for key, value in kbmod_header_cards(text)}


def _primary(meta: Meta) -> bytes:
    header = HeaderText(
        [
            ("SIMPLE", True, "conforms to FITS standard"),
            ("BITPIX", 8, "array data type"),
            ("NAXIS", 0, "number of array dimensions"),
            ("EXTEND", True),
            ("NUMIMG", meta.n_images),
            ("NCON", meta.n_constituents),
            ("REPRJCTD", meta.reprojected),
            ("REPFRAME", meta.reprojection_frame),
            ("BARY", meta.barycentric_distance),
        ]
    )
    if meta.observatory is not None:
        for keyword, value in zip(("OBS_LAT", "OBS_LON", "OBS_ELEV"), meta.observatory.geodetic, strict=True):
            header.set(keyword, float(value))
    if meta.wcs is not None:
        header.update(_wcs_cards(meta.wcs))
    return header.block()


def _table_bytes(hdu: BinTableHDU) -> bytes:
    """Return a binary table HDU of small metadata; astropy's bytes for these are the same in all versions."""
    buffer = io.BytesIO()
    hdu.writeto(buffer, checksum=False)
    return buffer.getvalue()[BLOCK:]  # without the empty PRIMARY that writeto puts before it


@lru_cache(maxsize=4)  # astropy takes 20 ms for the 60 columns, which are the same in file after file
def _configuration(cells: tuple[tuple[str, str], ...]) -> bytes:
    hdu = cells_to_hdu(dict(cells))
    hdu.name = "KBMOD_CONFIG"
    return _table_bytes(hdu)


@lru_cache(maxsize=2)  # by identity: asked once for every image
def _per_image_wcs(meta: Meta) -> tuple[str | None, ...]:
    """Return the WCS of every constituent as KBMOD's constructor fills them in: the global one if there is none."""
    column = meta.constituents.get("per_image_wcs")
    texts: list[str | None] = [] if column is None else [value or None for value in column.values.tolist()]
    if all(text is None for text in texts):
        return (meta.wcs,) * meta.n_constituents
    return tuple(texts)


def _table(meta: Meta, *, exact: bool) -> ConstituentTable:
    """Return the table of constituent images with KBMOD's columns first, as its WorkUnit holds it."""
    named = {column.name: column for column in meta.constituents.columns}
    if "per_image_wcs" not in named or named["per_image_wcs"].kind == "wcs":
        texts = object_array(_per_image_wcs(meta))
        named["per_image_wcs"] = Column("per_image_wcs", "wcs", texts)
    if exact:
        for name, column in named.items():
            if column.values.dtype == np.int8:  # which KBMOD writes as logical values
                named[name] = replace(column, values=column.values.astype(np.int16))
    order = [name for name in KBMOD_COLUMNS if name in named] + [name for name in named if name not in KBMOD_COLUMNS]
    return ConstituentTable(meta.n_constituents, tuple(named[name] for name in order))


def head_hdus(meta: Meta, *, exact: bool = False, configuration: bool = True) -> list[bytes]:
    """Return the HDUs before the images.

    Parameters
    ----------
    configuration
        Whether to write KBMOD_CONFIG even if there is no configuration: KBMOD needs it in sharded sets.
    """
    hdus = [_primary(meta)]
    if configuration or meta.configuration is not None:
        hdus.append(_configuration(tuple(configuration_cells(meta.configuration or {}).items())))
    hdus.append(_table_bytes(constituents_to_hdu(_table(meta, exact=exact), "IMG_META")))
    return hdus


# --- image HDUs ---------------------------------------------------------------------------------------


def _wcs_of_row(meta: Meta, i: int) -> str | None:
    """Return the WCS that KBMOD puts in the headers of image ``i``: the global one, else row ``i``, linked or not."""
    if meta.wcs is not None:
        return meta.wcs
    texts = _per_image_wcs(meta)
    return texts[i] if i < len(texts) else None


def _storable(plane: NDArray[Any]) -> NDArray[Any]:
    """Return a plane in a dtype that FITS has, holding the same values."""
    if plane.dtype.kind == "b":
        return plane.astype(np.uint8)
    if plane.dtype == np.float16:
        return plane.astype(np.float32)
    return plane


def _plain_hdu(
    plane: NDArray[Any], name: str, cards: dict[str, str], *, primary: bool = False
) -> Iterator[bytes | memoryview]:
    stored, bitpix, bzero = to_stored(np.ascontiguousarray(plane))
    data = big_endian_bytes(stored)
    header = HeaderText(
        [("SIMPLE", True, "conforms to FITS standard")] if primary else [("XTENSION", "IMAGE", "Image extension")]
    )
    header.set("BITPIX", bitpix, "array data type")
    header.set("NAXIS", plane.ndim, "number of array dimensions")
    for axis, size in enumerate(reversed(plane.shape), 1):
        header.set(f"NAXIS{axis}", size)
    if primary:
        header.set("EXTEND", True)
    else:
        header.set("PCOUNT", 0, "number of parameters")
        header.set("GCOUNT", 1, "number of groups")
    if bzero:
        header.set("BSCALE", 1)
        header.set("BZERO", bzero)
    header.set("EXTNAME", name, "extension name")
    header.update(cards)
    yield header.block()
    yield data
    yield bytes(padding(len(data)))


def _tiled_hdu(encoded: EncodedPlane, name: str, cards: dict[str, str]) -> Iterator[bytes | memoryview]:
    layout = encoded.layout
    header = HeaderText(
        [
            ("XTENSION", "BINTABLE", "binary table extension"),
            ("BITPIX", 8, "array data type"),
            ("NAXIS", 2, "number of array dimensions"),
            ("NAXIS1", layout.row_size, "width of table in bytes"),
            ("NAXIS2", layout.n_rows, "number of rows in table"),
            ("PCOUNT", encoded.pcount, "number of group parameters"),
            ("GCOUNT", 1, "number of groups"),
            ("TFIELDS", len(encoded.column_formats), "number of fields in each row"),
        ]
    )
    for k, (column, form) in enumerate(encoded.column_formats, 1):
        header.set(f"TTYPE{k}", column)
        header.set(f"TFORM{k}", form)
    header.set("ZIMAGE", True, "extension contains compressed image")
    header.set("ZTENSION", "IMAGE", "Image extension")
    header.set("ZBITPIX", layout.bitpix, "array data type")
    header.set("ZNAXIS", len(layout.shape), "number of array dimensions")
    for axis, size in enumerate(reversed(layout.shape), 1):
        header.set(f"ZNAXIS{axis}", size)
    header.set("ZPCOUNT", 0, "number of parameters")
    header.set("ZGCOUNT", 1, "number of groups")
    for axis, size in enumerate(reversed(layout.tile_shape), 1):
        header.set(f"ZTILE{axis}", size, "size of tiles to be compressed")
    header.set("ZCMPTYPE", layout.compression, "compression algorithm")
    for k, (key, value) in enumerate(layout.parameters, 1):
        name_comment, value_comment = _PARAMETER_COMMENTS.get(key, ("", ""))
        header.set(f"ZNAME{k}", key, name_comment)
        header.set(f"ZVAL{k}", value, value_comment)
    if layout.bzero:
        header.set("BSCALE", 1)
        header.set("BZERO", int(layout.bzero))
    header.set("EXTNAME", name, "name of this binary table extension")
    header.update(cards)
    if layout.zblank is not None:
        header.set("ZBLANK", layout.zblank)
    yield header.block()
    yield encoded.table
    yield encoded.heap
    yield bytes(padding(len(encoded.table) + len(encoded.heap)))


def kbmod_mask(image: Image) -> tuple[NDArray[np.int8], frozenset[str]]:
    """Return the mask as KBMOD writes it, 1 for flags and pixels that are not finite, and the layers with infinities.

    Blocks of rows stay in the cache, and infinities are looked for among the pixels that are not finite.
    """
    height, width = image.science.shape
    bad = buffers.empty((height, width), np.bool_)
    infinite = set()
    step = max(1, _BLOCK // max(width, 1))
    for first in range(0, height, step):
        rows = slice(first, first + step)
        good = np.isfinite(image.science[rows])
        good &= np.isfinite(image.variance[rows])
        odd = np.logical_not(good, out=bad[rows])
        if odd.any():
            infinite |= {layer for layer in ("science", "variance") if np.isinf(_layer(image, layer)[rows][odd]).any()}
        if image.mask is not None:
            odd |= is_masked(image.mask[rows])
    return bad.view(np.int8), frozenset(infinite)


def _layer(image: Image, name: str) -> NDArray[Any]:
    plane = image.layer(name)
    assert plane is not None
    return plane


def image_hdus(
    meta: Meta,
    i: int,
    image: Image,
    options: FitsOptions,
    mask: NDArray[np.int8] | None = None,
    *,
    sharded: bool = False,
) -> Iterator[bytes | memoryview]:
    """Return the bytes of the four HDUs of image ``i``, in pieces.

    Parameters
    ----------
    mask
        What `kbmod_mask` made of the image, if that is at hand.
    sharded
        Whether this is the start of a file of its own: the science image is then a plain primary HDU, which is what
        astropy (from version 7) makes of a compressed image that comes first.
    """
    time = {"MJD": card("MJD", float(meta.times[i]))}
    wcs = _wcs_of_row(meta, i)
    cards = time if wcs is None else time | _wcs_cards(wcs)
    links = meta.links_of(i)
    index_cards = {"NIND": card("NIND", len(links))}
    index_cards |= {f"IND_{j}": card(f"IND_{j}", index) for j, index in enumerate(links)}

    if mask is None:
        mask = image.mask if options.exact else kbmod_mask(image)[0]
    hdus = _image_hdus(i, image, mask, options, cards, index_cards, sharded=sharded)
    if not options.checksum:
        return chain.from_iterable(hdus)
    return (with_sums(b"".join(pieces)) for pieces in hdus)


def _image_hdus(
    i: int,
    image: Image,
    mask: NDArray[Any] | None,
    options: FitsOptions,
    cards: dict[str, str],
    index_cards: dict[str, str],
    *,
    sharded: bool,
) -> Iterator[Iterator[bytes | memoryview]]:
    """Yield the pieces of each HDU."""
    science, variance = (_storable(plane) for plane in (image.science, image.variance))
    settings = options.compression_type, options.quantize_level
    # A fixed clock in gzip streams: the same WorkUnit gives the same file every time.
    if sharded:
        yield _plain_hdu(science, f"SCI_{i}", cards | index_cards, primary=True)
    else:
        yield _tiled_hdu(encode_plane(science, *settings, clock=0), f"SCI_{i}", cards | index_cards)
    yield _tiled_hdu(encode_plane(variance, *settings, clock=0), f"VAR_{i}", cards)
    if mask is not None:
        yield _plain_hdu(_storable(mask), f"MSK_{i}", cards)
    psf = identity_psf(np.float64) if image.psf is None else image.psf  # KBMOD fails on files without a PSF
    yield _plain_hdu(_storable(psf), f"PSF_{i}", {})


COMPRESSION_TYPES = ("NOCOMPRESS", "RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1")


KBMOD_COLUMNS = ("data_loc", "ebd_wcs", "geocentric_distance", "per_image_wcs")
"""The columns that every WorkUnit of KBMOD has, in its order."""


@dataclass(frozen=True)
class FitsOptions:
    """How the pixels are written.

    Attributes
    ----------
    compression_type, quantize_level
        As KBMOD's ``to_fits`` takes them.
    exact
        Write every layer with its own dtype and values, and none that is absent (except the PSF, without which KBMOD
        cannot read the file), instead of what KBMOD makes of them.
    checksum
        Write the cards CHECKSUM and DATASUM.
    """

    compression_type: str = "RICE_1"
    quantize_level: float = -0.01
    exact: bool = False
    checksum: bool = False

    def __post_init__(self) -> None:
        if self.compression_type not in COMPRESSION_TYPES:
            raise UsageError(
                "an unknown compression type",
                where="compression_type",
                expected=", ".join(COMPRESSION_TYPES),
                found=repr(self.compression_type),
            )
        if self.compression_type == "HCOMPRESS_1" and self.quantize_level == 0:
            raise UsageError(
                "HCOMPRESS_1 without quantisation gives a file that nobody can read",
                where="quantize_level",
                hint="Use lossless=True (GZIP_2).",
            )
