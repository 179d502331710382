"""To and from the objects of an installed KBMOD, so that its pipeline runs on stores.

Three lines of a pipeline change:

>>> import wustore.kbmod
>>> work = wustore.kbmod.open("night.zarr")  # doctest: +SKIP
>>> wustore.kbmod.save(work, "reprojected.zarr")  # doctest: +SKIP

KBMOD is imported when it is needed. `from_kbmod` and `save` take its objects by their attributes, without it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wustore import api, store_view
from wustore.backends.base import Index, Progress, Reader
from wustore.backends.memory import padded_box
from wustore.backends.registry import backend_for_writing
from wustore.backends.state import digest
from wustore.compat.configuration import SearchConfiguration
from wustore.compat.kbmod_stack import store_stack_of
from wustore.compat.plane_list import CACHE_BYTES
from wustore.errors import MissingDependencyError, UsageError
from wustore.format.wcs import wcs_to_text
from wustore.model.meta import LAYERS, Image, Meta
from wustore.ops.copy import copy as copy_store
from wustore.ops.copy import write
from wustore.stamps.notebook import with_bar
from wustore.storage.stores import address_of
from wustore.work_unit import WorkUnit

if TYPE_CHECKING:
    from astropy.coordinates import EarthLocation
    from astropy.wcs import WCS

__all__ = ["from_kbmod", "open", "reproject", "save", "to_kbmod"]


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


@with_bar("reprojecting")
def reproject(
    source: Any,
    target: Any,
    common_wcs: WCS,
    frame: str = "original",
    *,
    format: str | None = None,  # noqa: A002
    overwrite: bool = False,
    resume: bool = False,
    processes: int = 0,
    executor: Executor | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Reproject a WorkUnit into a new store with KBMOD's code, image by image.

    The pixels are those of ``kbmod.reprojection.reproject_work_unit`` in memory. A few images are in memory at a time,
    however many there are. The table of constituent images with its EBD columns, the configuration and the observatory
    go on; the links name the constituents of each new image.

    Parameters
    ----------
    source
        A path or URL, or a WorkUnit (ours or KBMOD's).
    target
        Where to write.
    common_wcs
        The WCS of all new images; its ``array_shape`` is their size.
    frame
        ``original`` (from the column ``per_image_wcs``) or ``ebd`` (from ``ebd_wcs``).
    format, overwrite, progress, options
        As for `wustore.save`.
    resume
        Go on with the same reprojection that was killed, or begin one that can be resumed.
    processes
        Processes that reproject an image each; by default this one does. The program that asks for them must start its
        work under ``if __name__ == "__main__"``.
    executor
        Who reprojects instead: any `concurrent.futures.Executor`, such as a Dask client's ``get_executor()``.

    Raises
    ------
    MissingDependencyError
        If KBMOD is not installed.
    UsageError
        If the source is reprojected, an image has no WCS, or images of the same time overlap.
    StoreNotFoundError, StoreExistsError, UnknownFormatError, FormatError, CorruptError, OSError
        As `wustore.open` and `wustore.save` raise them.

    Examples
    --------
    >>> wustore.kbmod.reproject("night.zarr", "common.zarr", wcs, resume=True)  # doctest: +SKIP
    """
    _kbmod()
    given = isinstance(source, str | PathLike)
    work_unit = api.open(source) if given else WorkUnit.of(source)
    target = address_of(target)
    with contextlib.ExitStack() as stack:
        if given:
            stack.enter_context(work_unit)
        if executor is None and processes:
            executor = stack.enter_context(ProcessPoolExecutor(processes, mp_context=get_context("spawn")))
        workers = max(processes, getattr(executor, "_max_workers", 1) if executor is not None else 1)
        reader = Reprojected(work_unit, common_wcs, frame, executor)
        if not resume:
            write(
                reader,
                target,
                format,
                overwrite=overwrite,
                capsule=False,
                workers=workers,
                progress=progress,
                options=options,
            )
            return
        backend = backend_for_writing(target, format)
        writer = backend.resume(target, reader.meta, fingerprint=reader.state(), overwrite=overwrite, **options)
        left = writer.unwritten(range(reader.meta.n_images))
        copy_store(reader, writer, indices=left, workers=workers, progress=progress)


