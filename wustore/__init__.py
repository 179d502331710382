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
    from wustore.api import convert, diff, index, open, save, verify  # noqa: A004
    from wustore.backends.fits.indexing import IndexSize
    from wustore.backends.registry import open_reader
    from wustore.compat.configuration import SearchConfiguration
    from wustore.compat.image_stack import ImageStack
    from wustore.compat.layered_image import LayeredImage
    from wustore.errors import *  # noqa: F403
    from wustore.model.compare import Difference
    from wustore.ops.copy import LossWarning
    from wustore.ops.diff import LayerLoss
    from wustore.ops.edit import EditWarning, append, drop, migrate, repack
    from wustore.ops.plans import Job, plan
    from wustore.ops.repair import clean, repair
    from wustore.ops.run_parts import finish, part
    from wustore.ops.verify import Problem
    from wustore.stamps.layer import Layer
    from wustore.stamps.results import Coadds, Stamps
    from wustore.stamps.trajectories import Trajectories
    from wustore.work_unit import WorkUnit

from wustore import errors
from wustore._version import __version__ as __version__

_MODULES = {
    "api": "open save convert verify diff index",
    "backends.fits.indexing": "IndexSize",
    "backends.registry": "open_reader",
    "compat.configuration": "SearchConfiguration",
    "compat.image_stack": "ImageStack",
    "compat.layered_image": "LayeredImage",
    "errors": " ".join(errors.__all__),
    "model.compare": "Difference",
    "ops.copy": "LossWarning",
    "ops.diff": "LayerLoss",
    "ops.edit": "append repack drop migrate EditWarning",
    "ops.run_parts": "part finish",
    "ops.plans": "Job plan",
    "ops.repair": "repair clean",
    "ops.verify": "Problem",
    "stamps.layer": "Layer",
    "stamps.results": "Stamps Coadds",
    "stamps.trajectories": "Trajectories",
    "work_unit": "WorkUnit",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

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
    "index",
    "WorkUnit",
    "ImageStack",
    "LayeredImage",
    "SearchConfiguration",
    "Layer",
    "Stamps",
    "Coadds",
    "Trajectories",
    "Job",
    "IndexSize",
    "Problem",
    "Difference",
    "LayerLoss",
    "LossWarning",
    "EditWarning",
]
__all__ += errors.__all__


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
