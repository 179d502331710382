"""Values to stored chunks, each with its CRC-32C: many chunks by one call of a codec or of a compiled loop.

Each call of a codec gives the interpreter lock up and takes it again, and its result is copied and checked with the
lock held. So several chunks are one call for pcodec, whose result is cut into the chunks, and one call of a compiled
loop for zstd, Blosc and none. The bytes are those that a call for each chunk gives, which is done without the loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import addresses_of
from wustore.backends.zarr.filters import blocks
from wustore.backends.zarr.filters.decode import Bytes, pcodec_header, scratch
from wustore.model.checksum import crc32c

__all__ = ["SHUFFLES", "EncodedBlock", "encode_each", "pack_all", "pcodec_all"]


class EncodedBlock(NamedTuple):
    """Chunks that follow each other, each with its checksum.

    Attributes
    ----------
    pieces
        Their bytes.
    lengths
        Of each chunk with its checksum.
    sums
        The checksums.
    """

    pieces: list[Bytes]
    lengths: NDArray[np.int64]
    sums: NDArray[np.uint32]


def encode_each(compress: Callable[[NDArray[Any]], bytes], chunks: NDArray[Any]) -> EncodedBlock:
    """Encode chunks by a call for each.

    Parameters
    ----------
    chunks
        Shape (chunks, values), contiguous; here and below.
    """
    pieces: list[Bytes] = []
    for chunk in chunks:
        body = compress(chunk)
        pieces += body, crc32c(body).to_bytes(4, "little")
    lengths = np.fromiter(map(len, pieces[::2]), np.int64, len(chunks)) + 4
    return EncodedBlock(pieces, lengths, np.frombuffer(b"".join(pieces[1::2]), "<u4").astype(np.uint32))


# --- pcodec -------------------------------------------------------------------------------------------------
#
# A file of pcodec is a header, its chunks and a zero (see `wustore.backends.zarr.filters.decode`). Asked to make chunks
# of so many values, it makes a file of several chunks of ours. Each begins with its dtype and the number of its values,
# four bytes that are known. If these are found as often as there are chunks, they are found where the chunks begin.

_MOST_VALUES = 1 << 18
"""Of a chunk of pcodec's own: it cuts what has more."""

_LEAST_VALUES = 1 << 8
"""With fewer values the four bytes have two zeros, which are found in other places, too."""


def pcodec_all(compress: Callable[[NDArray[Any], int], bytes], chunks: NDArray[Any]) -> EncodedBlock | None:
    """Encode chunks by one call of pcodec; None to do it otherwise.

    Parameters
    ----------
    compress
        Makes a file of values, with chunks of so many.
    """
    loops = blocks.loops()
    functions = None if loops is None else addresses_of(_CRC)
    n, size = chunks.shape
    if loops is None or functions is None or n < 2 or not _LEAST_VALUES <= size <= _MOST_VALUES:
        return None
    head = _head(chunks.dtype, size)
    if head is None:
        return None
    joined = compress(chunks.reshape(-1), size)
    length = pcodec_header(joined[:_HEAD], size)
    total = len(joined) - length - 1 + n * (head.size + 1)  # its own head has four bytes more, and checksums have four
    if not length or joined[:6] != head[:6].tobytes() or joined[length - 2 : length + 4] != head[-6:].tobytes():
        return None
    out, lengths, sums = np.empty(total, np.uint8), np.empty(n, np.int64), np.empty(n, np.uint32)
    done = loops.split(functions, np.frombuffer(joined, np.uint8), length, head, out, lengths, sums)
    return EncodedBlock([out.data], lengths, sums) if done == total else None


_CRC = ("google_crc32c._crc32c", "crc32c_extend")
_HEAD = 32


@lru_cache
def _head(dtype: np.dtype[Any], size: int) -> NDArray[np.uint8] | None:
    """Return what a file of one chunk begins with: the header, the dtype and the number of values."""
    from pcodec import ChunkConfig
    from pcodec.standalone import simple_compress

    made = simple_compress(np.zeros(size, dtype), ChunkConfig(compression_level=0))
    length = pcodec_header(made[:_HEAD], size)
    return np.frombuffer(made, np.uint8, length + 4).copy() if length else None


# --- zstd, Blosc and none -----------------------------------------------------------------------------------
#
# With the functions of the libraries that numcodecs brings: others of another version give other bytes.

_ZSTD = (
    _CRC,
    ("numcodecs.zstd", "ZSTD_createCCtx"),
    ("numcodecs.zstd", "ZSTD_CCtx_setParameter"),
    ("numcodecs.zstd", "ZSTD_compressBound"),
    ("numcodecs.zstd", "ZSTD_compress2"),
    ("numcodecs.zstd", "ZSTD_freeCCtx"),
)
_BLOSC = _CRC, ("numcodecs.blosc", "blosc_compress_ctx")
SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
"""Blosc's numbers."""


def pack_all(method: str, settings: Mapping[str, Any], chunks: NDArray[Any]) -> EncodedBlock | None:
    """Encode chunks by one call of a compiled loop; None to do it otherwise.

    Parameters
    ----------
    method, settings
        See `wustore.backends.zarr.codecs.Chain`.
    chunks
        Little-endian.
    """
    wanted = {"raw": (_CRC,), "zstd": _ZSTD, "blosc": _BLOSC}[method]
    loops = blocks.loops()
    functions = None if loops is None else addresses_of(*wanted)
    n = len(chunks)
    if loops is None or functions is None or n < 2:
        return None
    data = chunks.view(np.uint8)
    room, lengths, sums = data.shape[1] + 4, np.empty(n, np.int64), np.empty(n, np.uint32)
    if method == "raw":
        out = np.empty(n * room, np.uint8)
        loops.pack_raw(functions, data, out, lengths, sums)
        return EncodedBlock([out.data], lengths, sums)
    out = scratch(np.dtype(np.uint8), n * (room + room // 128 + 512), "encoded")
    if method == "zstd":
        size = loops.pack_zstd(functions, data, settings["level"], out, lengths, sums)
    else:
        name = np.frombuffer(settings["cname"].encode() + b"\0", np.uint8)
        numbers = settings["clevel"], SHUFFLES[settings["shuffle"]], settings["blocksize"], chunks.itemsize
        size = loops.pack_blosc(functions, data, name, np.array(numbers, np.int64), out, lengths, sums)
    return EncodedBlock([out[:size].copy().data], lengths, sums) if size > 0 else None
