"""Codec chains of a chunk: array -> bytes -> compressed bytes -> CRC-32C, and back.

A chain is what stands in ``codecs`` of an array's or shard's metadata. Only chains that end in
``crc32c`` are known here: without it damage would pass as data.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wustore.storage.checksum import crc32c

__all__ = [
    "PCODEC_DTYPES",
    "Chain",
    "DamagedChunk",
    "Hints",
    "check_crc",
    "finds_structure",
    "parse_chain",
    "strip_crc",
    "with_crc",
    "zstd_size",
]

PCODEC_DTYPES = frozenset(np.dtype(name) for name in ("u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8"))
"""What pcodec compresses under its Zarr name ``numcodecs.pcodec``."""


Mode = Literal["auto", "classic", "multiples"]


class DamagedChunk(ValueError):  # noqa: N818 - internal: becomes a CorruptError where the place is known
    """Bytes of a chunk that fail their checksum or do not decode."""


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


def with_crc(body: bytes) -> bytes:
    """Return ``body`` followed by its checksum, as codec ``crc32c`` stores it."""
    return body + crc32c(body).to_bytes(4, "little")


_RESIDUE = 0x48674BC7
"""CRC-32C of any bytes that are followed by their CRC-32C, lowest byte first."""


def check_crc(raw: bytes) -> None:
    """Compare the checksum at the end of ``raw`` with the bytes before, without copying them.

    Raises
    ------
    DamagedChunk
    """
    if len(raw) < 4 or crc32c(raw) != _RESIDUE:
        raise DamagedChunk("the checksum (crc32c) does not match")


def strip_crc(raw: bytes) -> bytes:
    """Return the bytes before the checksum after comparing it.

    Raises
    ------
    DamagedChunk
    """
    check_crc(raw)
    return raw[:-4]


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
        The codec's configuration as it stands in the metadata.
    """

    dtype: np.dtype[Any]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the chain as it stands in ``codecs``."""
        chain: list[dict[str, Any]] = []
        if self.method == "pcodec":
            chain.append({"name": "numcodecs.pcodec", "configuration": dict(self.settings)})
        else:
            chain.append(_bytes_codec(self.dtype))
            if self.method != "raw":
                chain.append({"name": self.method, "configuration": dict(self.settings)})
        return [*chain, {"name": "crc32c"}]

    @cached_property
    def _codec(self) -> Any:
        if self.method == "zstd":
            from numcodecs import Zstd

            return Zstd(self.settings["level"])
        from numcodecs import blosc

        # As zarr itself does: its own threads would only disturb ours, and are not safe beside them.
        blosc.use_threads = False
        shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[self.settings["shuffle"]]
        return blosc.Blosc(self.settings["cname"], self.settings["clevel"], shuffle, self.settings["blocksize"])

    def encode(self, chunk: NDArray[Any], hints: Hints) -> tuple[bytes, bytes]:
        """Return the stored bytes of a C-contiguous chunk, and their checksum as it is stored behind them."""
        body = self._encoded(chunk, hints)
        return body, crc32c(body).to_bytes(4, "little")

    def _encoded(self, chunk: NDArray[Any], hints: Hints) -> bytes:
        if self.method == "pcodec":
            from pcodec import standalone

            config = _pcodec_config(hints.level or self.settings["level"], hints)
            encoded: bytes = standalone.simple_compress(chunk.reshape(-1), config)
            return encoded
        little = chunk.astype(chunk.dtype.newbyteorder("<"), copy=False)
        if self.method == "raw":
            return little.tobytes()
        return bytes(self._codec.encode(little))

    def can_fill(self, out: NDArray[Any]) -> bool:
        """Return whether `decode` takes this array: pcodec writes to contiguous memory only."""
        return self.method != "pcodec" or out.flags.c_contiguous

    def decode(self, raw: bytes, out: NDArray[Any]) -> None:
        """Fill ``out`` (exactly the chunk; see `can_fill`) from stored bytes.

        Raises
        ------
        DamagedChunk
        """
        check_crc(raw)
        try:
            if self.method == "pcodec":
                from pcodec import standalone

                # It ends where its own end mark says, so the checksum behind it does not matter.
                progress = standalone.simple_decompress_into(raw, out.reshape(-1))
                if progress.n_processed != out.size or not progress.finished:
                    raise DamagedChunk("the chunk holds a different number of values")
                return
            body = memoryview(raw)[:-4]
            if self.method != "raw" and _SIZES[self.method](body) != out.nbytes:
                raise DamagedChunk("the chunk says that it holds a different number of bytes")
            plain = body if self.method == "raw" else self._codec.decode(body)
            values: NDArray[Any] = np.frombuffer(plain, dtype=self.dtype.newbyteorder("<"))
            out[...] = _exactly(values, out.size).reshape(out.shape)
        except (RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, DamagedChunk):
                raise
            raise DamagedChunk(f"the chunk does not decode: {error}") from error


def zstd_size(frame: bytes | memoryview) -> int:
    """Return the size of the content that a zstd frame states (RFC 8878, 3.1.1.1), before memory is taken for it.

    Raises
    ------
    DamagedChunk
        If it states none; who compresses a whole chunk at once does.
    """
    head = bytes(frame[:18])
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        raise DamagedChunk("not a zstd frame")
    flags = head[4]
    single = flags >> 5 & 1
    length = (single, 2, 4, 8)[flags >> 6]
    if not length:
        raise DamagedChunk("a zstd frame that does not state its size")
    start = 6 - single + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)


def _blosc_size(buffer: bytes | memoryview) -> int:
    if len(buffer) < 16:
        raise DamagedChunk("not a buffer of Blosc")
    return int.from_bytes(buffer[4:8], "little")


_SIZES = {"zstd": zstd_size, "blosc": _blosc_size}


def _exactly(values: NDArray[Any], size: int) -> NDArray[Any]:
    if values.size != size:
        raise DamagedChunk("the chunk holds a different number of values")
    return values


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _pcodec_config(level: int, hints: Hints) -> Any:
    from pcodec import ChunkConfig, DeltaSpec, ModeSpec

    if hints.mode == "multiples":
        mode = ModeSpec.try_float_mult(hints.base)
    else:
        mode = ModeSpec.classic() if hints.mode == "classic" else ModeSpec.auto()
    if hints.order:
        delta = DeltaSpec.try_consecutive(hints.order)
    else:
        delta = getattr(DeltaSpec, "no_op", None) or DeltaSpec.none  # renamed in pcodec 1.0
        delta = delta()
    return ChunkConfig(compression_level=level, mode_spec=mode, delta_spec=delta)


def finds_structure(values: NDArray[Any], order: int) -> bool:
    """Return whether pcodec, asked to look for structure in the values, makes them smaller by more than a hundredth.

    Parameters
    ----------
    values
        A sample: contiguous, one axis.
    order
        As in `Hints`.
    """
    from pcodec import standalone

    modes: tuple[Mode, ...] = ("classic", "auto")
    configurations = [_pcodec_config(_SAMPLE_LEVEL, Hints(mode, order=order)) for mode in modes]
    plain, searched = (len(standalone.simple_compress(values, each)) for each in configurations)
    return searched < 0.99 * plain


_SAMPLE_LEVEL = 4


def parse_chain(codecs: object, dtype: np.dtype[Any]) -> Chain | None:
    """Return the chain that metadata names, or None where it is not one that is known here."""
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


_SCRATCH = threading.local()


def scratch(dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return this thread's buffer of that dtype and shape: valid until the next call."""
    buffers: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = _SCRATCH.__dict__.setdefault("buffers", {})
    key = (dtype.str, shape)
    buffer = buffers.get(key)
    if buffer is None:
        if len(buffers) >= 8:
            buffers.clear()
        buffer = buffers[key] = np.empty(shape, dtype)
    return buffer
