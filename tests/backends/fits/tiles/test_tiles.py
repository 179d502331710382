"""The tile engine against astropy: the same bytes when encoding, the same bits when decoding."""

from __future__ import annotations

import gzip
import io
import math
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tile_reference import CLOCK, assert_same, by_astropy, read_by_astropy, stopped

from wustore.backends.fits.tiles import (
    LOSSLESS,
    TileLayout,
    count_tiles,
    decode_integers,
    decode_plane,
    differing_tiles,
    encode_plane,
    quantize,
    reencode_plane,
    tile_bytes,
)
from wustore.backends.fits.tiles import gzip as gzip_tiles
from wustore.backends.fits.tiles.gzip import GzipParameters, gunzip, gzip_like_astropy, gzip_with, recognise_gzip
from wustore.backends.fits.tiles.layout import Table
from wustore.backends.fits.tiles.plio import decode_plio
from wustore.errors import CorruptError, UsageError

pytestmark = pytest.mark.usefixtures("coder")

FLOAT_TYPES = ["RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS", "HCOMPRESS_1"]
quickly = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


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
    assert encoded.column_formats == tuple(
        (cards[f"TTYPE{i}"], cards[f"TFORM{i}"].strip()) for i in range(1, cards["TFIELDS"] + 1)
    )
    parameters = {cards[f"ZNAME{i}"]: cards[f"ZVAL{i}"] for i in range(1, 9) if f"ZNAME{i}" in cards}
    # A card has room for 20 characters, which is less than some numbers need.
    assert dict(encoded.layout.parameters) == pytest.approx(parameters, rel=1e-12)

    y, x = layout.shape
    window = (slice(y // 3, max(1, y - 1)), slice(x // 4, max(1, x // 2)))
    assert_same(decode_plane(layout, data, rows=window[0], columns=window[1]), np.ascontiguousarray(values[window]))


def plane(seed: int, shape: tuple[int, int], kind: str) -> NDArray[np.float32]:
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
    (compression, f"{letter}{width}", small)
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


@pytest.mark.parametrize(
    ("bitpix", "extra"),
    [
        (16, {"BZERO": 32768}),
        (16, {"BSCALE": 0.5, "BZERO": 3}),
        (16, {"BLANK": 7}),
        (32, {"BLANK": 7, "BSCALE": 2.0}),
        (32, {"ZBLANK": 7}),
        (8, {"BZERO": -128}),
        (8, {"BLANK": 7, "BZERO": 1.5}),
        (-32, {"BSCALE": 2.0, "BZERO": 1.0}),
    ],
)
def test_scaled_pixels(bitpix: int, extra: dict[str, Any]) -> None:
    kind = {8: "u1", 16: "i2", 32: "i4", -32: "f4"}[bitpix]
    array = np.random.default_rng(6).integers(0, 30, (9, 31)).astype(kind)
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(array, compression_type="GZIP_1")]).writeto(buffer)
    with fits.open(io.BytesIO(buffer.getvalue()), disable_image_compression=True) as hdus:
        for keyword, value in extra.items():
            hdus[1].header[keyword] = value
        changed = io.BytesIO()
        hdus.writeto(changed)
    cards, data, values = read_by_astropy(changed.getvalue())
    layout = TileLayout.from_cards(cards)
    assert layout.dtype == values.dtype.newbyteorder("=")
    assert_same(decode_plane(layout, data), values)
    assert_same(
        decode_plane(layout, data, rows=slice(2, 5), columns=slice(3, 9)), np.ascontiguousarray(values[2:5, 3:9])
    )


@quickly
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    compression=st.sampled_from(FLOAT_TYPES),
    method=st.sampled_from([-1, 1, 2]),
    level=st.sampled_from([-0.01, 16.0, 0.0]),
)
def test_encoding_again(seed: int, kind: str, compression: str, method: int, level: float) -> None:
    if level == 0 and compression in ("RICE_1", "HCOMPRESS_1"):
        level = -0.01
    array = plane(seed, (12, 37), kind)
    cards, data, values = by_astropy(
        array, compression_type=compression, quantize_level=level, quantize_method=method, dither_seed=321
    )
    layout = TileLayout.from_cards(cards)
    data = stopped(layout, data)
    table = Table(layout, data)
    scale, zero = table.scalars("ZSCALE"), table.scalars("ZZERO")
    gzip_parameters = GzipParameters(gzip_like_astropy(b"", CLOCK)[:10])
    rebuilt = reencode_plane(layout, values, scale, zero, gzip=gzip_parameters)
    differing = differing_tiles(layout, data, rebuilt)
    assert (rebuilt == data) == (not differing)
    if kind in ("noise", "constant", "infinite", "rows") and method != 2:
        assert not differing
    kept = {number: tile_bytes(layout, data, number)[1] for number in differing}
    assert reencode_plane(layout, values, scale, zero, gzip=gzip_parameters, kept=kept) == data


