"""Codecs of zarr-python that compare the sizes which a chunk states with its bytes before they decode it.

numcodecs believes them: Blosc reads beyond the chunk, and memory is taken for as many texts as are stated.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zarr
from zarr import codecs
from zarr.registry import register_codec

from wustore.model.sizes import most_believed

__all__ = ["checked_codecs"]

_BLOSC_HEAD = struct.Struct("<4x3I")
"""Version, flags and item size; bytes of the content, of a block, and of the whole frame."""


class _Blosc:
    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        head = chunk[: _BLOSC_HEAD.size].to_bytes()
        content, _, size = _BLOSC_HEAD.unpack(head)  # a shorter one is a struct.error, which callers expect
        declared = math.prod(spec.shape) * getattr(spec.dtype, "item_size", 1)
        if size != len(chunk) or content > max(declared, most_believed(len(chunk))):
            raise ValueError(f"a Blosc chunk of {len(chunk)} bytes states {size}, with {content} of content")
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


class VLenUTF8Codec(_Texts, codecs.VLenUTF8Codec):
    """Codec ``vlen-utf8``."""


class VLenBytesCodec(_Texts, codecs.VLenBytesCodec):
    """Codec ``vlen-bytes``."""


_CODECS = {
    "blosc": BloscCodec,
    "numcodecs.blosc": Blosc,
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
