"""Functions most users need: open, save, verify, diff. The others are in `wustore.ops`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wustore.backends.base import Progress
from wustore.backends.registry import open_reader
from wustore.errors import UsageError
from wustore.model.compare import Difference
from wustore.ops.convert import convert as convert_store
from wustore.ops.copy import write
from wustore.stamps.notebook import with_bar
from wustore.storage.stores import address_of

if TYPE_CHECKING:
    from wustore.backends.fits.indexing import IndexSize
    from wustore.ops.diff import LayerLoss
    from wustore.ops.verify import Problem
    from wustore.work_unit import WorkUnit

__all__ = ["convert", "diff", "index", "open", "save", "verify"]


def open(path: Any, *, format: str | None = None, lazy: bool = True, **options: Any) -> WorkUnit:  # noqa: A001, A002
    """Open a WorkUnit of any format.

    Parameters
    ----------
    path
        A file, directory, URL, ``ram:`` name or zarr Store object; the primary file of a sharded set.
    format
        Format name, if the content must not decide.
    lazy
        Read metadata only, pixels when they are touched (the default); False loads everything.
    options
        ``storage_options`` of a URL (``{"anon": True}`` for a public bucket; docs/howto/cloud.md lists them), and those
        of the backend. ``index`` of FITS at a URL is the path or URL of its index (see `wustore.index`), or False for
        none; by default one that is next to the file is used.

    Returns
    -------
    WorkUnit
        Usable at once; ``load_images()`` brings everything into memory.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
    MissingDependencyError
        If the store, or a URL, needs an extra that is not installed.
    """
    from wustore.work_unit import work_unit_from

    return work_unit_from(open_reader(path, format=format, **options), lazy=lazy)


@with_bar("saving")
def save(
    work_unit: Any,
    path: Any,
    *,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    workers: int | None = None,
    lossy: bool = False,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[LayerLoss]:
    """Save a WorkUnit in the format that the path's ending, or ``format``, names; nothing is lost, in FITS either.

    (`WorkUnit.to_fits` writes KBMOD's own bytes instead, which are quantised.)

    Parameters
    ----------
    work_unit
        In memory or lazy (a lazy one is copied image by image); ours or KBMOD's.
    path
        Where to write.
    format
        Format name: ``zarr``, ``zarr-zip``, ``hdf5``, ``fits``, ``sharded-fits`` or a plug-in's.
    overwrite
        Whether an existing store may be replaced.
    workers
        Images at a time; the number of processors by default.
    lossy
        Agree to options that lose values.
    progress
        Called with (images done, images in all).
    storage_options
        Of URLs, as in `open`.
    options
        Of the backend (``profile``, ``layout``, ``compression_type``, …).

    Returns
    -------
    list of LayerLoss
        What each layer lost, in numbers; empty unless ``lossy`` was used and something was.

    Raises
    ------
    StoreExistsError, UnknownFormatError, UsageError, FidelityError, OSError
    CorruptError
        If a lazy WorkUnit's store is damaged.

    Warns
    -----
    StoreChangedWarning
        If a FITS file is not the one that the store was imported from, because its content was changed since.
    OuterChangedWarning
        If it is that one, but was in a .gz, .bz2 or .zip file that does not come back with the same bytes.
    """
    from wustore.store_view import reader_of
    from wustore.work_unit import WorkUnit

    address = address_of(path, to_write=True, storage_options=storage_options)
    reader = reader_of(WorkUnit.of(work_unit))
    return write(
        reader,
        address,
        format,
        overwrite=overwrite,
        capsule=True,
        workers=workers,
        progress=progress,
        options=options,
        lossy=lossy,
    )


@with_bar("converting")
@functools.wraps(convert_store)
def convert(source: Any, target: Any, **options: Any) -> list[LayerLoss]:  # noqa: D103 - of what it wraps
    if hasattr(source, "im_stack"):  # a WorkUnit in memory
        return save(source, target, **options)
    return convert_store(source, target, **options)


@with_bar("verifying")
def verify(
    path: Any,
    *,
    format: str | None = None,  # noqa: A002
    fits: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Read all of a store and return what is wrong with it.

    Parameters
    ----------
    path
        As in `open`.
    format
        Format name, if the content must not decide.
    fits
        Also write the FITS files that the store was made from to a temporary directory, and compare their sha256
        with the recorded one.
    workers
        Images at a time; the number of processors by default.
    progress
        Called with (images done, images in all).
    storage_options
        Of URLs, as in `open`.

    Returns
    -------
    list of Problem
        Empty if nothing is wrong.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError
        If the store cannot be opened.

    Examples
    --------
    >>> import wustore
    >>> for problem in wustore.verify("night.zarr"):  # doctest: +SKIP
    ...     print(problem)
    """
    from wustore.ops.verify import fits_problems, problems

    with open_reader(path, format=format, storage_options=storage_options) as reader:
        found = list(problems(reader, workers=workers, progress=progress))
        if fits and not found:
            found = list(fits_problems(reader, workers=workers, progress=progress))
    return found


def diff(
    left: Any,
    right: Any,
    *,
    workers: int | None = None,
    rtol: float = 0,
    atol: float = 0,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """Compare two stores of any formats bit for bit and return the places that differ.

    Parameters
    ----------
    left, right
        As ``path`` of `open`.
    workers
        Images at a time; the number of processors by default.
    rtol, atol
        Pixels that differ by no more than ``atol + rtol * abs(right)`` are equal; by default only the same bits are.
    storage_options
        Of URLs, as in `open`.

    Returns
    -------
    list of Difference
        Empty if every value, type and pixel is the same.

    Raises
    ------
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError
        If one of them cannot be opened or read.

    Examples
    --------
    >>> import wustore
    >>> wustore.diff("night.fits", "night.zarr")  # doctest: +SKIP
    []
    """
    from wustore.ops.diff import differences

    left, right = (address_of(path, storage_options=storage_options) for path in (left, right))
    with open_reader(left) as a, open_reader(right) as b:
        return list(differences(a, b, workers=workers, rtol=rtol, atol=atol))


def index(
    source: Any,
    target: Any = None,
    *,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> IndexSize:
    """Write the index of a FITS file or sharded set, through which it is read at a URL without converting it.

    With ``night.fits.wuindex`` next to ``night.fits`` at the URL, or named by ``open(url, index=...)``, opening takes
    two or three requests, however many images there are, and stamps read the blocks of 64 KiB that they touch.
    Whatever is read is compared with the index: a file that is not the one that the index was made of is refused.

    Parameters
    ----------
    source
        A path or URL; the primary file of a sharded set. Every byte of the files is read once.
    target
        A local path; that of the source with ``.wuindex`` behind it by default. For a URL it must be given.
    overwrite
        Whether an existing file may be replaced.
    storage_options
        Of a URL, as for `open`.
    progress
        Called with (images done, images in all).

    Returns
    -------
    IndexSize
        Path and size of the index, and of how many images, files and bytes it is.

    Raises
    ------
    UsageError
        If the file is compressed as a whole, so that no part of it can be read alone.
    StoreExistsError, StoreNotFoundError, FormatError, CorruptError, StoreReplacedError, OSError

    Examples
    --------
    >>> import wustore
    >>> wustore.index("night.fits")  # doctest: +SKIP
    >>> wu = wustore.open("https://example.org/night.fits", index="night.fits.wuindex")  # doctest: +SKIP
    """
    from wustore.backends.fits.indexing import make_index

    address = address_of(source, storage_options=storage_options)
    if not isinstance(address, str) or address.startswith("ram:"):
        raise UsageError("an index is made of FITS files", path=str(address), hint="Give a path or a URL.")
    place = None if target is None else address_of(target, to_write=True)
    return make_index(address, place, overwrite=overwrite, progress=progress)