def test_several_integers_with_one_value_need_corrections() -> None:
    array = np.full((3, 64), 1e6, np.float32) + np.arange(64, dtype=np.float32)
    array[:, 0] = 0
    cards, data, values = by_astropy(array, quantize_level=-0.001)
    layout = TileLayout.from_cards(cards)
    found = decode_integers(layout, data)
    assert found.scale is not None
    assert found.zero is not None
    rebuilt = reencode_plane(layout, values, found.scale, found.zero)
    guessed = np.empty(values.shape, np.int32)
    quantize.requantise(values, found.scale, found.zero, guessed)
    places = np.flatnonzero(guessed != found.integers)
    assert bool(len(places)) == (rebuilt != data)
    changes = (found.integers.astype(np.int64) - guessed).reshape(-1)[places]
    assert reencode_plane(layout, values, found.scale, found.zero, corrections=(places, changes)) == data


def test_integers_of_a_quantised_plane() -> None:
    array = plane(3, (10, 40), "rows")
    cards, data, values = by_astropy(array, quantize_level=-0.01)
    layout = TileLayout.from_cards(cards)
    found = decode_integers(layout, data)
    assert found.scale is not None
    assert found.zero is not None
    assert (found.kinds == np.where(found.scale == 0, LOSSLESS, 0)).all()
    floats = (found.integers * found.scale[:, None] + found.zero[:, None]).astype(np.float32)
    floats[found.integers == quantize.BLANK] = np.nan
    good = found.kinds == 0
    assert_same(floats[good], values[good])


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


def test_windows_touch_only_their_tiles() -> None:
    array = plane(1, (64, 100), "noise")
    cards, data, values = by_astropy(array, quantize_level=-0.01)
    layout = TileLayout.from_cards(cards)
    assert count_tiles(layout).tiles == 64
    assert count_tiles(layout).pixels == 6400
    assert count_tiles(layout, slice(10, 31), slice(40, 61)).tiles == 21
    assert count_tiles(layout, slice(10, 10)).pixels == 0
    # Tiles outside the window may be damaged without being noticed: they are not looked at.
    table = Table(layout, data)
    spans = table.spans("COMPRESSED_DATA", np.arange(64))
    assert spans is not None
    broken = bytearray(data)
    for number in (0, 9, 31, 63):
        start, end = layout.heap_start + int(spans[0][number]), layout.heap_start + int(spans[1][number])
        broken[start:end] = b"\xff" * (end - start)
    found = decode_plane(layout, bytes(broken), rows=slice(10, 31), columns=slice(40, 61))
    assert_same(found, np.ascontiguousarray(values[10:31, 40:61]))
    square = encode_plane(array, tile_shape=(16, 32))
    assert count_tiles(square.layout, slice(15, 17), slice(31, 33)).tiles == 4
    assert count_tiles(square.layout, slice(0, 1), slice(96, 97)).pixels == 64


def test_decoding_into_an_array() -> None:
    encoded = encode_plane(plane(2, (8, 30), "noise"))
    out = np.empty((8, 30), np.float32)
    assert decode_plane(encoded.layout, memoryview(encoded.data), out=out) is out
    assert_same(out, decode_plane(encoded.layout, encoded.data))
    with pytest.raises(UsageError):
        decode_plane(encoded.layout, encoded.data, out=np.empty((8, 31), np.float32))
    with pytest.raises(UsageError):
        decode_plane(encoded.layout, encoded.data, rows=slice(0, 8, 2))


