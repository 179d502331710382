"""The root document of an HDF5 store: packed and checksummed for wustore, as an attribute for everyone else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import subprocess
import time
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
from wustore.format.document import meta_from
from wustore.format.packed import PACKED, unpack
from wustore.model.compare import same_bits
from wustore.model.meta import object_array
from wustore.storage.threads import command
from wustore.storage.url import is_remote

__all__ = ["DOCUMENT_ARRAY", "check_copies", "check_text", "document_spec", "parse_document", "read_document"]

DOCUMENT_ARRAY = "wustore document"
"""Name of the document among the packed arrays; no array of the format has a blank in its name."""

_PATIENCE = 120.0
"""Seconds that reading the text of one file may take, on however busy a machine."""
_LEAST_SECONDS, _BYTES_PER_SECOND = 1, 10**7
"""Processor time that it may take, by the bytes that hold it: ten times what whole files need."""
_TOO_LONG = "reading it takes longer than it could if it were whole: it is damaged"
_OUT_OF_TIME = getattr(signal, "SIGXCPU", None)
"""What ends a process that has used up its processor time."""


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

    A process of its own reads them; see `_run_apart`.
    """
    done = _run_apart("report", path)
    if done is None:
        yield "text for other programs", _TOO_LONG
    elif done.returncode:
        yield "text for other programs", f"reading it ended with {done.stderr.decode(errors='replace')[-200:]!r}"
    else:
        yield from map(tuple, json.loads(done.stdout))


def check_text(path: str) -> None:
    """Check that reading the text of a file without packed arrays ends; nothing is checked at a URL.

    Raises
    ------
    CorruptError
        If it does not end, or crashes the process that reads it. What else is wrong is found when it is read.
    """
    if is_remote(path):
        return
    try:
        done = _run_apart("read_text", path)
    except OSError:  # no Python can be started here
        return
    if done is None or done.returncode < 0:
        found = _TOO_LONG if done is None else f"reading it ended with signal {-done.returncode}"
        raise CorruptError("the text cannot be read", path=path, where="root attributes, small arrays", found=found)


def _run_apart(function: str, path: str) -> subprocess.CompletedProcess[bytes] | None:
    """Run a function of this module in a process of its own; None if it takes too long.

    Damage in text of variable length can keep the HDF5 library busy for ever, and no thread can be stopped.
    """
    try:
        done = subprocess.run(command(__name__, function, path), capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return None
    return None if -done.returncode == _OUT_OF_TIME else done


def report(path: str) -> None:
    """Print, as JSON, what is wrong with the copies in a file."""
    print(json.dumps(list(_differences(path))))


def read_text(path: str) -> None:
    """Read what opening a file without packed arrays reads. What is wrong with it, opening it says."""
    with open_file(path) as file, contextlib.suppress(WuStoreError, OSError):
        _limit_time(file.id.get_filesize())
        meta_from(read_document(file, path), lambda name: netcdf.read_array(file, name, path))


def _limit_time(nbytes: int) -> None:
    """Let the system kill this process when it has read for too long, if it can."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = math.ceil(time.process_time()) + _LEAST_SECONDS + nbytes // _BYTES_PER_SECOND
    if most == resource.RLIM_INFINITY or seconds < most:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, most))


def _as_packed(copy: NDArray[Any], data: NDArray[Any]) -> NDArray[Any]:
    """Return a copy in the dtype of the packed array: netCDF-4 knows neither bool nor float16."""
    with np.errstate(invalid="ignore"):
        return copy if copy.dtype == data.dtype or copy.dtype.hasobject else copy.astype(data.dtype)


def _differences(path: str) -> Iterator[tuple[str, str]]:
    with open_file(path) as file:
        stored = netcdf.read_array(file, PACKED, path)
        packed = unpack(stored)
        _limit_time(stored.nbytes)
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
