"""Gzip streams: settings are recognised, unpacking is bounded."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pytest
from tile_reference import CLOCK

from wustore.backends.fits.tiles import gzip as gzip_tiles
from wustore.backends.fits.tiles.gzip import GzipParameters, gunzip, gzip_like_astropy, gzip_with, recognise_gzip
from wustore.errors import CorruptError

pytestmark = pytest.mark.usefixtures("coder")


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
