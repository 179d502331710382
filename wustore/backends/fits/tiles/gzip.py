"""Gzip-compressed tiles: bounded decompression, and streams rebuilt from a few parameters.

A gzip stream depends on the writer's clock, on the zlib that wrote it and on its settings. `recognise_gzip` finds
settings with which the zlib at hand writes the same bytes, so that an archive can keep ten-odd bytes per tile
instead of the tile. The wrapper is that of RFC 1952, the stream that of RFC 1951.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import imagecodecs

from wustore.errors import CorruptError

__all__ = [
    "ASTROPY_HEADER",
    "ASTROPY_LIKELY",
    "GzipParameters",
    "gunzip",
    "gzip_header",
    "gzip_like_astropy",
    "gzip_with",
    "likely_settings",
    "recognise_gzip",
]

_HEADER_SIZE = 10
_TRAILER_SIZE = 8
#: No deflate stream expands to more than this many times its size (a match of 258 bytes takes 2 bits).
MAXIMUM_RATIO = 1032


@dataclass(frozen=True)
class GzipParameters:
    """What it takes, besides the data, to write a gzip stream again.

    Attributes
    ----------
    header
        The wrapper's header, verbatim: flags, clock, extra flags, operating system, and a name or comment.
    level, memory_level, strategy, window_bits
        Settings of zlib's deflate.
    """

    header: bytes
    level: int = 9
    memory_level: int = 8
    strategy: int = 0
    window_bits: int = 15

    @property
    def clock(self) -> int:
        """Seconds since 1970 that the writer noted."""
        return int.from_bytes(self.header[4:8], "little")


#: What Python's gzip module writes before a stream, with a clock of 0.
ASTROPY_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"

#: The settings tried first: those of Python's gzip module (astropy) and of cfitsio (level 1, memory level 8).
ASTROPY_LIKELY: tuple[tuple[int, int, int, int], ...] = ((9, 8, 0, 15), (1, 8, 0, 15), (6, 8, 0, 15))


def gunzip(data: bytes, sizes: Iterable[int], name: int) -> bytes:
    """Decompress a tile whose size must be one of a few.

    Parameters
    ----------
    data
        One gzip stream, or several members that follow one another.
    sizes
        The sizes that the content may have, in bytes.

    Raises
    ------
    CorruptError
        The stream is damaged (its check sum is verified) or its content has another size.
    """
    allowed = sorted(set(sizes))
    if len(data) < _HEADER_SIZE + _TRAILER_SIZE:
        raise _damaged(name, allowed, f"{len(data)} bytes")
    # The trailer says how long the content is: only the smallest fitting buffer is ever allocated.
    declared = int.from_bytes(data[-4:], "little")
    if declared in allowed and declared <= MAXIMUM_RATIO * len(data):
        try:
            content = bytes(imagecodecs.gzip_decode(data, out=declared))
        except Exception:  # libdeflate takes single members only; zlib has the last word
            content = b""
        if len(content) == declared:
            return content
    limit = allowed[-1]
    pieces: list[bytes] = []
    size = 0
    rest = data
    try:
        while rest.strip(b"\0"):
            member = zlib.decompressobj(31)
            piece = member.decompress(rest, limit - size + 1)
            size += len(piece)
            pieces.append(piece)
            if size > limit:
                raise _damaged(name, allowed, f"more than {limit} bytes")
            if not member.eof:
                raise _damaged(name, allowed, "a truncated stream")
            rest = member.unused_data
    except zlib.error as error:
        raise _damaged(name, allowed, str(error)) from error
    content = b"".join(pieces)
    if len(content) not in allowed:
        raise _damaged(name, allowed, f"{len(content)} bytes")
    return content


def _damaged(name: int, allowed: list[int], found: str) -> CorruptError:
    return CorruptError(
        "the gzip-compressed tile does not decompress",
        where=f"tile {name}",
        expected="a content of " + " or ".join(map(str, allowed)) + " bytes",
        found=found,
    )


def gzip_like_astropy(data: bytes, clock: int | None = None) -> bytes:
    """Compress as astropy does, which uses Python's gzip module with its defaults.

    Parameters
    ----------
    clock
        Seconds since 1970 to put in place of the present time.
    """
    seconds = int(time.time()) if clock is None else clock
    header = ASTROPY_HEADER[:4] + seconds.to_bytes(4, "little") + ASTROPY_HEADER[8:]
    return gzip_with(GzipParameters(header), data)


def gzip_with(parameters: GzipParameters, data: bytes) -> bytes:
    """Compress with recognised parameters."""
    body = _deflate(parameters, data)
    return b"".join((parameters.header, body, struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)))


_IS_CLASSIC = "ng" not in zlib.ZLIB_RUNTIME_VERSION
"""Whether Python's zlib is the classic one. zlib-ng, which some systems put in its place, writes other bytes."""


