"""Appending images to a file: the stored chunks are copied as they are into a new file, which then takes its place.

Every image is read and compared with its checksums on the way, but no chunk is encoded again. A reader that has the
old file open keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wustore.backends.base import Reader
from wustore.backends.hdf5.encoder import EncodedImage, Encoder
from wustore.backends.hdf5.presets import need_plugins
from wustore.backends.hdf5.reader import Hdf5Reader
from wustore.backends.hdf5.writer import Hdf5Writer
from wustore.backends.proxy import CheckedReader
from wustore.errors import CorruptError, UsageError
from wustore.model.concat import appended
from wustore.model.meta import LAYERS, Meta
from wustore.storage.locks import alone, lock_of
from wustore.storage.staging import Staging

__all__ = ["append_images"]


def append_images(
    path: str,
    sources: Sequence[Reader],
    history: Callable[[int], dict[str, Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Append every image of ``sources`` to the file at ``path``; see `wustore.backends.base.Backend.append`."""
    place = Path(path).resolve()  # a link goes on leading to the store
    with alone(lock_of(place), path), Hdf5Reader(path) as old:
        meta = old.meta
        for source in sources:
            meta = appended(meta, source.meta, path=source.path)
        count = meta.n_images - old.meta.n_images
        meta = replace(meta, history=(*meta.history, history(count)))
        encoder = _encoder(old, meta)
        _check_chunks(old, encoder)
        checksums = old.checksums()
        writer = Hdf5Writer(Staging(place, overwrite=True), encoder, None)
        try:
            whole = CheckedReader(old)
            for i in range(old.meta.n_images):
                whole.image(i)  # misplaced or damaged chunks must not get new checksums that certify them
                chunks = [old.stored_chunks(layer.spec.name, i, layer.corners) for layer in encoder.layers]
                writer.store(i, EncodedImage(chunks, checksums[i].tolist()))
            _write(writer, old.meta.n_images, meta.n_images, sources, progress)
            old.close()  # Windows replaces no file that is open
            writer.commit()
        except BaseException:
            writer.abort()
            raise
    return count


def _encoder(old: Hdf5Reader, meta: Meta) -> Encoder:
    """Return the encoder that continues a file: its profile and chunks, whatever they are called."""
    storage = old.document().get("storage")
    if not isinstance(storage, dict) or "profile" not in storage:
        raise UsageError(
            "the store does not say how it was written", path=old.path, hint="Convert it into a new store first."
        )
    profile, layout = str(storage["profile"]), storage.get("layout", "images")
    if profile == "fast":
        need_plugins()
    chunks = (int(layout[-2]), int(layout[-1])) if isinstance(layout, list) else None
    name = "images" if chunks is not None else str(layout)
    stored = {layer: old.chunks(layer)[1:] for layer in LAYERS if old.meta.has_layer(layer)}
    return Encoder(old.path, meta, profile, name, chunks, None, stored)


def _check_chunks(old: Hdf5Reader, encoder: Encoder) -> None:
    """Refuse if the new file's chunks would not be those of the old one."""
    for layer in encoder.layers:
        name = layer.spec.name
        if not layer.corners:
            continue
        here = old.meta.has_layer(name) and old.meta.layer_shape(name)[1:] == layer.spec.shape[1:]
        if not here or (old.chunks(name), old.filters(name)) != (layer.chunks, layer.pipeline.filters):
            raise UsageError(
                "the store cannot take these images as it is", path=old.path, where=name, hint="Convert it first."
            )


def _write(
    writer: Hdf5Writer,
    first: int,
    end: int,
    sources: Sequence[Reader],
    progress: Callable[[int, int], None] | None,
) -> None:
    i = first
    for source in sources:
        for _, image in source.images():
            writer.write(i, image)
            i += 1
            if progress is not None:
                progress(i - first, end - first)
    if i != end:
        raise CorruptError("a source gave fewer images than it said", expected=end - first, found=i - first)
