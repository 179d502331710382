"""What a conversion has written so far: one small document per image, so that it can be resumed or shared.

Below ``.wustore-journal/`` of an unfinished store: ``plan.json`` says what is being written, and
``images/<i>.json`` is written when image i is whole, with size and CRC-32C of each of its shards, and a CRC-32C of its
own. ``sealed`` takes their place when the store has only to appear. The journal is dropped when the store is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wustore.errors import CorruptError, IncompleteError, UsageError
from wustore.model.checksum import crc32c
from wustore.storage.zarr_store import Keys

__all__ = ["JOURNAL", "REPLACES", "Entry", "Journal", "check_complete"]

JOURNAL = ".wustore-journal/"
REPLACES = "replaces"
"""Member of a plan: CRC-32C of the root document of the store that stays until the new one appears."""

_IMAGES = f"{JOURNAL}images/"
_WRITE_AGAIN = "Run the conversion again with --resume, or the image's part: it is written again."


@dataclass(frozen=True)
class Entry:
    """What was written of one image.

    Attributes
    ----------
    written
        Key to (size, CRC-32C) of every value.
    checksums
        CRC-32C of each plane, in the order of `wustore.model.meta.LAYERS`; none if the values hold them.
    """

    written: Mapping[str, tuple[int, int]]
    checksums: tuple[int, ...] = ()


def sealed_text(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON with a checksum over the rest, in the order of its keys."""
    text = json.dumps(dict(document))
    return json.dumps({"crc32c": crc32c(text.encode()), **document}).encode()