def _deflate(parameters: GzipParameters, data: bytes) -> bytes:
    """Return the raw stream that classic zlib writes, wherever there is one that can."""
    settings = parameters.memory_level, parameters.strategy, parameters.window_bits
    if not _IS_CLASSIC and settings == (8, 0, 15):
        # imagecodecs brings a classic zlib of its own; around the stream are 2 bytes of header and 4 of a checksum.
        return bytes(imagecodecs.zlib_encode(data, level=parameters.level))[2:-4]
    deflate = zlib.compressobj(
        parameters.level, zlib.DEFLATED, -parameters.window_bits, parameters.memory_level, parameters.strategy
    )
    return deflate.compress(data) + deflate.flush()


def recognise_gzip(stream: bytes, data: bytes | None = None, *, thorough: bool = False) -> GzipParameters | None:
    """Find parameters with which `gzip_with` writes exactly this stream.

    Parameters
    ----------
    stream
        A gzip stream of one member.
    data
        Its content, if known already.
    thorough
        Try every level, memory level and strategy (some 200 compressions) instead of the likely settings and
        the ten levels.

    Returns
    -------
    GzipParameters or None
        None if there are none: another library wrote it, or another version of zlib.
    """
    header = gzip_header(stream)
    if header is None:
        return None
    if data is None:
        member = zlib.decompressobj(31)
        try:
            data = member.decompress(stream)
        except zlib.error:
            return None
        if not member.eof or member.unused_data:
            return None
    for level, memory_level, strategy, window_bits in likely_settings(stream[8], thorough=thorough):
        parameters = GzipParameters(header, level, memory_level, strategy, window_bits)
        if gzip_with(parameters, data) == stream:
            return parameters
    return None


def gzip_header(raw: bytes) -> bytes | None:
    """Return the header of a gzip stream (RFC 1952, section 2.3), None if it is none."""
    if len(raw) < _HEADER_SIZE + _TRAILER_SIZE or raw[:3] != b"\x1f\x8b\x08" or raw[3] & 0xE0:
        return None
    flags = raw[3]
    end = _HEADER_SIZE
    if flags & 4:
        end += 2 + int.from_bytes(raw[end : end + 2], "little")
    for bit in (8, 16):
        if flags & bit:
            stop = raw.find(b"\0", end)
            if stop < 0:
                return None
            end = stop + 1
    if flags & 2:
        end += 2
    return raw[:end] if end + _TRAILER_SIZE <= len(raw) else None


def likely_settings(extra_flags: int, *, thorough: bool = False) -> Iterable[tuple[int, int, int, int]]:
    """Yield settings of deflate (level, memory level, strategy, window bits), the likeliest first.

    Parameters
    ----------
    extra_flags
        Of the header: they tell the best and the fastest level.
    """
    tried = set()
    likely = sorted(ASTROPY_LIKELY, key=lambda item: {2: item[0] != 9, 4: item[0] != 1}.get(extra_flags, 0))
    plain = [(level, memory, 0, 15) for memory in (8, 9) for level in (9, 1, 6, 5, 4, 3, 2, 7, 8, 0)]
    every = [
        (level, memory, strategy, window)
        for window in (15, 14, 13)
        for memory in (8, 9, 7)
        for strategy in (0, 1, 2, 3)
        for level in range(10)
    ]
    for candidate in (*likely, *plain, *(every if thorough else ())):
        if candidate not in tried:
            tried.add(candidate)
            yield candidate
