"""Codecs of zarr-python that compare the sizes which a chunk states with its bytes before they decode it.

numcodecs believes them: Blosc reads beyond the chunk, memory is taken for as many texts as are stated, and what unpacks
to a thousand times its bytes is unpacked.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zarr
from zarr import codecs
from zarr.registry import register_codec

from wustore.backends.zarr.filters.decode import DamagedChunk, zstd_size
from wustore.model.sizes import most_believed

__all__ = ["checked_codecs"]

_BLOSC_HEAD = struct.Struct("<4x3I")
"""Version, flags and item size; bytes of the content, of a block, and of the whole frame."""


_STEP = 1 << 20


def _most(chunk: Any, spec: Any) -> int:
    """Return how many bytes a chunk may decode to: what its array declares, or what its bytes justify."""
    declared: int = math.prod(spec.shape) * getattr(spec.dtype, "item_size", 1)
    return max(declared + _STEP, most_believed(len(chunk)))


class _Blosc:
    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        head = chunk[: _BLOSC_HEAD.size].to_bytes()
        content, _, size = _BLOSC_HEAD.unpack(head)  # a shorter one is a struct.error, which callers expect
        if size != len(chunk) or content > _most(chunk, spec):
            raise ValueError(f"a Blosc chunk of {len(chunk)} bytes states {size}, with {content} of content")
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]


class _Zstd:
    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        try:
            content = zstd_size(chunk.to_bytes())
        except DamagedChunk:  # it states none, as streams of other programs do, or is no frame, which its decoder says
            content = 0
        if content > _most(chunk, spec):
            raise ValueError(f"a zstd chunk of {len(chunk)} bytes states {content} of content")
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]


class _Gzip:
    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        most = _most(chunk, spec)
        data, size = chunk.to_bytes(), 0
        while data:  # a member after the other, as gzip reads them
            engine = zlib.decompressobj(31)
            while data and not engine.eof:
                size += len(engine.decompress(data, _STEP))
                data = engine.unconsumed_tail
                if size > most:
                    raise ValueError(f"a gzip chunk of {len(chunk)} bytes holds more than {most} of content")
            data = engine.unused_data
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]


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


class GzipCodec(_Gzip, codecs.GzipCodec):
    """Codec ``gzip``."""


class VLenUTF8Codec(_Texts, codecs.VLenUTF8Codec):
    """Codec ``vlen-utf8``."""


class VLenBytesCodec(_Texts, codecs.VLenBytesCodec):
    """Codec ``vlen-bytes``."""


_CODECS = {
    "blosc": BloscCodec,
    "numcodecs.blosc": Blosc,
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
