"""The one path by which a WorkUnit moves: image by image from a reader to a writer, each plane checked on the way."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from wustore.backends.base import Backend, Progress, Reader, Writer
from wustore.backends.proxy import CheckedReader
from wustore.backends.registry import backend_for_writing, open_reader
from wustore.errors import StoreExistsError, UsageError, VersionError, WuStoreError
from wustore.format.planes import plane_checksums
from wustore.format.version import VERSION, is_newer
from wustore.model.meta import LAYERS, Meta
from wustore.ops.diff import LayerLoss, losses
from wustore.storage.stores import name_of
from wustore.storage.threads import read_ahead, worker_count

__all__ = [
    "LossWarning",
    "bytes_per_image",
    "copy",
    "copy_images",
    "measured_loss",
    "refuse_loss",
    "refuse_newer",
    "refuse_others",
    "workers_within",
    "write",
]


IMAGE_BUFFERS = 4
"""Copies of an image's decoded bytes that a worker holds at most: the source's bytes, the decoded planes,
the cast or re-encoded ones of the capsule's proof, and the encoded shards."""


def bytes_per_image(meta: Meta) -> int:
    """Return how many bytes a worker needs for the largest image of ``meta``."""
    planes = 0
    for layer in LAYERS:
        if meta.has_layer(layer):
            _, height, width = meta.layer_shape(layer)
            planes += height * width * meta.layer_dtype(layer).itemsize
    return planes * IMAGE_BUFFERS


def workers_within(meta: Meta, workers: int | None, max_memory: int | None) -> int:
    """Return how many images may be in work at a time.

    Parameters
    ----------
    workers
        As asked for; the number of processors by default.
    max_memory
        Bytes for all of them together; at least one image is always in work.
    """
    wanted = worker_count(workers)
    if max_memory is None:
        return wanted
    return max(1, min(wanted, max_memory // max(bytes_per_image(meta), 1)))


def copy(
    reader: Reader,
    writer: Writer,
    *,
    indices: Iterable[int] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    at_end: Callable[[], object] | None = None,
) -> None:
    """Copy every image from ``reader`` to ``writer`` and commit; on any error the writer is aborted.

    Parameters
    ----------
    reader, writer
        Open reader; writer created with the reader's ``meta`` (and its capsule, if that is to be kept).
    indices
        The images still to be written (all by default): a resumed copy leaves out what is there.
    workers
        Threads that read and write an image each, the number of processors by default. So many images are in
        memory at a time.
    at_end
        Called when all is read, before the target appears: closes a source that is replaced, since Windows replaces no
        file that is open.

    Raises
    ------
    CorruptError
        The source is damaged.
    StoreReplacedError
        The source was replaced or changed since it was opened.
    """
    with writer:
        reader.check_state()
        copy_images(reader, writer, indices=indices, workers=workers, progress=progress)
        reader.check_state()
        if at_end is not None:
            at_end()
        writer.commit()


def copy_images(
    reader: Reader,
    writer: Writer,
    *,
    indices: Iterable[int] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Copy images without committing; parameters as for `copy`."""
    source = CheckedReader(reader)
    total = reader.meta.n_images
    wanted = list(range(total)) if indices is None else list(indices)
    done = total - len(wanted)

    def move(i: int) -> None:
        image = source.image(i)
        if not writer.keeps_capsule:
            writer.write(i, image)
            return
        image = replace(image, checksums=plane_checksums(image))  # once, for the capsule and the writer
        writer.write(i, image, reader.image_capsule(i, image))

    # `read_ahead` bounds how far the threads run before the oldest image is through.
    moves = read_ahead(move, wanted, workers)
    try:
        for _ in moves:
            done += 1
            if progress is not None:
                progress(done, total)
    except BaseException as error:
        # Nothing may be written any more when the caller aborts the writer: this waits for the threads.
        with contextlib.suppress(BaseException):
            moves.throw(error)
        raise


def write(
    reader: Reader,
    target: Any,
    format_name: str | None,
    *,
    overwrite: bool,
    capsule: bool,
    workers: int | None,
    progress: Progress | None,
    options: dict[str, Any],
    lossy: bool = False,
) -> list[LayerLoss]:
    """Write what ``reader`` reads to a new store: what `save` and `wustore.convert` have in common.

    Parameters
    ----------
    format_name
        Format name, or None if the target's ending says it.
    overwrite
        Whether an existing store may be replaced.
    capsule
        Keep what gives back the identical FITS files.
    lossy
        Agree to options that do not hold the values exactly.

    Returns
    -------
    list of LayerLoss
        What such options lost.
    """
    backend = backend_for_writing(target, format_name)
    refuse_loss(backend, options, lossy=lossy)
    refuse_newer(reader)
    if overwrite:
        refuse_others(backend, target)
    kept = reader.capsule() if capsule else None
    writer = backend.create(target, reader.meta, capsule=kept, overwrite=overwrite, workers=workers, **options)
    copy(reader, writer, workers=workers, progress=progress)
    return measured_loss(reader, target, backend, options, workers)


class LossWarning(UserWarning):
    """What a store lost that was written with options that do not hold the values exactly, in numbers."""


def refuse_loss(backend: Backend, options: Mapping[str, Any], *, lossy: bool) -> None:
    """Refuse options that lose values, unless they were agreed to."""
    reason = backend.lossy(options)
    if reason is not None and not lossy:
        raise UsageError(
            "these options lose values",
            where=backend.name,
            found=reason,
            hint="Leave them out; or agree to it with lossy=True or --lossy, which says in numbers what is lost.",
        )


def refuse_newer(reader: Reader) -> None:
    """Refuse to copy a store of a later minor version with arrays or attributes that this code does not know.

    What such a version added to the document is copied, but its arrays would be left out.

    Raises
    ------
    VersionError
    """
    document = reader.document()
    if not is_newer(document):
        return
    found = list(reader.foreign())
    if found:
        raise VersionError(
            "the store has parts of a later version of the format, which a copy by this wustore would lose",
            path=reader.path,
            expected=f"version {VERSION}",
            found=f"version {(document or {})['version']}, with {', '.join(found[:5])}",
            hint="Update wustore; or remove them, if they are your own.",
        )


def refuse_others(backend: Backend, target: Any) -> None:
    """Refuse to replace a store that others added something to: it would be gone with it.

    Parameters
    ----------
    backend
        That of the new store.
    target
        Where it will be. What is no store that can be opened is left to the backend.

    Raises
    ------
    StoreExistsError
    """
    try:
        reader = backend.try_open(target)
    except (WuStoreError, OSError):
        return
    if reader is None:
        return
    with reader:
        found = list(itertools.islice(reader.foreign(), 5))
    if found:
        raise StoreExistsError(
            "the target holds what wustore did not write, which is not overwritten",
            path=name_of(target),
            found=", ".join(found),
            hint="Choose another name, or remove it yourself.",
        )


def measured_loss(
    reader: Reader, target: Any, backend: Backend, options: Mapping[str, Any], workers: int | None = None
) -> list[LayerLoss]:
    """Return, and warn of, what a store lost that was written with options that lose values."""
    if backend.lossy(options) is None:
        return []
    with open_reader(target, format=backend.name) as made:
        found = losses(reader, made, workers=workers)
    for loss in found:
        warnings.warn(LossWarning(f"{name_of(target)}: {loss}"), stacklevel=4)
    return found
