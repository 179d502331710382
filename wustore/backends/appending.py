"""What appending is in every format: the metadata of old and new images, and the new images in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from wustore.backends.base import Progress, Reader
from wustore.errors import CorruptError, UsageError
from wustore.model.concat import appended
from wustore.model.meta import Image, Meta

__all__ = ["cannot_take", "continued", "new_images", "storage_of"]


def continued(old: Meta, sources: Sequence[Reader], history: Callable[[int], dict[str, Any]]) -> Meta:
    """Return the metadata of a store's images followed by those of ``sources``, with an entry of the history."""
    meta = old
    for source in sources:
        meta = appended(meta, source.meta, path=source.path)
    return replace(meta, history=(*meta.history, history(meta.n_images - old.n_images)))


def storage_of(document: Mapping[str, Any], path: str) -> tuple[str, str, list[int] | None]:
    """Return profile, name of the layout, and chunks of a store that is to be continued as it was begun.

    Raises
    ------
    UsageError
        If its document does not say how it was written.
    """
    storage = document.get("storage")
    if not isinstance(storage, dict) or "profile" not in storage:
        raise UsageError(
            "the store does not say how it was written", path=path, hint="Convert it into a new store first."
        )
    layout = storage.get("layout", "images")
    is_shape = isinstance(layout, list)
    return str(storage["profile"]), "images" if is_shape else str(layout), layout if is_shape else None


def cannot_take(path: str, layer: str) -> UsageError:
    """Return the refusal of images whose chunks would not be those of the store."""
    return UsageError("the store cannot take these images as it is", path=path, where=layer, hint="Convert it first.")


def new_images(
    sources: Sequence[Reader], first: int, end: int, progress: Progress | None
) -> Iterator[tuple[int, Image]]:
    """Yield the images of ``sources`` with their numbers in the store; ``progress`` is called when each is done.

    Raises
    ------
    CorruptError
        If there are fewer than the metadata of the sources say.
    """
    i = first
    for source in sources:
        for _, image in source.images():
            yield i, image
            i += 1
            if progress is not None:
                progress(i - first, end - first)
    if i != end:
        raise CorruptError("a source gave fewer images than it said", expected=end - first, found=i - first)
