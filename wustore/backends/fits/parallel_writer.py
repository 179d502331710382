"""Writing the current layout of KBMOD: its own bytes, or an exact archive in it."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from wustore.backends.base import Writer
from wustore.backends.fits.capsule import meta_digest
from wustore.backends.fits.encoder import CanonicalEncoder, Hdus, ImageEncoder
from wustore.backends.fits.fidelity import meta_losses, option_losses, warn_of
from wustore.backends.fits.files.output import Output
from wustore.backends.fits.hdu.checksum import with_sums
from wustore.backends.fits.hdu.wustore_hdu import wustore_hdu
from wustore.backends.fits.kbmod_hdus import FitsOptions, head_hdus
from wustore.backends.fits.reader import FitsReader
from wustore.errors import IncompleteError, UsageError
from wustore.model.compare import meta_differences
from wustore.model.meta import Image, Meta
from wustore.storage.threads import default_workers


class ParallelWriter(Writer):
    """Compresses images in threads, at most ``workers`` + 1 of them at a time, and hands the results on.

    Parameters
    ----------
    n_images
        Images that must come before `commit`.
    """

    def __init__(self, n_images: int, encoder: ImageEncoder, output: Output, workers: int | None) -> None:
        self._n_images = n_images
        self._encoder = encoder
        self._output = output
        self._workers = default_workers() if workers is None else max(1, workers)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="wustore-fits")
        self._lock = threading.RLock()
        self._written: set[int] = set()
        self._pending: deque[tuple[int, Future[Any]]] = deque()
        self._ended = False

    def _store(self, i: int, made: Any) -> None:
        """Write them; runs under the lock."""
        raise NotImplementedError

    def write(self, i: int, image: Image, capsule: bytes | None = None) -> None:
        """Write image ``i``; see `wustore.backends.base.Writer.write`."""
        with self._lock:
            self._claim(i)
            self._pending.append((i, self._pool.submit(self._encoder.make, i, image, capsule)))
            while len(self._pending) > self._workers:
                self._next()

    def place(self, i: int, piece: bytes) -> None:
        """Write image ``i`` as it was encoded; see `wustore.backends.base.Writer.place`."""
        made = self._encoder.parse(piece)
        with self._lock:
            self._claim(i)
            self._store(i, made)

    def _claim(self, i: int) -> None:
        if self._ended or i in self._written or not 0 <= i < self._n_images:
            raise UsageError("an image that cannot be written now", where=f"image {i}")
        self._written.add(i)

    def _next(self) -> None:
        i, future = self._pending.popleft()
        self._store(i, future.result())

    def _finish(self) -> None:
        """Complete the files when all images are there."""

    def commit(self) -> None:
        """Let the files appear; see `wustore.backends.base.Writer.commit`."""
        with self._lock:
            missing = sorted(set(range(self._n_images)) - self._written)
            if missing:
                raise IncompleteError(
                    "images were never written",
                    path=self._output.target,
                    expected=f"{self._n_images} images",
                    found=f"{len(missing)} missing, the first is {missing[0]}",
                )
            while self._pending:
                self._next()
            self._finish()
            self._output.commit()
            self._ended = True
            self._pool.shutdown()

    def abort(self) -> None:
        """Drop everything; see `wustore.backends.base.Writer.abort`."""
        with self._lock:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pending.clear()
            if not self._ended:
                self._ended = True
                self._output.abort()


class InOrder:
    """Appends the parts of numbered images in order; those that come early wait in a temporary file."""

    def __init__(self, output: Output, offset: int) -> None:
        self._output = output
        self.offset = offset
        self.starts: dict[int, int] = {}
        self._next = 0
        self._waiting: dict[int, tuple[int, int]] = {}
        self._spool: IO[bytes] | None = None

    def add(self, i: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Append the parts of image ``i``, or keep them until its turn comes."""
        if i != self._next:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(dir=self._output.target.parent)  # noqa: SIM115 - lives on
            start = self._spool.seek(0, os.SEEK_END)
            self._spool.writelines(pieces)
            self._waiting[i] = start, self._spool.tell() - start
            return
        self.starts[i] = self.offset
        self.offset = self._output.write_at(0, self.offset, *pieces)
        self._next += 1
        while self._next in self._waiting:
            self._append_waiting(self._next)
            self._next += 1

    def _append_waiting(self, i: int) -> None:
        assert self._spool is not None
        start, size = self._waiting.pop(i)
        self._spool.seek(start)
        self.starts[i] = self.offset
        self.offset = self._output.write_at(0, self.offset, self._spool.read(size))

    def append_all(self) -> None:
        """Append those that wait, though images before them never came."""
        for i in sorted(self._waiting):
            self._append_waiting(i)

    def close(self) -> None:
        """Give up what waits."""
        if self._spool is not None:
            self._spool.close()


class CanonicalWriter(ParallelWriter):
    """Writes KBMOD's current layout."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: Meta,
        options: FitsOptions,
        *,
        sharded: bool,
        overwrite: bool,
        workers: int | None,
    ) -> None:
        self._meta = meta
        self._options = options
        self._sharded = sharded
        self._losses: list[str] = []
        if not options.exact:
            self._losses += [*option_losses(options), *meta_losses(meta)]
        head = head_hdus(meta, exact=options.exact, configuration=sharded or not options.exact)
        if options.checksum:
            head = [with_sums(hdu) for hdu in head]
        output = Output(path, meta.n_images if sharded else None, overwrite=overwrite)
        super().__init__(meta.n_images, CanonicalEncoder(meta, options, sharded), output, workers)
        try:
            offset = output.write_at(0, 0, *head)
        except BaseException:
            super().abort()  # a full disk at the first byte: nobody has a writer yet that could be aborted
            raise
        self._order = InOrder(output, offset)

    def _store(self, i: int, made: Hdus) -> None:
        self._losses += made.losses
        if self._sharded:
            self._output.write_at(1 + i, 0, *made.pieces)
        else:
            self._order.add(i, made.pieces)

    def _finish(self) -> None:
        self._order.close()
        if self._options.exact:
            _add_wustore_hdu(self._output, self._meta, self._order.offset, self._options)
        warn_of(self._losses)

    def abort(self) -> None:
        """Drop everything; see `wustore.backends.base.Writer.abort`."""
        super().abort()
        self._order.close()


def _add_wustore_hdu(output: Output, meta: Meta, end: int, options: FitsOptions) -> None:
    """Append the HDU WUSTORE if the file as it is does not read back as ``meta``."""
    output.flush()
    with FitsReader(output.path, "sharded-fits" if output.sharded else "fits") as reader:
        plain = reader.meta
    if next(meta_differences(meta, plain), None) is not None:
        hdu = wustore_hdu(meta, meta_digest(plain))
        output.write_at(0, end, with_sums(hdu) if options.checksum else hdu)
