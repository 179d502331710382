"""The index of FITS files, ``NAME.wuindex``: what of them is needed to open them, and checksums of all their bytes.

An index says nothing about what the bytes mean: it holds ranges of the files as they are (headers, tables), the tables
of tiles in a packed form, and a CRC-32C of every block of 64 KiB. So a file is read through it as any other FITS file,
and whatever is read besides is compared with a checksum. Layout: docs/spec.md, "Index of FITS files".
"""

from __future__ import annotations

import json
import os
import re
import struct
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore._version import __version__
from wustore.backends.fits.files.packed_table import Pairs, pack_table, unpack_table
from wustore.backends.fits.hdu.scan import Buffer, Hdu, ScannedFile, scan
from wustore.errors import CorruptError, OtherFormatError, StoreReplacedError, VersionError, located
from wustore.format import schema
from wustore.format.tagged_json import parse
from wustore.model.checksum import crc32c
from wustore.model.sizes import most_believed
from wustore.storage.buffers import release
from wustore.storage.files import RemoteFile, open_regular
from wustore.storage.url import errors_of, is_remote, redact, with_options_of
from wustore.storage.url_requests import LARGEST, objects_at

__all__ = [
    "CHECKED",
    "SUFFIX",
    "Index",
    "IndexBuilder",
    "IndexedFile",
    "beside",
    "block_checksums",
    "changed",
    "find",
    "is_index",
]

SUFFIX = ".wuindex"
CHECKED = 1 << 16
"""Bytes of the files that a checksum covers. What is read at a URL is rounded to such blocks, which takes 0.6 ms each
at 100 MB/s; the checksums of a file of 1 GB take 64 KB."""

_MAGIC = b"WUINDEX\n"
_HEAD = struct.Struct("<8sII")
"""Magic, length of the compressed document, CRC-32C of it."""
_VERSION = "1.0"
_COMPRESSED = re.compile(r"\.(gz|bz2|zip)$", re.IGNORECASE)

Range = tuple[int, int]


