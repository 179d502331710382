"""Where the HDUs of a FITS file lie, found by adding up sizes: one pass, no pixel touched.

astropy builds an object and parses every card for each extension; that makes opening a file of 1000 images
(4000 HDUs) take longer than reading it. Here a header is cut at its END card, the few cards that give the
size of the data are parsed, and the next header follows. Structure: FITS standard 4.0, sections 3.3, 4.4.1
and 6.1.1 (random groups).
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from typing import Protocol

from wustore.backends.fits.hdu.header import BLOCK, CARD, Header
from wustore.backends.fits.tiles.dtypes import PIXEL_TYPES
from wustore.errors import CorruptError, OtherFormatError
from wustore.storage.buffers import release

__all__ = ["Hdu", "ScannedFile", "Searchable", "Sliceable", "header_end", "is_fits", "scan"]

_MAX_AXES = 999
_SIGNATURE = b"SIMPLE  ="

# The cards that an extension of two dimensions starts with, values in the standard's fixed columns. Behind a value is
# nothing or a comment, as `Header` reads it: what one of the two refuses, the other may not believe.
_REST = r"(?: {50}|(?= {0,49}/).{50})"
_FIXED = rf"= ([ \d-]{{20}}){_REST}"
_USUAL = re.compile(
    rf"XTENSION= .{{70}}BITPIX  {_FIXED}NAXIS   = {' ' * 19}2{_REST}"
    rf"NAXIS1  {_FIXED}NAXIS2  {_FIXED}PCOUNT  {_FIXED}GCOUNT  {_FIXED}",
    re.ASCII,
)

_SCANNED = 1 << 26
"""Bytes of a mapped file scanned until their memory is given back: each header brings 64 KiB with it."""

Buffer = bytes | bytearray | memoryview | mmap.mmap


class Sliceable(Protocol):
    """Bytes of which parts are taken: a `Buffer`, or a file at a URL."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes | bytearray | memoryview: ...


class Searchable(Sliceable, Protocol):
    """Bytes of which parts are taken and found."""

    def find(self, wanted: bytes, start: int, stop: int, /) -> int:
        """Return where ``wanted`` is found first, as `bytes.find`."""


def is_fits(start: bytes) -> bool:
    """Return whether a file that starts with these bytes means to be FITS."""
    return start[: len(_SIGNATURE)] == _SIGNATURE


@dataclass(frozen=True, slots=True, eq=False)
class Hdu:
    """One HDU and where it lies.

    Attributes
    ----------
    index
        Its number in the file, 0 for the primary HDU.
    name
        EXTNAME in capitals (of the first card if there are two), ``PRIMARY`` for a primary HDU without
        one, else empty.
    kind
        ``PRIMARY``, ``IMAGE``, ``BINTABLE``, ``TABLE`` or what XTENSION says.
    header_start, data_start
        Offsets in the file.
    data_length
        Bytes of the data, without the padding.
    end
        Offset behind the padding: where the next HDU starts. The end of the file where the last
        block is not padded.
    """

    index: int
    name: str
    kind: str
    header: Header
    header_start: int
    data_start: int
    data_length: int
    end: int

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"HDU {self.index} ({self.name or 'unnamed'})"


class ScannedFile:
    """The HDUs of one file.

    Attributes
    ----------
    trailing_start
        Offset of the bytes behind the last HDU; equals ``size`` if there are none.
    """

    def __init__(self, path: str, size: int, hdus: list[Hdu]) -> None:
        self.path = path
        self.size = size
        self.hdus = hdus
        self.trailing_start = hdus[-1].end
        self._by_name: dict[str, Hdu] = {}
        for hdu in reversed(hdus):  # of duplicate names the first one counts, as in KBMOD
            self._by_name[hdu.name] = hdu

    def get(self, name: str) -> Hdu | None:
        """Return the first HDU of that name (in capitals), or None."""
        return self._by_name.get(name)

    def names(self) -> list[str]:
        """Return the names of all HDUs in file order."""
        return [hdu.name for hdu in self.hdus]


def header_end(data: Buffer | Searchable, start: int, size: int) -> int:
    """Return the offset of the END card of the header at ``start``, or -1 if there is none before ``size``."""
    at = start
    while True:
        at = data.find(b"END     ", at, size) if not isinstance(data, memoryview) else _find(data, at, size)
        if at < 0 or (at - start) % CARD == 0:
            return at
        at += 1


def _find(data: memoryview, start: int, size: int) -> int:
    at = bytes(data[start:size]).find(b"END     ")
    return at if at < 0 else at + start


