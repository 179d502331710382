"""The Zarr backends: the conformance class, and what is Zarr's own."""

from __future__ import annotations

from typing import Any, ClassVar

from wustore.backends.zarr.backend import ZarrBackend, ZarrZipBackend
from wustore.testing import BackendConformance


class TestZarr(BackendConformance):
    backend = ZarrBackend()
    suffix = ".zarr"


class TestZarrZip(BackendConformance):
    backend = ZarrZipBackend()
    suffix = ".zarr.zip"


class TestZarrPortable(BackendConformance):
    backend = ZarrBackend()
    suffix = ".zarr"
    options: ClassVar[dict[str, Any]] = {"profile": "portable", "layout": "cutouts", "workers": 2}
