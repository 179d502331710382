"""The tile engine against astropy: the same bytes when encoding, the same bits when decoding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tile_reference import ASTROPY_8, CLOCK, assert_same, by_astropy, needs_astropy_8, plane, stopped

from wustore.backends.fits.tiles import (
    TileLayout,
    decode_integers,
    decode_plane,
    encode_plane,
    reencode_plane,
)
from wustore.backends.fits.tiles.gzip import GzipParameters, gzip_like_astropy
from wustore.errors import UsageError

pytestmark = pytest.mark.usefixtures("coder")

FLOAT_TYPES = ["RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS", "HCOMPRESS_1"]
quickly = settings(max_examples=60)


def check(array: NDArray[Any], **options: Any) -> None:
    """Decode astropy's bytes, encode to the same bytes, and rebuild them from the decoded pixels."""
    cards, data, values = by_astropy(array, **options)
    layout = TileLayout.from_cards(cards)
    data = stopped(layout, data)
    assert_same(decode_plane(layout, data), values)

    encoded = encode_plane(array, **options, clock=CLOCK)
    assert encoded.data == data
    assert encoded.pcount == cards["PCOUNT"]
    assert encoded.layout.zblank == cards.get("ZBLANK")
    if ASTROPY_8:  # older ones give the width 0 to some columns
        assert encoded.column_formats == tuple(
            (cards[f"TTYPE{i}"], cards[f"TFORM{i}"].strip()) for i in range(1, cards["TFIELDS"] + 1)
        )
    parameters = {cards[f"ZNAME{i}"]: cards[f"ZVAL{i}"] for i in range(1, 9) if f"ZNAME{i}" in cards}
    # A card has room for 20 characters, which is less than some numbers need.
    assert dict(encoded.layout.parameters) == pytest.approx(parameters, rel=1e-12)

    y, x = layout.shape
    window = (slice(y // 3, max(1, y - 1)), slice(x // 4, max(1, x // 2)))
    assert_same(decode_plane(layout, data, rows=window[0], columns=window[1]), np.ascontiguousarray(values[window]))


KINDS = ["noise", "bits", "constant", "huge", "wide", "denormal", "zeros", "infinite", "rows"]
shapes = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 80)), st.sampled_from([(1, 1), (1, 33), (33, 1), (2, 2), (40, 20)])
)
levels = st.one_of(
    st.sampled_from([-0.01, -0.001, -100.0, 16.0, 100.0, 500.0, 0.0]),
    st.floats(-1e6, -(2.0**-30), width=32),
    st.floats(0.125, 1e4, width=32),
)


# Signalling NaN make numpy warn, in astropy's code and where the test widens the array.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@quickly
@given(
    seed=st.integers(0, 2**32),
    shape=shapes,
    kind=st.sampled_from(KINDS),
    compression=st.sampled_from(FLOAT_TYPES),
    level=levels,
    method=st.sampled_from([-1, -1, 1, 2]),
    dither_seed=st.integers(1, 10000),
    wide=st.booleans(),
)
def test_any_float_plane(
    seed: int,
    shape: tuple[int, int],
    kind: str,
    compression: str,
    level: float,
    method: int,
    dither_seed: int,
    wide: bool,
) -> None:
    array = plane(seed, shape, kind)
    if compression == "RICE_1" and level == 0:
        level = -0.5  # astropy then casts floats to integers, and warns
    if compression == "HCOMPRESS_1":
        array = plane(seed, (max(shape[0], 4), max(shape[1], 4)), kind)
        if level == 0:
            level = 8.0
    options = {
        "compression_type": compression,
        "quantize_level": level,
        "quantize_method": method,
        "dither_seed": dither_seed,
    }
    array = array.astype(np.float64) if wide else array
    try:
        by_astropy(array, **options)
    except ValueError:
        with pytest.raises(UsageError):
            encode_plane(array, **options)
        return
    check(array, **options)


@quickly
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    tile=st.tuples(st.integers(1, 45), st.integers(1, 70)),
    compression=st.sampled_from(["RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS"]),
    method=st.sampled_from([-1, 1, 2]),
)
def test_any_tile_shape(
    seed: int, shape: tuple[int, int], tile: tuple[int, int], compression: str, method: int
) -> None:
    check(
        plane(seed, shape, "noise"),
        compression_type=compression,
        quantize_level=-0.01,
        quantize_method=method,
        dither_seed=9876,
        tile_shape=tile,
    )