def _text(value: object) -> str:
    return value.strip().upper() if isinstance(value, str) else ""


def _plane_length(text: str) -> int | None:
    """Return the data bytes of an extension of two dimensions in the usual form; None for any other header."""
    match = _USUAL.match(text)
    if match is None:
        return None
    try:
        bitpix, width, height, parameters, groups = map(int, match.groups())
    except ValueError:
        return None
    if bitpix not in PIXEL_TYPES or width < 1 or min(height, parameters, groups) < 0:
        return None  # the long way says what is wrong
    return abs(bitpix) // 8 * groups * (parameters + width * height)


def _data_length(header: Header, path: str, where: str) -> int:
    """Return the number of data bytes that a header promises.

    Raises
    ------
    CorruptError
        If a card it rests on is missing, of the wrong type or out of range.
    """
    bitpix = header.integer("BITPIX", allowed=PIXEL_TYPES, path=path, where=where)
    n_axes = header.integer("NAXIS", allowed=range(_MAX_AXES + 1), path=path, where=where)
    if n_axes == 0:
        return 0
    sizes = [header.integer(f"NAXIS{axis}", path=path, where=where) for axis in range(1, n_axes + 1)]
    parameters = header.integer("PCOUNT", 0, path=path, where=where)
    groups = header.integer("GCOUNT", 1, path=path, where=where)
    if min(*sizes, parameters, groups) < 0:
        raise CorruptError(
            "a size is negative", path=path, where=where, expected="0 or more", found=(sizes, parameters, groups)
        )
    if sizes[0] == 0 and n_axes > 1 and header.get("GROUPS") is True:
        sizes = sizes[1:]
    count = 1
    for length in sizes:
        count *= length
    return abs(bitpix) // 8 * groups * (parameters + count)


def scan(data: Buffer | Searchable, path: str) -> ScannedFile:
    """Find the HDUs of a FITS file.

    Parameters
    ----------
    data
        All bytes of the file, the file at a URL, or what an index holds of it.

    Returns
    -------
    ScannedFile
        Bytes behind the last HDU that do not start another one are left to ``trailing_start``.

    Raises
    ------
    OtherFormatError
        If it is not FITS.
    CorruptError
        If a header has no END, promises what cannot be, or the file ends inside an HDU.
    """
    size = len(data)
    if not is_fits(bytes(data[: len(_SIGNATURE)])):
        raise OtherFormatError(
            "not a FITS file", path=path, expected=_SIGNATURE.decode(), found=repr(bytes(data[: len(_SIGNATURE)]))
        )
    hdus: list[Hdu] = []
    start = released = 0
    while start < size:
        if start - released > _SCANNED:
            release(data, released, start)
            released = start
        index = len(hdus)
        if index and bytes(data[start : start + 8]) != b"XTENSION":
            break
        end_card = header_end(data, start, size)
        if end_card < 0:
            raise CorruptError(
                "a header without an END card: the file is truncated or damaged",
                path=path,
                where=f"HDU {index} at byte {start}",
                expected="END",
                found=f"the end of the file at byte {size}",
            )
        text = bytes(data[start:end_card]).decode("latin-1")
        swallowed = next((at for at in range(BLOCK, len(text), BLOCK) if text.startswith("XTENSION", at)), None)
        if swallowed is not None:
            # astropy reads on to the next END, and takes two HDUs and the data between them for one header.
            raise CorruptError(
                "a header without an END card: the file is damaged",
                path=path,
                where=f"HDU {index} at byte {start}",
                expected="END",
                found=f"the next header at byte {start + swallowed}",
                hint="Fetch the file again.",
            )
        header = Header(text)
        name = _text(header.get("EXTNAME"))
        if index == 0:
            kind, name = "PRIMARY", name or "PRIMARY"
        else:
            kind = _text(header.get("XTENSION"))
        where = f"HDU {index} ({name or 'unnamed'})"
        data_start = start + -(-(end_card + CARD - start) // BLOCK) * BLOCK
        usual = _plane_length(header.text) if index else None
        length = _data_length(header, path, where) if usual is None else usual
        if length and data_start + length > size:
            raise CorruptError(
                "the file ends inside an HDU: it is truncated, or its header is damaged",
                path=path,
                where=where,
                expected=f"{data_start + length} bytes at least",
                found=f"{size} bytes",
                hint="Fetch the file again.",
            )
        end = min(data_start + -(-length // BLOCK) * BLOCK, size)
        hdus.append(Hdu(index, name, kind, header, start, min(data_start, size), length, end))
        start = end
    release(data, released)
    return ScannedFile(path, size, hdus)
