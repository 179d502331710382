"""Whole WorkUnits in memory, with their FITS reconstruction data."""

from __future__ import annotations

from collections.abc import Sequence

from wustore.backends.base import Reader
from wustore.backends.memory import MemoryReader
from wustore.model.meta import Image, Meta


def in_memory(reader: Reader, images: Sequence[Image] | None = None, meta: Meta | None = None) -> MemoryReader:
    """Return everything that a reader gives, with other images or metadata if they are given."""
    indices = range(reader.meta.n_images)
    return MemoryReader(
        reader.meta if meta is None else meta,
        [reader.image(i) for i in indices] if images is None else images,
        reader.capsule(),
        [reader.image_capsule(i) for i in indices],
    )
