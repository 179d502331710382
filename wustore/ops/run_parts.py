"""Conversions in pieces: over several processes, after a kill, and as the parts of a cluster job.

A conversion that can be resumed writes into one fixed place next to its target
(`wustore.storage.staging.partial_path`): a Zarr store into itself, any other format a file for each image
(`wustore.backends.pieces`). The plan (`wustore.ops.plans`) is kept there, and one entry for each finished image. So any
process that knows the target can help (`part`) and any one can end it (`finish`). Doing something twice does no harm,
because the same image gives the same bytes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wustore.backends.base import Progress, Reader, ResumableWriter
from wustore.backends.registry import backend_named
from wustore.backends.state import replaced
from wustore.errors import MissingDependencyError, WuStoreError
from wustore.ops.copy import copy_images, measured_loss
from wustore.ops.diff import LayerLoss
from wustore.ops.plans import Job, load_plan, started
from wustore.stamps.notebook import with_bar
from wustore.storage.journal import JOURNAL
from wustore.storage.locks import alone
from wustore.storage.staging import partial_path
from wustore.storage.stores import address_of, is_local
from wustore.storage.threads import safe_path

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["finish", "part", "run", "run_on_cluster"]

_LOCK = f"{JOURNAL}lock"


def _open_both(target: str, workers: int | None = 1) -> tuple[Job, Reader, ResumableWriter]:
    """Open source and unfinished store of a conversion that is under way."""
    job, capsule = load_plan(target)
    reader = backend_named(job.source_format).open(job.source)
    try:
        if reader.state() != job.state:
            raise replaced(reader.path)
        return job, reader, started(job, reader, capsule, workers)
    except BaseException:
        reader.close()
        raise


@with_bar("converting")
def part(target: str, k: int, *, workers: int | None = None, progress: Progress | None = None) -> int:
    """Write the images of one part that are not written yet.

    Parameters
    ----------
    target
        The target of a `plan`.
    k
        Which part, 0 <= k < parts. For a larger one there is nothing to do: a job array may be larger than needed.
    workers
        Threads; the number of processors by default.
    progress
        Called with (images done, images in this part).

    Returns
    -------
    int
        How many images were written now.

    Raises
    ------
    UsageError
        There is no such part, or the target is finished.
    IncompleteError
        Nothing was planned for this target.
    CorruptError
        The source is damaged or has changed since, or the plan is damaged.
    OSError
    """
    job, reader, writer = _open_both(address_of(target), workers)
    with reader:
        images = job.images_of(k) if k < job.parts else range(0)
        left = writer.unwritten(images)
        done = len(images) - len(left)

        def report(count: int, total: int) -> None:
            if progress is not None:
                progress(done + count - (total - len(left)), len(images))

        copy_images(reader, writer, indices=left, workers=workers, progress=report)
    return len(left)


def finish(target: str) -> list[LayerLoss]:
    """Check that every image is there, and let the store appear.

    Parameters
    ----------
    target
        The target of a `plan`.

    Returns
    -------
    list of LayerLoss
        What options that lose values lost; empty if there are none.

    Raises
    ------
    UsageError
        If the store is finished already, or another process is finishing it.
    IncompleteError
        If images are missing; the message names them.
    CorruptError
        If what was written is damaged.
    StoreReplacedError
        If the source changed since the conversion was planned.
    """
    target = address_of(target)
    with _alone_at_the_end(target):
        job, reader, writer = _open_both(target)
        with reader:
            reader.check_state()
            writer.commit()
            return measured_loss(reader, target, backend_named(job.format), job.options)


@contextmanager
def _alone_at_the_end(target: str) -> Iterator[None]:
    """Let one process end a conversion: a second one would go on where the first has moved everything away."""
    load_plan(target)  # if nothing is to be ended, this says so
    if not is_local(target):
        yield  # there is no lock to be had; nor is anything moved away
        return
    with alone(partial_path(target) / _LOCK, target):
        yield


# --- processes ----------------------------------------------------------------------------------------

_OPEN: tuple[Job, Reader, ResumableWriter] | None = None
"""Source and store of this worker process."""


def _start_worker(target: str) -> None:
    global _OPEN  # noqa: PLW0603 - a worker process serves one conversion
    _OPEN = _open_both(target)


def _write_one(i: int) -> int:
    assert _OPEN is not None
    _, reader, writer = _OPEN
    copy_images(reader, writer, indices=[i], workers=1)
    return i


def _in_processes(target: str, indices: Iterable[int], workers: int, report: Callable[[int], None]) -> None:
    # Spawned, not forked: threads of this process (the bar's, HDF5's lock) do not survive a fork whole.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(target,)) as pool:
        try:
            with safe_path():  # here the processes are started
                futures = [pool.submit(_write_one, i) for i in indices]
            for future in as_completed(futures):
                report(future.result())
        except BrokenProcessPool as error:
            raise WuStoreError(
                "a worker process died (killed, perhaps for want of memory)",
                path=target,
                hint="Run the same conversion again with --resume, with fewer --workers or less --max-memory; "
                "a script that asks for processes must start them under if __name__ == '__main__'.",
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run(job: Job, reader: Reader, *, workers: int, processes: bool = False, progress: Progress | None = None) -> None:
    """Write what is left of a conversion, then finish it.

    Parameters
    ----------
    processes
        Whether each worker is a process of its own; by default threads of this one.

    Raises
    ------
    CorruptError
        The source is damaged, or changed while it was read.
    WuStoreError
        A worker process was killed; what is written stays for a resume.
    OSError
    """
    writer = started(job, reader, load_plan(job.target)[1], workers)
    left = writer.unwritten(range(job.n_images))
    done = job.n_images - len(left)
    # Workers of a pool may have no processes of their own.
    processes = processes and not multiprocessing.current_process().daemon
    if not processes or workers == 1 or len(left) < 2:
        copy_images(reader, writer, indices=left, workers=workers, progress=progress)
    else:

        def report(_: int) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, job.n_images)

        _in_processes(job.target, left, min(workers, len(left)), report)
    with _alone_at_the_end(job.target):
        reader.check_state()
        writer.commit()


def _client(scheduler: Any) -> tuple[Client, bool]:
    """Return a client and whether it is ours to close."""
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingDependencyError(
            "dask.distributed is not installed", hint="pip install 'wustore[cluster]' brings it."
        ) from error
    if isinstance(scheduler, Client):
        return scheduler, False
    return Client(scheduler, set_as_default=False), True  # type: ignore[no-untyped-call]


def run_on_cluster(job: Job, scheduler: Any, *, progress: Progress | None = None) -> list[LayerLoss]:
    """Write every part of a planned conversion on a cluster, then finish it here.

    Source and target must be reachable under the same names by every worker.

    Parameters
    ----------
    scheduler
        The scheduler's address, or a `distributed.Client`.
    progress
        Called with (parts done, parts in all).

    Returns
    -------
    list of LayerLoss
        As `finish`.

    Raises
    ------
    MissingDependencyError
        Without dask.distributed (extra ``cluster``).
    """
    from distributed import as_completed

    client, ours = _client(scheduler)
    try:
        with client.as_current():  # `as_completed` looks for its client there
            # Not pure: a part that runs again must look at what is there, not at a remembered result.
            futures = [client.submit(part, job.target, k, workers=1, pure=False) for k in range(job.parts)]
            for done, future in enumerate(as_completed(futures), 1):  # type: ignore[no-untyped-call]
                future.result()
                if progress is not None:
                    progress(done, job.parts)
    finally:
        if ours:
            client.close()  # type: ignore[no-untyped-call]
    return finish(job.target)
