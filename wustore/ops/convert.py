"""Convert a store into another: in one go, resumable, in processes or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wustore.backends.base import Progress
from wustore.backends.registry import backend_for_writing, open_reader
from wustore.errors import UsageError, WuStoreError
from wustore.ops.copy import measured_loss, workers_within, write
from wustore.ops.diff import LayerLoss
from wustore.ops.plans import check_names, discard, has_begun, plan
from wustore.ops.run_parts import run, run_on_cluster
from wustore.storage.stores import address_of

__all__ = ["PARTS_ON_A_CLUSTER", "convert", "refuse_same"]

PARTS_ON_A_CLUSTER = 256
"""Parts at most on a Dask cluster. Each opens source and target, which costs time for every image that these have: a
part for each image would make that grow with the square of their number."""


def convert(
    source: Any,
    target: Any,
    *,
    source_format: str | None = None,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    capsule: bool = True,
    workers: int | None = None,
    processes: bool = False,
    max_memory: int | None = None,
    resume: bool = False,
    scheduler: Any = None,
    lossy: bool = False,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[LayerLoss]:
    """Convert a store into another format, or another profile of the same; nothing is lost.

    Parameters
    ----------
    source, target
        Paths, URLs, ``ram:`` names or zarr Store objects. A sharded FITS set is named by its primary file. The source
        may also be a WorkUnit, ours or KBMOD's, which is then saved.
    source_format, format
        Format names of source and target, where content and suffix must not decide.
    overwrite
        Whether an existing target may be replaced. It stays until the new one is whole.
    capsule
        Keep what gives back the identical FITS files.
    workers
        Images at a time; the number of processors by default. The result does not depend on it.
    processes
        Whether workers are processes instead of threads, which are as fast at any number. A process imports the main
        module of the program that asks for it, which must therefore start its work under ``if __name__ == "__main__"``.
    max_memory
        Bytes that the images in work may take together; lowers ``workers``.
    resume
        Go on with a conversion of the same source that was killed, or begin one that can be resumed.
    scheduler
        Address of a Dask scheduler, or a `distributed.Client`, that runs the parts.
    lossy
        Agree to options that lose values (of FITS: a quantisation, RICE_1 without one, ``mode="kbmod"``).
    progress
        Called with (images done, images in all).
    storage_options
        Of source and target, those of the two that are URLs, as in `wustore.open`.
    options
        Of the target's backend (``profile``, ``layout``, …).

    Returns
    -------
    list of LayerLoss
        What each layer lost, in numbers; empty unless ``lossy`` was used and something was.

    Raises
    ------
    StoreNotFoundError, StoreExistsError, UnknownFormatError, FormatError, VersionError, IncompleteError
        As opening and creating a store raise them.
    CorruptError
        The source is damaged.
    StoreReplacedError
        The source was replaced or changed while it was read.
    FidelityError
        A FITS file did not come out with its recorded sha256.
    UsageError
        Source and target are the same, an option is unknown or loses values, or the target cannot be written in pieces.
    MissingDependencyError
        Without dask.distributed (extra ``cluster``), for ``scheduler``.
    WuStoreError
        A worker process was killed.
    OSError
        The system refused (disk full, no permission).

    Warns
    -----
    LossWarning
        Of what each layer lost.
    StoreChangedWarning
        If a FITS file is not the one that the store was imported from, because its content was changed since.
    OuterChangedWarning
        If it is that one, but was in a .gz, .bz2 or .zip file that does not come back with the same bytes.
    """
    source = address_of(source, storage_options=storage_options)
    target = address_of(target, to_write=True, storage_options=storage_options)
    refuse_same(source, target)
    pieces = resume or scheduler is not None or processes
    if pieces:
        check_names(source, target)
    with open_reader(source, format=source_format) as reader:
        workers = workers_within(reader.meta, workers, max_memory)
        if not pieces:
            return write(
                reader,
                target,
                format,
                overwrite=overwrite,
                capsule=capsule,
                workers=workers,
                progress=progress,
                options=options,
                lossy=lossy,
            )
        begun = has_begun(target)
        keep = resume or begun  # what another call began is not thrown away by this one
        job = plan(
            source,
            target,
            source_reader=reader,
            format=format,
            overwrite=overwrite,
            capsule=capsule,
            lossy=lossy,
            parts=None if scheduler is None or begun else PARTS_ON_A_CLUSTER,
            **options,
        )
        try:
            if scheduler is not None:
                return run_on_cluster(job, scheduler, progress=progress)
            run(job, reader, workers=workers, processes=processes, progress=progress)
        except BaseException:
            if not keep:
                with suppress(WuStoreError, OSError):  # what went wrong first is what to tell
                    discard(target)
            raise
        return measured_loss(reader, target, backend_for_writing(target, format), options, workers)


def refuse_same(source: Any, target: Any) -> None:
    """Refuse to write where the source is: it would be gone before or after it is read.

    Parameters
    ----------
    source, target
        Paths, URLs, ``ram:`` names or zarr Store objects.

    Raises
    ------
    UsageError
        If they are the same, by name or as files.
    """
    same = source is target or source == target
    if isinstance(source, str) and isinstance(target, str) and Path(source).exists() and Path(target).exists():
        same = same or Path(source).samefile(target)
    if same:
        raise UsageError(
            "source and target are the same", path=str(source), hint="Write to another name, then move it."
        )
