"""Appending images to a Zarr store: new shards first, then one root document that knows them.

No existing pixel chunk is touched, since a shard holds one image. Who opens the store reads the old root
document or the new one: the new shards stand beyond the end of the old arrays, and the small arrays of
neighbouring generations have different keys. The files of the generation before stay until the next
append, for readers that opened the store before; plain Zarr readers that do not use the consolidated
metadata may see an array's old length for a moment longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.appending import cannot_take, continued, new_images, storage_of
from wustore.backends.base import Progress, Reader
from wustore.backends.state import replaced
from wustore.backends.zarr.audit import is_remainder
from wustore.backends.zarr.encoder import Structure
from wustore.backends.zarr.metadata import to_json
from wustore.backends.zarr.reader import ZarrReader
from wustore.errors import WuStoreError
from wustore.model.meta import Meta
from wustore.storage.locks import Claim, alone, lock_of
from wustore.storage.staging import sync_tree
from wustore.storage.stores import is_local, writable_keys
from wustore.storage.zarr_store import DirectoryKeys, Keys

__all__ = ["append_images", "finish_append"]


@contextmanager
def _alone(path: Any) -> Iterator[Callable[[], None]]:
    """Hold the store's lock: two appends at a time would both write the same image numbers.

    Gives what is to be called from time to time: it says that this process is still at work, or raises.
    """
    if is_local(path):
        with alone(lock_of(Path(path)), path):
            yield lambda: None
        return
    keys = _keys(path)
    if keys.transactional:
        yield lambda: None
        return
    claim = Claim(keys)
    claim.take()
    try:
        if claim.was_left:
            _tidy(keys, path)
        yield claim.renew
    finally:
        claim.release()


def _tidy(keys: Keys, path: Any) -> None:
    """Remove what a writer that was stopped left of the store before."""
    with ZarrReader(_keys(path), path, "zarr") as reader:
        nodes = reader.nodes()
    keys.delete_all([key for key in keys.list("") if is_remainder(key, nodes)])


def _structure_of(
    document: dict[str, Any], reader: ZarrReader, generation: int, meta: Meta, separators: tuple[str, str]
) -> Structure:
    """Return the structure that continues a store: its profile and chunks, whatever they are called."""
    profile, layout, chunks = storage_of(document, reader.path)
    return Structure(
        meta,
        profile=profile,
        layout=layout,
        chunks=chunks,
        generation=generation,
        bound=reader.bindings() is not None,
        separators=separators,
    )


def append_images(
    path: Any,
    sources: Sequence[Reader],
    history: Callable[[int], dict[str, Any]],
    *,
    progress: Progress | None = None,
) -> int:
    """Append every image of ``sources`` to the store at ``path``; see `wustore.backends.base.Backend.append`."""
    with _alone(path) as renew, ZarrReader(_keys(path), path, "zarr") as old:
        document = dict(old.document())
        meta = continued(old.meta, sources, history)
        generation = int(document.get("generation", 0)) + 1
        keys = _keys(path)
        found = keys.versioned("zarr.json")
        old.check_state()  # that of the root document whose version is known now
        separators = _next_separators(old, keys)
        structure = _structure_of(document, old, generation, meta, separators)
        _check_grids(structure, _structure_of(document, old, generation, old.meta, separators), old.path)
        checksums, bindings = old.checksums(), old.bindings()
        before = np.hstack([checksums, np.zeros_like(checksums) if bindings is None else bindings])
        if isinstance(keys, DirectoryKeys):
            keys.sweep()  # what an append that was killed left
        keys.begin()
        try:
            if keys.transactional:
                _write_nodes(keys, structure.nodes([], {}))
            new = _write(keys, structure, old.meta.n_images, sources, progress, renew)
            rows = np.array([*before.tolist(), *new], np.uint32)
            _switch(keys, structure, rows, None if found is None else found[1])
        except BaseException:
            keys.undo()
            raise
    return meta.n_images - old.meta.n_images


def finish_append(path: Any, *, dry_run: bool = False) -> list[str]:
    """Write the arrays' own metadata documents that an interrupted append has not replaced; return their keys.

    Parameters
    ----------
    path
        A Zarr store: directory, URL or zarr Store object.
    dry_run
        Write nothing.
    """
    with ZarrReader(_keys(path), path, "zarr") as reader:
        nodes = reader.outdated()
    if nodes and not dry_run:  # in a store that needs nothing, or that nobody may change, nothing is locked
        with _alone(path), ZarrReader(_keys(path), path, "zarr") as reader:
            nodes = reader.outdated()
            _write_nodes(_keys(path), nodes, durably=True)
    return list(map(_document_key, nodes))


def _next_separators(old: ZarrReader, keys: Keys) -> tuple[str, str]:
    """Return the separators of the chunk keys, of layers and of small arrays, after the append.

    Those of the small arrays change, so that who has read the old root document finds what it speaks of. In a
    transaction nobody sees the one next to the other.
    """
    layers, small = old.separators()
    return layers, small if keys.transactional else "." if small == "/" else "/"


def _keys(path: Any) -> Keys:
    return DirectoryKeys(path) if is_local(path) else writable_keys(path)


def _check_grids(new: Structure, old: Structure, path: str) -> None:
    """Refuse if the arrays would be chunked in another way than the chunks that are there."""
    for spec, before in zip(new.layers, old.layers, strict=True):
        a, b = new.layer_metadata(spec), old.layer_metadata(before)
        if {**a, "shape": None, "attributes": None} != {**b, "shape": None, "attributes": None}:
            raise cannot_take(path, spec.name)


def _write(
    keys: Keys,
    structure: Structure,
    first: int,
    sources: Sequence[Reader],
    progress: Progress | None,
    renew: Callable[[], None],
) -> Iterator[tuple[int, ...]]:
    """Write the shards of the new images; yield their rows."""
    for i, image in new_images(sources, first, structure.meta.n_images, progress):
        shards, row = structure.encode(i, image)
        renew()
        for key, pieces in shards.items():
            keys.set_pieces(key, pieces)
        yield row


def _document_key(name: str) -> str:
    return f"{name}/zarr.json"


def _write_nodes(keys: Keys, nodes: Mapping[str, Any], *, durably: bool = False) -> None:
    write = keys.set_durably if durably else keys.set
    for name, node in nodes.items():
        write(_document_key(name), to_json(node))


def _switch(keys: Keys, structure: Structure, rows: NDArray[np.uint32], version: str | None) -> None:
    """Write the small arrays, make all durable, then replace the root document of this version in one step."""
    small = structure.arrays(rows)
    nodes = structure.nodes(small, {})
    if keys.transactional:
        _write_nodes(keys, nodes)
    for spec in small:
        key, chunk = structure.small_chunk(spec)
        if chunk is not None:
            keys.set(key, chunk)
    if isinstance(keys, DirectoryKeys):
        keys.settle()
        sync_tree(Path(keys.root))
    document = structure.document(None, small[-1])
    root = to_json(structure.root(document, nodes))
    if keys.transactional or isinstance(keys, DirectoryKeys):
        keys.set_durably("zarr.json", root)
    elif not keys.set_if("zarr.json", root, version):
        raise replaced(keys.name)
    if not keys.transactional:
        _write_nodes(keys, nodes)
    # The original FITS files are not those of this content any more.
    keys.delete_below("fits/")
    if isinstance(keys, DirectoryKeys):
        try:
            keys.settle()
            sync_tree(Path(keys.root))
        except OSError as error:
            raise WuStoreError("the images are appended, but may not be durable yet", path=keys.name) from error
