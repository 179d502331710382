"""The files being written: one, or a sharded set; invisible until `commit`, compressed if the name says so."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from wustore.backends.fits.files.container import repack_outer
from wustore.backends.fits.files.open_files import shard_name
from wustore.errors import StoreExistsError
from wustore.storage.files import sync
from wustore.storage.staging import ASIDE, INNER, Staging, leftovers, remove, sync_tree, take_mode

__all__ = ["Output"]

_STEP = 1 << 20
_SYNC_STEP = 16 << 20
"""Bytes after which the system is asked to begin writing."""

_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zip": "zip"}
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""Clock in zip files: a fixed one, so that the same WorkUnit gives the same file."""


_NAMES = ".names"
"""In the directory of what is set aside of a set: the names of the ``old`` and of the ``new`` files, as a JSON object,
written before the first is moved."""


def _names(aside: Path) -> tuple[set[str], set[str]] | None:
    """Return the names of the old and the new set; None if nothing was moved yet, or it is of something else."""
    try:
        names = json.loads((aside / _NAMES).read_text("utf-8"))
        return set(names["old"]), set(names["new"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _put_back(target: Path) -> None:
    """Put the files of a set back that a killed process had set aside, unless the new set is whole.

    Files of the new set that came without their primary one are removed.
    """
    asides = [left.path for left in leftovers(target) if left.kind == "set aside"] if target.parent.is_dir() else []
    for aside in asides:
        moved = [path for path in aside.iterdir() if path.name != _NAMES] if aside.is_dir() else [aside]
        names = _names(aside)
        if names is None:
            if not moved:
                remove(aside)  # killed before anything was moved
            continue  # of a single file or directory
        old, new = names
        if not os.path.lexists(target):  # the primary file leaves first and comes last
            for shard in _existing_shards(target):
                if shard.name in new - (old - {path.name for path in moved}):
                    shard.unlink()
            for path in sorted(moved, key=lambda path: path.name == target.name):
                path.replace(target.with_name(path.name))
            sync(target.parent)
        remove(aside)


def _existing_shards(primary: Path) -> list[Path]:
    """Return all shards of a set, however many; gaps do not end the search."""
    found = []
    for entry in os.scandir(primary.parent):
        index, _, rest = entry.name.partition("_")
        if rest == primary.name and index.isascii() and index.isdigit() and str(int(index)) == index:
            found.append(Path(entry.path))
    return sorted(found)


def _sync(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)


class Output:
    """The target of a writer.

    Parameters
    ----------
    path
        The file; of a sharded set the primary one.
    n_shards
        Files next to it; None for a single file.
    overwrite
        Whether existing files may be replaced, all that belong to the set.
    originals
        The files that these will be byte for byte once they are unpacked: entries of a capsule's document, by number.

    Attributes
    ----------
    repacked
        After `commit`, the names of files whose originals were compressed with other settings, or (under the same name)
        at all.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        n_shards: int | None = None,
        *,
        overwrite: bool = False,
        originals: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.n_files = 1 if n_shards is None else 1 + n_shards
        self.sharded = n_shards is not None
        if self.sharded:
            _put_back(Path(os.path.abspath(path)))  # noqa: PTH100 - as in `Staging`
        self._staging = Staging(path, overwrite=overwrite)
        self.target = self._staging.target
        self._originals = originals
        self.repacked: list[str] = []
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._unsynced = 0
        self._syncs: list[Future[None]] = []
        self._pool: ThreadPoolExecutor | None = None
        if self.sharded:
            self._check_shards()
            self._staging.make_directory()
        elif self._packing(0) is None:
            self._file = self._staging.path.open("w+b")
            self._staging.protect()
        else:
            self._file = self._inner(0).open("w+b")

    def _check_shards(self) -> None:
        shards = _existing_shards(self.target)
        if shards and not self._staging.overwrite:
            raise StoreExistsError(
                "shards of a set of this name exist already",
                path=self.target,
                found=", ".join(shard.name for shard in shards[:3]),
                hint="Choose another name or directory, or overwrite it (--overwrite, overwrite=True).",
            )

    def name(self, number: int) -> str:
        """Return the final name of a file."""
        return self.target.name if number == 0 else shard_name(self.target.name, number - 1)

    def _original(self, number: int) -> tuple[bool, Mapping[str, Any]]:
        """Return whether a file gets its original's name, and how that was compressed (empty: it was not)."""
        if number >= len(self._originals):
            return False, {}
        original = self._originals[number]
        outer = original.get("outer")
        return original.get("name") == self.name(number), outer if isinstance(outer, Mapping) else {}

    def _packing(self, number: int) -> str | None:
        """Return how a file is compressed as a whole: as its name says, but the original's name gives the original."""
        same_name, outer = self._original(number)
        if same_name and not outer:
            return None
        if same_name and outer.get("exact"):
            return str(outer.get("format"))
        return _SUFFIXES.get(Path(self.name(number)).suffix.lower())

    def _inner(self, number: int) -> Path:
        """Return where the uncompressed file is built."""
        if self.sharded:
            return self._staging.path / self.name(number)
        path = self._staging.path
        return path if self._packing(0) is None else path.with_name(path.name + INNER)

    @property
    def path(self) -> str:
        """Where the uncompressed (primary) file is being built."""
        return str(self._inner(0))

    def write_at(self, number: int, offset: int, *pieces: bytes | memoryview) -> int:
        """Write pieces one after another from an offset of a file; return the offset behind them."""
        if self._file is not None:
            with self._lock:
                self._file.seek(offset)
                self._file.writelines(pieces)
                end = self._file.tell()
                self._sync_ahead(end - offset)
                return end
        path = self._inner(number)
        with self._lock, path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(offset)
            file.writelines(pieces)
            return file.tell()

    def _sync_ahead(self, size: int) -> None:
        """Let the disk work while images are still being encoded: then `commit` has little to wait for."""
        self._unsynced += size
        if self._unsynced < _SYNC_STEP or not all(sync.done() for sync in self._syncs):
            return
        self._unsynced = 0
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="wustore-sync")
        assert self._file is not None
        self._syncs.append(self._pool.submit(_sync, self._file.fileno()))

    def _synced(self) -> None:
        """Wait for the disk; raise what it reported."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        for pending in self._syncs:
            pending.result()

    def read_at(self, number: int, offset: int, size: int) -> bytes:
        """Read what was written."""
        with self._lock:
            if self._file is not None:
                self._file.flush()
            with self._inner(number).open("rb") as file:
                file.seek(offset)
                return file.read(size)

    def flush(self) -> None:
        """Let other readers of `path` see what was written."""
        if self._file is not None:
            self._file.flush()

    def sha256(self, number: int) -> str:
        """Return the digest of an uncompressed file as written so far."""
        self.flush()
        with self._inner(number).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    # --- whole-file compression -------------------------------------------------------------------

    def _compress(self, number: int, source: Path, to: Path) -> None:
        packing = self._packing(number)
        same_name, outer = self._original(number)
        if outer and (same_name or outer.get("format") == packing):
            if outer.get("exact"):
                content = repack_outer(outer, source.read_bytes())
                if hashlib.sha256(content).hexdigest() == outer.get("sha256"):
                    to.write_bytes(content)
                    return
            self.repacked.append(self.name(number))
        if packing is None:
            source.replace(to)
            return
        with source.open("rb") as inner:
            if packing == "gzip":
                with to.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                    shutil.copyfileobj(inner, packed, _STEP)
            elif packing == "bzip2":
                with bz2.open(to, "wb") as packed:
                    shutil.copyfileobj(inner, packed, _STEP)
            else:
                member = zipfile.ZipInfo(self.name(number)[: -len(".zip")], _EARLIEST)
                member.compress_type = zipfile.ZIP_DEFLATED
                with zipfile.ZipFile(to, "w") as archive, archive.open(member, "w", force_zip64=True) as packed:
                    shutil.copyfileobj(inner, packed, _STEP)

    # --- the end ----------------------------------------------------------------------------------

    def commit(self) -> None:
        """Compress, make durable, and let the files appear: of a set the primary one last."""
        self._synced()
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self.sharded:
            inner = self._inner(0)
            self._compress(0, inner, self._staging.path)
            if inner != self._staging.path:
                inner.unlink()
            self._staging.commit()
            return
        for number in range(self.n_files):
            inner = self._inner(number)
            packed = inner.with_name(f"{inner.name}.packed")
            self._compress(number, inner, packed)
            packed.replace(inner)
        sync_tree(self._staging.path)
        self._move_in()

    def _move_in(self) -> None:
        """Set the old set aside (primary first, so that no mixture ever opens), move the new one in (primary last)."""
        aside = self._staging.path.with_name(self._staging.path.name + ASIDE)
        old = [self.target, *_existing_shards(self.target)]
        old = [path for path in old if os.path.lexists(path)]
        if old and not self._staging.overwrite:
            self._check_shards()
            raise StoreExistsError(
                "the target exists already",
                path=self.target,
                hint="Choose another name, or overwrite it (--overwrite, overwrite=True).",
            )
        moved: list[Path] = []
        try:
            aside.mkdir()
            names = {"old": [path.name for path in old], "new": [self.name(number) for number in range(self.n_files)]}
            (aside / _NAMES).write_text(json.dumps(names))
            sync_tree(aside)
            for path in old:
                path.rename(aside / path.name)
            for number in range(self.n_files - 1, -1, -1):
                new = self.target.with_name(self.name(number))
                if old:
                    was = aside / new.name
                    take_mode(self._inner(number), was if was.exists() else aside / old[0].name)
                self._inner(number).rename(new)
                moved.append(new)
            sync(self.target.parent)
        except BaseException:
            # On a failing disk some of this may fail, too: then the next writer does it (`_put_back`).
            with contextlib.suppress(OSError):
                for path in moved:
                    path.unlink(missing_ok=True)
                for path in reversed(old):
                    if (aside / path.name).exists():
                        (aside / path.name).rename(path)
                (aside / _NAMES).unlink(missing_ok=True)
                aside.rmdir()
            raise
        remove(self._staging.path)
        remove(aside)

    def abort(self) -> None:
        """Drop everything."""
        with contextlib.suppress(OSError):
            self._synced()
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # on a full disk the last buffer cannot be written even now
                file.close()
        if not self.sharded and self._packing(0) is not None:
            self._inner(0).unlink(missing_ok=True)
        self._staging.abort(keep=False)
