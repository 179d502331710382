"""Decoding windows, into arrays, in threads."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from tile_reference import assert_same, by_astropy, plane, read_by_astropy

from wustore.backends.fits.tiles import (
    TileLayout,
    count_tiles,
    decode_plane,
    encode_plane,
)
from wustore.backends.fits.tiles.layout import Table
from wustore.errors import UsageError

pytestmark = pytest.mark.usefixtures("coder")


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
