"""A progress bar on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from wustore.backends.base import Progress

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """Give a function that shows how many images are done, or None where nobody looks.

    Parameters
    ----------
    label
        What is being done.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=label, unit="image", leave=False, dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