def unsealed(text: bytes) -> dict[str, Any]:
    """Return the document of `sealed_text` without its checksum.

    Raises
    ------
    ValueError
        If it is no such document, or was changed.
    """
    try:
        document = json.loads(text)
        checksum = document.pop("crc32c")
    except (RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError("not a document with a checksum") from error
    if checksum != crc32c(json.dumps(document).encode()):
        raise ValueError("the checksum does not match")
    return dict(document)


class Journal:
    """The journal of a store being written.

    Parameters
    ----------
    keys
        The unfinished store.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._plan: int | None = None

    def has_begun(self) -> bool:
        """Return whether something is being written here."""
        return self._keys.size(f"{JOURNAL}plan.json") is not None

    def replaces(self, root: bytes) -> bool:
        """Return whether what is being written here is to take the place of the store with this root document."""
        try:
            plan = json.loads(self._keys.get(f"{JOURNAL}plan.json") or b"{}")
        except ValueError:
            return False
        return isinstance(plan, dict) and plan.get(REPLACES) == crc32c(root)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Record what is to be written, or join a conversion that has the same plan.

        Raises
        ------
        UsageError
            If another conversion has been started here.
        """
        text = json.dumps(plan, sort_keys=True).encode()  # ASCII: names of files may hold bytes that are no text
        self._plan = crc32c(text)
        key = f"{JOURNAL}plan.json"
        found = self._keys.get(key)
        if found is None and not self._keys.set_if(key, text, None):
            found = self._keys.get(key)  # another process began at the same time
        if found is not None and found != text:
            raise UsageError(
                "an unfinished conversion of something else, or with other options, stands here",
                path=self._keys.name,
                found=_difference(found, plan),
                hint="Finish it with the options it was started with, or remove it (wustore clean --unfinished) "
                "and start again.",
            )

    def capsule_key(self, i: int) -> str:
        """Return the key that holds the FITS reconstruction data of image ``i`` until the end."""
        return f"{_IMAGES}{i}.capsule"

    def record(self, i: int, entry: Entry) -> None:
        """Record that image ``i`` is whole."""
        document = {
            "plan": self._plan,
            "image": i,
            "written": {key: list(value) for key, value in entry.written.items()},
            "checksums": list(entry.checksums),
        }
        self._keys.set(f"{_IMAGES}{i}.json", sealed_text(document))

    def entry(self, i: int) -> Entry | None:
        """Return what was recorded of image ``i``; None if nothing (whole) was, or if it was for another plan.

        A process that still works for a conversion that is finished, or removed, may write when the next one has begun.
        """
        text = self._keys.get(f"{_IMAGES}{i}.json")
        if text is None:
            return None
        try:
            document = unsealed(text)
            if document["plan"] != self._plan or document["image"] != i:
                return None
            written = {key: (int(size), int(crc)) for key, (size, crc) in document["written"].items()}
            return Entry(written, tuple(map(int, document["checksums"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def recorded(self, n_images: int) -> set[int]:
        """Return the images that something is recorded of; all if nothing but the store's appearance is missing."""
        if self.is_sealed():
            return set(range(n_images))
        names = {key.removeprefix(_IMAGES) for key in self._keys.list(_IMAGES)}
        return {i for i in range(n_images) if f"{i}.json" in names}

    def is_whole(self, i: int) -> bool:
        """Return whether image ``i`` was recorded and all its bytes are still what was written."""
        entry = self.entry(i)
        if entry is None:
            return False
        for key, (size, crc) in entry.written.items():
            value = self._keys.get(key)
            if value is None or len(value) != size or crc32c(value) != crc:
                return False
        return True

    def value(self, i: int, entry: Entry, key: str) -> bytes:
        """Return a value of image ``i``.

        Raises
        ------
        CorruptError
            If it is not what was written.
        """
        value = self._keys.get(key)
        if value is None or entry.written.get(key) != (len(value), crc32c(value)):
            raise CorruptError(
                "an image is not as it was written", path=self._keys.name, where=f"image {i}, {key}", hint=_WRITE_AGAIN
            )
        return value

    def inventory(self, n_images: int) -> list[Entry]:
        """Return the entries of all images after checking that every value is there in its size."""
        entries = [self.entry(i) for i in range(n_images)]
        check_complete(self._keys.name, [entry is not None for entry in entries])
        whole = [entry for entry in entries if entry is not None]
        for i, entry in enumerate(whole):
            for key, (size, _) in entry.written.items():
                found = self._keys.size(key)
                if found != size:
                    raise CorruptError(
                        "a part that was written is not there any more",
                        path=self._keys.name,
                        where=f"image {i}, {key}",
                        expected=f"{size} bytes",
                        found="none" if found is None else found,
                        hint=_WRITE_AGAIN,
                    )
        return whole

    def seal(self) -> None:
        """Note that the store is whole and durable, and forget the images: it has only to appear.

        Afterwards little is left to remove: a store that has appeared should be finished, and its process with it.
        """
        self._keys.set(f"{JOURNAL}sealed", b"")
        self._keys.delete_below(_IMAGES)

    def is_sealed(self) -> bool:
        """Return whether nothing but the store's appearance is missing."""
        return self._keys.size(f"{JOURNAL}sealed") is not None

    def drop(self) -> None:
        """Remove the journal."""
        # First what says that there is something to go on with: if a process is killed here, the rest says nothing.
        self._keys.delete(f"{JOURNAL}job.json")
        self._keys.delete_below(JOURNAL)


def check_complete(path: str, written: Sequence[bool]) -> None:
    """Make sure that every image was written."""
    missing = [str(i) for i, is_there in enumerate(written) if not is_there]
    if missing:
        raise IncompleteError(
            "not every image was written",
            path=path,
            expected=f"{len(written)} images",
            found=f"{len(written) - len(missing)}; missing: {', '.join(missing[:10])}{' …' * (len(missing) > 10)}",
        )


def _difference(found: bytes, plan: Mapping[str, Any]) -> str:
    try:
        other = json.loads(found)
        keys = sorted(key for key in {*other, *plan} if other.get(key) != plan.get(key))
    except (ValueError, AttributeError, TypeError):
        return "an unreadable plan"
    return f"a different {', '.join(keys)}"
