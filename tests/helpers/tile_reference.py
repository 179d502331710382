"""What astropy writes and reads, for the tests of the tile engine."""

from __future__ import annotations

import io
import warnings
from typing import Any

import astropy
import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from wustore.backends.fits.tiles import TileLayout
from wustore.backends.fits.tiles.layout import Table

CLOCK = 1_700_000_000
ASTROPY_8 = int(astropy.__version__.split(".")[0]) >= 8
#: Our bytes are those of astropy 8, whatever astropy is installed: only 8 can be compared with.
needs_astropy_8 = pytest.mark.skipif(not ASTROPY_8, reason="astropy before 8 writes other bytes (by design)")


def by_astropy(array: NDArray[Any], **options: Any) -> tuple[dict[str, Any], bytes, NDArray[Any]]:
    """Compress with astropy: the table's cards, its data without padding, and what astropy reads back."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(array, **options)]).writeto(buffer)
        return read_by_astropy(buffer.getvalue())


def read_by_astropy(raw: bytes, number: int = 1) -> tuple[dict[str, Any], bytes, NDArray[Any]]:
    with fits.open(io.BytesIO(raw), disable_image_compression=True) as hdus:
        header = hdus[number].header
        start = hdus[number].fileinfo()["datLoc"]
        cards: dict[str, Any] = {}
        for card in header.cards:
            cards.setdefault(card.keyword, card.value)
    with fits.open(io.BytesIO(raw)) as hdus:
        values = np.array(hdus[number].data)
    size = cards["NAXIS1"] * cards["NAXIS2"] + cards["PCOUNT"]
    return cards, raw[start : start + size], values


def stopped(layout: TileLayout, data: bytes) -> bytes:
    """Set the clock of every gzip stream to `CLOCK`."""
    table, changed = Table(layout, data), bytearray(data)
    for name in ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA"):
        spans = table.spans(name, np.arange(layout.n_tiles))
        for start, end in zip(*spans, strict=True) if spans is not None else ():
            place = layout.heap_start + int(start)
            if end > start and changed[place : place + 3] == b"\x1f\x8b\x08":
                changed[place + 4 : place + 8] = CLOCK.to_bytes(4, "little")
    return bytes(changed)


def assert_same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    native = expected.astype(expected.dtype.newbyteorder("="))
    assert found.dtype == native.dtype
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.shape == native.shape
    assert found.tobytes() == native.tobytes()


def plane(seed: int, shape: tuple[int, int], kind: str) -> NDArray[np.float32]:
    """Return noise with what the kind asks for, and pixels that are NaN with a payload."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 5, shape).astype(np.float32)
    if kind == "bits":
        values = rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    elif kind == "constant":
        values[:] = values.flat[0]
    elif kind == "huge":
        values *= np.float32(1e37)
    elif kind == "wide":
        values = (values * 10.0 ** rng.integers(-8, 9, shape)).astype(np.float32)
    elif kind == "denormal":
        values *= np.float32(1e-40)
    elif kind == "zeros":
        values[rng.random(shape) < 0.5] = 0
        values[rng.random(shape) < 0.2] = -0.0
    elif kind == "infinite":
        values[rng.random(shape) < 0.1] = np.inf
        values[rng.random(shape) < 0.1] = -np.inf
    elif kind == "rows":
        values[::2] = np.nan
        values[1::3] = np.inf
    values[rng.random(shape) < rng.choice([0, 0.02, 0.3])] = np.array(0xFFC12345, np.uint32).view(np.float32)
    return values


def tables() -> list[tuple[dict[str, Any], bytes]]:
    """Return cards and data of a small table of each compression, made by astropy."""
    rng = np.random.default_rng(8)
    noise = rng.normal(0, 5, (24, 40)).astype(np.float32)
    noise[3, 4] = np.nan
    noise[7] = np.inf
    counts = rng.integers(0, 200, (24, 40))
    planes: list[tuple[Any, dict[str, Any]]] = [
        (noise, {"compression_type": "RICE_1", "quantize_level": -0.01}),
        (noise, {"compression_type": "RICE_1", "quantize_level": 16, "quantize_method": 2, "dither_seed": 5}),
        (counts.astype("u1"), {"compression_type": "RICE_1"}),
        (counts.astype("i2"), {"compression_type": "RICE_1", "tile_shape": (7, 9)}),
        (noise, {"compression_type": "GZIP_1", "quantize_level": -0.01}),
        (noise, {"compression_type": "GZIP_2", "quantize_level": 0}),
        (noise, {"compression_type": "NOCOMPRESS", "quantize_level": 0}),
        (noise, {"compression_type": "HCOMPRESS_1", "quantize_level": -0.01}),
        (counts.astype("i4"), {"compression_type": "PLIO_1"}),
    ]
    return [by_astropy(array, **options)[:2] for array, options in planes]
