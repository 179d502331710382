"""A writer that never ends, for tests that kill it: a spawned process imports it by its name."""

from __future__ import annotations

from wustore.backends.zarr.backend import ZarrBackend
from wustore.testing import sample


def write_without_end(path: str, overwrite: bool) -> None:
    source = sample("ragged")
    writer = ZarrBackend().create(path, source.meta, overwrite=overwrite)
    while True:
        for i in range(source.meta.n_images):
            writer.write(i, source.image(i))
