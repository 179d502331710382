"""FITS -> (pixels, metadata, capsule) -> FITS in memory, and what the capsule did for it."""

from __future__ import annotations

import warnings
from pathlib import Path

from in_memory import in_memory

from wustore.backends.fits import capsule as leftovers
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.memory import MemoryReader
from wustore.ops.copy import copy


def again(path: Path, tmp_path: Path, *, sharded: bool = False) -> MemoryReader:
    """Import and export, compare bytes; return what was held in between."""
    backend = ShardedFitsBackend() if sharded else FitsBackend()
    with backend.open(str(path)) as reader:
        store = in_memory(reader)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    target = out / path.name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy(store, backend.create(str(target), store.meta, capsule=store.capsule(), overwrite=True))
    names = [path.name]
    if sharded:
        names += [f"{i}_{path.name}" for i in range(store.meta.n_images)]
    for name in names:
        assert (out / name).read_bytes() == (path.parent / name).read_bytes(), name
    return store


def methods(store: MemoryReader) -> dict[str, str]:
    """Return by which method each HDU comes back, kept tiles and patches marked."""
    capsule = store.capsule()
    assert capsule is not None
    template = leftovers.Head.decode(capsule.head).template
    found = {}
    for i in range(store.meta.n_images):
        control, _ = leftovers._decode(leftovers._PIECE, store.image_capsule(i) or b"", template)
        for entry in control["hdus"]:
            marks = "+patch" * ("patch" in entry) + "+tiles" * ("kept" in entry.get("with", {}))
            found[entry["name"]] = entry["method"] + marks
    return found
