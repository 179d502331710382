"""Codecs of zarr-python that know how much a chunk holds before they decode it: from what it states, or by counting.

numcodecs believes what is stated: Blosc reads beyond the chunk, memory is taken for as many texts as are stated, and
what unpacks to a thousand or a million times its bytes is unpacked.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from zarr import codecs
from zarr.registry import register_codec

from wustore.backends.zarr.filters.decode import most_of_zstd
from wustore.model.sizes import most_believed

__all__ = ["checked_codecs"]

_BLOSC_HEAD = struct.Struct("<4x3I")
"""Version, flags and item size; bytes of the content, of a block, and of the whole frame."""


_STEP = 1 << 20
"""Bytes that are decoded at a time where they are counted."""

_BELIEVED_OF_LZMA = 1 << 28
"""Memory that a stream of LZMA may ask for; the highest preset of its program takes a quarter of it."""


def _most(chunk: Any, spec: Any) -> int:
    """Return how many bytes a chunk may decode to: what its array declares, or what its bytes justify."""
    declared: int = math.prod(spec.shape) * getattr(spec.dtype, "item_size", 1)
    return max(declared + _STEP, most_believed(len(chunk)))


def _check(chunk: Any, content: int, spec: Any) -> None:
    """Raise ValueError, as decoders do, if a chunk may hold more than it is believed to."""
    most = _most(chunk, spec)
    if content > most:
        raise ValueError(
            f"a chunk of {len(chunk)} bytes holds {content} or more of content, at most {most} are believed"
        )


class _Stated:
    """Codecs whose chunks state how much they hold."""

    def _content(self, chunk: Any) -> int:
        raise NotImplementedError

    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        _check(chunk, self._content(chunk), spec)
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]


class _Blosc(_Stated):
    def _content(self, chunk: Any) -> int:
        head = chunk[: _BLOSC_HEAD.size].to_bytes()
        content, _, size = _BLOSC_HEAD.unpack(head)  # a shorter one is a struct.error, which callers expect
        if size != len(chunk):
            raise ValueError(f"a Blosc chunk of {len(chunk)} bytes states {size}")
        return int(content)


class _Zstd(_Stated):
    def _content(self, chunk: Any) -> int:
        return most_of_zstd(chunk.to_bytes())


class _LZ4(_Stated):
    def _content(self, chunk: Any) -> int:
        (content,) = struct.unpack("<I", chunk[:4].to_bytes())
        return int(content)


class _Counted:
    """Codecs that state no size: the content is decoded a piece at a time, and counted, before all of it is."""

    def _pieces(self, data: bytes) -> Iterator[int]:
        raise NotImplementedError

    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        await asyncio.to_thread(self._count, chunk, spec)
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]

    def _count(self, chunk: Any, spec: Any) -> None:
        content = 0
        for size in self._pieces(chunk.to_bytes()):
            content += size
            _check(chunk, content, spec)


class _Deflate(_Counted):
    bits = zlib.MAX_WBITS
    """As for `zlib.decompressobj`: of zlib; of gzip with 16 more."""

    def _pieces(self, data: bytes) -> Iterator[int]:
        while data:  # a member after the other, as gzip reads them
            engine = zlib.decompressobj(self.bits)
            while data and not engine.eof:
                yield len(engine.decompress(data, _STEP))
                data = engine.unconsumed_tail
            data = engine.unused_data


class _Gzip(_Deflate):
    bits = zlib.MAX_WBITS + 16


def _pieces_of(data: bytes, decompressor: Callable[[], Any]) -> Iterator[int]:
    """Yield the sizes of pieces that a decompressor of `bz2` or `lzma` gives, of one stream after the other."""
    while data:
        engine = decompressor()
        while not engine.eof:
            try:
                piece = engine.decompress(data, _STEP)
            except OSError as error:  # of bz2: nothing is wrong with the file
                raise ValueError(str(error)) from error
            if not piece and engine.needs_input and not data:
                return  # truncated, which decoding says
            data = b""
            yield len(piece)
        data = engine.unused_data


class _Bz2(_Counted):
    def _pieces(self, data: bytes) -> Iterator[int]:
        return _pieces_of(data, bz2.BZ2Decompressor)


class _Lzma(_Counted):
    def _pieces(self, data: bytes) -> Iterator[int]:
        codec: Any = self
        form, filters = codec._codec.format, codec._codec.filters
        room = None if form == lzma.FORMAT_RAW else _BELIEVED_OF_LZMA
        return _pieces_of(data, lambda: lzma.LZMADecompressor(format=form, memlimit=room, filters=filters))


class _PCodec:
    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        from pcodec.standalone import simple_decompress_into

        values = np.empty(math.prod(spec.shape), spec.dtype.to_native_dtype().newbyteorder("="))
        done = await asyncio.to_thread(simple_decompress_into, chunk.to_bytes(), values)
        if not done.finished or done.n_processed != values.size:
            raise ValueError(f"a pcodec chunk holds another number of values than {values.size}")
        return spec.prototype.nd_buffer.from_ndarray_like(values.reshape(spec.shape))


class _Texts:
    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        (count,) = struct.unpack("<I", chunk[:4].to_bytes())
        if 4 + 4 * count > len(chunk):
            raise ValueError(f"a chunk of {len(chunk)} bytes states {count} texts")
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]


# zarr compares the names of these classes.


class BloscCodec(_Blosc, codecs.BloscCodec):
    """Codec ``blosc``."""


class Blosc(_Blosc, codecs.numcodecs.Blosc, codec_name="blosc"):
    """Codec ``numcodecs.blosc``."""


class ZstdCodec(_Zstd, codecs.ZstdCodec):
    """Codec ``zstd``."""


class Zstd(_Zstd, codecs.numcodecs.Zstd, codec_name="zstd"):
    """Codec ``numcodecs.zstd``."""


class LZ4(_LZ4, codecs.numcodecs.LZ4, codec_name="lz4"):
    """Codec ``numcodecs.lz4``."""


class GzipCodec(_Gzip, codecs.GzipCodec):
    """Codec ``gzip``."""


class GZip(_Gzip, codecs.numcodecs.GZip, codec_name="gzip"):
    """Codec ``numcodecs.gzip``."""


class Zlib(_Deflate, codecs.numcodecs.Zlib, codec_name="zlib"):
    """Codec ``numcodecs.zlib``."""


class BZ2(_Bz2, codecs.numcodecs.BZ2, codec_name="bz2"):
    """Codec ``numcodecs.bz2``."""


class LZMA(_Lzma, codecs.numcodecs.LZMA, codec_name="lzma"):
    """Codec ``numcodecs.lzma``."""


class PCodec(_PCodec, codecs.numcodecs.PCodec, codec_name="pcodec"):
    """Codec ``numcodecs.pcodec``."""


class VLenUTF8Codec(_Texts, codecs.VLenUTF8Codec):
    """Codec ``vlen-utf8``."""


class VLenBytesCodec(_Texts, codecs.VLenBytesCodec):
    """Codec ``vlen-bytes``."""


_CODECS = {
    "blosc": BloscCodec,
    "numcodecs.blosc": Blosc,
    "numcodecs.bz2": BZ2,
    "numcodecs.gzip": GZip,
    "numcodecs.lz4": LZ4,
    "numcodecs.lzma": LZMA,
    "numcodecs.pcodec": PCodec,
    "numcodecs.zlib": Zlib,
    "numcodecs.zstd": Zstd,
    "zstd": ZstdCodec,
    "gzip": GzipCodec,
    "vlen-utf8": VLenUTF8Codec,
    "vlen-bytes": VLenBytesCodec,
}
for _name, _codec in _CODECS.items():
    register_codec(_name, _codec)


@contextmanager
def checked_codecs() -> Iterator[None]:
    """Let arrays that are opened meanwhile have these codecs."""
    chosen = {name: f"{codec.__module__}.{codec.__qualname__}" for name, codec in _CODECS.items()}
    with zarr.config.set({"codecs": zarr.config.get("codecs") | chosen}):
        yield
