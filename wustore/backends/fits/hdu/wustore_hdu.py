"""The HDU ``WUSTORE``: our own metadata inside a FITS file, for what KBMOD's layout cannot carry exactly.

A one-dimensional image of bytes: a zlib stream (RFC 1950) of JSON with the root document (see
`document.document_of`), the small arrays (`arrays_of`), and a digest of what the plain layout of the same file
reads as. Readers that do not know it skip it, as they do any foreign HDU; if the digest does not fit, the file was
edited since and the plain layout holds.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits.hdu.header_writer import HeaderText, padding
from wustore.errors import CorruptError, WuStoreError
from wustore.format import tagged_json
from wustore.format.document import arrays_of, document_of, meta_from
from wustore.model.meta import Meta, object_array
from wustore.model.sizes import most_believed

__all__ = ["NAME", "read_wustore_hdu", "wustore_hdu"]

NAME = "WUSTORE"
_MOST_AXES = 8
"""Of a column of text; more than any table has, few enough for nested lists of a hostile file."""

_STEP = 1 << 20


def wustore_hdu(meta: Meta, plain_digest: str) -> bytes:
    """Return the HDU.

    Parameters
    ----------
    meta
        What the file shall read as.
    plain_digest
        `wustore.backends.fits.capsule.meta_digest` of what its plain layout reads as.
    """
    arrays = {
        array.name: array.data.tolist() if array.data.dtype.hasobject else tagged_json.encode(np.asarray(array.data))
        for array in arrays_of(meta)
    }
    text = json.dumps(
        {"document": document_of(meta), "arrays": arrays, "plain": plain_digest},
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    data = zlib.compress(text.encode(errors="surrogatepass"), 9)
    header = HeaderText(
        [
            ("XTENSION", "IMAGE", "Image extension"),
            ("BITPIX", 8, "array data type"),
            ("NAXIS", 1, "number of array dimensions"),
            ("NAXIS1", len(data)),
            ("PCOUNT", 0, "number of parameters"),
            ("GCOUNT", 1, "number of groups"),
            ("EXTNAME", NAME, "exact metadata (zlib, JSON), see wustore"),
        ]
    )
    return header.block() + data + bytes(padding(len(data)))


def read_wustore_hdu(data: bytes, *, path: str | None = None) -> tuple[Meta, str]:
    """Return the metadata, and the digest of the plain layout, from the data of the HDU (padding may follow)."""
    try:
        content = tagged_json.parse(_unpacked(data, path), stored=len(data))
        arrays, plain = content["arrays"], content["plain"]
        if not isinstance(plain, str):
            raise CorruptError("the HDU of exact metadata has no digest", path=path, where=NAME)

        def array(name: str) -> NDArray[Any]:
            stored = arrays[name]
            data = tagged_json.decode(stored) if isinstance(stored, dict) else _texts(stored)
            if not isinstance(data, np.ndarray):
                raise CorruptError("not an array", where=name, found=type(data).__name__)
            return data

        return meta_from(content["document"], array, path=path), plain
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, WuStoreError):
            raise
        raise CorruptError(
            "the HDU of exact metadata is damaged",
            path=path,
            where=NAME,
            found=f"{type(error).__name__}: {error}"[:200],
            hint="Remove it (the plain layout holds what KBMOD reads), or fetch the file again.",
        ) from error


def _unpacked(data: bytes, path: str | None) -> bytearray:
    """Return the text; pieces are added up as they come, so that no more than the text itself is in memory."""
    engine, most = zlib.decompressobj(), most_believed(len(data))
    text = bytearray()
    while not engine.eof and len(text) <= most:
        piece = engine.decompress(data, _STEP)
        if not piece and not engine.unconsumed_tail:
            break
        text += piece
        data = engine.unconsumed_tail
    if not engine.eof or len(text) > most:
        raise CorruptError("the HDU of exact metadata ends early, or holds too much", path=path, where=NAME)
    return text


def _texts(stored: Any) -> NDArray[Any]:
    """Return nested lists of text, as `numpy.ndarray.tolist` gives them, as an array."""
    shape: list[int] = []
    level = stored
    while isinstance(level, list) and len(shape) < _MOST_AXES:
        shape.append(len(level))
        level = level[0] if level else None
    flat: list[Any] = stored
    for size in shape[1:]:
        if not all(isinstance(row, list) and len(row) == size for row in flat):
            raise CorruptError("rows of different lengths in an array of text")
        flat = [cell for row in flat for cell in row]
    if not isinstance(stored, list) or not all(isinstance(cell, str) for cell in flat):
        raise CorruptError("an array of text holds something else")
    return object_array(flat).reshape(shape)
