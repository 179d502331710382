"""Making the index of a FITS file or of a sharded set; see `wustore.backends.fits.files.index`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Progress
from wustore.backends.fits.capsule import meta_digest
from wustore.backends.fits.files.index import Index, IndexBuilder, Range, beside, block_checksums
from wustore.backends.fits.files.open_files import FitsFile
from wustore.backends.fits.files.packed_table import Pairs
from wustore.backends.fits.hdu import wustore_hdu
from wustore.backends.fits.hdu.scan import Hdu
from wustore.backends.fits.interpret import interpret
from wustore.backends.fits.reader import FitsReader
from wustore.backends.fits.tiles import TileLayout
from wustore.errors import CorruptError, UsageError
from wustore.storage.staging import Staging
from wustore.storage.threads import read_ahead
from wustore.storage.url import is_remote, redact, refuse_writing

__all__ = ["IndexSize", "make_index", "write_index"]

_HELD = frozenset({"primary", "configuration", "constituents", "constituent"})
"""Roles of HDUs of which the data are held as well: small tables."""
_MOST_TRAILING = 1 << 24
"""Bytes behind the last HDU that an index holds; nothing but padding is usual."""


class IndexSize(NamedTuple):
    """An index, and what it is of.

    Attributes
    ----------
    path
        Of the index.
    size
        Of the index [byte].
    n_images, n_files
        Images and files that it is of.
    source_size
        Bytes of these files.
    """

    path: str
    size: int
    n_images: int
    n_files: int
    source_size: int


def make_index(
    source: str, target: str | None = None, *, overwrite: bool = False, progress: Progress | None = None
) -> IndexSize:
    """Write the index of the FITS file or set at an address; see `wustore.index`."""
    with FitsReader(source, None, False) as reader:
        path = write_index(reader, target, overwrite=overwrite, progress=progress)
        total = sum(file.scan.size for file in reader.files)
        return IndexSize(path, Path(path).stat().st_size, reader.meta.n_images, len(reader.files), total)


def write_index(
    reader: FitsReader, target: str | None = None, *, overwrite: bool = False, progress: Progress | None = None
) -> str:
    """Write the index of an open file or set, and return where.

    Every byte of the files is read once. What is written is read back, and must give the same metadata.

    Parameters
    ----------
    reader
        Opened without an index.
    target
        Where to write; next to a local file, with its name and ``.wuindex``, by default.
    overwrite
        Whether an existing index may be replaced.
    progress
        Called with (images done, images in all).

    Raises
    ------
    UsageError
        If the file is compressed as a whole, or the target cannot be written.
    StoreExistsError, StoreReplacedError, OSError
    """
    first = reader.files[0]
    compressed = next((file for file in reader.files if file.compression is not None), None)
    if compressed is not None:
        raise UsageError(
            "a file that is compressed as a whole cannot be read by ranges",
            path=redact(compressed.path),
            found=compressed.compression,
            hint="Unpack it, or convert it to Zarr or HDF5.",
        )
    if target is None:
        if is_remote(first.path):
            raise UsageError("no place to write the index to", path=reader.path, hint="Give a local path (-o).")
        target = beside(first.path)
    if is_remote(target):
        refuse_writing(target, "An index")
    staging = Staging(target, overwrite=overwrite)
    try:
        staging.path.write_bytes(_made(reader, progress))
        _prove(reader, str(staging.path))
        reader.check_state()
        staging.commit()
    except BaseException:
        staging.abort()
        raise
    return target


def _made(reader: FitsReader, progress: Progress | None) -> bytes:
    builder = IndexBuilder(reader.format)
    total, n_images = sum(file.scan.size for file in reader.files), reader.meta.n_images
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(n_images * done // max(total, 1), n_images)

    def add(number: int, sums: tuple[str, NDArray[np.uint32]]) -> None:
        file = reader.files[number]
        facts = {
            "name": Path(redact(file.path)).name,
            "size": file.scan.size,
            "sha256": sums[0],
            "version": file.state[1] if file.is_remote and file.state[1].startswith('"') else None,  # a strong ETag
        }
        builder.add(facts, list(_kept(reader, number)), list(_tables(reader, number)), sums[1])

    if len(reader.files) == 1:
        add(0, _sums(reader.files[0], advance))
    else:
        for number, sums in read_ahead(lambda k: _sums(reader.files[k]), range(len(reader.files))):
            add(number, sums)
            advance(reader.files[number].scan.size)
    return builder.content()


def _sums(file: FitsFile, advance: Callable[[int], None] | None = None) -> tuple[str, NDArray[np.uint32]]:
    """Return the sha256 of a file, and the CRC-32C of its blocks."""
    digest = hashlib.sha256()
    checksums: list[int] = []
    for piece in file.pieces():
        digest.update(piece)
        checksums += block_checksums(piece)
        if advance is not None:
            advance(len(piece))
    return digest.hexdigest(), np.array(checksums, np.uint32)


def _kept(reader: FitsReader, number: int) -> Iterator[tuple[Range, bytes]]:
    """Yield the ranges of a file that opening it needs, adjacent ones joined, and their bytes."""
    file = reader.files[number]
    ranges: list[Range] = []
    for hdu in file.scan.hdus:
        is_held = reader.role_of(number, hdu.index) in _HELD or hdu.name == wustore_hdu.NAME
        start, stop = hdu.header_start, hdu.end if is_held else hdu.data_start
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, stop))
    scanned = file.scan
    if scanned.size - scanned.trailing_start > _MOST_TRAILING:
        raise CorruptError(
            "the file holds bytes behind its last HDU that are none",
            path=redact(file.path),
            where=f"byte {scanned.trailing_start}",
            found=f"{scanned.size - scanned.trailing_start} bytes",
            hint="Fetch the file again, or convert it.",
        )
    if scanned.size > scanned.trailing_start:
        start = ranges.pop()[0] if ranges[-1][1] == scanned.trailing_start else scanned.trailing_start
        ranges.append((start, scanned.size))
    for start, stop in ranges:
        yield (start, stop), bytes(file.parts[start:stop])


def _tables(reader: FitsReader, number: int) -> Iterator[tuple[Range, bytes, int, Pairs]]:
    """Yield the tables of tiles of a file: range, bytes, bytes of a row, descriptors."""
    file = reader.files[number]
    planes = [plane for image in reader.layout.images if image.file == number for plane in image.planes.values()]
    for plane in sorted(planes, key=lambda plane: plane.hdu.data_start):
        if plane.compression == "none":
            continue
        layout = plane.layout()
        start, stop = _table_range(plane.hdu, layout)
        if stop > start:
            yield (start, stop), bytes(file.parts[start:stop]), layout.row_size, _pairs(layout)


def _table_range(hdu: Hdu, layout: TileLayout) -> Range:
    return hdu.data_start, hdu.data_start + layout.row_size * layout.n_rows


def _pairs(layout: TileLayout) -> Pairs:
    return [
        (column.offset, 8 if column.form == "Q" else 4, column.item_size)
        for column in layout.columns
        if column.form in "PQ" and column.repeat == 1 and column.item_size
    ]


def _prove(reader: FitsReader, path: str) -> None:
    """Check that what was written gives the metadata that the files give."""
    index = Index(path)
    scans = [entry.scan(redact(file.path)) for entry, file in zip(index.files, reader.files, strict=True)]
    found = interpret(scans, lambda number: index.files[number].parts, reader.format)
    if meta_digest(found.meta) != meta_digest(reader.layout.meta):
        raise CorruptError("the index does not give the metadata of its files", path=reader.path)
