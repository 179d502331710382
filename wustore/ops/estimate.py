"""What a conversion will need, from converting a few images of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wustore.backends.base import Reader
from wustore.backends.registry import backend_for_writing
from wustore.errors import WuStoreError
from wustore.ops.copy import bytes_per_image, copy, workers_within
from wustore.stamps.view import select

__all__ = ["Estimate", "estimate", "free_bytes", "refuse_if_too_large"]

_BASE_MEMORY = 150 * 10**6
"""Bytes of a process that has imported numpy, a backend and its codecs (measured: 90 to 140 MB)."""

_MARGIN = 1.1
"""Images differ: a target must have room for a tenth more than was measured."""


@dataclass(frozen=True)
class Estimate:
    """What a conversion will need.

    Attributes
    ----------
    sampled
        The images that were converted to find out.
    n_images
        The number of images in all.
    target_bytes, target_files
        Size of the store, and its number of files.
    memory_bytes
        Peak memory of all workers together.
    seconds
        Wall time.
    workers
        Images in work at a time.
    free_bytes
        Free space where the target will be; None for a URL.
    """

    sampled: tuple[int, ...]
    n_images: int
    target_bytes: int
    target_files: int
    memory_bytes: int
    seconds: float
    workers: int
    free_bytes: int | None

    @property
    def fits(self) -> bool:
        """Whether the target has room, with a tenth to spare."""
        return self.free_bytes is None or self.target_bytes * _MARGIN <= self.free_bytes


def free_bytes(target: str) -> int | None:
    """Return the free space where ``target`` will be; None for a URL or where it cannot be told."""
    if "://" in target or target.startswith("ram:"):
        return None
    try:
        return shutil.disk_usage(Path(target).absolute().parent).free
    except OSError:
        return None


def _measured(reader: Reader, images: list[int], backend: Any, options: Mapping[str, Any]) -> tuple[int, int, float]:
    """Convert some images to a temporary place; return bytes, files and seconds."""
    with tempfile.TemporaryDirectory(prefix="wustore-estimate-") as place:
        path = str(Path(place) / f"sample{backend.suffixes[0] if backend.suffixes else '.fits'}")
        view = select(reader, images=images)
        begin = time.perf_counter()
        copy(view, backend.create(path, view.meta, workers=1, **options), workers=1)
        seconds = time.perf_counter() - begin
        files = [entry for entry in Path(place).rglob("*") if entry.is_file()]
        return sum(entry.stat().st_size for entry in files), len(files), seconds


def estimate(
    reader: Reader,
    target: str,
    *,
    format: str | None = None,  # noqa: A002
    workers: int | None = None,
    max_memory: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Estimate:
    """Convert the first image, then a middle one with it, and scale by the number of pixels.

    Parameters
    ----------
    reader
        The source.
    target, format, workers, max_memory, options
        As for `wustore.convert`. Nothing is written there; the sample goes to the temporary directory.

    Returns
    -------
    Estimate

    Raises
    ------
    UnknownFormatError, UsageError, CorruptError, OSError
    """
    backend = backend_for_writing(target, format)
    n_images = reader.meta.n_images
    pixels = reader.meta.image_shape.astype(np.float64).prod(axis=1)
    first, middle = 0, n_images // 2
    sampled = [first] if n_images == 1 else [first, middle]
    one = _measured(reader, [first], backend, options or {})
    if n_images == 1:
        size, files, seconds = one
    else:
        two = _measured(reader, sampled, backend, options or {})
        share = (pixels.sum() - pixels[first]) / max(pixels[middle], 1)
        size, files, seconds = (a + max(b - a, 0) * share for a, b in zip(one, two, strict=True))
        files = one[1] + (two[1] - one[1]) * (n_images - 1)
    in_work = workers_within(reader.meta, workers, max_memory)
    return Estimate(
        sampled=tuple(sampled),
        n_images=n_images,
        target_bytes=int(size),
        target_files=int(files),
        memory_bytes=_BASE_MEMORY + in_work * bytes_per_image(reader.meta),
        seconds=float(seconds) / min(in_work, n_images),
        workers=in_work,
        free_bytes=free_bytes(target),
    )


def refuse_if_too_large(found: Estimate, target: str) -> None:
    """Raise where the target has no room for what was estimated.

    Parameters
    ----------
    found
        From `estimate`.
    target
        Its path, for the message.

    Raises
    ------
    WuStoreError
    """
    if not found.fits:
        raise WuStoreError(
            "the target has not enough free space",
            path=target,
            expected=f"{int(found.target_bytes * _MARGIN)} bytes free",
            found=found.free_bytes,
            hint="Free some, choose a smaller profile, or another place.",
        )
