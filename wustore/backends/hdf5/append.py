"""Appending images to a file: the stored chunks are copied as they are into a new file, which then takes its place.

Every image is read and compared with its checksums on the way, but no chunk is encoded again. A reader that has the
old file open keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wustore.backends.appending import cannot_take, continued, new_images, storage_of
from wustore.backends.base import Progress, Reader
from wustore.backends.hdf5.encoder import EncodedImage, Encoder
from wustore.backends.hdf5.presets import need_plugins
from wustore.backends.hdf5.reader import Hdf5Reader
from wustore.backends.hdf5.writer import Hdf5Writer
from wustore.backends.proxy import CheckedReader
from wustore.model.meta import LAYERS, Meta
from wustore.storage.locks import alone, lock_of
from wustore.storage.staging import Staging

__all__ = ["append_images"]


def append_images(
    path: str,
    sources: Sequence[Reader],
    history: Callable[[int], dict[str, Any]],
    *,
    progress: Progress | None = None,
) -> int:
    """Append every image of ``sources`` to the file at ``path``; see `wustore.backends.base.Backend.append`."""
    place = Path(path).resolve()  # a link goes on leading to the store
    with alone(lock_of(place), path), Hdf5Reader(path) as old:
        meta = continued(old.meta, sources, history)
        encoder = _encoder(old, meta)
        _check_chunks(old, encoder)
        checksums = old.checksums()
        with Hdf5Writer(Staging(place, overwrite=True), encoder, None) as writer:
            whole = CheckedReader(old)
            for i in range(old.meta.n_images):
                whole.image(i)  # misplaced or damaged chunks must not get new checksums that certify them
                chunks = [old.stored_chunks(layer.spec.name, i, layer.corners) for layer in encoder.layers]
                writer.store(i, EncodedImage(chunks, checksums[i].tolist()))
            for i, image in new_images(sources, old.meta.n_images, meta.n_images, progress):
                writer.write(i, image)
            old.close()  # Windows replaces no file that is open
            writer.commit()
    return meta.n_images - old.meta.n_images


def _encoder(old: Hdf5Reader, meta: Meta) -> Encoder:
    """Return the encoder that continues a file: its profile and chunks, whatever they are called."""
    profile, layout, shape = storage_of(old.document(), old.path)
    if profile == "fast":
        need_plugins()
    chunks = None if shape is None else (int(shape[-2]), int(shape[-1]))
    stored = {layer: old.chunks(layer)[1:] for layer in LAYERS if old.meta.has_layer(layer)}
    return Encoder(old.path, meta, profile, layout, chunks, None, stored)


def _check_chunks(old: Hdf5Reader, encoder: Encoder) -> None:
    """Refuse if the new file's chunks would not be those of the old one."""
    for layer in encoder.layers:
        name = layer.spec.name
        if not layer.corners:
            continue
        here = old.meta.has_layer(name) and old.meta.layer_shape(name)[1:] == layer.spec.shape[1:]
        if not here or (old.chunks(name), old.filters(name)) != (layer.chunks, layer.pipeline.filters):
            raise cannot_take(old.path, name)
