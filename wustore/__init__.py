"""wustore: the archive format, parallel reader and lossless converter for KBMOD WorkUnits.

>>> import wustore
>>> wu = wustore.open("night.zarr")  # doctest: +SKIP
>>> wustore.convert("night.fits", "night.zarr")  # doctest: +SKIP

Names are imported when first used: importing the package takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wustore.api import convert, diff, open, save, verify  # noqa: A004
    from wustore.backends.registry import open_reader
    from wustore.compat.configuration import SearchConfiguration
    from wustore.compat.image_stack import ImageStack
    from wustore.compat.layered_image import LayeredImage
    from wustore.errors import (
        BackendError,
        CorruptError,
        FidelityError,
        FormatError,
        IncompleteError,
        MissingDependencyError,
        StoreExistsError,
        StoreNotFoundError,
        StoreReplacedError,
        UnknownFormatError,
        UsageError,
        VersionError,
        WuStoreError,
    )
    from wustore.model.compare import Difference
    from wustore.ops.copy import LossWarning
    from wustore.ops.diff import LayerLoss
    from wustore.ops.edit import EditWarning, append, drop, migrate, repack
    from wustore.ops.jobs import finish, part, plan
    from wustore.ops.plans import Job
    from wustore.ops.repair import clean, repair
    from wustore.ops.verify import Problem
    from wustore.stamps.layer import Layer
    from wustore.stamps.results import Coadds, Stamps
    from wustore.stamps.trajectories import Trajectories
    from wustore.work_unit import WorkUnit

from wustore._version import __version__ as __version__

_HOMES = {
    "append": "ops.edit",
    "repack": "ops.edit",
    "drop": "ops.edit",
    "migrate": "ops.edit",
    "EditWarning": "ops.edit",
    "LayerLoss": "ops.diff",
    "LossWarning": "ops.copy",
    "repair": "ops.repair",
    "clean": "ops.repair",
    "plan": "ops.jobs",
    "part": "ops.jobs",
    "finish": "ops.jobs",
    "Job": "ops.plans",
    "verify": "api",
    "diff": "api",
    "Problem": "ops.verify",
    "Difference": "model.compare",
    "Stamps": "stamps.results",
    "Coadds": "stamps.results",
    "Trajectories": "stamps.trajectories",
    "convert": "api",
    "open": "api",
    "open_reader": "backends.registry",
    "save": "api",
    "SearchConfiguration": "compat.configuration",
    "ImageStack": "compat.image_stack",
    "LayeredImage": "compat.layered_image",
    "Layer": "stamps.layer",
    "WorkUnit": "work_unit",
    "BackendError": "errors",
    "CorruptError": "errors",
    "FidelityError": "errors",
    "FormatError": "errors",
    "IncompleteError": "errors",
    "MissingDependencyError": "errors",
    "StoreExistsError": "errors",
    "StoreNotFoundError": "errors",
    "StoreReplacedError": "errors",
    "UnknownFormatError": "errors",
    "UsageError": "errors",
    "VersionError": "errors",
    "WuStoreError": "errors",
}

__all__ = [  # noqa: RUF022 - in the order a reader looks for them
    "open",
    "save",
    "convert",
    "open_reader",
    "verify",
    "diff",
    "append",
    "repack",
    "drop",
    "migrate",
    "repair",
    "clean",
    "plan",
    "part",
    "finish",
    "WorkUnit",
    "ImageStack",
    "LayeredImage",
    "SearchConfiguration",
    "Layer",
    "Stamps",
    "Coadds",
    "Trajectories",
    "Job",
    "Problem",
    "Difference",
    "LayerLoss",
    "LossWarning",
    "EditWarning",
    "BackendError",
    "CorruptError",
    "FidelityError",
    "FormatError",
    "IncompleteError",
    "MissingDependencyError",
    "StoreExistsError",
    "StoreNotFoundError",
    "StoreReplacedError",
    "UnknownFormatError",
    "UsageError",
    "VersionError",
    "WuStoreError",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
