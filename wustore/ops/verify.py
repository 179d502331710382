"""Read all of a store and check it against what it says of itself."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wustore.backends.base import Progress, Reader
from wustore.backends.registry import backend_named
from wustore.errors import FormatError, MissingDependencyError, WuStoreError
from wustore.format.document import document_of
from wustore.format.planes import plane_problems
from wustore.format.schema import violation
from wustore.model.meta import LAYERS, Image
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.storage.threads import read_ahead

__all__ = ["Problem", "against_problems", "counts", "fits_problems", "problems"]


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


def _capsule_problems(reader: Reader) -> Iterator[Problem]:
    try:
        capsule = reader.capsule()
    except (WuStoreError, OSError) as error:
        yield Problem("damaged", "capsule", str(error))
        return
    if capsule is None:
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
    try:
        capsule = reader.capsule()
    except (WuStoreError, OSError) as error:
        yield Problem("damaged", "capsule", str(error))
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
