"""Icechunk sessions: Zarr stores in which nothing that is written is seen before a commit.

A session of Icechunk holds nodes and chunks of a Zarr hierarchy and no other keys: no journal, no lock, no chunk of an
array whose metadata document is not there, and no chunk keys with another separator than a slash. Reading beyond the
end of a value ends in an error, or in a panic of its threads. Who gave the session commits it; wustore never does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from wustore.errors import UsageError
from wustore.storage.zarr_store import StoreKeys

__all__ = ["IcechunkKeys", "icechunk_name", "is_icechunk"]

T = TypeVar("T")

_KEY = re.compile(r"(?:(?!\.)[^/]+/)*(?:zarr\.json|c(?:/\d+)*)")
"""Keys of a Zarr hierarchy: documents of nodes, and chunks."""


def is_icechunk(store: Any) -> bool:
    """Return whether ``store`` is a Store of Icechunk."""
    package = sys.modules.get("icechunk")  # what is not imported has made no object
    return package is not None and isinstance(store, package.IcechunkStore)


def icechunk_name(store: Any) -> str:
    """Return what to call a session in messages and histories."""
    session = store.session
    branch = "" if session.branch is None else f" of branch {session.branch}"
    return f"icechunk snapshot {session.snapshot_id}{branch}"


class IcechunkKeys(StoreKeys):
    """The keys of an Icechunk session.

    Parameters
    ----------
    store
        ``session.store``.
    """

    by_request = True
    transactional = True

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.name = icechunk_name(store)

    @property
    def _session(self) -> Any:
        store: Any = self.store
        return store.session

    def _sync(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        from zarr.core.sync import sync

        try:
            return sync(work())
        except (KeyError, OSError, MemoryError):
            raise
        except Exception as error:  # IcechunkError, and panics of its threads, derive from nothing more
            text = _sentence(error)
            kind = FileNotFoundError if "not found" in text else OSError
            raise kind(f"{self.name}: {text}") from error

    def _has(self, key: str) -> bool:
        if _KEY.fullmatch(key) is None:
            return False
        try:
            return self._sync(lambda: self.store.exists(key))
        except FileNotFoundError:  # the snapshot itself is gone: Icechunk 1 finds no keys, 2 raises
            if key == "zarr.json":
                return False
            raise

    def get(self, key: str) -> bytes | None:
        """Return the value, or None; see `Keys.get`."""
        if _KEY.fullmatch(key) is None:
            return None
        try:
            return self._get(key, None)
        except OSError:
            if not self._has(key):  # that a node is missing is an error
                return None
            raise

    def get_tail(self, key: str, length: int) -> bytes | None:
        """Return the last bytes, or None; see `Keys.get_tail`."""
        size = self.size(key)
        found = None if size is None else self.get_ranges(key, [(max(size - length, 0), length)])
        return None if found is None else found[0]

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Return the bytes of each range, or None; see `Keys.get_ranges`."""
        size = self.size(key)
        if size is None:
            return None
        inside = [(min(start, size), max(min(length, size - start), 0)) for start, length in ranges]
        return super().get_ranges(key, inside)

    def size(self, key: str) -> int | None:
        """Return the length, or None; see `Keys.size`. The session knows it without a request for the value."""
        if _KEY.fullmatch(key) is None:
            return None
        try:
            size = self._sync(lambda: self.store.getsize(key))
        except (KeyError, FileNotFoundError):
            return None
        return size or (0 if self._has(key) else None)  # that of a missing chunk is 0, too

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below; see `Keys.list`."""
        return super().list(prefix) if not prefix or self._has(f"{prefix}zarr.json") else iter(())

    def delete(self, key: str) -> None:
        """Remove the key; see `Keys.delete`."""
        if self._has(key):
            super().delete(key)

    def delete_below(self, prefix: str) -> None:
        """Remove the keys below; see `Keys.delete_below`."""
        if not prefix:
            self._sync(self.store.clear)
        elif self._has(f"{prefix}zarr.json"):
            self.delete(f"{prefix}zarr.json")

    def check_pickles(self) -> None:
        """Check that other processes can open the store; see `Keys.check_pickles`."""
        if not self._session.read_only:
            raise UsageError(
                "a writable Icechunk session is not pickled: what it has not committed nobody else sees",
                path=self.name,
                hint="Open the store of a read-only one: repo.readonly_session(branch).store.",
            )

    # --- transactions -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to change the store; see `Keys.begin`."""
        session = self._session
        if session.read_only:
            raise UsageError(
                "the Icechunk session is read-only, or was committed",
                path=self.name,
                hint="Write to a new one: repo.writable_session(branch).",
            )
        if session.has_uncommitted_changes:
            raise UsageError(
                "the Icechunk session has changes that are not committed: an error could not take back its own alone",
                path=self.name,
                hint="Commit them first, or discard them; each save, append, drop or repack is a commit of its own.",
            )

    def undo(self) -> None:
        """Take back what was written since `begin`; see `Keys.undo`."""
        session = self._session
        if not session.read_only:
            session.discard_changes()

    def retain(self, nodes: Collection[str]) -> None:
        """Remove all nodes but these and the root; see `Keys.retain`."""
        ending = "/zarr.json"
        there = [key.removesuffix(ending) for key in self.list("") if key.endswith(ending)]
        for name in sorted(set(there) - set(nodes), reverse=True):
            self.delete(name + ending)


def _sentence(error: Exception) -> str:
    """Return what an error of Icechunk says, without the chain of calls that led to it."""
    lines = [line.strip(" \tx|`->") for line in str(error).splitlines()]
    text = [line for line in lines if line and not re.match(r"context:|\d+: |with |at ", line)]
    return "; ".join(dict.fromkeys(text)) or type(error).__name__
