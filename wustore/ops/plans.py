"""The plan of a conversion in pieces: what it does, as a document beside its target.

It stands in ``.wustore-journal/job.json`` of the unfinished store, the head of the FITS reconstruction data beside it.
It has a checksum, and does not name the target: it is for the place where it is found, also after it was moved there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

from wustore.errors import CorruptError, IncompleteError, UsageError, WuStoreError
from wustore.model.meta import Capsule
from wustore.storage.journal import JOURNAL, Journal, sealed_text, unsealed
from wustore.storage.staging import partial_path, retire
from wustore.storage.stores import is_local, writable_keys
from wustore.storage.url import redact
from wustore.storage.zarr_store import DirectoryKeys, Keys

__all__ = ["Job", "absolute", "check_same", "has_begun", "keys_of", "load_plan", "refuse_secrets", "save_plan"]

_JOB = f"{JOURNAL}job.json"
_CAPSULE = f"{JOURNAL}capsule.bin"


@dataclass(frozen=True)
class Job:
    """What a resumable conversion does.

    Attributes
    ----------
    source, source_format
        Where the images come from; an absolute path, or a URL.
    target, format
        Where the store will appear.
    options
        Of the target's backend.
    overwrite
        Whether a store at the target may be replaced.
    keep_capsule
        Whether FITS leftovers are kept, where there are any.
    capsule
        The capsule's document, or None where there is none, or it is not kept.
    n_images
        The number of images.
    parts
        Into how many parts a cluster job divides them.
    state
        Of the source (`wustore.backends.base.Reader.state`): a source that has changed is refused.
    """

    source: str
    source_format: str
    target: str
    format: str
    n_images: int
    state: str
    options: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    keep_capsule: bool = True
    capsule: Mapping[str, Any] | None = None
    parts: int = 1

    def images_of(self, k: int) -> range:
        """Return the images of part ``k``: neighbours, so that a part reads its source in one sweep.

        Raises
        ------
        UsageError
            Where there is no such part.
        """
        if not 0 <= k < self.parts:
            raise UsageError("no such part", path=self.target, expected=f"0 … {self.parts - 1}", found=k)
        return range(k * self.n_images // self.parts, (k + 1) * self.n_images // self.parts)


def keys_of(target: str, *, must_exist: bool = True) -> Keys:
    """Return the keys of the unfinished store for ``target``."""
    if not is_local(target):
        keys = writable_keys(target)
        done = keys.size("zarr.json") is not None
        if done:
            Journal(keys).drop()  # killed after the root document was written: it is finished
        if done and must_exist:
            raise _nothing_to_do(target, done=True)
        return keys
    place = partial_path(target)
    journal = Path(target, JOURNAL)
    if journal.is_dir() and Path(target, "zarr.json").exists():
        # Killed after the store took its place: it is finished, and what it took the place of may be left.
        retire(journal, Path(target))
        if place.is_dir() and not (place / _JOB).exists():
            retire(place, Path(target))
    if must_exist and not place.is_dir():
        raise _nothing_to_do(target, done=Path(target).exists())
    return DirectoryKeys(place, target)


def _nothing_to_do(target: str, *, done: bool) -> WuStoreError:
    return (UsageError if done else IncompleteError)(
        "there is no unfinished conversion to this target",
        path=target,
        found="a finished store" if done else None,
        hint="Nothing is left to do." if done else "Start it with wustore plan, or wustore convert --resume.",
    )


def has_begun(target: str) -> bool:
    """Return whether a conversion to ``target`` is planned and not finished."""
    return keys_of(target, must_exist=False).get(_JOB) is not None


def load_plan(target: str) -> tuple[Job, Capsule | None]:
    """Return the plan of the unfinished conversion to ``target``, and the FITS reconstruction data that it keeps.

    Raises
    ------
    IncompleteError, UsageError
        Nothing was planned, or it is finished.
    CorruptError
        The plan is damaged.
    """
    keys = keys_of(target)
    text = keys.get(_JOB)
    if text is None:
        raise _nothing_to_do(target, done=False)
    try:
        job = Job(target=absolute(target), **_checked(unsealed(text)))
    except (ValueError, TypeError) as error:
        raise CorruptError("the plan of a conversion is damaged", path=target, where=_JOB, found=error) from error
    if job.capsule is None:
        return job, None
    head = keys.get(_CAPSULE)
    if head is None:
        raise CorruptError("the plan of a conversion lacks its capsule", path=target, where=_CAPSULE)
    return job, Capsule(job.capsule, head)


def check_same(found: Job, wanted: Job, target: str) -> None:
    """Refuse to go on with a conversion of something else."""
    place = f"{partial_path(target).name} beside the target" if is_local(target) else "what is at the target"
    for name in ("source", "source_format", "format", "n_images", "options", "keep_capsule", "state"):
        left, right = getattr(found, name), getattr(wanted, name)
        if left != right:
            changed = name == "state"
            raise UsageError(
                "the source has changed since the conversion began"
                if changed
                else "an unfinished conversion of something else stands at this target",
                path=target,
                where=name,
                expected=None if changed else left,
                found=None if changed else right,
                hint=("Remove " if changed else "Go on as it was begun, or remove ") + f"{place} and start again.",
            )


def absolute(path: str) -> str:
    """Return a local path as an absolute one, a URL as it is."""
    return os.path.abspath(path) if is_local(path) else path  # noqa: PTH100 - links stay links


def save_plan(job: Job, capsule: Capsule | None = None) -> None:
    """Let a plan stand beside its target.

    Parameters
    ----------
    capsule
        The FITS reconstruction data that it names, if they are not there already.
    """
    keys = keys_of(job.target, must_exist=False)
    if capsule is not None:
        keys.set(_CAPSULE, capsule.head)
    # Keys in their order: HDF5 keeps that of the capsule's document.
    members = {name: value for name, value in asdict(job).items() if name != "target"}
    keys.set(_JOB, sealed_text(members))  # last: with this file the plan stands


_KINDS: dict[str, type | UnionType] = {
    "source": str,
    "source_format": str,
    "format": str,
    "n_images": int,
    "state": str,
    "options": dict,
    "overwrite": bool,
    "keep_capsule": bool,
    "capsule": dict | None,
    "parts": int,
}


def _checked(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a plan after making sure that each is of its kind; raises ValueError."""
    if plan.keys() != _KINDS.keys():
        raise ValueError(f"members {', '.join(plan)}")
    for name, kind in _KINDS.items():
        if not isinstance(plan[name], kind) or (kind is int and (plan[name] is True or plan[name] < 1)):
            raise ValueError(f"{name} is {plan[name]!r}"[:100])
    return plan


def refuse_secrets(*addresses: Any) -> None:
    """Refuse URLs that hold more than a place: what a plan stores is read by others.

    Raises
    ------
    UsageError
        If one has a user, a password, a query or a fragment.
    """
    for address in addresses:
        if isinstance(address, str) and not is_local(address) and redact(address) != address:
            raise UsageError(
                "a plan is stored, and this URL holds credentials or a query",
                path=redact(address),
                hint="Give credentials through the environment; or convert in one go, without a plan or --resume.",
            )
