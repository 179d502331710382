"""``wustore demo``."""

from __future__ import annotations

import click

__all__ = ["demo"]


@click.command()
@click.option("--keep", "directory", metavar="DIR", help="Leave the files in DIR (made if it is not there).")
def demo(*, directory: str | None) -> int:
    """Make a small KBMOD FITS WorkUnit, convert it to Zarr and HDF5 and back, and prove the bytes equal.

    Takes seconds and needs nothing but the core install. Exits 1 where a byte differs.
    """
    from wustore.cli._demo import run

    return run(directory)
