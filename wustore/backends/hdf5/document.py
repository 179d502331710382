"""The root document of an HDF5 store: packed and checksummed for wustore, as an attribute for everyone else."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wustore.backends.hdf5 import netcdf
from wustore.backends.hdf5.file import DOCUMENT, DOCUMENT_CHECKSUM, open_file
from wustore.errors import CorruptError, WuStoreError, located
from wustore.format import tagged_json
from wustore.format.arrays import ArraySpec
from wustore.format.packed import PACKED, unpack
from wustore.model.compare import same_bits
from wustore.model.meta import object_array
from wustore.storage.threads import command

__all__ = ["DOCUMENT_ARRAY", "check_copies", "document_spec", "parse_document", "read_document"]

DOCUMENT_ARRAY = "wustore document"
"""Name of the document among the packed arrays; no array of the format has a blank in its name."""

_PATIENCE = 120.0
"""Seconds that reading the copies of one file may take: 10 000 images' text takes about one."""


def document_spec(text: str) -> ArraySpec:
    """Return the document as one more array to be packed."""
    return ArraySpec(DOCUMENT_ARRAY, object_array([text]), ("one",))


def parse_document(text: str | bytes, path: str) -> dict[str, Any]:
    """Return the document of its JSON text."""
    with located(path):
        document = tagged_json.parse(text, what="the root document")
    if not isinstance(document, dict):
        raise CorruptError("the root document is not a JSON object", path=path, found=type(document).__name__)
    return document


def read_document(file: h5py.File, path: str) -> dict[str, Any]:
    """Return the document that is stored as a root attribute.

    Raises
    ------
    CorruptError
        If it is damaged, or does not match its checksum.
    """
    with netcdf.wrapped(path, "root attributes"):
        text, checksum = file.attrs[DOCUMENT], file.attrs.get(DOCUMENT_CHECKSUM)
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    found = hashlib.sha256(data).hexdigest()
    expected = checksum.decode("ascii", "replace") if isinstance(checksum, bytes) else checksum
    if expected is not None and str(expected) != found:
        raise CorruptError(
            "the root document does not match its checksum",
            path=path,
            where=f"root attribute {DOCUMENT!r}",
            expected=f"sha256 {expected}",
            found=found,
            hint=f"Remove the attribute {DOCUMENT_CHECKSUM!r} if the document was changed on purpose.",
        )
    return parse_document(data, path)


# --- the copies for other programs --------------------------------------------------------------------


def check_copies(path: str) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong) of each copy for other programs that differs from the packed one.

    A process of its own reads them: damage in text of variable length can keep the HDF5 library busy for ever.
    """
    try:
        done = subprocess.run(command(__name__, "report", path), capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        yield "text for other programs", f"it could not be read within {_PATIENCE:.0f} s; most likely it is damaged"
        return
    if done.returncode:
        yield "text for other programs", f"reading it ended with {done.stderr.decode(errors='replace')[-200:]!r}"
        return
    yield from map(tuple, json.loads(done.stdout))


def report(path: str) -> None:
    """Print, as JSON, what is wrong with the copies in a file."""
    print(json.dumps(list(_differences(path))))


def _as_packed(copy: NDArray[Any], data: NDArray[Any]) -> NDArray[Any]:
    """Return a copy in the dtype of the packed array: netCDF-4 knows neither bool nor float16."""
    with np.errstate(invalid="ignore"):
        return copy if copy.dtype == data.dtype or copy.dtype.hasobject else copy.astype(data.dtype)


def _differences(path: str) -> Iterator[tuple[str, str]]:
    with open_file(path) as file:
        packed = unpack(netcdf.read_array(file, PACKED, path))
        text = packed.pop(DOCUMENT_ARRAY)
        try:
            if read_document(file, path) != parse_document(str(text[0]), path):
                yield f"root attribute {DOCUMENT!r}", "it is not the document that the store is opened with"
        except (WuStoreError, OSError) as error:
            yield f"root attribute {DOCUMENT!r}", str(error)
        for name, data in packed.items():
            try:
                if not same_bits(_as_packed(netcdf.read_array(file, name, path), data), data):
                    yield f"array {name}", "its values are not those the store is opened with"
            except (WuStoreError, OSError) as error:
                yield f"array {name}", str(error)
