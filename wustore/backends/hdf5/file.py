"""Opening an HDF5 file or object, and the names of what wustore keeps at fixed places in it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO

import h5py

from wustore.backends.hdf5 import netcdf
from wustore.errors import OtherFormatError
from wustore.storage.files import open_regular
from wustore.storage.url import RemoteFile, is_remote

__all__ = [
    "CAPSULE_BOUND",
    "CAPSULE_DATA",
    "DOCUMENT",
    "DOCUMENT_CHECKSUM",
    "METADATA_BLOCK",
    "has_signature",
    "open_file",
]

DOCUMENT = "wustore"
"""Root attribute with the root document."""
DOCUMENT_CHECKSUM = "wustore_sha256"
CAPSULE_DATA, CAPSULE_BOUND = "fits/data", "fits/bound"
METADATA_BLOCK = 1 << 18
"""Bytes of the first block read from a URL: metadata stands mostly at the start, and opening takes two requests."""
_SNIFFED = 4096
"""Bytes at the start of an object in which the signature is looked for: further on, each look were a request."""
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def has_signature(file: IO[bytes] | io.RawIOBase, size: int) -> bool:
    """Return whether a file has HDF5's signature where the format allows it: at 0, 512, 1024, 2048 and so on."""
    place = 0
    while place < size:
        file.seek(place)
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            return True
        place = max(512, place * 2)
    return False


def open_file(path: str, remote: RemoteFile | None = None) -> h5py.File:
    """Open an HDF5 file for reading; ``remote`` is the object at a URL where it is at hand already.

    Raises
    ------
    StoreNotFoundError, OtherFormatError, CorruptError
    """
    if is_remote(path):
        remote = RemoteFile(path, METADATA_BLOCK) if remote is None else remote
        if not has_signature(remote.stream(), _SNIFFED):
            raise OtherFormatError("not an HDF5 file", path=remote.name, expected="the signature of HDF5")
        with netcdf.wrapped(remote.name, "superblock"):
            return h5py.File(remote.stream(), "r")
    if Path(path).is_dir():
        raise OtherFormatError("not an HDF5 file", path=path, expected="a file", found="a directory")
    with open_regular(path) as start:
        if not has_signature(start, os.fstat(start.fileno()).st_size):
            raise OtherFormatError("not an HDF5 file", path=path, expected="the signature of HDF5")
    with netcdf.wrapped(path, "superblock"):
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            # Some network file systems know no locks. A store is never changed in place, so none is needed;
            # not without need, because the same process could then not open the file with a lock.
            return h5py.File(path, "r", locking=False)
