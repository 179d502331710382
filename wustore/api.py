"""Open, save and convert: the functions most users need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wustore.errors import UsageError
from wustore.protocol import Reader
from wustore.registry import backend_for_reading, backend_for_writing
from wustore.transfer import Progress, copy

if TYPE_CHECKING:
    from wustore.work_unit import WorkUnit

__all__ = ["convert", "open", "open_reader", "save"]


def _address(path: Any) -> Any:
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
        Of the backend.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError
    """
    address = _address(path)
    return backend_for_reading(address, format).open(address, **options)


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
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError
    """
    from wustore.edge import work_unit_from

    return work_unit_from(open_reader(path, format=format, **options), lazy=lazy)


def save(
    work_unit: WorkUnit,
    path: Any,
    *,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Save a WorkUnit in the format that the path's ending, or ``format``, names.

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
    progress
        Called with (images done, images in all).
    options
        Of the backend (``profile``, ``layout``, ``compression_type``, …).

    Raises
    ------
    StoreExistsError, UnknownFormatError, UsageError, OSError
    """
    from wustore.edge import reader_of

    address = _address(path)
    reader = reader_of(work_unit)
    _write(reader, address, format, overwrite=overwrite, capsule=True, workers=None, progress=progress, options=options)


def convert(
    source: Any,
    target: Any,
    *,
    source_format: str | None = None,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    capsule: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Convert a store into another format, or another profile of the same; nothing is lost.

    Parameters
    ----------
    source, target
        Paths, URLs, ``ram:`` names or zarr Store objects. A sharded FITS set is named by its primary file.
    source_format, format
        Format names of source and target, where content and suffix must not decide.
    overwrite
        Whether an existing target may be replaced. It stays until the new one is whole.
    capsule
        Keep what gives back the identical FITS files.
    workers
        Threads that read ahead; the number of processors by default.
    progress
        Called with (images done, images in all).
    options
        Of the target's backend (``profile``, ``layout``, …).

    Raises
    ------
    StoreNotFoundError, StoreExistsError, UnknownFormatError, FormatError, CorruptError, FidelityError, UsageError
    """
    source, target = _address(source), _address(target)
    _refuse_same(source, target)
    with open_reader(source, format=source_format) as reader:
        _write(
            reader,
            target,
            format,
            overwrite=overwrite,
            capsule=capsule,
            workers=workers,
            progress=progress,
            options=options,
        )


def _refuse_same(source: Any, target: Any) -> None:
    same = source is target or source == target
    if isinstance(source, str) and isinstance(target, str) and Path(source).exists() and Path(target).exists():
        same = same or Path(source).samefile(target)
    if same:
        raise UsageError(
            "source and target are the same", path=str(source), cure="Write to another name, then move it."
        )


def _write(
    reader: Reader,
    target: Any,
    format_name: str | None,
    *,
    overwrite: bool,
    capsule: bool,
    workers: int | None,
    progress: Progress | None,
    options: dict[str, Any],
) -> None:
    backend = backend_for_writing(target, format_name)
    leftovers = reader.capsule() if capsule else None
    writer = backend.create(target, reader.meta, capsule=leftovers, overwrite=overwrite, **options)
    copy(reader, writer, capsule=leftovers is not None, workers=workers, progress=progress)
