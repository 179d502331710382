"""What a conversion will need, from converting a few images of it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wustore.backends.base import Backend, Reader
from wustore.backends.registry import backend_for_writing
from wustore.errors import WuStoreError
from wustore.model.meta import Capsule
from wustore.ops.copy import bytes_per_image, copy, copy_images, workers_within
from wustore.stamps.view import select
from wustore.storage.threads import default_workers

__all__ = ["Estimate", "estimate", "free_bytes", "refuse_if_too_large"]

_BASE_MEMORY = 150 * 10**6
"""Bytes of a process that has imported numpy, a backend and its codecs (measured: 90 to 140 MB)."""

_SPEED_UP = 0.8
"""What each worker beyond the first adds: they share memory and caches (measured: 0.4 to 0.9)."""

_HASHED = 16 << 20
"""Bytes that are hashed to find how fast the files of a source with reconstruction data can be."""

_FITS = ("fits", "sharded-fits")

_MARGIN = 1.1
"""Images differ: a target must have room for a tenth more than was measured."""


@dataclass(frozen=True)
class Estimate:
    """What a conversion will need.

    Attributes
    ----------
    sampled
        The images that were converted to find out.
    target_bytes, target_files
        Size of the store, and its number of files.
    memory_bytes
        Peak memory of all workers together.
    seconds
        Wall time.
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
    """Return the free space where ``target`` will be; None for a URL, or if it is not known."""
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


def _restores(reader: Reader, backend: Backend) -> Capsule | None:
    """Return the capsule from which a store gives the FITS files back; None if it does not."""
    return reader.capsule() if backend.name in _FITS and reader.format not in _FITS else None


def _restoring_seconds(reader: Reader, images: list[int], backend: Backend, capsule: Capsule) -> list[float]:
    """Make the HDUs of some images again in a temporary place; return how long each of them took."""
    found = []
    with tempfile.TemporaryDirectory(prefix="wustore-estimate-") as place:
        writer = backend.resume(str(Path(place) / "sample.fits"), reader.meta, fingerprint="", capsule=capsule)
        for i in images:
            begin = time.perf_counter()
            copy_images(reader, writer, indices=[i], workers=1)
            found.append(time.perf_counter() - begin)
    return found


def _proof_seconds(reader: Reader, i: int) -> float:
    """Return how long the reconstruction data of one image take; hardly anything if the source has none to prove."""
    image = reader.image(i)
    begin = time.perf_counter()
    reader.image_capsule(i, image)
    return time.perf_counter() - begin


def _hash_seconds(size: int) -> float:
    """Return how long it takes to hash that many bytes."""
    sample = bytes(_HASHED)
    begin = time.perf_counter()
    hashlib.sha256(sample)
    return (time.perf_counter() - begin) * size / _HASHED


def _bytes_of(reader: Reader) -> int:
    """Return the bytes of the files of a store."""
    return sum(place.stat().st_size for place in map(Path, reader.places()) if place.is_file())


def estimate(
    reader: Reader,
    target: str,
    *,
    format: str | None = None,  # noqa: A002
    workers: int | None = None,
    max_memory: int | None = None,
    capsule: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Estimate:
    """Convert the first image, then a middle one with it, and scale by the number of pixels.

    If the FITS files of a store come back, the HDUs of these two images are made again instead.

    Parameters
    ----------
    target, format, workers, max_memory, capsule, options
        As for `wustore.convert`. Nothing is written there; the sample goes to the temporary directory.
    """
    backend = backend_for_writing(target, format)
    n_images = reader.meta.n_images
    pixels = reader.meta.image_shape.astype(np.float64).prod(axis=1)
    first, middle = 0, n_images // 2
    sampled = [first] if n_images == 1 else [first, middle]
    backend_options = options or {}
    restoring = _restores(reader, backend) if capsule and not backend_options else None
    in_work = workers_within(reader.meta, workers, max_memory)
    once = 0.0  # what is loaded once, and hashed
    if restoring is not None:
        size = sum(int(file["size"]) for file in restoring.document["files"])
        files = 1 if backend.name == "fits" else n_images + 1
        took = _restoring_seconds(reader, sampled, backend, restoring)
        seconds = took[-1] * pixels.sum() / max(pixels[sampled[-1]], 1)
        once = max(took[0] - took[-1], 0) + _hash_seconds(int(size))
    else:
        size, files, seconds = one = _measured(reader, [first], backend, backend_options)
        if n_images > 1:
            two = _measured(reader, sampled, backend, backend_options)
            share = (pixels.sum() - pixels[first]) / max(pixels[middle], 1)
            size = one[0] + max(two[0] - one[0], 0) * share
            files = one[1] + (two[1] - one[1]) * (n_images - 1)
            # The first time is also that of what is loaded once; the second one has two images without it.
            seconds = two[2] * pixels.sum() / max(pixels[first] + pixels[middle], 1)
            once = max(one[2] - seconds / n_images, 0)
        if capsule:
            seconds += _proof_seconds(reader, middle) * pixels.sum() / max(pixels[middle], 1)
            once += _hash_seconds(_bytes_of(reader)) if reader.format in _FITS else 0
    at_a_time = min(in_work, n_images, default_workers())
    seconds = once + seconds / (1 + _SPEED_UP * (at_a_time - 1))
    return Estimate(
        sampled=tuple(sampled),
        n_images=n_images,
        target_bytes=int(size),
        target_files=int(files),
        memory_bytes=_BASE_MEMORY + in_work * bytes_per_image(reader.meta),
        seconds=float(seconds),
        workers=in_work,
        free_bytes=free_bytes(target),
    )


def refuse_if_too_large(found: Estimate, target: str) -> None:
    """Raise if the target has no room for what was estimated."""
    if not found.fits:
        raise WuStoreError(
            "the target has not enough free space",
            path=target,
            expected=f"{int(found.target_bytes * _MARGIN)} bytes free",
            found=found.free_bytes,
            hint="Free some, choose a smaller profile, or another place.",
        )