@pytest.mark.parametrize("shape", [(200,), (3, 7, 20), (2, 2, 3, 11)])
@pytest.mark.parametrize("tile", [None, "odd"])
def test_other_dimensions(shape: tuple[int, ...], tile: str | None) -> None:
    array = np.random.default_rng(4).normal(0, 5, shape).astype(np.float32)
    options: dict[str, Any] = {"quantize_level": -0.01}
    if tile:
        options["tile_shape"] = tuple(max(1, n - 1) for n in shape)
    cards, data, values = by_astropy(array, **options)
    layout = TileLayout.from_cards(cards)
    assert_same(decode_plane(layout, data), values)
    assert encode_plane(array, **options, clock=CLOCK).data == stopped(layout, data)


#: HCOMPRESS and PLIO take small values only; where astropy narrows 64-bit integers it warns.
INTEGER_CASES = [
    pytest.param(
        compression,
        f"{letter}{width}",
        small,
        # Older ones store the offset of these in another way.
        marks=[needs_astropy_8] if (letter, width) in {("i", 1), ("u", 8)} else [],
    )
    for compression in ("RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS", "HCOMPRESS_1", "PLIO_1")
    for letter in "iu"
    for width in (1, 2, 4, 8)
    for small in (True, False)
    if (small or compression not in ("HCOMPRESS_1", "PLIO_1"))
    and (width < 8 or compression in ("GZIP_1", "GZIP_2", "NOCOMPRESS"))
]


@pytest.mark.parametrize(("compression", "kind", "small"), INTEGER_CASES)
def test_any_integer_plane(compression: str, kind: str, small: bool) -> None:
    limits, rng = np.iinfo(kind), np.random.default_rng(5)
    array = rng.integers(limits.min, limits.max, (21, 43), dtype=kind, endpoint=True)
    array[0], array[1] = limits.min, limits.max
    if small:
        array = rng.integers(0, 100, (21, 43)).astype(kind)
        array[3] = 0
    try:
        by_astropy(array, compression_type=compression)
    except ValueError:
        with pytest.raises(UsageError):
            encode_plane(array, compression)
        return
    check(array, compression_type=compression)
    cards, data, values = by_astropy(array, compression_type=compression)
    layout = TileLayout.from_cards(cards)
    data = stopped(layout, data)
    gzip_parameters = GzipParameters(gzip_like_astropy(b"", CLOCK)[:10])
    assert reencode_plane(layout, values, gzip=gzip_parameters) == data


def test_integers_wider_than_the_code() -> None:
    # KBMOD's masks of April 2025: 64-bit pixels, Rice-coded with 4 bytes.
    array = np.random.default_rng(1).integers(-(2**31), 2**31, (7, 50))
    cards, data, _ = by_astropy(array.astype(np.int32))
    cards["ZBITPIX"] = 64
    layout = TileLayout.from_cards(cards)
    assert_same(decode_plane(layout, data), array)
    assert reencode_plane(layout, array) == data


def test_uncompressed_tiles() -> None:
    # cfitsio stores tiles that do not shrink in UNCOMPRESSED_DATA.
    pixels = np.random.default_rng(0).normal(0, 1, (2, 8)).astype(">f4")
    row = np.dtype([("c", ">i4", 2), ("u", ">i4", 2), ("s", ">f8"), ("z", ">f8")])
    main = np.zeros(2, row)
    main["u"] = [[8, 0], [8, 32]]
    data = main.tobytes() + pixels.tobytes()
    cards = {
        "NAXIS1": row.itemsize, "NAXIS2": 2, "PCOUNT": 64, "TFIELDS": 4, "ZCMPTYPE": "RICE_1", "ZBITPIX": -32,
        "ZNAXIS": 2, "ZNAXIS1": 8, "ZNAXIS2": 2, "ZTILE1": 8, "ZTILE2": 1,
        "TTYPE1": "COMPRESSED_DATA", "TFORM1": "1PB(0)", "TTYPE2": "UNCOMPRESSED_DATA", "TFORM2": "1PE(8)",
        "TTYPE3": "ZSCALE", "TFORM3": "1D", "TTYPE4": "ZZERO", "TFORM4": "1D",
    }  # fmt: skip
    layout = TileLayout.from_cards(cards)
    assert_same(decode_plane(layout, data), pixels)
    kinds = decode_integers(layout, data).kinds
    zeros = np.zeros(2)
    assert reencode_plane(layout, decode_plane(layout, data), zeros, zeros, kinds=kinds) == data


def test_constant_planes_and_large_values() -> None:
    for value in (0.0, -0.0, 1.0, math.pi, 1e30, -1e30, 2.0**31 * 0.01, -(2.0**31) * 0.01):
        for level in (-0.01, 4.0):
            check(np.full((3, 40), value, np.float32), quantize_level=level)