class Reprojected(Reader):
    """The images of a WorkUnit as KBMOD reprojects them, each made when it is read.

    Parameters
    ----------
    work_unit
        Not reprojected yet.
    common_wcs, frame, executor
        As for `reproject`.
    """

    format = "reprojected"

    def __init__(self, work_unit: WorkUnit, common_wcs: WCS, frame: str, executor: Executor | None = None) -> None:
        column = {"original": "per_image_wcs", "ebd": "ebd_wcs"}.get(frame)
        if column is None:
            raise UsageError("frame must be 'original' or 'ebd'", found=frame)
        if work_unit.reprojected:
            raise UsageError("the WorkUnit is reprojected already")
        self._source = store_view.reader_of(work_unit)
        self._planes = store_view.StoreSource(self._source)
        self._wcs, self._executor, self.path = common_wcs, executor, self._source.path
        self._wcses = list(work_unit.org_img_meta[column])
        missing = [i for i in range(len(work_unit)) if i >= len(self._wcses) or self._wcses[i] is None]
        if missing:
            raise UsageError("an image has no WCS to reproject it from", where=f"image {missing[0]}, {column}")
        times, self._images = work_unit.get_unique_obstimes_and_indices()
        n, old = len(times), store_view.meta_of(work_unit)
        first = [images[0] for images in self._images]
        height, width = common_wcs.array_shape
        self._meta = dataclasses.replace(
            old,
            times=times,
            image_shape=np.tile(np.array([height, width], np.int32), (n, 1)),
            psf_shape=np.array([self._planes.shape("psf", i) for i in first], np.int32),
            dtypes={
                "science": (np.dtype(np.float32),) * n,
                "variance": (np.dtype(np.float32),) * n,
                "mask": (None,) * n,
                "psf": tuple(self._psf(i).dtype for i in first),
            },
            links=tuple(tuple(images) for images in self._images),
            constituents=store_view.constituents_of(old),
            wcs=wcs_to_text(common_wcs),
            reprojected=True,
            reprojection_frame=frame,
            mask_flags={},
            source={},
            history=(),
        )

    def _psf(self, i: int) -> NDArray[Any]:
        return self._planes.plane("psf", i)

    @property
    def meta(self) -> Meta:
        """The metadata of the reprojected WorkUnit."""
        return self._meta

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Reproject one image; see `wustore.backends.base.Reader.image`."""
        images = self._images[i]
        pairs = list(self._planes.pairs(images))
        wcses = [self._wcses[k] for k in images]
        if self._executor is None:
            science, variance = reprojected_planes(pairs, wcses, self._wcs)
        else:
            science, variance = self._executor.submit(reprojected_planes, pairs, wcses, self._wcs).result()
        return Image(science, variance, None, self._psf(images[0]))

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Reproject the images that a box touches; see `wustore.backends.base.Reader.read`."""
        planes = [self.image(i).layer(layer) for i in range(index[0].start, index[0].stop)]
        box = padded_box(self._meta, layer, index, planes)
        if out is None:
            return box
        out[...] = box
        return out

    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the shape of an image: none is made in parts."""
        return (1, *self._meta.layer_shape(layer)[1:])

    def places(self) -> list[str]:
        """Return the files of the source."""
        return self._source.places()

    def state(self) -> str:
        """Return what identifies the source and what is done with it."""
        return digest([self._source.state(), self._meta.wcs, self._meta.reprojection_frame, self._images])

    def check_state(self) -> None:
        """Check that the source is still in its state."""
        self._source.check_state()


def reprojected_planes(
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], wcses: Sequence[WCS], common_wcs: WCS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return science and variance of one reprojected image, made as KBMOD makes it.

    Parameters
    ----------
    pairs
        Science and variance of the images that were taken at the same time, masked pixels NaN.
    wcses
        Their WCSes.
    common_wcs
        The WCS of the new image.

    Raises
    ------
    UsageError
        If the images overlap.
    """
    from kbmod.reprojection import reproject_image

    shape = common_wcs.array_shape
    sums = np.zeros((3, *shape), np.float32)
    footprint = np.zeros(shape, np.ubyte)
    for (science, variance), wcs in zip(pairs, wcses, strict=True):
        for k, plane in enumerate((science, variance, np.isnan(science) | np.isnan(variance))):
            new, covered = reproject_image(plane, wcs, common_wcs)
            if k == 0:
                footprint += covered
                if np.any(footprint > 1):
                    raise UsageError("images of the same time overlap", hint="KBMOD reprojects only those that do not.")
            new[np.isnan(new)] = 0.0
            sums[k] += new
    sums[2][footprint == 0] = 1  # KBMOD has a number there, and masks it
    hidden = ~np.isclose(sums[2], 0.0, atol=0.2)
    sums[:2, hidden] = np.nan
    return sums[0].copy(), sums[1].copy()
