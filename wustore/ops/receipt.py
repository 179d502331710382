"""Receipts: the sha256 of every file of a store and of the files it was made from, to be compared later."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wustore._version import __version__
from wustore.backends.base import Progress, Reader
from wustore.errors import CorruptError, UsageError
from wustore.format.tagged_json import parse
from wustore.model.meta import LAYERS
from wustore.ops.verify import Problem, fits_problems, problems
from wustore.storage.locks import LOCK
from wustore.storage.stores import is_local

__all__ = ["FileSum", "check_receipt", "file_sums", "make_receipt", "read_receipt"]

_VERSION = 1


@dataclass(frozen=True)
class FileSum:
    """A file: its name below the directory that the store is in, its size in bytes and its sha256."""

    name: str
    size: int
    sha256: str


def file_sums(reader: Reader) -> Iterator[FileSum]:
    """Yield name, size and sha256 of each file of a local store, sorted by name.

    Raises
    ------
    UsageError
        If it is not in local files.
    """
    if not is_local(reader.path) or not Path(reader.path).exists():
        raise UsageError("only local stores have files to hash", path=reader.path, hint="Copy it to a local disk.")
    folder = Path(reader.path).parent
    found = []
    for place in map(Path, reader.places()):
        inside = [Path(top, name) for top, _, names in os.walk(place) for name in names if name != LOCK]
        found += inside if place.is_dir() else [place]
    for path in sorted(found):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield FileSum(path.relative_to(folder).as_posix(), os.fstat(file.fileno()).st_size, digest)


def _digest(document: object) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def make_receipt(reader: Reader, *, workers: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Verify a store, and return what proves later that it is the same one: JSON values.

    If the store has FITS reconstruction data, the files it was made from are written again and hashed, so that the
    receipt says whether they can be deleted.

    Parameters
    ----------
    reader
        An open local store.

    Raises
    ------
    CorruptError
        If something is wrong with the store; the first of it is named.
    UsageError
        If it is not in local files.
    """
    files = [asdict(one) for one in file_sums(reader)]
    proven = [reader.protection() or "every image could be read; the format keeps no checksums"]
    _refuse(reader, problems(reader, workers=workers, progress=progress))
    capsule = reader.capsule()
    sources = []
    if capsule is not None:
        _refuse(reader, fits_problems(reader, workers=workers, progress=progress))
        sources = [{name: entry[name] for name in ("name", "size", "sha256")} for entry in capsule.document["files"]]
        proven.append("the source files come back with their sha256")
    meta = reader.meta
    receipt = {
        "receipt": _VERSION,
        "wustore": __version__,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "store": {"name": Path(reader.path).name, "format": reader.format, "digest": _digest(files), "files": files},
        "images": meta.n_images,
        "planes": sum(dtype is not None for layer in LAYERS for dtype in meta.dtypes[layer]),
        "sources": sources,
        "exact_export": capsule is not None,
        "proven": proven,
    }
    return receipt | {"sha256": _digest(receipt)}


def _refuse(reader: Reader, found: Iterator[Problem]) -> None:
    for problem in found:
        raise CorruptError(
            "no receipt for a store that something is wrong with",
            path=reader.path,
            where=problem.where,
            found=problem.what,
            hint="wustore verify names all of it.",
        )


def read_receipt(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a receipt from its file.

    Raises
    ------
    CorruptError
        If it is no receipt, or was changed since it was made.
    OSError
    """
    receipt = parse(Path(path).read_bytes(), what="the receipt")
    members = receipt if isinstance(receipt, dict) else {}
    rest = {name: value for name, value in members.items() if name != "sha256"}
    if members.get("receipt") != _VERSION or members.get("sha256") != _digest(rest):
        raise CorruptError(
            "not a receipt of wustore, or changed since it was made",
            path=path,
            expected=f"receipt {_VERSION} with its own sha256",
            found=f"receipt {members.get('receipt')!r}",
        )
    return members


def check_receipt(receipt: Mapping[str, Any], reader: Reader) -> Iterator[Problem]:
    """Yield every file of a store that is not what a receipt says.

    Parameters
    ----------
    reader
        The store, open; it may have another name than it had.
    """
    try:
        then = _below({entry["name"]: (entry["size"], entry["sha256"]) for entry in receipt["store"]["files"]})
        sources = [entry["sha256"] for entry in receipt["sources"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptError("a receipt without its members", found=repr(error)) from error
    now = _below({one.name: (one.size, one.sha256) for one in file_sums(reader)})
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            what = f"receipt: expected {_said(then.get(name))}; found {_said(now.get(name))}"
            yield Problem("damaged", f"file {name or Path(reader.path).name}", what)
    capsule = reader.capsule()
    kept = [] if capsule is None else [entry.get("sha256") for entry in capsule.document["files"]]
    if sources != kept:
        yield Problem("damaged", "capsule", "receipt: it gives other source files back than those of the receipt")


def _said(found: tuple[int, str] | None) -> str:
    return "none" if found is None else f"{found[0]} bytes, sha256 {found[1]}"


def _below(files: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """Return files by their names without that of the store, which may have been renamed."""
    if len(files) == 1:
        return {"": next(iter(files.values()))}
    return {str(name).partition("/")[2] or str(name): found for name, found in files.items()}
