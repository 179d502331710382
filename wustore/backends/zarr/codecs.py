"""Codec chains of a chunk: array -> bytes -> compressed bytes -> CRC-32C, and back.

A chain is the list ``codecs`` of an array's or shard's metadata. Only chains that end in
``crc32c`` are known here: without it damage would pass as data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wustore.backends.zarr.filters.blocks import Bounds
from wustore.backends.zarr.filters.decode import Bytes, decode_block
from wustore.backends.zarr.filters.encode import SHUFFLES, EncodedBlock, encode_each, pack_all, pcodec_all

__all__ = ["PCODEC_DTYPES", "Chain", "Hints", "finds_structure", "parse_chain"]

PCODEC_DTYPES = frozenset(np.dtype(name) for name in ("u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8"))
"""What pcodec compresses under its Zarr name ``numcodecs.pcodec``."""


Mode = Literal["auto", "classic", "multiples"]


@dataclass(frozen=True)
class Hints:
    """How pcodec should look at a plane: found by looking at the data, never needed to decode.

    Attributes
    ----------
    mode
        ``multiples`` of ``base`` (nearly); ``classic``: no structure in the values; ``auto`` lets pcodec find out.
    base
        For ``multiples``.
    order
        Differences of this order are smaller than the values themselves.
    level
        Instead of the chain's level; pcodec reads any level without being told.
    """

    mode: Mode = "auto"
    base: float = 1.0
    order: int = 0
    level: int | None = None


@dataclass(frozen=True)
class Chain:
    """One chain of codecs for chunks of one dtype.

    Attributes
    ----------
    dtype
        Native dtype of the chunk.
    method
        ``pcodec``, ``zstd``, ``blosc`` or ``raw``.
    settings
        The codec's configuration, as in the metadata.
    """

    dtype: np.dtype[Any]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the chain as the list ``codecs`` of the metadata."""
        chain: list[dict[str, Any]] = []
        if self.method == "pcodec":
            chain.append({"name": "numcodecs.pcodec", "configuration": dict(self.settings)})
        else:
            chain.append(_bytes_codec(self.dtype))
            if self.method != "raw":
                chain.append({"name": self.method, "configuration": dict(self.settings)})
        return [*chain, {"name": "crc32c"}]

    def compressor(self, hints: Hints) -> Callable[[NDArray[Any]], bytes]:
        """Return the function that makes the bytes of a chunk, contiguous and of one axis, without their checksum."""
        if self.method == "pcodec":
            from pcodec.standalone import simple_compress

            return partial(simple_compress, config=_pcodec_config(hints.level or self.settings["level"], hints))
        little, settings = self.dtype.newbyteorder("<"), self.settings
        if self.method == "raw":
            return lambda chunk: chunk.astype(little, copy=False).tobytes()
        if self.method == "zstd":
            from numcodecs import zstd

            # Without the object `Zstd`, whose checks take longer than the coding of a mask.
            encode = partial(zstd.compress, level=settings["level"])
        else:
            from numcodecs import blosc

            blosc.use_threads = False  # as zarr itself does: its threads are not safe next to others
            shuffle = SHUFFLES[settings["shuffle"]]
            encode = blosc.Blosc(settings["cname"], settings["clevel"], shuffle, settings["blocksize"]).encode
        return lambda chunk: bytes(encode(chunk.astype(little, copy=False)))

    def encode_block(self, chunks: NDArray[Any], hints: Hints) -> EncodedBlock:
        """Encode chunks, shape (chunks, values), contiguous: the bytes are those of each by itself."""
        if self.method == "pcodec":
            found = pcodec_all(partial(self._compress, hints), chunks)
        else:
            found = pack_all(self.method, self.settings, chunks.astype(self.dtype.newbyteorder("<"), copy=False))
        return found or encode_each(self.compressor(hints), chunks)

    def _compress(self, hints: Hints, values: NDArray[Any], size: int) -> bytes:
        """Return a file of pcodec with chunks of so many values."""
        from pcodec.standalone import simple_compress

        config = _pcodec_config(hints.level or self.settings["level"], hints, (size,) * (values.size // size))
        made: bytes = simple_compress(values, config)
        return made

    def decode(self, raw: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the values of a chunk from its stored bytes: a new array."""
        out = np.empty(shape, self.dtype)
        self.decode_block(raw, [(0, len(raw))], out.size, out.reshape(-1))
        return out

    def decode_block(self, stored: Bytes, bounds: Bounds, size: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Decode chunks that lie next to each other.

        How reading scales over cores is bounded by the time for which the interpreter lock is held, and by how often
        it is given up and taken again. So the chunks become one stream, if the codec allows it, which is decoded by
        one call. If that does not give exactly the values of its chunks, they are decoded one by one, which names the
        damaged one.

        Parameters
        ----------
        stored, bounds
            Bytes, and where in them the chunks are, without gaps.
        size
            Number of values of a chunk.
        out
            Memory for all of them, by default that of this thread, which the next call uses again.

        Returns
        -------
        ndarray
            Shape (chunks, size). Without ``out`` it may be a view of ``stored``.

        Raises
        ------
        DamagedChunk
            With the place of the chunk among ``bounds``.
        """
        return decode_block(self.method, self.dtype, stored, bounds, size, out)


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


@lru_cache
def _pcodec_config(level: int, hints: Hints, sizes: tuple[int, ...] = ()) -> Any:
    """Return how pcodec encodes, and the sizes of the chunks that it makes if it does not choose them."""
    from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec

    if hints.mode == "multiples":
        mode = ModeSpec.try_float_mult(hints.base)
    else:
        mode = ModeSpec.classic() if hints.mode == "classic" else ModeSpec.auto()
    if hints.order:
        delta = DeltaSpec.try_consecutive(hints.order)
    else:
        delta = getattr(DeltaSpec, "no_op", None) or DeltaSpec.none  # renamed in pcodec 1.0
        delta = delta()
    paging = {"paging_spec": PagingSpec.exact_page_sizes(sizes)} if sizes else {}
    return ChunkConfig(compression_level=level, mode_spec=mode, delta_spec=delta, **paging)


def finds_structure(values: NDArray[Any], order: int) -> bool:
    """Return whether pcodec, asked to look for structure in the values, makes them smaller by more than a hundredth.

    Parameters
    ----------
    values
        A sample: contiguous, one axis.
    """
    from pcodec import standalone

    modes: tuple[Mode, ...] = ("classic", "auto")
    configurations = [_pcodec_config(_SAMPLE_LEVEL, Hints(mode, order=order)) for mode in modes]
    plain, searched = (len(standalone.simple_compress(values, each)) for each in configurations)
    return searched < 0.99 * plain


_SAMPLE_LEVEL = 4


def parse_chain(codecs: object, dtype: np.dtype[Any]) -> Chain | None:
    """Return the chain that metadata names, or None if it is not one that is known here."""
    if not isinstance(codecs, Sequence) or not all(isinstance(codec, Mapping) for codec in codecs):
        return None
    names = [codec.get("name") for codec in codecs]
    if not names or names[-1] != "crc32c":
        return None
    settings: Any = codecs[-2].get("configuration", {}) if len(codecs) > 1 else {}
    if not isinstance(settings, Mapping):
        return None
    if names[:-1] == ["numcodecs.pcodec"]:
        return Chain(dtype, "pcodec", settings) if dtype in PCODEC_DTYPES else None
    if codecs[0] != _bytes_codec(dtype):
        return None
    if names == ["bytes", "crc32c"]:
        return Chain(dtype, "raw")
    if names == ["bytes", "zstd", "crc32c"] and isinstance(settings.get("level"), int):
        return Chain(dtype, "zstd", settings)
    if names == ["bytes", "blosc", "crc32c"] and settings.keys() >= {"cname", "clevel", "shuffle", "blocksize"}:
        return Chain(dtype, "blosc", settings)
    return None
