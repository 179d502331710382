"""A FITS file at a URL that is read through an index: nothing is asked for that the index holds.

The file is believed to be the one that the index was made of only as far as its bytes were compared: the checksum of
every block that is read, and before the first pixels of an image what the index holds of its header and its table of
tiles. The latter is not needed if the server says that the version is the one that the index was made of.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

from wustore.backends.fits.files.index import CHECKED, IndexedFile, Range, changed
from wustore.backends.fits.files.open_files import Cache, FitsFile, check_unchanged, fetch
from wustore.backends.fits.hdu.image import Fetch
from wustore.backends.fits.hdu.scan import Buffer, Hdu, Sliceable
from wustore.storage.files import RemoteFile
from wustore.storage.url import redact

__all__ = ["IndexedFitsFile"]

_MOST_FIRST = 15
"""Blocks at the start of a file that are read with its size."""


class IndexedFitsFile(FitsFile):
    """A file at a URL, and what an index holds of it; nothing is asked of the server before it is needed.

    Parameters
    ----------
    path
        The URL.
    cache
        Where the bytes of the reader's files are kept.
    index
        What is known of the file.
    """

    def __init__(self, path: str, cache: Cache, index: IndexedFile) -> None:
        self.path = path
        self.compression = None
        self.state = index.size, index.sha256
        self.scan = index.scan(redact(path))
        self._cache = cache
        self._index = index
        self._remote: RemoteFile | None = None
        self._is_fetched = False
        self._compared: Buffer | None = None
        self._lock = threading.Lock()
        self._n_first = 1
        self._unchecked = set(index.ranges)
        own = {place for hdu in self.scan.hdus for place in index.needs(hdu)}
        self._of_whole_file = self._unchecked - own

    def connect(self) -> RemoteFile:
        """Return the file at the URL, its size compared with the index.

        Raises
        ------
        StoreReplacedError
            If it is another one.
        StoreNotFoundError, OSError
        """
        with self._lock:
            if self._remote is None:
                remote = RemoteFile(self.path, CHECKED * self._n_first)
                if remote.size != self._index.size:
                    expected, found = f"{self._index.size} bytes", f"{remote.size} bytes"
                    raise changed(remote.name, "its size", expected=expected, found=found)
                if self._index.version is not None and self._index.version == remote.state[1]:
                    self._unchecked.clear()
                self._remote = remote
            return self._remote

    def check_start(self) -> None:
        """Compare size and version, and if the version is not known the headers and tables that the file begins with.

        That is one request, unless these are larger than what a `RemoteFile` reads ahead.

        Raises
        ------
        StoreReplacedError
        """
        self._n_first = min(-(-self._index.ranges[0][1] // CHECKED), _MOST_FIRST)
        self._get([], [self._index.ranges[0]])

    def check_state(self) -> None:
        """Check that the file was not changed since it was opened; see `FitsFile.check_state`."""
        check_unchanged(self.path, self.connect().state)

    @property
    def data(self) -> Buffer:
        """All bytes of the file, fetched and compared with the index.

        Raises
        ------
        StoreReplacedError
        """
        remote = self.connect()
        data = self._cache.get(self.path, remote).data
        if data is not self._compared:
            self._index.check(0, data, remote.name)
            self._compared = data
        self._is_fetched = True
        return data

    @property
    def parts(self) -> Sliceable:
        """What the index holds of the file: headers and tables."""
        return self._index.parts

    def _fetcher(self, hdu: Hdu) -> Fetch:
        return partial(self._known_or_read, hdu)

    def _known_or_read(self, hdu: Hdu, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of ranges, of the index or of the file, compared with what the index holds of the HDU."""
        known = [self._index.known(*place) for place in ranges]
        missing = [place for place, data in zip(ranges, known, strict=True) if data is None]
        if not missing:
            return [data for data in known if data is not None]
        found = iter(self._get(missing, [*self._index.needs(hdu), *self._of_whole_file]))
        return [next(found) if data is None else data for data in known]

    def _check(self, start: int, data: bytes) -> None:
        self._index.check(start, data, redact(self.path))

    def _get(self, ranges: Sequence[Range], compared: Sequence[Range]) -> list[bytes]:
        """Return the bytes of ranges; read also what the index holds of others that were not compared yet."""
        remote = self.connect()
        pending = [place for place in compared if place in self._unchecked]
        wanted = [*ranges, *pending]
        aligned = [
            (start // CHECKED * CHECKED, min(-(-stop // CHECKED) * CHECKED, remote.size)) if stop > start else (0, 0)
            for start, stop in wanted
        ]
        at_hand = 0, min(CHECKED * self._n_first, remote.size)  # read with the size of the file
        missing = [place for place in aligned if place != at_hand]
        others = iter(fetch(remote, missing, self._check) if missing else ())
        if at_hand in aligned:
            self._check(0, first := remote.cached(*at_hand))
        blocks = [first if place == at_hand else next(others) for place in aligned]
        found = [
            block[start - low : stop - low]
            for block, (low, _), (start, stop) in zip(blocks, aligned, wanted, strict=True)
        ]
        for place, data in zip(pending, found[len(ranges) :], strict=True):
            if data != self._index.known(*place):
                raise changed(remote.name, f"bytes {place[0]} to {place[1]}, a header or a table")
            self._unchecked.discard(place)
        return found[: len(ranges)]
