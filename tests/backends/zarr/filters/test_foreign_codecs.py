"""Chunks of other programs: each codec of zarr-python, and chunks that hold more than they should."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from memory import traced
from zarr import codecs
from zarr.codecs import numcodecs as others

from wustore.backends.zarr.filters.decode import most_of_zstd
from wustore.backends.zarr.foreign import ForeignArray
from wustore.errors import CorruptError
from wustore.storage.zarr_store import DirectoryKeys

DATA = np.random.default_rng(0).integers(0, 50, (3, 10, 12)).astype("<f4")
WHOLE = (slice(0, 3), slice(0, 10), slice(0, 12))
FIRST = (slice(0, 1), slice(0, 5), slice(0, 6))
"""The first chunk. Read alone, the memory that reading takes does not depend on what other threads decode."""
PACKED = DATA[FIRST].tobytes()

RAW: dict[str, Any] = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2}]}
COMPRESSORS: dict[str, Callable[[], Any]] = {
    "blosc": codecs.BloscCodec,
    "zstd": codecs.ZstdCodec,
    "gzip": codecs.GzipCodec,
    "numcodecs.blosc": others.Blosc,
    "numcodecs.bz2": others.BZ2,
    "numcodecs.gzip": others.GZip,
    "numcodecs.lz4": others.LZ4,
    "numcodecs.lzma": others.LZMA,
    "numcodecs.lzma alone": lambda: others.LZMA(format=lzma.FORMAT_ALONE),
    "numcodecs.lzma raw": lambda: others.LZMA(**RAW),
    "numcodecs.zlib": others.Zlib,
    "numcodecs.zstd": others.Zstd,
}


def stored(folder: Path, **options: Any) -> ForeignArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # of codecs that Zarr v3 does not have
        options = {key: value() if callable(value) else value for key, value in options.items()}
        array = zarr.create_array(
            folder / "a.zarr", name="x", shape=DATA.shape, dtype="<f4", chunks=(1, 5, 6), **options
        )
        array[...] = DATA
    return ForeignArray(DirectoryKeys(folder / "a.zarr"), "x", DATA.shape)


def replace(folder: Path, chunk: bytes) -> None:
    (folder / "a.zarr" / "x" / "c" / "0" / "0" / "0").write_bytes(chunk)


@pytest.mark.parametrize("shards", [None, (1, 10, 12)])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_read(name: str, shards: tuple[int, ...] | None, tmp_path: Path) -> None:
    array = stored(tmp_path, compressors=COMPRESSORS[name], shards=shards)
    np.testing.assert_array_equal(array.read(WHOLE), DATA)


def test_pcodec(tmp_path: Path) -> None:
    array = stored(tmp_path, serializer=others.PCodec, compressors=None)
    np.testing.assert_array_equal(array.read(WHOLE), DATA)
    for other in (PACKED[:-4], PACKED + PACKED[:4]):
        replace(tmp_path, numcodecs.PCodec().encode(np.frombuffer(other, "<f4")))
        with pytest.raises(CorruptError, match="another number of values than 30"):
            array.read(WHOLE)


def streamed(data: bytes, size: int) -> bytes:
    """Return one frame of zstd that does not state its size: single blocks, of zeros or as they are."""
    blocks, frame = [data[k : k + size] for k in range(0, len(data), size)], b"\x28\xb5\x2f\xfd\x00\x58"
    for k, block in enumerate(blocks):
        is_last = k == len(blocks) - 1
        kind = 0 if any(block) else 1
        frame += (len(block) << 3 | kind << 1 | is_last).to_bytes(3, "little") + (block if kind == 0 else b"\0")
    return frame


MANY = 1 << 28
BOMBS: dict[str, Callable[[], bytes]] = {
    "blosc": lambda: struct.pack("<4B3I", 2, 1, 3, 4, MANY, MANY, 32).ljust(32, b"x"),
    "zstd": lambda: bytes(numcodecs.Zstd(1).encode(bytes(MANY))),
    "gzip": lambda: gzip.compress(bytes(MANY), 9),
    "numcodecs.bz2": lambda: bz2.compress(bytes(MANY)),
    "numcodecs.gzip": lambda: gzip.compress(bytes(MANY), 9),
    "numcodecs.lz4": lambda: bytes(numcodecs.LZ4().encode(bytes(MANY))),
    "numcodecs.lzma": lambda: lzma.compress(bytes(MANY), preset=0),
    "numcodecs.lzma raw": lambda: lzma.compress(bytes(MANY), **RAW),
    "numcodecs.zlib": lambda: zlib.compress(bytes(MANY), 9),
    "numcodecs.zstd": lambda: streamed(bytes(MANY), 1 << 17),
}


@pytest.mark.parametrize("name", BOMBS)
def test_chunks_that_hold_more_than_their_array_declares(name: str, tmp_path: Path) -> None:
    array = stored(tmp_path, compressors=COMPRESSORS[name])
    replace(tmp_path, BOMBS[name]())
    with traced() as peak:
        with pytest.raises(CorruptError, match="at most 134217728 are believed"):
            array.read(FIRST)
        assert peak.bytes < 12 << 20  # LZMA looks 8 MiB back


def test_a_pcodec_chunk_that_holds_more_than_its_array_declares(tmp_path: Path) -> None:
    array = stored(tmp_path, serializer=others.PCodec, compressors=None)
    replace(tmp_path, numcodecs.PCodec().encode(np.zeros(MANY // 8, "<f4")))
    with traced() as peak:
        with pytest.raises(CorruptError, match="another number of values"):
            array.read(FIRST)
        assert peak.bytes < 1 << 23


def test_lzma_that_asks_for_much_memory(tmp_path: Path) -> None:
    array = stored(tmp_path, compressors=others.LZMA)
    chunk = bytearray(lzma.compress(PACKED, preset=0))
    place = chunk.index(b"\x21\x01") + 2  # the filter LZMA2 and the length of its property
    chunk[place] = 40  # a dictionary of 4 GiB
    header = chunk[12 : place + 1]
    end = 12 + 4 * (chunk[12] + 1)
    chunk[end - 4 : end] = zlib.crc32(header + chunk[place + 1 : end - 4]).to_bytes(4, "little")
    replace(tmp_path, bytes(chunk))
    with pytest.raises(CorruptError, match="Memory usage limit"):
        array.read(WHOLE)


@pytest.mark.parametrize("name", ["gzip", "numcodecs.bz2", "numcodecs.gzip", "numcodecs.lzma"])
def test_streams_one_after_the_other(name: str, tmp_path: Path) -> None:
    compress: dict[str, Callable[[bytes], bytes]] = {"bz2": bz2.compress, "gzip": gzip.compress, "lzma": lzma.compress}
    pack = compress[name.removeprefix("numcodecs.")]
    array = stored(tmp_path, compressors=COMPRESSORS[name])
    replace(tmp_path, pack(PACKED[:50]) + pack(PACKED[50:]))
    np.testing.assert_array_equal(array.read(WHOLE), DATA)


@pytest.mark.parametrize("name", ["zstd", "numcodecs.zstd"])
@pytest.mark.parametrize("size", [7, 1 << 17])
def test_zstd_that_states_no_size(name: str, size: int, tmp_path: Path) -> None:
    array = stored(tmp_path, compressors=COMPRESSORS[name])
    replace(tmp_path, streamed(PACKED, size))
    np.testing.assert_array_equal(array.read(WHOLE), DATA)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_damaged_chunks(name: str, tmp_path: Path) -> None:
    array = stored(tmp_path, compressors=COMPRESSORS[name])
    whole = (tmp_path / "a.zarr" / "x" / "c" / "0" / "0" / "0").read_bytes()
    for chunk in (b"", whole[:1], whole[:-9], b"\xff" * len(whole), bytes(len(whole))):
        replace(tmp_path, chunk)
        with pytest.raises(CorruptError):
            array.read(WHOLE)


@pytest.mark.parametrize(
    ("content", "size"),
    [(120, 136), (120, 31), (2**31 - 1, 2**31 + 15)],
    ids=["beyond", "before", "all"],
)
@pytest.mark.parametrize("codec", ["blosc", "numcodecs.blosc"])
def test_a_blosc_chunk_of_another_size_than_it_states(codec: str, content: int, size: int, tmp_path: Path) -> None:
    """The library reads to where a chunk says that it ends: memory of the process would be given as data."""
    array = stored(tmp_path, compressors=COMPRESSORS[codec])
    replace(tmp_path, struct.pack("<4B3I", 2, 1, 3, 4, content, content, size).ljust(32, b"x"))
    with pytest.raises(CorruptError, match=f"of 32 bytes states {size}"):
        array.read(WHOLE)


def test_other_users_of_zarr_have_its_own_codecs(tmp_path: Path) -> None:
    stored(tmp_path, compressors=codecs.BloscCodec)
    array = zarr.open_array(tmp_path / "a.zarr", path="x", mode="r")
    assert type(array.metadata.codecs[-1]) is codecs.BloscCodec


class TestMostOfZstd:
    @pytest.mark.parametrize("size", [0, 1, 300, 1 << 20])
    def test_what_frames_state(self, size: int) -> None:
        frame = bytes(numcodecs.Zstd(3).encode(bytes(range(256)) * (size // 256) + bytes(size % 256)))
        assert most_of_zstd(frame) == size
        assert most_of_zstd(frame + b"\x50\x2a\x4d\x18\x03\0\0\0abc" + frame) == 2 * size

    def test_what_blocks_hold(self) -> None:
        data = bytes(1000) + b"x" * 500
        assert most_of_zstd(streamed(data, 100)) == 1500
        assert most_of_zstd(streamed(data, 100) * 3) == 4500

    @pytest.mark.parametrize(
        "stream", [b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x00\x58\xff", b"no frame", bytes(99)]
    )
    def test_what_is_none(self, stream: bytes) -> None:
        assert most_of_zstd(stream) == 0
