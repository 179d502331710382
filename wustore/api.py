"""Open and save: two of the three functions most users need; `wustore.conversion` has the third."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wustore.protocol import Reader
from wustore.registry import backend_for_writing, opened
from wustore.transfer import Progress, copy

if TYPE_CHECKING:
    from wustore.work_unit import WorkUnit

__all__ = ["address_of", "open", "open_reader", "save", "write"]


def address_of(path: Any) -> Any:
    """Return a path as text; names in memory, URLs and zarr Store objects as they are."""
    return os.fspath(path) if isinstance(path, str | os.PathLike) else path


def open_reader(path: Any, *, format: str | None = None, **options: Any) -> Reader:  # noqa: A002
    """Open a store of any format as the `wustore.protocol.Reader` that its backend gives.

    Parameters
    ----------
    path
        A file, directory, URL, ``ram:`` name or zarr Store object; the primary file of a sharded set.
    format
        Format name, where the content must not decide.
    options
        Of the backend (``workers``); an unknown one is refused.

    Returns
    -------
    Reader
        To be closed, or used in a ``with`` statement. No pixel has been read.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
    MissingDependencyError
        Where the store, or a URL, needs an extra that is not installed.
    """
    return opened(address_of(path), format, **options)


def open(path: Any, *, format: str | None = None, lazy: bool = True, **options: Any) -> WorkUnit:  # noqa: A001, A002
    """Open a WorkUnit of any format.

    Parameters
    ----------
    path
        A file, directory, URL, ``ram:`` name or zarr Store object; the primary file of a sharded set.
    format
        Format name, where the content must not decide.
    lazy
        Read metadata only, pixels when they are touched (the default); False loads everything.
    options
        Of the backend.

    Returns
    -------
    WorkUnit
        Usable at once; ``load_images()`` brings everything into memory.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
    MissingDependencyError
        Where the store, or a URL, needs an extra that is not installed.
    """
    from wustore.edge import work_unit_from

    return work_unit_from(open_reader(path, format=format, **options), lazy=lazy)


def save(
    work_unit: WorkUnit,
    path: Any,
    *,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Save a WorkUnit in the format that the path's ending, or ``format``, names; nothing is lost, in FITS either.

    (`WorkUnit.to_fits` writes KBMOD's own bytes instead, which are quantised.)

    Parameters
    ----------
    work_unit
        In memory or lazy (a lazy one is copied image by image).
    path
        Where to write.
    format
        Format name: ``zarr``, ``zarr-zip``, ``hdf5``, ``fits``, ``sharded-fits`` or a plug-in's.
    overwrite
        Whether an existing store may be replaced.
    workers
        Images at a time; the number of processors by default.
    progress
        Called with (images done, images in all).
    options
        Of the backend (``profile``, ``layout``, ``compression_type``, …).

    Raises
    ------
    StoreExistsError, UnknownFormatError, UsageError, FidelityError, OSError
    CorruptError
        Where a lazy WorkUnit's store is damaged.

    Warns
    -----
    StoreChangedWarning
        Where a FITS file is not the one that the store was imported from, because its content was changed since.
    OuterChangedWarning
        Where it is that one, but was in a .gz, .bz2 or .zip file that does not come back with the same bytes.
    """
    from wustore.edge import reader_of

    address = address_of(path)
    reader = reader_of(work_unit)
    write(
        reader, address, format, overwrite=overwrite, capsule=True, workers=workers, progress=progress, options=options
    )


def write(
    reader: Reader,
    target: Any,
    format_name: str | None,
    *,
    overwrite: bool,
    capsule: bool,
    workers: int | None,
    progress: Progress | None,
    options: dict[str, Any],
    check: Callable[[], None] | None = None,
) -> None:
    """Write what ``reader`` reads to a new store: what `save` and `wustore.convert` have in common.

    Parameters
    ----------
    reader
        The source, open.
    target
        Where to write.
    format_name
        Format name, or None where the target's ending says it.
    overwrite
        Whether an existing store may be replaced.
    capsule
        Keep what gives back the identical FITS files.
    workers
        Images at a time; the number of processors where None.
    progress
        Called with (images done, images in all).
    options
        Of the target's backend.
    check
        Called before the commit; what it raises aborts the writer.

    Raises
    ------
    StoreExistsError, UnknownFormatError, UsageError, CorruptError, FidelityError, OSError
    """
    backend = backend_for_writing(target, format_name)
    leftovers = reader.capsule() if capsule else None
    writer = backend.create(target, reader.meta, capsule=leftovers, overwrite=overwrite, workers=workers, **options)
    copy(reader, writer, capsule=leftovers is not None, workers=workers, progress=progress, check=check)
