"""After damage: the images of a store that are whole, saved into a new one; and what killed processes left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Progress, Reader
from wustore.backends.proxy import CheckedReader, ReaderProxy
from wustore.backends.registry import backend_named, open_reader
from wustore.errors import CorruptError, UsageError, WuStoreError
from wustore.format.additions import names_of
from wustore.model.meta import Capsule, Image
from wustore.model.select import selected_meta
from wustore.ops.convert import refuse_same
from wustore.ops.copy import write
from wustore.ops.edit import EditedReader, history_entry
from wustore.ops.verify import Problem
from wustore.stamps.notebook import with_bar
from wustore.stamps.view import View
from wustore.storage.staging import Leftover, leftovers, remove, stores_of
from wustore.storage.stores import address_of, is_local
from wustore.storage.threads import read_ahead

__all__ = ["clean", "repair"]


class _Readable(ReaderProxy):
    """A reader without what cannot be read of it: checksums, FITS reconstruction data."""

    def __init__(self, source: Reader, *, sums: bool, capsule: bool) -> None:
        super().__init__(source)
        self._has_sums, self._has_capsule = sums, capsule

    def checksums(self) -> NDArray[np.uint32] | None:
        """Return the checksums, if they can be read."""
        return self.source.checksums() if self._has_sums else None

    def capsule(self) -> Capsule | None:
        """Return the FITS reconstruction data, if all of it can be read."""
        return self.source.capsule() if self._has_capsule else None

    def image_capsule(self, i: int, image: Image | None = None) -> bytes | None:
        """Return an image's part of it."""
        return self.source.image_capsule(i, image) if self._has_capsule else None


@with_bar("repairing")
def repair(
    damaged: Any,
    target: Any,
    *,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Problem]:
    """Save every whole image of a damaged store into a new store.

    An image is whole if all its layers can be read and match their checksums. The damaged store is left as it is.

    Parameters
    ----------
    damaged
        The store; its metadata must be readable.
    target
        Where the new store will be.
    format
        Its format name, if its ending does not say it.
    overwrite
        Whether an existing target may be replaced.
    workers
        Images at a time; the number of processors by default.
    progress
        Called with (images done, images in all), first while they are checked, then while they are written.
    options
        Of the target's format.

    Returns
    -------
    list of Problem
        What is lost: images, checksums, FITS reconstruction data, content of others. Empty if nothing is.

    Raises
    ------
    CorruptError
        No image is whole, or the metadata are damaged.
    StoreNotFoundError, StoreExistsError, UnknownFormatError, UsageError, OSError
    """
    source, address = address_of(damaged), address_of(target, to_write=True)
    refuse_same(source, address)
    with open_reader(source) as reader:
        lost = [Problem("invalid", what, "written by others: not copied") for what in reader.foreign()]
        has_sums = _readable("checksums", reader.checksums, lost)
        readable = _Readable(reader, sums=has_sums, capsule=False)
        images = list(_whole(readable, lost, workers, progress))
        if not images:
            raise CorruptError("no image of the store is whole", path=reader.path, found=lost[-1])
        everything = len(images) == reader.meta.n_images
        if everything:
            has_capsule = _readable("capsule", lambda: _read_capsule(reader), lost)
            readable = _Readable(reader, sums=has_sums, capsule=has_capsule)
        elif (reader.document() or {}).get("capsule") is not None:
            lost.append(Problem("damaged", "capsule", "the files it gives back held the lost images"))
        if not everything:
            newer = names_of(reader.meta.additions)
            lost += [Problem("invalid", name, "of a later version of the format: not copied") for name in newer]
        meta = reader.meta if everything else selected_meta(reader.meta, np.array(images, np.int64))
        if lost:
            entry = history_entry("repair", lost=[problem.where for problem in lost])
            meta = replace(meta, history=(*meta.history, entry))
        write(
            EditedReader(readable, meta, keep_capsule=True) if everything else View(readable, images, meta=meta),
            address,
            format,
            overwrite=overwrite,
            capsule=True,
            workers=workers,
            progress=progress,
            options=options,
        )
    return lost


def _readable(where: str, read: Any, lost: list[Problem]) -> bool:
    try:
        read()
    except (WuStoreError, OSError) as error:
        lost.append(Problem("damaged", where, str(error)))
        return False
    return True


def _read_capsule(reader: Reader) -> None:
    if reader.capsule() is not None:
        for i in range(reader.meta.n_images):
            reader.image_capsule(i)


def _whole(reader: Reader, lost: list[Problem], workers: int | None, progress: Progress | None) -> Iterator[int]:
    """Yield the images that are whole; add the others to ``lost``."""
    checked, total = CheckedReader(reader), reader.meta.n_images

    def error_of(i: int) -> str | None:
        try:
            checked.image(i)
        except (CorruptError, OSError) as error:
            return str(error)
        return None

    for i, error in read_ahead(error_of, range(total), workers):
        if error is None:
            yield i
        else:
            lost.append(Problem("damaged", f"image {i}", error))
        if progress is not None:
            progress(i + 1, total)


@dataclass(frozen=True)
class Cleaned:
    """What a killed process left behind, and whether it was removed, or in case of ``outdated`` written."""

    leftover: Leftover
    removed: bool


def clean(path: Any, *, unfinished: bool = False, dry_run: bool = False) -> list[Cleaned]:
    """Find, and remove, what killed processes left next to a store, or to all stores of a directory.

    Metadata documents of Zarr arrays that an append no longer came to write are written. What a living process writes
    stays. So do conversions that can be resumed, unless asked otherwise, and old files
    that were set aside: these are the only copy of what was to be replaced.

    Parameters
    ----------
    path
        A store, the name of one that never appeared, or a directory of stores.
    unfinished
        Remove conversions that can be resumed, too.
    dry_run
        Remove nothing.

    Returns
    -------
    list of Cleaned

    Raises
    ------
    UsageError
        If it is not a local path.
    OSError
    """
    address = address_of(path)
    if not is_local(address):
        raise UsageError("only local directories are cleaned", path=str(address), hint="Use the tools of the store.")
    done = []
    for leftover in [*leftovers(Path(address))]:  # all are looked at before any goes: a lock says whose the others are
        removes = leftover.kind == "abandoned" or (unfinished and leftover.kind == "unfinished")
        if removes and not dry_run:
            remove(leftover.path)
        done.append(Cleaned(leftover, removes and not dry_run))
    for store in stores_of(Path(address)):
        with suppress(WuStoreError):
            with open_reader(store) as reader:
                backend = backend_named(reader.format)
            keys = backend.finish_edit(str(store), dry_run=dry_run)
            done += [Cleaned(Leftover(store / key, "outdated"), not dry_run) for key in keys]
    return done
