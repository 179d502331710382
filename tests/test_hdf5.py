"""The HDF5 backend: conformance, exactness, counts, damage."""

from __future__ import annotations

from typing import ClassVar

from wustore.backends.hdf5 import Hdf5Backend
from wustore.testing import BackendConformance


class TestHdf5(BackendConformance):
    backend = Hdf5Backend()
    suffix = ".h5"


class TestHdf5Fast(BackendConformance):
    backend = Hdf5Backend()
    suffix = ".h5"
    options: ClassVar = {"profile": "fast", "layout": "balanced"}


class TestHdf5None(BackendConformance):
    backend = Hdf5Backend()
    suffix = ".h5"
    options: ClassVar = {"profile": "none", "chunks": (100, 70)}
