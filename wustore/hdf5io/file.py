"""Opening an HDF5 file, and the names of what wustore keeps at fixed places in it."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from wustore.errors import FormatError, StoreNotFoundError
from wustore.hdf5io import netcdf

__all__ = ["CAPSULE_BOUND", "CAPSULE_DATA", "DOCUMENT", "DOCUMENT_CHECKSUM", "is_hdf5", "open_file"]

DOCUMENT = "wustore"
"""Root attribute with the root document."""
DOCUMENT_CHECKSUM = "wustore_sha256"
CAPSULE_DATA, CAPSULE_BOUND = "fits/data", "fits/bound"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: str) -> bool:
    """Return whether the file has HDF5's signature where the format allows it: at 0, 512, 1024, 2048 and so on."""
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            place = 0
            while place < size:
                file.seek(place)
                if file.read(len(_SIGNATURE)) == _SIGNATURE:
                    return True
                place = max(512, place * 2)
    except OSError:
        pass
    return False


def open_file(path: str) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    StoreNotFoundError, FormatError, CorruptError
    """
    if not os.path.lexists(path):
        raise StoreNotFoundError("there is nothing at this path", path=path, cure="Check the name.")
    if not Path(path).is_file() or not is_hdf5(path):
        raise FormatError("not an HDF5 file", path=path, expected="the signature of HDF5")
    with netcdf.wrapped(path, "superblock"):
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "lock" not in str(error):
                raise
            # Some network file systems know no locks. A store is never changed in place, so none is needed;
            # not without need, because the same process could then not open the file with a lock.
            return h5py.File(path, "r", locking=False)
