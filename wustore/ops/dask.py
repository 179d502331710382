"""The parts of a conversion on a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wustore.backends.base import Progress
from wustore.errors import MissingDependencyError
from wustore.ops.jobs import finish, part
from wustore.ops.plans import Job

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["run_on_cluster"]


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


def run_on_cluster(job: Job, scheduler: Any, *, progress: Progress | None = None) -> None:
    """Write every part of a planned conversion on a cluster, then finish it here.

    Source and target must be reachable under the same names by every worker.

    Parameters
    ----------
    job
        From `wustore.ops.jobs.plan`.
    scheduler
        The scheduler's address, or a `distributed.Client`.
    progress
        Called with (parts done, parts in all).

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
    finish(job.target)
