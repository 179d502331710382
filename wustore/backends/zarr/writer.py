"""Writing a store: whole shards image by image, the metadata last."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wustore.backends.base import ResumableWriter
from wustore.backends.zarr.capsule import DATA, bound_spec, data_metadata, write_data
from wustore.backends.zarr.encoder import Structure
from wustore.backends.zarr.filters.blocks import prepare
from wustore.backends.zarr.filters.decode import Bytes
from wustore.backends.zarr.metadata import SEPARATOR, separator_of, to_json
from wustore.errors import CorruptError, StoreExistsError, UsageError
from wustore.format.arrays import ArraySpec
from wustore.format.document import NAMES
from wustore.format.packed import pack
from wustore.format.tagged_json import parse
from wustore.model.checksum import crc32c, crc32c_of
from wustore.model.meta import LAYERS, Capsule, Image
from wustore.storage.buffers import Spool
from wustore.storage.journal import JOURNAL, REPLACES, Entry, Journal, check_complete
from wustore.storage.locks import Claim
from wustore.storage.staging import Staging, retire, sync_tree
from wustore.storage.stores import exists
from wustore.storage.threads import worker_count
from wustore.storage.zarr_store import DirectoryKeys, Keys
from wustore.storage.zip import pack_directory

__all__ = [
    "DirectoryTarget",
    "Options",
    "StoreTarget",
    "Target",
    "TransactionTarget",
    "ZarrWriter",
    "ZipTarget",
    "options_from",
]


@dataclass(frozen=True)
class Options:
    """How to write.

    Attributes
    ----------
    profile, layout
        Names; see `wustore.backends.zarr.presets`.
    chunks
        Shape (y, x) of the inner chunks, instead of the layout's.
    workers
        Threads that encode, the number of processors by default. The bytes do not depend on it.
    resume
        Keep what is written under a fixed name until it is whole, and go on from what is there.
    fingerprint
        What the images come from: a conversion is only resumed with the same one.
    """

    profile: str = "compact"
    layout: str = "images"
    chunks: Sequence[int] | None = None
    workers: int | None = None
    resume: bool = False
    fingerprint: str | None = None


class Target(ABC):
    """Where the keys are written to, and how they become the store.

    Attributes
    ----------
    keys
        To write to.
    separators
        Of the chunk keys there, of layers and of small arrays.
    replaces
        CRC-32C of the root document of the store that stays until the new one appears, if there is one.
    """

    keys: Keys

    separators: tuple[str, str] = (SEPARATOR, SEPARATOR)
    replaces: int | None = None

    def check_alone(self, *, now: bool = False) -> None:  # noqa: B027 - most write where nobody else does
        """Check that nobody else has begun to write here, ``now`` or if the last time was long ago."""

    def leave(self) -> None:  # noqa: B027 - most hold nothing
        """Leave what is there as it is: it belongs to another conversion."""

    def switch(self, root: bytes, documents: Mapping[str, bytes]) -> None:
        """Write the metadata documents by key, and last of all the root: without it nothing opens as a store."""
        for key, document in documents.items():
            self.keys.set(key, document)
        if root:
            self.keys.set("zarr.json", root)

    @abstractmethod
    def publish(self, journal: Journal | None) -> None:
        """Let the finished store appear, without its journal (None: it has none)."""

    @abstractmethod
    def discard(self) -> None:
        """Remove what was written."""


class DirectoryTarget(Target):
    """A directory written next to its place."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        staging.make_directory()
        self._directory = DirectoryKeys(staging.path, str(staging.target))
        self.keys = self._directory

    def publish(self, journal: Journal | None) -> None:
        """Make it durable and move it to its place.

        One that can be resumed takes its journal along: so a conversion that is killed here is either unfinished or
        has a store with a journal, which is finished (`wustore.ops.run_parts` removes that journal then).
        """
        staging = self.staging
        self._directory.settle()
        self._directory.sweep()
        if journal is not None:
            if not journal.is_sealed():
                sync_tree(staging.path)  # what is sealed is not looked at again, not even after a power failure
            journal.seal()
        staging.commit()
        if journal is not None:
            retire(staging.target / JOURNAL, staging.target)

    def discard(self) -> None:
        """Remove the directory, unless it is kept for a resume."""
        with contextlib.suppress(OSError):
            self._directory.settle()
        self.staging.abort()


