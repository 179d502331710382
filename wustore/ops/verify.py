"""Read all of a store and check it against what it says of itself; receipts, which prove later that it is the same.

A receipt holds the sha256 of every file of a store and of the files it was made from.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wustore._version import __version__
from wustore.backends.base import Progress, Reader
from wustore.backends.registry import backend_named
from wustore.errors import CorruptError, FormatError, MissingDependencyError, UsageError, WuStoreError
from wustore.format.document import document_of
from wustore.format.planes import plane_problems
from wustore.format.schema import violation
from wustore.format.tagged_json import parse
from wustore.model.meta import LAYERS, Capsule, Image
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.storage.locks import LOCK
from wustore.storage.stores import is_local
from wustore.storage.threads import read_ahead

__all__ = [
    "FileSum",
    "Problem",
    "against_problems",
    "check_receipt",
    "counts",
    "file_sums",
    "fits_problems",
    "make_receipt",
    "problems",
    "read_receipt",
]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a store.

    Attributes
    ----------
    kind
        ``damaged``: bytes lost or changed; ``invalid``: whole, but not as the format demands.
    where
        The image and layer, array, or place in the document.
    what
        What is wrong there.
    """

    kind: Literal["damaged", "invalid"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.what}"


def problems(reader: Reader, *, workers: int | None = None, progress: Progress | None = None) -> Iterator[Problem]:
    """Yield everything that is wrong with an open store; all of it is read.

    The document is compared with the packaged JSON Schema; every plane with the metadata's shape and dtype and, if the
    format stores it, with its CRC-32C; the FITS reconstruction data are read; copies kept for other programs are
    compared. Damage in one layer of an image does not hide that in another, or in another image.
    """
    yield from _document_problems(reader)
    yield from (Problem("damaged", where, what) for where, what in reader.audit())
    yield from _image_problems(reader, workers, progress)
    yield from _capsule_problems(reader)


def _document_problems(reader: Reader) -> Iterator[Problem]:
    stored = reader.document()
    try:
        # Formats without a document of their own are held to what they would say in ours.
        broken = violation(document_of(reader.meta) if stored is None else stored)
    except FormatError as error:
        yield Problem("invalid", error.where or "$", str(error.found or error.what))
        return
    if broken is not None:
        yield Problem("invalid", *broken)


def _image_problems(reader: Reader, workers: int | None, progress: Progress | None) -> Iterator[Problem]:
    try:
        sums = reader.checksums()
    except (WuStoreError, OSError) as error:
        yield Problem("damaged", "checksums", str(error))
        sums = None
    total = reader.meta.n_images

    def fetch(i: int) -> Image | list[Problem]:
        try:
            return reader.image(i)
        except MissingDependencyError:
            raise  # of what cannot be read here nothing is known
        except (WuStoreError, OSError) as error:
            return _damaged_layers(reader, i) or [Problem("damaged", f"image {i}", str(error))]

    for i, found in read_ahead(fetch, range(total), workers):
        if isinstance(found, Image):
            for wrong in plane_problems(reader.meta, i, found, sums):
                what = f"{wrong.what}; expected {wrong.expected}; found {wrong.found}"
                yield Problem("damaged", f"image {i}, {wrong.layer}", what)
        else:
            yield from found
        if progress is not None:
            progress(i + 1, total)


def _damaged_layers(reader: Reader, i: int) -> list[Problem]:
    """Return what is wrong with each layer of an image, read alone."""
    found = []
    for layer in LAYERS:
        try:
            reader.image(i, (layer,))
        except (WuStoreError, OSError) as error:
            found.append(Problem("damaged", f"image {i}, {layer}", str(error)))
    return found


def _capsule(reader: Reader) -> Capsule | Problem | None:
    """Return the FITS reconstruction data, None without any, or what is wrong with them."""
    try:
        return reader.capsule()
    except (WuStoreError, OSError) as error:
        return Problem("damaged", "capsule", str(error))


def _capsule_problems(reader: Reader) -> Iterator[Problem]:
    capsule = _capsule(reader)
    if isinstance(capsule, Problem):
        yield capsule
    if not isinstance(capsule, Capsule):
        return
    for i in range(reader.meta.n_images):
        try:
            reader.image_capsule(i)
        except (WuStoreError, OSError) as error:
            yield Problem("damaged", f"capsule of image {i}", str(error))


def counts(reader: Reader) -> dict[str, int]:
    """Return how many images, planes and constituent images a store has, and how many planes have a checksum."""
    meta = reader.meta
    planes = sum(dtype is not None for layer in LAYERS for dtype in meta.dtypes[layer])
    try:
        checked = planes if reader.checksums() is not None else 0
    except (WuStoreError, OSError):
        checked = 0
    return {
        "images": meta.n_images,
        "planes": planes,
        "planes_with_checksum": checked,
        "constituents": meta.n_constituents,
    }


def against_problems(reader: Reader, source: Reader, *, workers: int | None = None) -> Iterator[Problem]:
    """Yield what distinguishes a store from the one that it was made from, bit for bit."""
    for difference in differences(reader, source, workers=workers):
        what = f"differs from {source.path}: {difference.left} here, {difference.right} there"
        yield Problem("invalid", difference.where, what)


def fits_problems(
    reader: Reader, *, directory: Path | None = None, workers: int | None = None, progress: Progress | None = None
) -> Iterator[Problem]:
    """Yield what keeps the FITS files that a store was made from from being given back: writes and hashes them.

    Parameters
    ----------
    reader
        An open store of any format that has FITS reconstruction data.
    directory
        Where the files are written for a moment; by default that of temporary files.
    """
    capsule = _capsule(reader)
    if isinstance(capsule, Problem):
        yield capsule
        return
    if capsule is None:
        yield Problem(
            "invalid", "capsule", "the store keeps no FITS reconstruction data, so no FITS file can be given back"
        )
        return
    with tempfile.TemporaryDirectory(prefix="wustore-verify-", dir=directory) as folder:
        # Recorded are the files without a compression of the whole, so that is what is written: under another name, as
        # under its own a file comes back compressed.
        path = Path(folder, "verify.fits")
        if any(entry.get("name") == path.name for entry in capsule.document["files"]):
            path = Path(folder, "again.fits")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                writer = backend_named(capsule.document["form"]).create(str(path), reader.meta, capsule=capsule)
                copy(reader, writer, workers=workers, progress=progress)
        except WuStoreError as error:
            yield Problem("damaged", "FITS", str(error))
            return
        if said:
            yield Problem("invalid", "FITS", str(said[0].message))
            return
        for k, entry in enumerate(capsule.document["files"]):
            # The first file is the single or primary one, the others are the shards of images 0, 1, ...
            name = path.name if k == 0 else f"{k - 1}_{path.name}"
            with Path(folder, name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                yield Problem(
                    "damaged", f"FITS file {entry['name']}", f"sha256: expected {entry['sha256']}; found {found}"
                )


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
