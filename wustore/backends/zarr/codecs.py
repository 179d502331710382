"""Codec chains of a chunk: array -> bytes -> compressed bytes -> CRC-32C, and back.

A chain is the list ``codecs`` of an array's or shard's metadata. Only chains that end in
``crc32c`` are known here: without it damage would pass as data.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wustore.errors import MissingDependencyError
from wustore.model.checksum import crc32c

__all__ = [
    "PCODEC_DTYPES",
    "RESIDUE",
    "Chain",
    "DamagedChunk",
    "Hints",
    "Part",
    "check_crc",
    "finds_structure",
    "parse_chain",
    "scratch",
    "strip_crc",
    "with_crc",
    "zstd_size",
]

PCODEC_DTYPES = frozenset(np.dtype(name) for name in ("u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8"))
"""What pcodec compresses under its Zarr name ``numcodecs.pcodec``."""


Part = tuple[NDArray[Any], Any, Any]
"""What is wanted of a chunk: an array, where in it, and which part of the chunk."""

Mode = Literal["auto", "classic", "multiples"]


class DamagedChunk(ValueError):  # noqa: N818 - internal: becomes a CorruptError once the place is known
    """Bytes of a chunk that fail their checksum or do not decode.

    Parameters
    ----------
    text
        What is wrong.
    number
        Which of several chunks it is.
    """

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


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


RESIDUE = 0x48674BC7
"""CRC-32C of any bytes that are followed by their CRC-32C, lowest byte first."""


def check_crc(raw: bytes) -> None:
    """Compare the checksum at the end of ``raw`` with the bytes before, without copying them."""
    if len(raw) < 4 or crc32c(raw) != RESIDUE:
        raise DamagedChunk("the checksum (crc32c) does not match")


def strip_crc(raw: bytes) -> bytes:
    """Return the bytes before the checksum after comparing it."""
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
        """Return the function that makes the bytes of a chunk, contiguous and of one axis, without their checksum.

        It releases the interpreter lock but for the copy of the result.
        """
        if self.method == "pcodec":
            from pcodec.standalone import simple_compress

            config = _pcodec_config(hints.level or self.settings["level"], hints)
            return partial(simple_compress, config=config)
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
            shuffle = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}[settings["shuffle"]]
            encode = blosc.Blosc(settings["cname"], settings["clevel"], shuffle, settings["blocksize"]).encode
        return lambda chunk: bytes(encode(chunk.astype(little, copy=False)))

    def decode(self, raw: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the values of a chunk from its stored bytes: a new array."""
        out = np.empty(shape, self.dtype)
        self.decode_into([raw], shape, [[(out, ..., ...)]])
        return out

    def decode_into(self, stored: Iterable[bytes], shape: tuple[int, ...], wanted: Sequence[Sequence[Part]]) -> None:
        """Decode several chunks: two or three calls for each, which release the interpreter lock.

        Parameters
        ----------
        stored
            Their bytes, each with its checksum; taken one at a time.
        shape
            Of a chunk.
        wanted
            For each chunk which parts of it go where.

        Raises
        ------
        DamagedChunk
            With the number of the chunk.
        """
        if self.method == "pcodec":
            _decode_pcodec(stored, shape, self.dtype, wanted)
        elif self.method == "raw":
            _decode_raw(stored, shape, self.dtype.newbyteorder("<"), wanted)
        else:
            unpack = _zstd() if self.method == "zstd" else _blosc()
            _decode_packed(unpack, stored, shape, self.dtype.newbyteorder("<"), wanted)


_ERRORS = (RuntimeError, ValueError, TypeError)
"""What codecs raise for bytes that are not theirs."""


def _wrong_checksum(number: int) -> DamagedChunk:
    return DamagedChunk("the checksum (crc32c) does not match", number)


def _undecodable(number: int, error: Exception) -> DamagedChunk:
    return DamagedChunk(f"the chunk does not decode: {error}", number)


def _wrong_size(number: int) -> DamagedChunk:
    return DamagedChunk("the chunk holds a different number of values", number)


# These three have the same frame, written out: a function for it would be called for every chunk.


def _decode_raw(
    stored: Iterable[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], wanted: Sequence[Sequence[Part]]
) -> None:
    end = math.prod(shape) * dtype.itemsize + 4
    for number, raw in enumerate(stored):
        if crc32c(raw) != RESIDUE:
            raise _wrong_checksum(number)
        if raw[end:] or not raw[end - 1 :]:
            raise _wrong_size(number)
        chunk: NDArray[Any] = np.ndarray(shape, dtype, raw)
        for out, place, part in wanted[number]:
            out[place] = chunk[part]