class ZipTarget(DirectoryTarget):
    """A directory that is packed into one file at the end, so that the bytes do not depend on the order of writing."""

    def publish(self, journal: Journal | None) -> None:
        """Pack it into a file next to it, and move that to its place."""
        directory, target = self.staging.path, self.staging.target
        self._directory.settle()
        self._directory.sweep()
        try:
            file = Staging(target, overwrite=self.staging.overwrite)
        except StoreExistsError:
            # A process that was killed right after the last step let it appear, if it has these bytes.
            whole = directory / f"{JOURNAL}whole.zip"
            pack_directory(directory, whole, without=JOURNAL)
            if not target.is_file() or not filecmp.cmp(whole, target, shallow=False):
                raise
        else:
            with file:
                pack_directory(directory, file.path, without=JOURNAL)
        retire(directory, target)


class StoreTarget(Target):
    """A URL or zarr Store: nothing can be renamed there, so one write of the root document makes the store appear.

    What is replaced stays whole until then: the new chunks have keys with the other separator. Two that write at a time
    are kept apart by a claim, and by the root document, which is only written if it is still the one that was there.

    Parameters
    ----------
    keep
        What is written is kept for a resume. Several processes write the same then, and the journal keeps others away.
    """

    def __init__(self, keys: Keys, *, overwrite: bool, keep: bool) -> None:
        self.keys = keys
        self._keep = keep
        self._claim = Claim(keys)
        if keep:
            self._claim.refuse_others()
        else:
            self._claim.take()
        try:
            found = keys.versioned("zarr.json")
            self._version = None if found is None else found[1]
            if found is not None:
                if not overwrite:
                    raise exists(keys.name)
                self.separators = _free_separators(keys, found[0])
                self.replaces = crc32c(found[0])
            if not Journal(keys).has_begun():
                keys.delete_all(self._remains() if found is not None else self._all())
        except BaseException:
            self.leave()
            raise

    def _all(self) -> list[str]:
        return [key for key in self.keys.list("") if key.partition("/")[0] in NAMES]

    def _remains(self) -> list[str]:
        """Return the keys that only the new store uses."""
        return [key for key in self.keys.list("") if self._is_new(key)]

    def _is_new(self, key: str) -> bool:
        match = _CHUNK.fullmatch(key)
        return match is not None and match[2] == self.separators[0 if match[1] in {*LAYERS, DATA} else 1]

    def check_alone(self, *, now: bool = False) -> None:
        """Check that the claim is still held, and say so again; see `Target.check_alone`."""
        if not self._keep:
            self._claim.renew(now=now)

    def switch(self, root: bytes, documents: Mapping[str, bytes]) -> None:
        """Let the store appear, in the place of another one if there is one."""
        if self.replaces is None:
            super().switch(b"", documents)
        self.check_alone(now=True)
        if not self.keys.set_if("zarr.json", root, self._version):
            raise StoreExistsError(
                "another process has written a store to this place meanwhile",
                path=self.keys.name,
                hint="Open what is there; or write again, to another name or with --overwrite.",
            )
        if self.replaces is not None:
            super().switch(b"", documents)
            self.keys.delete_all([key for key in self._all() if not (key in documents or self._is_of(key, documents))])

    def _is_of(self, key: str, documents: Mapping[str, bytes]) -> bool:
        """Return whether a key is a chunk of the new store."""
        name = key.removesuffix("/c") if key.endswith("/c") else ""
        match = _CHUNK.fullmatch(key)
        if match is not None and self._is_new(key):
            name = match[1]
        return f"{name}/zarr.json" in documents

    def publish(self, journal: Journal | None) -> None:
        """Drop the journal: the root document stands."""
        if journal is not None:
            journal.drop()
        self.leave()

    def leave(self) -> None:
        """Give the claim back."""
        if not self._keep:
            self._claim.release()

    def discard(self) -> None:
        """Remove what was written, unless it is kept for a resume, or another process has taken over."""
        if self._keep or not self._claim.is_held():
            return
        found = self.keys.versioned("zarr.json")
        if (None if found is None else found[1]) != self._version:
            # The new store stands, though an error came after that: nothing of it may go, and the next writer removes
            # what is left of the old one.
            self._claim.leave()
            return
        try:
            self.keys.delete_all(self._all() if self.replaces is None else self._remains())
        finally:
            self.leave()


