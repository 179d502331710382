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
    from wustore.api import open, open_reader, save  # noqa: A004
    from wustore.configuration import SearchConfiguration
    from wustore.conversion import convert
    from wustore.errors import (
        BackendError,
        CorruptError,
        FidelityError,
        FormatError,
        IncompleteError,
        MissingDependencyError,
        StoreExistsError,
        StoreNotFoundError,
        UnknownFormatError,
        UsageError,
        VersionError,
        WuStoreError,
    )
    from wustore.images import ImageStack, LayeredImage
    from wustore.layer import Layer
    from wustore.work_unit import WorkUnit

__version__ = "0.1.0"

_HOMES = {
    "convert": "conversion",
    "open": "api",
    "open_reader": "api",
    "save": "api",
    "SearchConfiguration": "configuration",
    "ImageStack": "images",
    "LayeredImage": "images",
    "Layer": "layer",
    "WorkUnit": "work_unit",
    "BackendError": "errors",
    "CorruptError": "errors",
    "FidelityError": "errors",
    "FormatError": "errors",
    "IncompleteError": "errors",
    "MissingDependencyError": "errors",
    "StoreExistsError": "errors",
    "StoreNotFoundError": "errors",
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
    "WorkUnit",
    "ImageStack",
    "LayeredImage",
    "SearchConfiguration",
    "Layer",
    "BackendError",
    "CorruptError",
    "FidelityError",
    "FormatError",
    "IncompleteError",
    "MissingDependencyError",
    "StoreExistsError",
    "StoreNotFoundError",
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
