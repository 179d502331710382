"""Writing in pieces for formats that are one file: each image's bytes wait in a file of their own.

Next to the target, in `staging.partial_path`, is one file for each image as the format's encoder made it,
with a journal like that of an unfinished Zarr store. Any process may add images. At the end an ordinary writer places
them in order and lets the store appear, so that the bytes are those of an ordinary conversion.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wustore._version import __version__
from wustore.backends.base import Backend, Encoder, ResumableWriter, Writer
from wustore.errors import StoreExistsError
from wustore.format.document import arrays_of, document_of
from wustore.format.packed import pack
from wustore.model.checksum import crc32c
from wustore.model.meta import Capsule, Image, Meta
from wustore.storage.files import sync
from wustore.storage.journal import Entry, Journal
from wustore.storage.staging import partial_path, remove, retire
from wustore.storage.url import is_remote
from wustore.storage.zarr_store import DirectoryKeys

__all__ = ["PieceWriter", "PiecewiseBackend"]


class PieceWriter(ResumableWriter):
    """A store of one file, or of a set of files, whose images are encoded before the file is there.

    Parameters
    ----------
    encoder
        What makes the pieces that the backend's writers place.
    options
        Of the backend, for `wustore.backends.base.Backend.create`.

    Raises
    ------
    UsageError
        If another conversion has been started here.
    StoreExistsError, StoreNotFoundError, OSError
        What an ordinary writer would refuse, before anything is written.
    """

    def __init__(
        self,
        backend: Backend,
        path: str,
        meta: Meta,
        encoder: Encoder,
        *,
        fingerprint: str,
        capsule: Capsule | None,
        overwrite: bool,
        options: Mapping[str, Any],
    ) -> None:
        self._backend = backend
        self._target = Path(os.path.abspath(path))  # noqa: PTH100 - links stay links
        self._meta = meta
        self._encoder = encoder
        self._capsule = capsule
        self.keeps_capsule = capsule is not None
        self._overwrite = overwrite
        self._options = options
        self._partial = partial_path(self._target)
        self._keys = DirectoryKeys(self._partial, path)
        self._journal = Journal(self._keys)
        if not self._journal.has_begun():
            with warnings.catch_warnings():  # the writer at the end warns
                warnings.simplefilter("ignore")
                self._ordinary(self._target, overwrite=overwrite).abort()
        self._journal.begin(
            {
                "format": backend.name,
                "version": __version__,  # pieces are for the version that made them
                "document": document_of(meta),
                "arrays": crc32c(pack(arrays_of(meta)).data.tobytes()),
                "options": dict(options),
                "fingerprint": fingerprint,
                "capsule": None if capsule is None else dict(capsule.document),
                "capsule_head": None if capsule is None else crc32c(capsule.head),
            }
        )

    def _ordinary(self, path: Path, *, overwrite: bool) -> Writer:
        return self._backend.create(
            str(path), self._meta, capsule=self._capsule, overwrite=overwrite, workers=1, **self._options
        )

    # --- images -------------------------------------------------------------------------------------------

    @staticmethod
    def _key(i: int) -> str:
        return f"pieces/{i}"

    def is_written(self, i: int) -> bool:
        """Return whether the piece of image ``i`` is there and whole."""
        return self._journal.is_whole(i)

    def write(self, i: int, image: Image, capsule: bytes | None = None) -> None:
        """Encode an image and keep it; the same image written twice, by whomever, gives the same bytes."""
        piece = self._encoder.encode(i, image, capsule)
        self._keys.set(self._key(i), piece)
        self._journal.record(i, Entry({self._key(i): (len(piece), crc32c(piece))}))

    # --- the end ------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Place all pieces with an ordinary writer, let the store appear, and remove them."""
        entries = self._journal.inventory(self._meta.n_images)
        try:
            self._assemble(self._target, entries, overwrite=self._overwrite)
        except StoreExistsError as error:
            self._complete(entries, error)
        retire(self._partial, self._target)

    def _assemble(self, path: Path, entries: Sequence[Entry], *, overwrite: bool) -> None:
        with self._ordinary(path, overwrite=overwrite) as writer:
            for i, entry in enumerate(entries):
                writer.place(i, self._journal.value(i, entry, self._key(i)))
            writer.commit()

    def _complete(self, entries: Sequence[Entry], error: StoreExistsError) -> None:
        """Go on where a process was killed that let the store, or some files of a set, appear already.

        Whether it is that, its bytes say; files that differ are somebody else's.
        """
        whole = self._partial / "whole"
        remove(whole)
        whole.mkdir()
        self._assemble(whole / self._target.name, entries, overwrite=False)
        missing = []
        for file in sorted(whole.iterdir(), key=lambda file: file.name == self._target.name):  # a set's name last
            there = self._target.with_name(file.name)
            if not os.path.lexists(there):
                missing.append(file)
            elif not there.is_file() or not filecmp.cmp(file, there, shallow=False):
                raise error
        for file in missing:
            file.rename(self._target.with_name(file.name))
        sync(self._target.parent)

    def abort(self) -> None:
        """Keep what is written, for a resume."""
        with contextlib.suppress(OSError):
            self._keys.settle()


class PiecewiseBackend(Backend):
    """A format of files on local disks that is written in pieces by `PieceWriter`."""

    @abstractmethod
    def encoder(
        self, path: str, meta: Meta, *, capsule: Capsule | None, workers: int | None, **options: Any
    ) -> Encoder:
        """Return what makes the pieces; options as for `create`."""

    def resumes(self, path: str) -> bool:
        """Return whether it is a local path."""
        return not is_remote(path)

    def resume(
        self,
        path: str,
        meta: Meta,
        *,
        fingerprint: str,
        capsule: Capsule | None = None,
        overwrite: bool = False,
        workers: int | None = None,
        **options: Any,
    ) -> PieceWriter:
        """Start or join a store that is written in pieces; see `wustore.backends.base.Backend.resume`."""
        encoder = self.encoder(path, meta, capsule=capsule, workers=workers, **options)
        return PieceWriter(
            self, path, meta, encoder, fingerprint=fingerprint, capsule=capsule, overwrite=overwrite, options=options
        )