def _decode_pcodec(
    stored: Iterable[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], wanted: Sequence[Sequence[Part]]
) -> None:
    from pcodec.standalone import simple_decompress_into as decompress

    memory = scratch(dtype, shape)  # stays in the cache of the core
    flat_memory = memory.reshape(-1)
    for number, raw in enumerate(stored):
        if crc32c(raw) != RESIDUE:
            raise _wrong_checksum(number)
        parts, flat = wanted[number], flat_memory
        if parts and not parts[1:]:
            # pcodec writes to contiguous memory only: at once into place if that is.
            ((out, place, _),) = parts
            whole = out[place]
            if whole.shape == shape and whole.flags.c_contiguous:
                parts, flat = (), whole.reshape(-1)
        try:
            # It ends where its own end mark says, so the checksum after it does not matter.
            progress = decompress(raw, flat)
        except _ERRORS as error:
            if "Compatibility error" in str(error):  # its checksum is right: nothing is damaged
                raise MissingDependencyError(
                    "the store was written with a newer pcodec than the one that is installed",
                    found=error,
                    hint="pip install --upgrade pcodec",
                ) from error
            raise _undecodable(number, error) from error
        if progress.n_processed != flat.size or not progress.finished:
            raise _wrong_size(number)
        for out, place, part in parts:
            out[place] = memory[part]


def _decode_packed(
    unpack: _Unpack,
    stored: Iterable[bytes],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    wanted: Sequence[Sequence[Part]],
) -> None:
    size = math.prod(shape) * dtype.itemsize
    fields, decompress = unpack
    # What a chunk must say of its content, by the length of that field: memory is taken by it.
    stated = {
        length: (size - bias).to_bytes(length, "little")
        for length, bias in _FIELDS.items()
        if 0 <= size - bias < 256**length
    }
    for number, raw in enumerate(stored):
        if crc32c(raw) != RESIDUE:
            raise _wrong_checksum(number)
        start, length = fields[raw[4] if raw[5:] else 0]
        if length not in stated or raw[start : start + length] != stated[length]:
            raise _wrong_size(number)
        try:
            chunk: NDArray[Any] = np.ndarray(shape, dtype, decompress(raw[:-4]))
        except _ERRORS as error:
            raise _undecodable(number, error) from error
        for out, place, part in wanted[number]:
            out[place] = chunk[part]


_Unpack = tuple[Sequence[tuple[int, int]], Callable[..., Any]]
"""Start and length of the field with the length of the content, by the fifth byte of a chunk; what unpacks it."""


# The functions of imagecodecs: those of numcodecs make five to fifteen Python-level calls more for each chunk.


def _zstd() -> _Unpack:
    import imagecodecs

    return _ZSTD_FIELDS, imagecodecs.zstd_decode


def _blosc() -> _Unpack:
    import imagecodecs

    return ((4, 4),) * 256, partial(imagecodecs.blosc_decode, numthreads=1)


_FIELDS = {1: 0, 2: 256, 4: 0, 8: 0}
"""Length of the field in which a chunk says how long its content is, and what zstd adds to its value."""


def zstd_size(frame: bytes | memoryview) -> int:
    """Return the size of the content that a zstd frame states, before memory is taken for it.

    Raises
    ------
    DamagedChunk
        If it states none.
    """
    head = bytes(frame[:18])
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        raise DamagedChunk("not a zstd frame")
    start, length = _zstd_field(head[4])
    if not length:
        raise DamagedChunk("a zstd frame that does not state its size")
    return int.from_bytes(head[start : start + length], "little") + _FIELDS[length]


def _zstd_field(flags: int) -> tuple[int, int]:
    """Return start and length of the field in which a frame with these flags states its size (RFC 8878, 3.1.1.1)."""
    single = flags >> 5 & 1
    return 6 - single + (0, 1, 2, 4)[flags & 3], (single, 2, 4, 8)[flags >> 6]


_ZSTD_FIELDS = [_zstd_field(flags) for flags in range(256)]


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


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[tuple[np.dtype[Any], tuple[int, ...]], NDArray[Any]] = {}


_SCRATCH = _Scratch()


def scratch(dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return this thread's buffer of that dtype and shape: valid until the next call."""
    arrays, key = _SCRATCH.arrays, (dtype, shape)
    if key not in arrays:
        if len(arrays) >= 8:
            arrays.clear()
        arrays[key] = np.empty(shape, dtype)
    return arrays[key]
