"""To and from the objects of an installed KBMOD, so that its pipeline runs on stores.

Three lines of a pipeline change:

>>> import wustore.kbmod
>>> work = wustore.kbmod.open("night.zarr")  # doctest: +SKIP
>>> wustore.kbmod.save(work, "reprojected.zarr")  # doctest: +SKIP

KBMOD is imported when it is needed. `from_kbmod` and `save` take its objects by their attributes, without it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from wustore import api
from wustore.compat.configuration import SearchConfiguration
from wustore.compat.kbmod_stack import store_stack_of
from wustore.compat.plane_list import CACHE_BYTES
from wustore.errors import MissingDependencyError
from wustore.work_unit import WorkUnit

if TYPE_CHECKING:
    from astropy.coordinates import EarthLocation

__all__ = ["from_kbmod", "open", "save", "to_kbmod"]


def open(  # noqa: A001
    path: Any,
    *,
    format: str | None = None,  # noqa: A002
    load: bool = False,
    cache: int = CACHE_BYTES,
    **options: Any,
) -> Any:
    """Open a store of any format as KBMOD's own WorkUnit.

    Parameters
    ----------
    path
        A file, directory or URL, as for `wustore.open`.
    format
        Format name, if the content must not decide.
    load
        Read everything into memory; by default planes are read when KBMOD touches them.
    cache
        Bytes that planes which are read more than once may keep; see `to_kbmod`.
    options
        Of the backend.

    Returns
    -------
    kbmod.work_unit.WorkUnit

    Raises
    ------
    MissingDependencyError
        If KBMOD is not installed, or the store needs an extra that is not.
    StoreNotFoundError, UnknownFormatError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
        As `wustore.open` raises them.

    Examples
    --------
    >>> from kbmod.run_search import SearchRunner  # doctest: +SKIP
    >>> work = wustore.kbmod.open("night.zarr")  # doctest: +SKIP
    >>> results = SearchRunner().run_search_from_work_unit(work)  # doctest: +SKIP
    """
    _kbmod()
    return to_kbmod(api.open(path, format=format, **options), load=load, cache=cache)


def save(work_unit: Any, path: Any, **options: Any) -> None:
    """Save KBMOD's WorkUnit; nothing is lost.

    Parameters
    ----------
    work_unit
        KBMOD's or ours. One that `open` gave is copied image by image as far as its planes were not changed.
    path, options
        As for `wustore.save`.

    Raises
    ------
    StoreExistsError, UnknownFormatError, UsageError, FidelityError, OSError
        As `wustore.save` raises them.
    """
    api.save(work_unit, path, **options)


def from_kbmod(work_unit: Any, *, observatory: EarthLocation | None = None) -> WorkUnit:
    """Return KBMOD's WorkUnit as ours.

    Parameters
    ----------
    work_unit
        ``kbmod.work_unit.WorkUnit``, loaded or lazy (then ``file_paths`` are taken over).
    observatory
        Location of the telescope in place of the one that ``work_unit`` has: KBMOD drops it when it reprojects.

    Returns
    -------
    WorkUnit
        Sharing the image stack; table and configuration are copies.
    """
    ours = WorkUnit.of(work_unit, observatory=observatory)
    if ours is not work_unit and ours.config is not None:
        ours.config = SearchConfiguration.of(ours.config).copy()
    return ours


def to_kbmod(work_unit: WorkUnit, load: bool = False, *, cache: int = CACHE_BYTES) -> Any:
    """Return our WorkUnit as KBMOD's.

    Parameters
    ----------
    work_unit
        Stays as it is.
    load
        Read a lazy WorkUnit into new arrays. By default its planes are read from the store when KBMOD touches
        them, and several ahead if it goes through them in order. What KBMOD writes to them stays in memory.
    cache
        Bytes that planes which are read more than once may keep: stamps go through all of science once for each
        result. Planes that are read once are let go again.

    Returns
    -------
    kbmod.work_unit.WorkUnit
        With KBMOD's configuration class and an ``ImageStackPy``; not ``lazy``, which to KBMOD means that images are
        in sharded FITS files. It shares the pixel arrays of a loaded WorkUnit.

    Raises
    ------
    MissingDependencyError
        If KBMOD is not installed.
    """
    stack_class, configuration_class, work_unit_class = _kbmod()
    stack = work_unit.im_stack
    if not isinstance(stack, stack_class):
        if getattr(stack, "lazy", False) and not load:
            stack = store_stack_of(stack, cache)
        else:
            stack = stack.copy() if getattr(stack, "lazy", False) else stack
            psfs = [np.asarray(psf) for psf in stack.psfs]
            stack = stack_class(times=stack.times, sci=stack.sci, var=stack.var, psfs=psfs)
    configuration = None
    if work_unit.config is not None:
        configuration = configuration_class()
        configuration.set_multiple(SearchConfiguration.of(work_unit.config).to_dict())
    theirs = work_unit_class(
        stack,
        configuration,
        wcs=work_unit.wcs,
        reprojected=work_unit.reprojected,
        reprojection_frame=work_unit.reprojection_frame,
        per_image_indices=copy.deepcopy(work_unit.per_image_indices),
        barycentric_distance=work_unit.barycentric_distance,
        lazy=True,  # else the constructor reads every pixel to validate it
        obstimes=work_unit.get_all_obstimes(),
        org_image_meta=work_unit.org_img_meta.copy(),
        observatory=work_unit.observatory,
    )
    theirs.lazy = False
    return theirs


def _kbmod() -> tuple[Any, Any, Any]:
    """Return KBMOD's classes of stack, configuration and WorkUnit."""
    try:
        from kbmod.configuration import SearchConfiguration as KbmodConfiguration
        from kbmod.core.image_stack_py import ImageStackPy
        from kbmod.work_unit import WorkUnit as KbmodWorkUnit
    except ImportError as error:
        raise MissingDependencyError(
            "KBMOD is not installed", hint="See https://github.com/dirac-institute/kbmod on how to build it."
        ) from error
    return ImageStackPy, KbmodConfiguration, KbmodWorkUnit
