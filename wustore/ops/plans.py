"""The plan of a conversion in pieces: made, kept as a document next to its target, and how much of it is done.

It is in ``.wustore-journal/job.json`` of the unfinished store, the head of the FITS reconstruction data next to it.
It has a checksum, and does not name the target: it is for the place where it is found, also after it was moved there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Any

from wustore.backends.base import Reader, ResumableWriter
from wustore.backends.registry import backend_for_writing, backend_named, open_reader
from wustore.errors import CorruptError, IncompleteError, UsageError, WuStoreError
from wustore.model.meta import Capsule
from wustore.ops.copy import refuse_loss, refuse_newer, refuse_others
from wustore.storage.journal import JOURNAL, Journal, sealed_text, unsealed
from wustore.storage.staging import Staging, check_target, partial_path, retire
from wustore.storage.stores import address_of, exists, is_local, name_of, writable_keys
from wustore.storage.url import options_of, redact, with_options_of
from wustore.storage.zarr_store import DirectoryKeys, Keys

__all__ = [
    "Job",
    "check_names",
    "discard",
    "has_begun",
    "keys_of",
    "load_plan",
    "parts_left",
    "plan",
    "progress_of",
    "started",
]

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
        Whether FITS reconstruction data are kept, if there are any.
    capsule
        The capsule's document, or None if there is none, or it is not kept.
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

        Parameters
        ----------
        k
            Which part, 0 <= k < parts.

        Raises
        ------
        UsageError
            If there is no such part.
        """
        if not 0 <= k < self.parts:
            raise UsageError("no such part", path=self.target, expected=f"0 … {self.parts - 1}", found=k)
        return range(k * self.n_images // self.parts, (k + 1) * self.n_images // self.parts)


def keys_of(target: str, *, must_exist: bool = True) -> Keys:
    """Return the keys of the unfinished store for ``target``."""
    if not is_local(target):
        keys = writable_keys(target)
        root = keys.get("zarr.json")
        done = root is not None and not Journal(keys).replaces(root)
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
        job = replace(job, source=with_options_of(job.source, target))  # options are not stored
    except (ValueError, TypeError) as error:
        raise CorruptError(
            "the plan of a conversion is damaged", path=target, where=_JOB, found=error, hint=_again(target)
        ) from error
    if job.capsule is None:
        return job, None
    head = keys.get(_CAPSULE)
    if head is None:
        raise CorruptError(
            "the plan of a conversion lacks its capsule", path=target, where=_CAPSULE, hint=_again(target)
        )
    return job, Capsule(job.capsule, head)


def _again(target: str) -> str:
    if is_local(target):
        return "Remove it (wustore clean --unfinished), and convert again."
    return f"Remove what is below {JOURNAL} there, and convert again."


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
    """Store a plan next to its target.

    Parameters
    ----------
    capsule
        The FITS reconstruction data that it names, if they are not there already.
    """
    keys = keys_of(job.target, must_exist=False)
    if capsule is not None:
        keys.set_durably(_CAPSULE, capsule.head)
    # Keys in their order: HDF5 keeps that of the capsule's document.
    members = {name: value for name, value in asdict(job).items() if name != "target"}
    keys.set_durably(_JOB, sealed_text(members))  # last: this file makes the plan


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


def check_names(*addresses: Any) -> None:
    """Refuse what no plan may name: it is read by other processes, and by others.

    Raises
    ------
    UsageError
        If one is an object, or a URL with a user, a password, a query or a fragment.
    """
    *sources, target = addresses
    if any(options_of(source) and options_of(source) != options_of(target) for source in sources):
        raise UsageError(
            "a plan stores no storage options, and those of the source are lost if the target has none",
            path=redact(str(sources[0])),
            hint="Give them through the environment or a profile; or convert in one go, without a plan or --resume.",
        )
    for address in addresses:
        if not isinstance(address, str):
            raise UsageError(
                "a conversion in pieces needs names that other processes can open",
                path=name_of(address),
                expected="a path or a URL",
                found=f"{type(address).__name__} object",
                hint="Convert it in one go: without resume, processes and scheduler.",
            )
        if not is_local(address) and redact(address) != address:
            raise UsageError(
                "a plan is stored, and this URL holds credentials or a query",
                path=redact(address),
                hint="Give credentials through the environment; or convert in one go, without a plan or --resume.",
            )


def plan(
    source: str,
    target: str,
    *,
    source_format: str | None = None,
    source_reader: Reader | None = None,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    capsule: bool = True,
    lossy: bool = False,
    parts: int | None = None,
    **options: Any,
) -> Job:
    """Prepare a conversion that can be resumed and shared; the one that is there already is joined.

    Parameters
    ----------
    source, target
        Paths or URLs.
    source_format, format, overwrite, capsule, lossy, options
        As for `wustore.convert`.
    source_reader
        The source, if it is open already.
    parts
        Number of parts for `part`; at most one for each image. None for those of the plan that is there already, or 1.

    Returns
    -------
    Job
        The plan as it is stored next to the target.

    Raises
    ------
    UsageError
        Another conversion, or the same in another number of parts, has begun at this target, the source has changed
        since, the format cannot be written in pieces, or a URL holds credentials, which no plan may store.
    StoreExistsError
        The target exists and ``overwrite`` is False.
    StoreNotFoundError, UnknownFormatError, FormatError, CorruptError, OSError
        As for `wustore.convert`.
    """
    source, target = address_of(source), address_of(target)
    check_names(source, target)
    backend = backend_for_writing(target, format)
    if not backend.resumes(target):
        raise UsageError(
            "this format cannot be written in pieces there",
            path=target,
            found=backend.name,
            hint="Write to a local path, or convert to Zarr; or leave out --resume.",
        )
    refuse_loss(backend, options, lossy=lossy)
    if is_local(target) and not _may_stand(target):
        check_target(target, overwrite=overwrite)  # before anything is read
    replacing = not is_local(target) and not overwrite and has_begun(target)
    if replacing and writable_keys(target).size("zarr.json") is not None:
        raise exists(name_of(target))  # the plan to replace it stays as it is
    if overwrite:
        refuse_others(backend, target)
    opened = open_reader(source, format=source_format) if source_reader is None else nullcontext(source_reader)
    with opened as reader:
        wanted = Job(
            source=absolute(source),
            source_format=reader.format,
            target=absolute(target),
            format=backend.name,
            n_images=reader.meta.n_images,
            state=reader.state(),
            options=json.loads(json.dumps(options)),
            overwrite=overwrite,
            keep_capsule=capsule,
            parts=max(1, min(parts or 1, reader.meta.n_images)),
        )
        if has_begun(target):
            found, _ = load_plan(target)
            check_same(found, wanted, target)
            if parts is not None and found.parts != wanted.parts:
                raise UsageError(
                    "this conversion is planned in another number of parts",
                    path=target,
                    expected=f"{found.parts} parts",
                    found=wanted.parts,
                    hint="Go on as planned; or finish it, or remove it, and plan again.",
                )
            if found.overwrite != overwrite:
                # Not what the images depend on: whoever goes on says it anew, having seen what is at the target.
                found = replace(found, overwrite=overwrite)
                save_plan(found)
            return found
        refuse_newer(reader)
        kept = reader.capsule() if capsule else None
        if kept is not None:
            wanted = replace(wanted, capsule=dict(kept.document))
        started(wanted, reader, kept)
        save_plan(wanted, kept)
    return wanted


def _may_stand(target: str) -> bool:
    """Return whether the target may be there because a process was killed at the very end of the conversion."""
    try:
        done, images = progress_of(target)
    except WuStoreError:
        return False
    return done == images


def started(job: Job, reader: Reader, capsule: Capsule | None, workers: int | None = 1) -> ResumableWriter:
    """Return the writer of what a plan makes: a new one, or one that goes on with what is there."""
    return backend_named(job.format).resume(
        job.target,
        reader.meta,
        capsule=capsule,
        overwrite=job.overwrite,
        workers=workers,
        fingerprint=job.state,
        **job.options,
    )


def progress_of(target: str) -> tuple[int, int]:
    """Return (images recorded as written, images in all) of the unfinished conversion to ``target``.

    Raises
    ------
    IncompleteError, UsageError, CorruptError
        Nothing was planned, the store is finished, or the plan is damaged.
    """
    job, recorded = _recorded(target)
    return len(recorded), job.n_images


def parts_left(target: str) -> tuple[list[int], int]:
    """Return (the parts with images that are not recorded as written, the number of parts)."""
    job, recorded = _recorded(target)
    return [k for k in range(job.parts) if not recorded.issuperset(job.images_of(k))], job.parts


def _recorded(target: str) -> tuple[Job, set[int]]:
    job, _ = load_plan(target)
    return job, Journal(keys_of(target)).recorded(job.n_images)


def discard(target: str) -> None:
    """Remove what an unfinished conversion to ``target`` has written.

    Raises
    ------
    IncompleteError, UsageError
        If there is none.
    """
    keys = keys_of(target)
    if not is_local(target) and keys.size("zarr.json") is not None:
        Journal(keys).drop()  # of the store that was to be replaced nothing goes; the new chunks go with the next one
        return
    keys.delete_below("")
    if is_local(target):
        Staging(target, overwrite=True, keep=True).abort(keep=False)