def test_threads_do_not_disturb_one_another() -> None:
    # HCOMPRESS keeps its state in C globals.
    arrays = [plane(i, (40, 64), "noise") for i in range(4)]
    jobs = [encode_plane(array, "HCOMPRESS_1", -0.01) for array in arrays]
    expected = [decode_plane(job.layout, job.data) for job in jobs]
    wrong: list[int] = []

    def work(i: int) -> None:
        found = [decode_plane(jobs[i].layout, jobs[i].data) for _ in range(10)]
        wrong.extend(i for values in found if values.tobytes() != expected[i].tobytes())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_random_sequence_is_that_of_the_standard() -> None:
    sequence = quantize._random_sequence()
    assert round(float(sequence[9999]) * 2147483647) == pytest.approx(1043618065, abs=64)
    # Its starting points are the same in single and in double precision: C code has both.
    single = (sequence * np.float32(500)).astype(int)
    assert (single == (sequence.astype(float) * 500.0).astype(int)).all()


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("name", [b"", b"tile\0"])
def test_gzip_parameters_are_recognised(level: int, name: bytes) -> None:
    content = np.random.default_rng(level).integers(0, 9, 5000, dtype=np.uint8).tobytes()
    header = b"\x1f\x8b\x08" + (b"\x08" if name else b"\0") + CLOCK.to_bytes(4, "little") + b"\x02\xff" + name
    stream = gzip_with(GzipParameters(header, level), content)
    assert gzip.decompress(stream) == content
    found = recognise_gzip(stream)
    assert found is not None
    assert found.header == header
    assert found.clock == CLOCK
    assert gzip_with(found, content) == stream


def test_unusual_gzip_needs_a_thorough_search() -> None:
    content = bytes(range(256)) * 40
    stream = gzip_with(GzipParameters(b"\x1f\x8b\x08" + bytes(7), 4, 7, 1, 13), content)
    found = recognise_gzip(stream, thorough=True)
    assert found is not None
    assert gzip_with(found, content) == stream
    assert recognise_gzip(stream[:-1]) is None
    assert recognise_gzip(b"not gzip at all, not at all") is None


@pytest.mark.skipif(not gzip_tiles._IS_CLASSIC, reason="Python's zlib is not the classic one here")
@pytest.mark.parametrize("level", range(1, 10))
def test_gzip_where_python_has_another_zlib(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was imported on a system with the classic zlib comes back on one with zlib-ng."""
    rng = np.random.default_rng(level)
    contents = [b"", rng.normal(0, 5, 3000).astype(">f4").tobytes(), rng.integers(0, 3, 9000).astype("u1").tobytes()]
    parameters = GzipParameters(gzip_tiles.ASTROPY_HEADER, level)
    expected = [gzip_with(parameters, content) for content in contents]
    monkeypatch.setattr(gzip_tiles, "_IS_CLASSIC", False)
    assert [gzip_with(parameters, content) for content in contents] == expected
    monkeypatch.setattr(zlib, "compressobj", None)  # not Python's
    assert [gzip_with(parameters, content) for content in contents] == expected


def test_gzip_like_python() -> None:
    data = bytes(range(256)) * 30
    assert gzip_like_astropy(data, CLOCK) == gzip.compress(data, mtime=CLOCK)


def test_gunzip_is_bounded() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with pytest.raises(CorruptError):
        gunzip(bomb, [100, 200], 0)
    lying = bomb[:-4] + (200).to_bytes(4, "little")
    with pytest.raises(CorruptError):
        gunzip(lying, [100, 200], 0)
    members = gzip.compress(b"a" * 60) + gzip.compress(b"b" * 40)
    assert gunzip(members, [100, 200], 0) == b"a" * 60 + b"b" * 40
    flipped = bytearray(gzip.compress(bytes(range(200))))
    flipped[30] ^= 4
    with pytest.raises(CorruptError):
        gunzip(bytes(flipped), [200], 0)
    with pytest.raises(zlib.error):
        zlib.decompress(bytes(flipped), 31)


@quickly
@given(seed=st.integers(0, 2**32), n=st.integers(1, 9000), largest=st.sampled_from([1, 2, 300, 2**23]))
def test_plio(seed: int, n: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    array = np.repeat(rng.integers(0, largest, n), rng.integers(1, 6, n))[None, :n].astype(np.int32)
    cards, data, values = by_astropy(array, compression_type="PLIO_1")
    layout = TileLayout.from_cards(cards)
    assert_same(decode_plane(layout, data), values)
    assert reencode_plane(layout, values) == data


def test_short_pixel_lists() -> None:
    for words in ([0], [0, 7, -100], [0, 7, -100, 9, 0, 0, 0, 5000], [0, -5, -100, 2, 0]):
        with pytest.raises(CorruptError):
            decode_plio(np.array(words, np.int16), 10, 0)


def test_constant_planes_and_large_values() -> None:
    for value in (0.0, -0.0, 1.0, math.pi, 1e30, -1e30, 2.0**31 * 0.01, -(2.0**31) * 0.01):
        for level in (-0.01, 4.0):
            check(np.full((3, 40), value, np.float32), quantize_level=level)
