"""Whole-file compression around a FITS file: recognised at import, repeated at export.

gzip and bzip2 files are deterministic once the compressor's settings are known. Writers that flush while they write
(astropy does, with Python 3.12 and later after each header and each data part) leave marks in the deflate stream
(RFC 1951, section 3.2.4: an empty stored block), so the places of the flushes are recorded too.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wustore.backends.fits.files import input as source
from wustore.backends.fits.hdu.scan import Buffer
from wustore.backends.fits.tiles.gzip import gzip_header, likely_settings
from wustore.errors import CorruptError

__all__ = ["describe_outer", "repack_outer"]

_LARGEST = 1 << 28
"""Bytes of content up to which settings are looked for: each try compresses the content once."""

_FLUSHED = b"\x00\x00\xff\xff"
_TRAILER = 8


def describe_outer(path: str, name: str, content: Buffer) -> dict[str, Any]:
    """Return how a file is compressed as a whole.

    Parameters
    ----------
    name
        How it is compressed: ``gzip``, ``bzip2`` or ``zip``.
    content
        What is inside.

    Returns
    -------
    dict
        JSON: ``format``, ``size`` and ``sha256`` of the compressed file, ``exact`` (whether `repack_outer` gives the
        identical file) and then the settings.
    """
    with source.open_source(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        outer: dict[str, Any] = {"format": name, "size": file.tell(), "sha256": digest, "exact": False}
        if len(content) > _LARGEST or name == "zip":
            return outer
        file.seek(0)
        raw = file.read()
    inner = memoryview(content)
    if name == "bzip2":
        settings: dict[str, Any] | None = {"level": raw[3] - ord("0")} if raw[3:4] in b"123456789" else None
    else:
        settings = _gzip_settings(raw, inner)
    if settings is not None and hashlib.sha256(repack_outer(outer | settings, inner)).hexdigest() == digest:
        outer |= settings | {"exact": True}
    return outer


def repack_outer(outer: Mapping[str, Any], content: Buffer) -> bytes:
    """Compress a whole file with recognised settings.

    Raises
    ------
    CorruptError
        The settings are damaged.
    """
    try:
        if outer["format"] == "bzip2":
            return bz2.compress(content, int(outer["level"]))
        flushes = np.frombuffer(zlib.decompress(base64.b64decode(outer["flushes"])), "<i8")
        return b"".join(_gzip_parts(outer, memoryview(content), np.cumsum(flushes).tolist()))
    except (KeyError, ValueError, TypeError, zlib.error, OverflowError) as error:
        raise CorruptError("the FITS capsule is damaged", where="outer compression", found=str(error)) from error


def _gzip_parts(outer: Mapping[str, Any], content: memoryview, flushes: list[int]) -> Iterator[bytes]:
    yield bytes.fromhex(outer["header"])
    engine = zlib.compressobj(int(outer["level"]), zlib.DEFLATED, -15, int(outer["memory"]))
    at = 0
    for stop in flushes:
        yield engine.compress(content[at:stop])
        yield engine.flush(zlib.Z_SYNC_FLUSH)
        at = stop
    yield engine.compress(content[at:])
    yield engine.flush()
    yield struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


def _gzip_settings(raw: bytes, content: memoryview) -> dict[str, Any] | None:
    header = gzip_header(raw)
    if header is None:
        return None
    flushes = _flush_points(raw, len(header))
    if flushes is None:
        return None
    packed = base64.b64encode(zlib.compress(np.diff(np.array(flushes, "<i8"), prepend=0).astype("<i8").tobytes(), 9))
    base = {"format": "gzip", "header": header.hex(), "flushes": packed.decode("ascii")}
    for level, memory, _, _ in likely_settings(raw[8]):
        settings = base | {"level": level, "memory": memory}
        if _same(_gzip_parts(settings, content, flushes), raw):
            return {key: value for key, value in settings.items() if key != "format"}
    return None


def _same(parts: Iterator[bytes], raw: bytes) -> bool:
    """Return whether the parts make up ``raw``; stops at the first difference."""
    at = 0
    for part in parts:
        if raw[at : at + len(part)] != part:
            return False
        at += len(part)
    return at == len(raw)


def _flush_points(raw: bytes, start: int) -> list[int] | None:
    """Return the offsets in the content at which the writer flushed; None if the stream is not one whole member.

    An empty stored block ends in four known bytes. The same bytes may stand in a stream by chance; then no
    settings fit, and the file is not recognised.
    """
    engine = zlib.decompressobj(-15)
    points: list[int] = []
    at, done = start, 0
    try:
        while not engine.eof:
            found = raw.find(_FLUSHED, at)
            stop = len(raw) if found < 0 else found + len(_FLUSHED)
            done += len(engine.decompress(raw[at:stop]))
            at = stop
            if found < 0:
                break
            if not engine.eof:
                points.append(done)
    except zlib.error:
        return None
    if not engine.eof or at - len(engine.unused_data) + _TRAILER != len(raw):
        return None
    return points