def is_index(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is an index."""
    return start[: len(_MAGIC)] == _MAGIC


def block_checksums(data: Buffer) -> Iterator[int]:
    """Yield the CRC-32C of each block of bytes; the last one may be shorter."""
    content = np.frombuffer(data, np.uint8)
    for start in range(0, len(content), CHECKED):
        yield crc32c(content[start : start + CHECKED])  # type: ignore[arg-type]
        release(data, start, start + CHECKED)


def changed(path: str, where: str, *, expected: object = None, found: object = None) -> StoreReplacedError:
    """Return the error of a file that is not the one that its index was made of."""
    return StoreReplacedError(
        "the file is not the one that its index was made of",
        path=path,
        where=where,
        hint="Make the index again (wustore index --overwrite), or open the file without it (index=False).",
        expected=expected,
        found=found,
    )


# --- bytes of an index ----------------------------------------------------------------------------------


class _Source:
    """The bytes of an index, local or at a URL: its start is read at once, the rest when it is needed."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.name = redact(address)
        self._rest: RemoteFile | None = None
        self._lock = threading.Lock()
        if is_remote(address):
            objects, path = objects_at(address)
            with errors_of(address):
                _, self.start = objects.start(path, LARGEST)
        else:
            with open_regular(address) as file:
                self.start = file.read(LARGEST)

    def take(self, at: int, length: int) -> bytes:
        """Return ``length`` bytes at ``at``."""
        stop = at + length
        if stop <= len(self.start) or len(self.start) < LARGEST:
            data = self.start[at:stop]
        elif is_remote(self.address):
            with self._lock:
                self._rest = self._rest or RemoteFile(self.address)
            data = self._rest.cached(at, stop)
        else:
            with open_regular(self.address) as file:
                left = os.fstat(file.fileno()).st_size - at
                file.seek(at)
                data = file.read(max(min(length, left), 0))
        if len(data) != length:
            raise CorruptError(
                "the index ends early", path=self.name, expected=f"{length} bytes at {at}", found=f"{len(data)} bytes"
            )
        return data


def _unpacked(data: bytes) -> bytes:
    """Return what a zlib stream holds, of a size that its length justifies."""
    engine = zlib.decompressobj()
    try:
        content = engine.decompress(data, most_believed(len(data)))
    except zlib.error as error:
        raise CorruptError("a part of the index is damaged", found=str(error)) from error
    if not engine.eof or engine.unused_data:
        raise CorruptError("a part of the index is damaged", expected="one zlib stream", found=f"{len(content)} bytes")
    return content


# --- reading --------------------------------------------------------------------------------------------


class _Kept:
    """A file of which some ranges are at hand: what `scan` and the readers of tables look at."""

    def __init__(self, size: int, ranges: Sequence[Range], content: memoryview) -> None:
        self._size = size
        self._ranges = ranges
        self._starts = [start for start, _ in ranges]
        self._content = content
        self._offsets = np.cumsum([0, *(stop - start for start, stop in ranges)]).tolist()

    def __len__(self) -> int:
        return self._size

    def around(self, start: int) -> tuple[int, Range]:
        """Return the range that ``start`` is in, or the one before it, and where its bytes are."""
        k = max(bisect_right(self._starts, start) - 1, 0)
        return self._offsets[k], self._ranges[k]

    def get(self, start: int, stop: int) -> bytes | None:
        """Return bytes of one range, None if they are not at hand."""
        offset, (low, high) = self.around(start)
        if not low <= start <= stop <= high:
            return None
        return bytes(self._content[offset + start - low : offset + stop - low])

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        data = b"" if stop <= start else self.get(start, stop)
        if data is None:
            raise CorruptError("the index lacks bytes that it must hold", where=f"bytes {start} to {stop} of the file")
        return data

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where ``wanted`` is found first in the range that ``start`` is in, as `bytes.find`."""
        _, (low, high) = self.around(start)
        at = self[start : min(stop, high)].find(wanted) if low <= start < high else -1
        return at if at < 0 else at + start


@dataclass(frozen=True)
class _Table:
    range: Range
    section: Mapping[str, int]


class IndexedFile:
    """What an index holds of one file.

    Attributes
    ----------
    name, size, sha256
        Of the file that the index was made of.
    version
        What the server said of its version (ETag), None for a local file.
    parts
        Headers and tables, at their places in the file.
    ranges
        What is known of the file without reading it: (start, stop), in order.
    """

    def __init__(self, index: Index, facts: Mapping[str, Any], content: memoryview) -> None:
        self._index = index
        self._checksums: int = facts["checksums"]
        self.name: str = facts["name"]
        self.size: int = facts["size"]
        self.sha256: str = facts["sha256"]
        self.version: str | None = facts["version"]
        kept = [(start, stop) for start, stop in facts["kept"]]
        self._tables = {table["range"][0]: _Table(tuple(table["range"]), table["section"]) for table in facts["tables"]}
        self.ranges: list[Range] = sorted([*kept, *(table.range for table in self._tables.values())])
        self._check_ranges(kept)
        self.parts = _Kept(self.size, kept, content)

    def _check_ranges(self, kept: Sequence[Range]) -> None:
        ends = [0, *(stop for _, stop in self.ranges)]
        ordered = all(end <= start < stop for end, (start, stop) in zip(ends, self.ranges, strict=False))
        if not ordered or ends[-1] > self.size or list(kept) != sorted(kept):
            raise CorruptError(
                "ranges of a file are out of order, overlap or lie outside it",
                path=self._index.name,
                where=self.name,
                expected=f"ranges within {self.size} bytes",
                found=self.ranges[:4],
            )

    def scan(self, path: str) -> ScannedFile:
        """Return the HDUs of the file.

        Raises
        ------
        CorruptError, OtherFormatError
        """
        with located(path=self._index.name):
            return scan(self.parts, path)

    def known(self, start: int, stop: int) -> bytes | None:
        """Return bytes of the file that need not be read, None if they must be."""
        data = self.parts.get(start, stop)
        table = self._tables.get(start)
        if data is None and table is not None and table.range == (start, stop):
            with located(path=self._index.name, where=f"{self.name}, table of tiles at {start}"):
                data = unpack_table(self._index.section(table.section), stop - start)
        return data

    def needs(self, hdu: Hdu) -> tuple[Range, ...]:
        """Return what the values of an HDU of which the index does not hold all bytes rest on.

        That is the range with its header, and the table of tiles; nothing for an HDU that is held as a whole.
        """
        _, place = self.parts.around(hdu.header_start)
        if hdu.data_start + hdu.data_length <= place[1]:
            return ()
        table = self._tables.get(hdu.data_start)
        return (place,) if table is None else (place, table.range)

    def check(self, start: int, data: Buffer, path: str) -> None:
        """Compare bytes of the file, which begin and end at the bounds of blocks, with the checksums.

        Raises
        ------
        StoreReplacedError
            If they are other ones; `CorruptError` if the index has no checksums of them.
        """
        for place, _ in self.wrong_blocks(start, data):
            raise changed(path, place)

    def check_parts(self, data: Buffer, path: str) -> None:
        """Compare size, headers and tables of a local file with what the index holds of them.

        Raises
        ------
        StoreReplacedError
            If they are other ones.
        """
        if len(data) != self.size:
            raise changed(path, "its size", expected=f"{self.size} bytes", found=f"{len(data)} bytes")
        for start, stop in self.ranges:
            if data[start:stop] != self.known(start, stop):
                raise changed(path, f"bytes {start} to {stop}, a header or a table")

    def wrong_blocks(self, start: int, data: Buffer) -> Iterator[tuple[str, str]]:
        """Yield (place, what is wrong there) of the blocks that have another checksum."""
        first, count = start // CHECKED, -(-len(data) // CHECKED)
        stored = np.frombuffer(self._index.take(self._checksums + 4 * first, 4 * count), "<u4")
        for k, (found, expected) in enumerate(zip(block_checksums(data), stored.tolist(), strict=True)):
            if found != expected:
                low = start + k * CHECKED
                place = f"bytes {low} to {min(low + CHECKED, start + len(data))}"
                yield place, f"expected CRC-32C {expected:#010x} as in the index; found {found:#010x}"


class Index:
    """An index, checked as it is read.

    Parameters
    ----------
    address
        A path or a URL.

    Attributes
    ----------
    address, name
        As given, and for messages.
    kind
        ``fits`` or ``sharded-fits``.
    files
        Of a sharded set the primary one, then the shards in order.

    Raises
    ------
    OtherFormatError
        If it is none.
    VersionError
        If a newer wustore is needed to read it.
    CorruptError
        If it is damaged.
    StoreNotFoundError, OSError
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._source = _Source(address)
        self.name = self._source.name
        if not is_index(self._source.start):
            raise OtherFormatError(
                "not an index of FITS files", path=self.name, expected=_MAGIC, found=repr(self._source.start[:8])
            )
        with located(path=self.name):
            document, self._base = self._document()
            content = memoryview(self.section(document["metadata"]))
            self.kind: str = document["kind"]
            at = 0
            self.files: list[IndexedFile] = []
            for facts in document["files"]:
                length = sum(stop - start for start, stop in facts["kept"])
                self.files.append(IndexedFile(self, facts, content[at : at + max(length, 0)]))
                at += length
            if at != len(content):
                raise CorruptError("the metadata has another length than its ranges", expected=at, found=len(content))

    def _document(self) -> tuple[dict[str, Any], int]:
        _, length, crc = _HEAD.unpack(self._source.take(0, _HEAD.size))
        packed = self._source.take(_HEAD.size, length)
        if crc32c(packed) != crc:
            raise CorruptError("the document of the index is damaged", expected=crc, found=crc32c(packed))
        document = parse(_unpacked(packed), stored=64 * length, what="the document of the index")
        version = document.get("version") if isinstance(document, dict) else None
        if isinstance(version, str) and re.fullmatch(r"\d{1,4}\.\d{1,4}", version) and not version.startswith("1."):
            raise VersionError(
                "an index of another version", expected=_VERSION, found=version, hint="Make the index again."
            )
        schema.check(document, name="index")
        return document, _HEAD.size + length

    def take(self, at: int, length: int) -> bytes:
        """Return bytes behind the document."""
        return self._source.take(self._base + at, length)

    def section(self, facts: Mapping[str, int]) -> bytes:
        """Return what a section holds, its checksum compared."""
        content = _unpacked(self.take(facts["at"], facts["length"]))
        if crc32c(content) != facts["crc32c"]:
            raise CorruptError("a part of the index is damaged", expected=facts["crc32c"], found=crc32c(content))
        return content


def beside(address: str) -> str:
    """Return where the index of a file is looked for."""
    if not is_remote(address):
        return address + SUFFIX
    place, mark, query = address.partition("?")
    return with_options_of(f"{place}{SUFFIX}{mark}{query}", address)


def find(address: str) -> Index | None:
    """Return the index next to a file at a URL, None if there is none."""
    if not is_remote(address) or _COMPRESSED.search(address.partition("?")[0]):
        return None
    try:
        return Index(beside(address))
    except (OtherFormatError, VersionError):
        return None  # some servers give a page for every name
    except OSError:  # of which `StoreNotFoundError` is one; a bucket without listing refuses what is not there
        return None
    except CorruptError as error:
        error.hint = "Make the index again (wustore index --overwrite), or open the file without it (index=False)."
        raise


# --- writing --------------------------------------------------------------------------------------------


class IndexBuilder:
    """What goes into an index, added file by file.

    Parameters
    ----------
    kind
        ``fits`` or ``sharded-fits``.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._files: list[dict[str, Any]] = []
        self._metadata: list[bytes] = []
        self._sections: list[bytes] = []
        self._end = 0

    def _section(self, content: bytes) -> dict[str, int]:
        packed = zlib.compress(content, 9)
        return {"at": self._add(packed), "length": len(packed), "crc32c": crc32c(content)}

    def _add(self, data: bytes) -> int:
        at, self._end = self._end, self._end + len(data)
        self._sections.append(data)
        return at

    def add(
        self,
        facts: Mapping[str, Any],
        kept: Sequence[tuple[Range, bytes]],
        tables: Sequence[tuple[Range, bytes, int, Pairs]],
        checksums: NDArray[np.uint32],
    ) -> None:
        """Add a file.

        Parameters
        ----------
        facts
            Its name, size, sha256 and version.
        kept
            Ranges and their bytes, in order.
        tables
            Ranges of tables of tiles, their bytes, bytes of a row, and descriptors in it.
        checksums
            CRC-32C of its blocks.
        """
        self._metadata += [data for _, data in kept]
        listed = [
            {"range": place, "section": self._section(pack_table(data, row_size, pairs))}
            for place, data, row_size, pairs in tables
        ]
        members = {"kept": [place for place, _ in kept], "tables": listed}
        self._files.append({**facts, **members, "checksums": self._add(checksums.astype("<u4").tobytes())})

    def content(self) -> bytes:
        """Return the bytes of the index."""
        # The metadata comes first, so that it is in what is read at once, however many tables there are.
        metadata = self._section(b"".join(self._metadata))
        packed = self._sections.pop()
        for file in self._files:
            file["checksums"] += len(packed)
            for table in file["tables"]:
                table["section"]["at"] += len(packed)
        document = {
            "format": "wustore-index",
            "version": _VERSION,
            "generator": f"wustore {__version__}",
            "kind": self._kind,
            "block": CHECKED,
            "metadata": {**metadata, "at": 0},
            "files": self._files,
        }
        document = json.loads(json.dumps(document))
        schema.check(document, name="index", written=True)
        head = zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 9)
        return b"".join([_HEAD.pack(_MAGIC, len(head), crc32c(head)), head, packed, *self._sections])
