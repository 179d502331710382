"""The FITS formats hold what every format must."""

from __future__ import annotations

from typing import ClassVar

from wustore.backends.base import Backend
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.testing import BackendConformance

SINGLE, SHARDED = FitsBackend(), ShardedFitsBackend()


class TestFits(BackendConformance):
    backend: ClassVar[Backend] = SINGLE
    suffix = ".fits"
    keeps_capsule = False


class TestFitsGz(BackendConformance):
    backend: ClassVar[Backend] = SINGLE
    suffix = ".fits.gz"
    keeps_capsule = False


class TestShardedFits(BackendConformance):
    backend: ClassVar[Backend] = SHARDED
    suffix = ".fits"
    keeps_capsule = False
