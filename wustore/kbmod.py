"""To and from the objects of an installed KBMOD.

Arrays are shared, not copied. `from_kbmod` needs attributes only, so it works without importing KBMOD.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from wustore.compat.image_stack import ImageStack
from wustore.errors import MissingDependencyError
from wustore.work_unit import WorkUnit

__all__ = ["from_kbmod", "to_kbmod"]


def from_kbmod(work_unit: Any) -> WorkUnit:
    """Return KBMOD's WorkUnit as ours.

    Parameters
    ----------
    work_unit
        ``kbmod.work_unit.WorkUnit``, loaded or lazy (then ``file_paths`` are taken over).

    Returns
    -------
    WorkUnit
        Sharing the pixel arrays; table and configuration are copies.
    """
    return WorkUnit(
        work_unit.im_stack,
        work_unit.config,
        wcs=work_unit.wcs,
        reprojected=work_unit.reprojected,
        reprojection_frame=work_unit.reprojection_frame,
        per_image_indices=work_unit._per_image_indices,
        barycentric_distance=work_unit.barycentric_distance,
        lazy=work_unit.lazy,
        file_paths=work_unit.file_paths,
        obstimes=work_unit._obstimes,
        org_image_meta=work_unit.org_img_meta,
        observatory=getattr(work_unit, "observatory", None),
    )


def to_kbmod(work_unit: WorkUnit) -> Any:
    """Return our WorkUnit as KBMOD's, with everything loaded.

    Parameters
    ----------
    work_unit
        Stays as it is; a lazy one is read into new arrays.

    Returns
    -------
    kbmod.work_unit.WorkUnit
        Sharing the pixel arrays of a loaded WorkUnit.

    Raises
    ------
    MissingDependencyError
        Where KBMOD is not installed.
    """
    try:
        from kbmod.configuration import SearchConfiguration as KbmodConfiguration
        from kbmod.core.image_stack_py import ImageStackPy as KbmodStack
        from kbmod.work_unit import WorkUnit as KbmodWorkUnit
    except ImportError as error:
        raise MissingDependencyError(
            "KBMOD is not installed", hint="See https://github.com/dirac-institute/kbmod on how to build it."
        ) from error
    stack: ImageStack = work_unit.im_stack.copy() if work_unit.im_stack.lazy else work_unit.im_stack
    configuration = KbmodConfiguration()
    if work_unit.config is not None:
        configuration.set_multiple(work_unit.config.to_dict())
    return KbmodWorkUnit(
        KbmodStack(times=stack.times, sci=stack.sci, var=stack.var, psfs=[np.asarray(psf) for psf in stack.psfs]),
        configuration,
        wcs=work_unit.wcs,
        reprojected=work_unit.reprojected,
        reprojection_frame=work_unit.reprojection_frame,
        per_image_indices=copy.deepcopy(work_unit.per_image_indices),
        barycentric_distance=work_unit.barycentric_distance,
        org_image_meta=work_unit.org_img_meta.copy(),
        observatory=work_unit.observatory,
    )