_CHUNK = re.compile(r"(.+)/c([./])[0-9./]+")
"""Keys of chunks: the array and the separator."""


def _free_separators(keys: Keys, root: bytes) -> tuple[str, str]:
    """Return separators of chunk keys, of layers and of small arrays, that the store there does not use."""
    try:
        nodes = parse(root)["consolidated_metadata"]["metadata"]
        used = separator_of(nodes["science"]), separator_of(nodes["time"])
    except (CorruptError, KeyError, TypeError):  # a damaged store
        slashes = any(key.startswith("science/c/") for key in keys.list("science/"))
        used = ("/", "/") if slashes else (".", ".")
    return "." if used[0] == "/" else "/", "." if used[1] == "/" else "/"


class TransactionTarget(Target):
    """A store in a transaction: nobody sees it before whoever gave the store commits it.

    What is there already is replaced key by key, so that the source may be the same store, read image by image.
    """

    separators = ("/", "/")

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        keys.begin()

    def publish(self, journal: Journal | None) -> None:
        """Do nothing: the commit is not ours."""

    def discard(self) -> None:
        """Go back to what was there."""
        self.keys.undo()


class ZarrWriter(ResumableWriter):
    """A Zarr store being written."""

    def __init__(self, target: Target, structure: Structure, capsule: Capsule | None, options: Options) -> None:
        self._target = target
        self._keys = target.keys
        self._structure = structure
        self._meta = structure.meta
        self._capsule = capsule
        self.keeps_capsule = capsule is not None
        self._options = options
        self._workers = options.workers
        prepare(sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in structure.layers))
        self._kept = _Journaled(self._keys, self._plan()) if options.resume else _Remembered(self._keys.name)
        self._declare({spec.name: structure.layer_metadata(spec) for spec in structure.layers})

    def _declare(self, nodes: Mapping[str, Any]) -> None:
        """Write the documents of arrays before their chunks in a transaction; elsewhere others would see them."""
        if self._keys.transactional:
            for name, node in nodes.items():
                self._keys.set(f"{name}/zarr.json", to_json(node))

    def _plan(self) -> dict[str, Any]:
        """Return what is written, and from what: only the same conversion is resumed."""
        structure, capsule = self._structure, self._capsule
        return {
            "document": structure.document(None if capsule is None else capsule.document),
            "fingerprint": self._options.fingerprint,
            "arrays": crc32c(pack(structure.small).data.tobytes()),
            "bound": True,
            "layers": {spec.name: structure.layer_metadata(spec) for spec in structure.layers},
            "capsule_head": None if capsule is None else crc32c(capsule.head),
        } | ({} if self._target.replaces is None else {REPLACES: self._target.replaces})

    # --- images -------------------------------------------------------------------------------------------

    def is_written(self, i: int) -> bool:
        """Return whether image ``i`` is there and whole: its bytes are read and compared with their checksums."""
        return self._kept.is_written(i)

    def write(self, i: int, image: Image, capsule: bytes | None = None) -> None:
        """Write an image; the same image written twice, by whomever, gives the same bytes."""
        shards, row = self._structure.encode(i, image, self._workers)
        self._target.check_alone()
        for key, pieces in shards.items():
            self._keys.set_pieces(key, pieces)
        self._kept.add(i, row, shards, capsule or b"" if self._capsule is not None else b"")

    # --- the end ------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Write the metadata, and let the store appear."""
        journal = self._kept.journal
        if journal is None or not journal.is_sealed():
            self._write_metadata()
        self._target.publish(journal)
        self._kept.close()

    def _write_metadata(self) -> None:
        self._target.check_alone(now=True)
        structure, others = self._structure, dict[str, Any]()
        small = structure.arrays(np.array(self._kept.finish(self._meta.n_images), np.uint32))
        capsule = self._capsule
        document = structure.document(None if capsule is None else capsule.document, small[-1])
        if capsule is not None:
            small.append(self._write_capsule(capsule, others))
        nodes = structure.nodes(small, others)
        self._declare(nodes)
        for spec in small:
            key, chunk = structure.small_chunk(spec)
            if chunk is not None:
                self._keys.set(key, chunk)
        root = to_json(structure.root(document, nodes))
        self._target.switch(root, {f"{name}/zarr.json": to_json(node) for name, node in nodes.items()})
        self._keys.retain(nodes)

    def _write_capsule(self, capsule: Capsule, nodes: dict[str, Any]) -> ArraySpec:
        images = range(self._meta.n_images)
        sizes = [len(capsule.head), *(self._kept.piece_size(i) for i in images)]
        total = sum(sizes)
        separator = self._structure.separators[0]
        nodes[DATA] = data_metadata(total, separator)
        self._declare({DATA: nodes[DATA]})
        write_data(self._keys, total, itertools.chain([capsule.head], map(self._kept.piece, images)), separator)
        return bound_spec(sizes)

    def abort(self) -> None:
        """Drop what was written; a conversion that can be resumed keeps it."""
        self._kept.close()
        self._target.discard()


class _Remembered:
    """What was written of each image, known to this process only."""

    journal: Journal | None = None

    def __init__(self, path: str) -> None:
        self._path = path
        self._rows: dict[int, tuple[int, ...]] = {}
        self._pieces = Spool()

    def is_written(self, i: int) -> bool:
        return i in self._rows

    def add(self, i: int, row: tuple[int, ...], shards: Mapping[str, Sequence[Bytes]], piece: bytes) -> None:
        if piece:
            self._pieces.add(i, piece)
        self._rows[i] = row

    def finish(self, n_images: int) -> list[tuple[int, ...]]:
        """Return the rows of all images; see `Structure.encode`."""
        check_complete(self._path, [i in self._rows for i in range(n_images)])
        return [self._rows[i] for i in range(n_images)]

    def piece_size(self, i: int) -> int:
        return self._pieces.size(i)

    def piece(self, i: int) -> bytes:
        return self._pieces.get(i)

    def close(self) -> None:
        self._pieces.close()


class _Journaled:
    """What was written of each image, recorded in the store for other processes."""

    def __init__(self, keys: Keys, plan: Mapping[str, Any]) -> None:
        self._keys = keys
        self.journal = Journal(keys)
        self.journal.begin(plan)
        self._entries: list[Entry] = []

    def is_written(self, i: int) -> bool:
        return self.journal.is_sealed() or self.journal.is_whole(i)

    def add(self, i: int, row: tuple[int, ...], shards: Mapping[str, Sequence[Bytes]], piece: bytes) -> None:
        values = dict(shards)
        if piece:
            key = self.journal.capsule_key(i)
            self._keys.set(key, piece)
            values[key] = [piece]
        written = {key: (sum(map(len, pieces)), crc32c_of(pieces)) for key, pieces in values.items()}
        self.journal.record(i, Entry(written, row))

    def finish(self, n_images: int) -> list[tuple[int, ...]]:
        self._entries = self.journal.inventory(n_images)
        return [entry.checksums for entry in self._entries]

    def piece_size(self, i: int) -> int:
        return self._entries[i].written.get(self.journal.capsule_key(i), (0, 0))[0]

    def piece(self, i: int) -> bytes:
        return self.journal.value(i, self._entries[i], self.journal.capsule_key(i)) if self.piece_size(i) else b""

    def close(self) -> None:
        pass


def options_from(options: Mapping[str, Any]) -> Options:
    """Return checked options."""
    known = Options.__dataclass_fields__
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise UsageError("unknown options", where="zarr", expected=", ".join(known), found=", ".join(unknown))
    chosen = Options(**options)
    worker_count(chosen.workers)  # refuses what is no number of workers
    return chosen
