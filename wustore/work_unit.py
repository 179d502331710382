"""WorkUnit under KBMOD's names and signatures, over memory or over an open store of any format.

A pipeline switches from KBMOD by changing its import line. What KBMOD itself does wrong is done right:
the observatory survives sharded files, positions are indexed by position, a missing PSF is the identity,
a lazy WorkUnit can be used and written. Arguments keep KBMOD's names and order.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wustore import store_view
from wustore.backends.base import Progress, Reader
from wustore.backends.registry import backend_named, open_reader
from wustore.compat.configuration import SearchConfiguration
from wustore.compat.image_hdus import add_image_data_to_hdul, load_layered_image_from_shard, read_image_data_from_hdul
from wustore.compat.image_metadata import (
    constituents_to_table,
    create_image_metadata,
    hdu_to_image_metadata_table,
    image_metadata_table_to_hdu,
    table_to_constituents,
)
from wustore.compat.image_stack import ImageStack, match_times
from wustore.compat.observatory import check_place, default_observatory, location_of
from wustore.compat.plane_list import PlaneList
from wustore.compat.reprojection import image_positions_to_original_icrs, offline
from wustore.compat.wcs import calc_ecliptic_angle, each_sky_to_pixel, sky_to_pixel
from wustore.errors import FormatError, StoreExistsError, UsageError, WuStoreError
from wustore.format.wcs import text_to_wcs, wcs_to_text
from wustore.model.units import in_unit, mjd
from wustore.ops.copy import copy as copy_store
from wustore.stamps.notebook import facts_html, is_interactive, shown_progress
from wustore.storage.stores import address_of

if TYPE_CHECKING:
    import xarray as xr
    from astropy.coordinates import EarthLocation
    from astropy.io.fits import HDUList
    from astropy.table import Table
    from astropy.wcs import WCS
    from matplotlib.figure import Figure

    from wustore.model.meta import Meta
    from wustore.stamps.layer import Layer
    from wustore.stamps.results import Coadds, Stamps

__all__ = [
    "WorkUnit",
    "add_image_data_to_hdul",
    "create_image_metadata",
    "hdu_to_image_metadata_table",
    "image_metadata_table_to_hdu",
    "load_layered_image_from_shard",
    "read_image_data_from_hdul",
    "work_unit_from",
]

logger = logging.getLogger(__name__)

_MATCH_DAYS = 0.02
"""KBMOD's threshold for the image that belongs to a time [days]."""


class WorkUnit:
    """The images, configuration and provenance of a KBMOD run.

    Parameters
    ----------
    im_stack
        The images: `ImageStack`, or KBMOD's ``ImageStackPy``.
    config
        `SearchConfiguration`, KBMOD's, a dict, or None.
    wcs
        Global WCS of all images, if they share one pixel grid.
    per_image_wcs
        One WCS per constituent image; takes the place of that column of ``org_image_meta``.
    reprojected
        Whether the images were reprojected; needs a global WCS.
    reprojection_frame
        ``original`` or ``ebd``.
    per_image_indices
        For each image the constituents it is made of; one to one by default.
    barycentric_distance
        Distance of the EBD reprojection [au].
    lazy
        Whether the images are still in the files ``file_paths``.
    file_paths
        Shard files of a lazy WorkUnit.
    obstimes
        Mid-exposure times [MJD, UTC]; those of the stack by default.
    org_image_meta
        Table with a row per constituent image.
    observatory
        Location of the telescope; the Rubin Observatory by default.

    Attributes
    ----------
    im_stack, config, wcs, reprojected, reprojection_frame, barycentric_distance, file_paths, observatory
        As given.
    n_constituents
        Number of constituent images.
    per_image_indices
        For each image its constituents (KBMOD's ``_per_image_indices`` is the same list).
    observatory_given
        False if ``observatory`` is the default.

    Raises
    ------
    FormatError
        If numbers of images, rows, links and WCSes do not agree.

    Warns
    -----
    UserWarning
        If an image has no WCS.
    """

    _wcs: WCS | None

    def __init__(
        self,
        im_stack: Any,
        config: Any,
        wcs: WCS | None = None,
        per_image_wcs: Sequence[WCS | None] | None = None,
        reprojected: bool = False,
        reprojection_frame: str | None = None,
        per_image_indices: Sequence[Sequence[int]] | None = None,
        barycentric_distance: float | None = None,
        lazy: bool = False,
        file_paths: Sequence[str] | None = None,
        obstimes: ArrayLike | None = None,
        org_image_meta: Table | None = None,
        observatory: EarthLocation | None = None,
    ) -> None:
        self._reader: Reader | None = None
        self._stored: Meta | None = None
        self._stored_observatory: EarthLocation | None = None
        self.im_stack = im_stack
        self.config = config
        self._lazy = bool(lazy)
        self.file_paths = None if file_paths is None else list(file_paths)
        self._obstimes = None if obstimes is None else mjd(obstimes, "obstimes")
        # The planes of a store were validated when it was made, and are not read here.
        if not self.lazy and not isinstance(im_stack.sci, PlaneList) and logger.isEnabledFor(logging.WARNING):
            ImageStack.of(self.im_stack).validate()

        if org_image_meta is not None:
            self.n_constituents = len(org_image_meta)
        elif per_image_wcs is not None:
            self.n_constituents = len(per_image_wcs)
        else:
            self.n_constituents = self.im_stack.num_times or (0 if self._obstimes is None else len(self._obstimes))
        self.wcs = wcs
        self._table: Table | None = _completed(
            create_image_metadata(self.n_constituents, org_image_meta), wcs, per_image_wcs
        )
        self.reprojected = reprojected
        self.reprojection_frame = reprojection_frame
        self.barycentric_distance = barycentric_distance
        self._set_observatory(observatory)
        self.per_image_indices = range(self.n_constituents) if per_image_indices is None else per_image_indices
        self._check()

    @classmethod
    def of(cls, given: Any, *, observatory: EarthLocation | None = None) -> WorkUnit:
        """Return ``given`` itself, or KBMOD's WorkUnit as ours: taken over by its attributes, sharing the stack.

        Parameters
        ----------
        given
            `WorkUnit`, or ``kbmod.work_unit.WorkUnit``.
        observatory
            Location of the telescope in place of the one that ``given`` has.

        Raises
        ------
        UsageError
            If it is no WorkUnit.
        """
        if isinstance(given, WorkUnit):
            return given
        try:
            place = getattr(given, "observatory", None) if observatory is None else observatory
            return cls(
                given.im_stack,
                given.config,
                wcs=given.wcs,
                reprojected=given.reprojected,
                reprojection_frame=given.reprojection_frame,
                per_image_indices=given._per_image_indices,
                barycentric_distance=given.barycentric_distance,
                lazy=given.lazy,
                file_paths=given.file_paths,
                obstimes=given._obstimes,
                org_image_meta=given.org_img_meta,
                observatory=place,
            )
        except AttributeError as error:
            raise UsageError(
                "not a WorkUnit", expected="wustore's or KBMOD's WorkUnit", found=type(given).__name__
            ) from error

    @classmethod
    def _of_store(cls, reader: Reader, stack: ImageStack) -> Self:
        """Return the WorkUnit of a reader; its table is decoded when it is first asked for."""
        meta = reader.meta
        self = cls.__new__(cls)
        self._reader = reader
        self._stored = meta
        self.im_stack = stack
        self.config = store_view.configuration_of(meta)
        self._lazy = False
        self.file_paths = None
        self._obstimes = None
        self.n_constituents = meta.n_constituents
        self._wcs, self.wcs_decoded = None, meta.wcs is None
        self._table = None
        self.reprojected = bool(meta.reprojected)
        self.reprojection_frame = meta.reprojection_frame
        self.barycentric_distance = meta.barycentric_distance
        if meta.observatory is not None:
            check_place(meta.observatory, path=reader.path)
        self._set_observatory(None)
        self.observatory_given = meta.observatory is not None
        self._stored_observatory = None
        self.per_image_indices = store_view.links_of(meta)
        if meta.links is None or self.reprojected:  # `Meta` has checked the links it holds
            self._check()
        return self

    def _set_observatory(self, observatory: EarthLocation | None) -> None:
        self.observatory_given = observatory is not None
        if observatory is None:
            logger.info("No observatory given: the Rubin Observatory is assumed.")
        self._observatory = observatory

    def _check(self) -> None:
        if self.reprojected and self.wcs_decoded and self.wcs is None:
            raise FormatError("Global WCS required for reprojected data.")
        for i, indices in enumerate(self.per_image_indices):
            if len(indices) and not 0 <= min(indices) <= max(indices) < self.n_constituents:
                raise FormatError(
                    "an image points to a constituent image that is not there",
                    where=f"image {i}",
                    expected=f"indices from 0 to {self.n_constituents - 1}",
                    found=list(indices)[:10],
                )

    # -- copies --

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle takes: WCSes as header text, because astropy's own pickles have 14 digits."""
        state = dict(self.__dict__)
        with contextlib.suppress(WuStoreError):  # what has no stored form pickles as it does by itself
            if self._wcs is not None:
                state |= {"_wcs": None, "wcs_text": wcs_to_text(self._wcs)}
        with contextlib.suppress(WuStoreError):
            if self._table is not None:
                state |= {"_table": None, "constituents": table_to_constituents(self._table)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        text, constituents = state.pop("wcs_text", None), state.pop("constituents", None)
        self.__dict__.update(state)
        if text is not None:
            self._wcs = text_to_wcs(text)
        if constituents is not None:
            self._table = constituents_to_table(constituents)

    # -- what it is --

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self.im_stack.num_times)

    def __repr__(self) -> str:
        """Say what it holds, on one screen; no pixel is read and no WCS decoded."""
        lines = [f"  {name:14} {text}" for name, text in store_view.summary_of(self)]
        return "\n".join([f"<WorkUnit: {len(self)} images, {'lazy' if self.lazy else 'in memory'}>", *lines])

    def _repr_html_(self) -> str:
        rows = {"images": f"{len(self)}, {'lazy' if self.lazy else 'in memory'}", **dict(store_view.summary_of(self))}
        return facts_html("WorkUnit", rows, self.layer("science").thumbnail() if len(self) else None)

    def plot(self, image: int = 0, layer: str = "science", stretch: str = "zscale") -> Figure:
        """Plot an image with matplotlib: on the sky if it has a WCS, else with axes in pixels.

        Parameters
        ----------
        image
            Its index.
        layer
            ``science`` or ``variance``.
        stretch
            ``zscale`` or ``asinh``.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        UsageError
            If there is no such image or layer.
        MissingDependencyError
            Without matplotlib (extra ``plot``).
        """
        from wustore.stamps.plot import plot_image

        return plot_image(store_view.reader_of(self), image, layer, stretch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store of a lazy WorkUnit; what is loaded stays."""
        if self._reader is not None:
            self._reader.close()

    @property
    def im_stack(self) -> Any:
        """The images: an `ImageStack`, or KBMOD's stack, which stays the object that was given."""
        return self._stack

    @im_stack.setter
    def im_stack(self, stack: Any) -> None:
        ImageStack.of(stack)  # says what is missing
        self._stack = stack

    @property
    def config(self) -> Any:
        """The configuration: a `SearchConfiguration`, KBMOD's, which stays the object that was given, or None.

        A mapping becomes a `SearchConfiguration` when it is set.
        """
        return self._config

    @config.setter
    def config(self, config: Any) -> None:
        if config is not None and (isinstance(config, Mapping) or not hasattr(config, "_params")):
            config = SearchConfiguration.of(config)
        self._config = config

    @property
    def lazy(self) -> bool:
        """Whether images are still in the store; `load_images` brings them into memory."""
        return bool(getattr(self.im_stack, "lazy", False)) or self._lazy

    @lazy.setter
    def lazy(self, value: bool) -> None:
        self._lazy = bool(value)

    @property
    def observatory(self) -> EarthLocation:
        """Location of the telescope; made at first use, since it takes long to import astropy's coordinates."""
        if self._observatory is None and self.observatory_given:
            assert self._stored is not None
            assert self._stored.observatory is not None
            self._observatory = self._stored_observatory = location_of(self._stored.observatory)
        elif self._observatory is None:
            self._observatory = location_of(default_observatory())
        return self._observatory

    @observatory.setter
    def observatory(self, location: EarthLocation) -> None:
        self._set_observatory(location)

    @property
    def wcs(self) -> WCS | None:
        """Global WCS; decoded from the store at first use, so that a WCS which astropy refuses spoils nothing else."""
        if not self.wcs_decoded:
            assert self._stored is not None
            assert self._stored.wcs is not None
            self.wcs = text_to_wcs(self._stored.wcs)
        return self._wcs

    @wcs.setter
    def wcs(self, wcs: WCS | None) -> None:
        self._wcs = wcs
        self.wcs_decoded = True

    @property
    def org_img_meta(self) -> Table:
        """Table with a row per constituent image; decoded from the store at first use."""
        if self._table is None:
            assert self._stored is not None
            self._table = store_view.table_of(self._stored)
        return self._table

    @org_img_meta.setter
    def org_img_meta(self, table: Table) -> None:
        self._table = table

    @property
    def per_image_indices(self) -> list[list[int]]:
        """For each image its constituents; a flat list when set means one for each image."""
        return self._links

    @per_image_indices.setter
    def per_image_indices(self, indices: Iterable[int | Iterable[int]]) -> None:
        # As given, numpy's integers and arrays too; a single number is a list of one.
        self._links: list[list[int]] = [[int(i)] if np.ndim(i) == 0 else list(i) for i in indices]  # type: ignore[arg-type]

    @property
    def _per_image_indices(self) -> list[list[int]]:
        return self.per_image_indices

    @_per_image_indices.setter
    def _per_image_indices(self, indices: list[list[int]]) -> None:
        self.per_image_indices = indices

    def get_num_images(self) -> int:
        """Return the number of images."""
        return len(self.per_image_indices)

    def print_stats(self) -> None:
        """Print numbers of images, reprojection and statistics of every image."""
        print("WorkUnit:")
        print(f"  Num Constituent Images ({self.n_constituents}):")
        print(f"  Reprojected: {self.reprojected}")
        if self.reprojected:
            print(f"  Reprojected Frame: {self.reprojection_frame}")
            print(f"  Barycentric Distance: {self.barycentric_distance}")
        ImageStack.of(self.im_stack).print_stats()

    def layer(self, name: str) -> Layer:
        """Return a layer of all images as one lazy array (time, y, x), as the store holds it.

        Parameters
        ----------
        name
            ``science``, ``variance``, ``mask`` or ``psf``.

        Returns
        -------
        Layer
            Shape (time, y, x), or (time, psf_y, psf_x); padded to the largest image, not masked.

        Raises
        ------
        KeyError
            For another name.
        FormatError
            If no image has this layer.
        """
        from wustore.stamps.layer import Layer as LazyLayer

        return LazyLayer(store_view.reader_of(self), name)

    # -- constituents and WCS --

    def get_constituent_meta(self, column: str | Iterable[str]) -> list[Any] | dict[str, list[Any]]:
        """Return the values of a column of the table of constituents, or of several.

        Parameters
        ----------
        column
            A name, or several names; of several, those that the table lacks are left out.

        Returns
        -------
        list or dict
            The values of one column, or name to values.

        Raises
        ------
        KeyError
            If the table lacks the one column that was asked for.
        TypeError
            If ``column`` is neither text nor several texts.
        """
        if isinstance(column, str):
            values: list[Any] = self.org_img_meta[column].tolist()
            return values
        if not isinstance(column, Iterable):
            raise TypeError(f"column names are text, not {type(column).__name__}")
        return {name: self.org_img_meta[name].tolist() for name in column if name in self.org_img_meta.colnames}

    def get_wcs(self, img_num: int) -> WCS | None:
        """Return the global WCS, or if there is none that of constituent ``img_num``; None if it has none.

        Parameters
        ----------
        img_num
            Row of the table of constituents.

        Raises
        ------
        FormatError
            If astropy does not accept the WCS that is stored.
        IndexError
            If there is no such constituent.
        """
        return self.wcs if self.wcs is not None else self.org_img_meta["per_image_wcs"][img_num]

    def get_pixel_coordinates(
        self, ra: ArrayLike, dec: ArrayLike, times: ArrayLike | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the pixels of sky positions.

        Parameters
        ----------
        ra, dec
            ICRS [deg]. Shape (n,).
        times
            When each is meant [MJD, UTC], to choose the image if there is no global WCS. By default position
            k belongs to image k.

        Returns
        -------
        x, y : ndarray
            Pixels, from 0. Shape (n,).

        Raises
        ------
        UsageError
            If lengths differ, a time matches no image within 0.02 days, or an image has no WCS.
        """
        from astropy.coordinates import SkyCoord

        ra, dec = np.atleast_1d(in_unit(ra, "deg", "ra")), np.atleast_1d(in_unit(dec, "deg", "dec"))
        n = len(ra)
        if len(dec) != n:
            raise UsageError("Mismatched array sizes of RA and dec", expected=n, found=len(dec))
        times = None if times is None else np.atleast_1d(mjd(times))
        if times is not None and np.size(times) != n:
            raise UsageError("Mismatched array sizes of RA and times", expected=n, found=np.size(times))
        coords = SkyCoord(ra, dec, unit="deg")
        if self.wcs is not None:
            pixels = sky_to_pixel(coords, self.wcs)
            return pixels[:, 0], pixels[:, 1]
        if times is not None:
            images = match_times(self.get_all_obstimes(), times, _MATCH_DAYS)
            if np.any(images < 0):
                unmatched = times[images < 0]
                raise UsageError("a time belongs to no image", expected="within 0.02 days of one", found=unmatched[0])
        elif n == len(self):
            images = np.arange(n)
        else:
            raise UsageError("without a global WCS, times are needed to choose the image of each position")
        wcses = [self.org_img_meta["per_image_wcs"][i] for i in images]
        if any(wcs is None for wcs in wcses):
            raise UsageError("an image has no WCS")
        pixels = each_sky_to_pixel(coords, wcses)
        return pixels[:, 0], pixels[:, 1]

    def compute_ecliptic_angle(self) -> float | None:
        """Return the angle of the ecliptic in the pixels of the first image [rad], None without WCS."""
        wcs = self.get_wcs(0)
        if wcs is None:
            logger.warning("A WCS is needed to compute the ecliptic angle.")
            return None
        with offline():
            return calc_ecliptic_angle(wcs, (self.im_stack.width / 2, self.im_stack.height / 2))

    def image_positions_to_original_icrs(
        self,
        image_indices: Sequence[int] | NDArray[np.integer[Any]],
        positions: Any,
        input_format: str = "xy",
        output_format: str = "xy",
        filter_in_frame: bool = True,
    ) -> list[Any]:
        """Return where positions in reprojected images were in the original images.

        Parameters
        ----------
        image_indices
            The image of each position.
        positions
            Pairs (x, y), or SkyCoord objects, one per entry of ``image_indices``.
        input_format, output_format
            ``xy`` or ``radec``.
        filter_in_frame
            Keep only positions within an original image.

        Returns
        -------
        list
            See `wustore.compat.reprojection.image_positions_to_original_icrs`.

        Raises
        ------
        UsageError
            If the WorkUnit was not reprojected, or arguments are invalid.
        """
        if not self.reprojected:
            raise UsageError("the WorkUnit was not reprojected: its positions are the original ones")
        frame = self.reprojection_frame
        if frame is None and self.barycentric_distance is not None:
            frame = "ebd"  # files of 2024 hold the distance but not the frame's name
        return image_positions_to_original_icrs(
            image_indices,
            positions,
            self.wcs,
            list(self.org_img_meta["per_image_wcs"]),
            self.get_all_obstimes(),
            self.observatory,
            input_format=input_format,
            output_format=output_format,
            filter_in_frame=filter_in_frame,
            reprojection_frame=frame,
            barycentric_distance=self.barycentric_distance,
            per_image_indices=self.per_image_indices,
            image_locations=self.org_img_meta["data_loc"],
        )

    # -- times --

    def get_all_obstimes(self) -> NDArray[np.float64]:
        """Return the times of all images [MJD, UTC]. Shape (n_images,)."""
        return np.array(self.im_stack.times if self._obstimes is None else self._obstimes, dtype=float)

    def get_unique_obstimes_and_indices(self) -> tuple[NDArray[np.float64], list[list[int]]]:
        """Return the different times in order, and for each the images that have it."""
        unique, inverse = np.unique(self.get_all_obstimes(), return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.searchsorted(inverse[order], np.arange(len(unique) + 1))
        return unique, [order[a:b].tolist() for a, b in pairwise(bounds)]

    def disorder_obstimes(self) -> None:
        """Shift every time by a random number of days, then sort the images by their new times.

        Images that share a time still do. For tests and training data in which nothing real can be found.

        Raises
        ------
        UsageError
            If there are no times.
        """
        times = self.get_all_obstimes()
        unique, inverse = np.unique(times, return_inverse=True)
        if len(unique) == 0:
            raise UsageError("No obstimes provided for WorkUnit.")
        span = max(unique[-1] - unique[0] + 1, len(times))
        # numpy's global generator, so that np.random.seed makes it repeatable as in KBMOD
        offsets = np.random.choice(np.arange(0, span), len(unique), replace=False)  # noqa: NPY002
        self.im_stack.times = times + offsets[inverse]
        order = self.im_stack.sort_by_time().tolist()
        self._obstimes = None
        if self.file_paths is not None:
            self.file_paths = [self.file_paths[i] for i in order]
        if len(self.org_img_meta) == len(order):  # as KBMOD; of a reprojected stack the rows are not the images
            self.org_img_meta = self.org_img_meta[order]
        self.per_image_indices = [self.per_image_indices[i] for i in order]

    # -- choice and pixels --

    def _one_to_one(self) -> bool:
        return self.per_image_indices == [[i] for i in range(self.n_constituents)]

    def filter_images(self, mask: ArrayLike) -> None:
        """Keep the images where ``mask`` is True.

        Of a reprojected WorkUnit all constituents stay, of another only those of the kept images.

        Parameters
        ----------
        mask
            One boolean per image.

        Raises
        ------
        UsageError
            If there is not one per image.
        """
        keep = np.asarray(mask, dtype=bool)
        n = self.get_num_images()
        if keep.shape != (n,):
            raise UsageError("one boolean per image is needed", expected=(n,), found=keep.shape)
        if keep.all():
            return
        chosen = np.flatnonzero(keep).tolist()
        if self.im_stack.num_times:
            self.im_stack.filter_images(keep)
        if self.file_paths is not None:
            self.file_paths = [self.file_paths[i] for i in chosen]
        if self._obstimes is not None:
            self._obstimes = self._obstimes[keep]
        if self.reprojected:
            self.per_image_indices = [self.per_image_indices[i] for i in chosen]
        elif self._one_to_one():
            self.org_img_meta = self.org_img_meta[keep]
            self.n_constituents = len(chosen)
            self.per_image_indices = [[i] for i in range(self.n_constituents)]
        else:
            rows = sorted({j for i in chosen for j in self.per_image_indices[i]})
            new = {old: k for k, old in enumerate(rows)}
            self.org_img_meta = self.org_img_meta[rows]
            self.n_constituents = len(rows)
            self.per_image_indices = [[new[j] for j in self.per_image_indices[i]] for i in chosen]

    def apply_color_scale(self, color_scale: Mapping[str, float] | None = None) -> None:
        """Scale every image by the magnitude correction of its filter, and note it in column ``color_scale``.

        Parameters
        ----------
        color_scale
            Filter name to correction [mag]; nothing happens without.

        Raises
        ------
        UsageError
            If filters are not known, mixed within an image, or missing from ``color_scale``.
        """
        if color_scale is None:
            return
        if "filter" not in self.org_img_meta.colnames:
            raise UsageError("No filter information in WorkUnit to apply color scaling.")
        filters = [str(name) for name in self.org_img_meta["filter"]]
        missing = sorted(set(filters) - set(color_scale))
        if missing:
            raise UsageError("a filter has no color scale", expected=missing[0], found=sorted(color_scale))
        factors = np.zeros(len(self))
        for i, indices in enumerate(self.per_image_indices):
            names = {filters[j] for j in indices}
            if len(names) != 1:
                raise UsageError("an image is made of several filters", where=f"image {i}", found=sorted(names))
            factors[i] = color_scale[names.pop()]
        self.load_if_lazy()
        self.im_stack.scale_images(factors, is_magnitude=True)
        self.org_img_meta["color_scale"] = np.array([color_scale[name] for name in filters])

    def load_images(self, *, show_progress: bool | None = None, out: tuple[Any, Any] | None = None) -> None:
        """Read all images of a lazy WorkUnit into memory.

        Parameters
        ----------
        show_progress
            Show a progress bar; by default in a notebook or interactive session.
        out
            Two arrays, for science and variance, float32 and of shape (images, height, width), into which the pixels
            are read instead of new ones; anything with the buffer protocol will do, such as shared memory or a mapped
            file. The planes of ``im_stack`` are parts of them. Outside of smaller images they stay as they are.

        Raises
        ------
        UsageError
            If the images are there already, or ``out`` does not fit.
        StoreNotFoundError, CorruptError
            If a file is gone or damaged.
        """
        if not self.lazy:
            raise UsageError("the images are loaded already")
        if getattr(self.im_stack, "lazy", False):
            with _bar(show_progress) as progress:
                self.im_stack.load(progress, out)
        elif out is not None:
            raise UsageError("only the images of a store are read into given memory", where="out")
        self.load_if_lazy()

    def load_if_lazy(self) -> None:
        """Read all images into memory if they are not there.

        Raises
        ------
        StoreNotFoundError, CorruptError
            If a file is gone or damaged.
        """
        if getattr(self.im_stack, "lazy", False):
            self.im_stack.load()
        elif self._lazy and self.file_paths is not None:
            stack = ImageStack()
            for path in self.file_paths:
                stack.append_layered_image(load_layered_image_from_shard(path))
            self.im_stack = stack
        self._lazy = False

    # -- stamps and smaller WorkUnits --

    def stamps(
        self,
        x: ArrayLike | None = None,
        y: ArrayLike | None = None,
        radius: int = 10,
        times: tuple[float | None, float | None] | None = None,
        **options: Any,
    ) -> Stamps:
        """Cut stamps around fixed positions out of every image; only the chunks that they touch are read.

        Parameters
        ----------
        x, y
            Position or positions [pixel, from 0], shape S. A stamp is centred on the pixel ``floor(x + 0.5)``.
        radius
            Pixels on either side of the centre.
        times
            (start, stop), both ends included: MJD [days, UTC], Time, datetime64 or datetime; None leaves an end open.
        options
            ``ra``, ``dec``: position or positions on the sky instead, ICRS [deg] or Quantity, which each image's WCS
            places. ``images``: indices of the images wanted, or a boolean for each; ``layers``: of science, variance
            and mask; ``max_memory``: working memory besides the result [bytes]; ``progress``: called with (images
            done, images in all).

        Returns
        -------
        Stamps
            Arrays of shape S + (time, y, x), y and x being 2 * radius + 1.

        Raises
        ------
        UsageError
            If an argument is invalid.
        CorruptError
            If the stored bytes are damaged or missing.
        """
        from wustore.stamps.trajectory_stamps import stamps

        return stamps(store_view.reader_of(self), x, y, radius, times, **options)

    def trajectory_stamps(
        self,
        trajectories: Any,
        radius: int = 10,
        times: tuple[float | None, float | None] | None = None,
        **options: Any,
    ) -> Stamps:
        """Cut stamps along linear motions, as KBMOD's stamp functions do, for all trajectories at once.

        Parameters
        ----------
        trajectories
            Rows (x, y, vx, vy) [pixel, pixel/day]; a table or results file with these columns or with ra, dec, v_ra,
            v_dec; KBMOD's Trajectory objects. At time t the centre is the pixel ``floor(x + vx * (t - t0) + 0.5)``;
            t0 is the time of the first image.
        radius, times
            As in `stamps`.
        options
            ``images``: indices of the images wanted, or a boolean for each; ``layers``: of science, variance and
            mask; ``max_memory``: working memory besides the result [bytes]; ``progress``: called with (images done,
            images in all).

        Returns
        -------
        Stamps
            Arrays of shape (n, time, y, x).

        Raises
        ------
        UsageError
            If an argument is invalid.
        CorruptError
            If the stored bytes are damaged or missing.
        """
        from wustore.stamps.trajectory_stamps import trajectory_stamps

        return trajectory_stamps(store_view.reader_of(self), trajectories, radius, times, **options)

    def stamp_batches(
        self,
        trajectories: Any,
        radius: int = 10,
        times: tuple[float | None, float | None] | None = None,
        **options: Any,
    ) -> Iterator[Stamps]:
        """Yield the stamps of `trajectory_stamps` in batches, for results larger than memory; each chunk is read once.

        Parameters
        ----------
        trajectories, radius, times, options
            As in `trajectory_stamps`. A batch takes half of ``max_memory``.

        Yields
        ------
        Stamps
            Arrays of shape (trajectories of this batch, images of this batch, y, x); `Stamps.ids` says which they are.

        Raises
        ------
        UsageError, CorruptError
            As in `trajectory_stamps`.
        """
        from wustore.stamps.trajectory_stamps import stamp_batches

        return stamp_batches(store_view.reader_of(self), trajectories, radius, times, **options)

    def trajectory_coadds(
        self,
        trajectories: Any,
        radius: int = 10,
        kind: str = "mean",
        times: tuple[float | None, float | None] | None = None,
        **options: Any,
    ) -> Coadds:
        """Coadd stamps along linear motions, of any number of trajectories in bounded memory.

        Parameters
        ----------
        trajectories, radius, times, options
            As in `trajectory_stamps`, but for ``layers``.
        kind
            ``sum``, ``mean``, ``median`` or ``weighted`` (by the inverse variance).

        Returns
        -------
        Coadds
            Values of shape (n, y, x), in the unit of the science layer.

        Raises
        ------
        UsageError, CorruptError
            As in `trajectory_stamps`.
        """
        from wustore.stamps.trajectory_stamps import trajectory_coadds

        return trajectory_coadds(store_view.reader_of(self), trajectories, radius, kind, times, **options)

    def cutout(
        self,
        x: float | None = None,
        y: float | None = None,
        width: int | None = None,
        height: int | None = None,
        **options: Any,
    ) -> WorkUnit:
        """Return a lazy WorkUnit of a window of all images, cut where the frame ends; the WCS moves along.

        Parameters
        ----------
        x, y
            Centre [pixel, from 0]: it lies in pixel ``width // 2`` of the window, ``height // 2`` in y.
        width, height
            Size of the window [pixel]; ``height`` is ``width`` by default.
        options
            ``ra``, ``dec``: centre on the sky instead, ICRS [deg] or Quantity; ``size``: size on the sky instead
            [arcsec].

        Raises
        ------
        UsageError
            If neither or both kinds of position or size are given, the window has no pixel in the frame, or the
            images do not share one WCS (for sky positions).
        """
        from wustore.stamps.view import cutout

        return work_unit_from(cutout(store_view.reader_of(self), x, y, width, height, **options))

    def select(
        self,
        times: tuple[float | None, float | None] | None = None,
        images: Sequence[int] | NDArray[Any] | None = None,
        filters: Sequence[str] | None = None,
    ) -> WorkUnit:
        """Return a lazy WorkUnit of the images that fulfil every condition, with their constituents.

        Parameters
        ----------
        times
            (start, stop), both ends included: MJD [days, UTC], Time, datetime64 or datetime; None leaves an end open.
        images
            Indices, whose order is kept, or a boolean for every image.
        filters
            Names of filters, from the column ``filter`` (or ``band``) of the constituents.

        Raises
        ------
        UsageError
            If no image is left, or a condition is invalid.
        """
        from wustore.stamps.view import select

        return work_unit_from(select(store_view.reader_of(self), times, images, filters))

    def to_xarray(self) -> xr.Dataset:
        """Return the layers as a lazy dataset with named dimensions; see `wustore.xarray.to_xarray`."""
        from wustore.xarray import to_xarray

        return to_xarray(store_view.reader_of(self))

    # -- FITS --

    @classmethod
    def from_fits(cls, filename: str | PathLike[str], show_progress: bool | None = None) -> WorkUnit:
        """Load a WorkUnit from a single FITS file, of any layout that KBMOD ever wrote.

        Parameters
        ----------
        filename
            The file; ``.gz``, ``.bz2`` and ``.zip`` are unpacked.
        show_progress
            Show a progress bar; by default in a notebook or interactive session.

        Raises
        ------
        StoreNotFoundError, FormatError, CorruptError
        """
        return _load("fits", filename, lazy=False, show_progress=show_progress)

    @classmethod
    def from_sharded_fits(
        cls, filename: str | PathLike[str], directory: str | PathLike[str], lazy: bool = False
    ) -> WorkUnit:
        """Load a WorkUnit from a primary FITS file and one file per image next to it.

        Parameters
        ----------
        filename
            Name of the primary file.
        directory
            Where the files are.
        lazy
            Leave the images in the files until they are touched.

        Raises
        ------
        StoreNotFoundError, FormatError, CorruptError
        """
        directory, name = Path(directory), os.fspath(filename)
        work_unit = _load("sharded-fits", directory / name, lazy=lazy)
        if lazy:
            work_unit.file_paths = [str(directory / f"{i}_{name}") for i in range(len(work_unit))]
        return work_unit

    def to_fits(
        self,
        filename: str | PathLike[str],
        overwrite: bool = False,
        compression_type: str = "RICE_1",
        quantize_level: float = -0.01,
        *,
        lossless: bool = False,
    ) -> None:
        """Write a single FITS file as KBMOD does.

        Parameters
        ----------
        filename
            The file; endings ``.gz``, ``.bz2`` and ``.zip`` compress it.
        overwrite
            Replace an existing file; it stays until the new one is whole.
        compression_type
            Of science and variance: NOCOMPRESS, RICE_1, GZIP_1, GZIP_2 or HCOMPRESS_1.
        quantize_level
            Step of the quantisation: negative absolute, positive relative to the noise, 0 none.
        lossless
            Write every pixel exactly (GZIP_2 without quantisation, whatever the two before say), and what
            KBMOD's layout cannot carry in an HDU of its own. KBMOD reads the file.

        Raises
        ------
        StoreExistsError, StoreNotFoundError, UsageError, OSError

        Warns
        -----
        FitsLossWarning
            Of what does not fit, by name, and of a quantisation step that destroys a plane, with numbers.
        """
        options = _fits_options(compression_type, quantize_level, lossless=lossless)
        self._write("fits", os.fspath(filename), overwrite=overwrite, kbmod=not lossless, capsule=False, **options)

    def to_sharded_fits(
        self,
        filename: str | PathLike[str],
        directory: str | PathLike[str],
        overwrite: bool = False,
        compression_type: str = "RICE_1",
        quantize_level: float = -0.01,
        *,
        lossless: bool = False,
    ) -> None:
        """Write a primary FITS file and one file per image (``<i>_<filename>``) as KBMOD does.

        Parameters
        ----------
        filename
            Name of the primary file.
        directory
            Where to write; one directory for each set is best.
        overwrite, compression_type, quantize_level, lossless
            As in `to_fits`.

        Raises
        ------
        StoreExistsError, StoreNotFoundError, UsageError, OSError

        Warns
        -----
        FitsLossWarning
            As in `to_fits`.
        """
        options = _fits_options(compression_type, quantize_level, lossless=lossless)
        path = os.fspath(Path(directory) / os.fspath(filename))
        self._write("sharded-fits", path, overwrite=overwrite, kbmod=not lossless, capsule=False, **options)

    def metadata_to_hdul(self) -> HDUList:
        """Return PRIMARY, KBMOD_CONFIG and IMG_META as KBMOD, and `to_fits`, write them."""
        from astropy.io import fits

        from wustore.backends.fits.kbmod_hdus import head_hdus

        return fits.HDUList.fromstring(b"".join(head_hdus(_as_kbmod(store_view.reader_of(self).meta))))

    # -- Zarr and HDF5 --

    @classmethod
    def from_zarr(cls, path: Any, *, lazy: bool = False, show_progress: bool | None = None) -> WorkUnit:
        """Load a WorkUnit from a Zarr store (directory, ``.zip``, URL or zarr Store object).

        Parameters
        ----------
        path
            Where it is.
        lazy
            Leave the images in the store until they are touched.
        show_progress
            Show a progress bar; by default in an interactive session.

        Raises
        ------
        StoreNotFoundError, FormatError, VersionError, IncompleteError, CorruptError
        """
        zipped = isinstance(path, str | PathLike) and os.fspath(path).endswith(".zip")
        return _load("zarr-zip" if zipped else "zarr", path, lazy=lazy, show_progress=show_progress)

    def to_zarr(self, path: Any, *, overwrite: bool = False, **options: Any) -> None:
        """Write a Zarr store; nothing is lost.

        Parameters
        ----------
        path
            Directory, ``.zarr.zip`` file, URL or zarr Store object.
        overwrite
            Replace an existing store; it stays until the new one is whole.
        options
            ``profile``, ``layout``, … of the backend.

        Raises
        ------
        StoreExistsError, UsageError, OSError
        """
        zipped = isinstance(path, str | PathLike) and os.fspath(path).endswith(".zip")
        self._write("zarr-zip" if zipped else "zarr", path, overwrite=overwrite, **options)

    @classmethod
    def from_hdf5(cls, path: str | PathLike[str], *, lazy: bool = False, show_progress: bool | None = None) -> WorkUnit:
        """Load a WorkUnit from an HDF5 file.

        Parameters
        ----------
        path
            The file, or a URL.
        lazy, show_progress
            As in `from_zarr`.

        Raises
        ------
        StoreNotFoundError, FormatError, VersionError, CorruptError
        MissingDependencyError
            For filters that need the extra ``plugins``.
        """
        return _load("hdf5", path, lazy=lazy, show_progress=show_progress)

    def to_hdf5(self, path: str | PathLike[str], *, overwrite: bool = False, **options: Any) -> None:
        """Write an HDF5 file; nothing is lost.

        Parameters
        ----------
        path
            The file.
        overwrite, options
            As in `to_zarr`.

        Raises
        ------
        StoreExistsError, UsageError, OSError
        MissingDependencyError
            For profile ``fast`` without the extra ``plugins``.
        """
        self._write("hdf5", path, overwrite=overwrite, **options)

    def _write(
        self,
        format_name: str,
        path: Any,
        *,
        overwrite: bool,
        kbmod: bool = False,
        capsule: bool = True,
        **options: Any,
    ) -> None:
        target = address_of(path, to_write=True)
        reader = store_view.reader_of(self)
        meta = _as_kbmod(reader.meta) if kbmod else reader.meta
        kept = reader.capsule() if capsule else None
        writer = backend_named(format_name).create(target, meta, capsule=kept, overwrite=overwrite, **options)
        copy_store(reader, writer, workers=options.get("workers"))

    # -- results --

    def write_config(self, overwrite: bool = False) -> None:
        """Write the configuration into the provenance directory next to the results file.

        For results ``/d/name.ecsv`` that is ``/d/name_provenance/name_config.yaml``.

        Parameters
        ----------
        overwrite
            Allow the directory to exist.

        Raises
        ------
        UsageError
            If the configuration has no absolute ``result_filename``.
        StoreExistsError
            If the directory exists.
        """
        config = None if self.config is None else SearchConfiguration.of(self.config)
        name = None if config is None else config["result_filename"]
        if name is None or not Path(name).is_absolute():
            raise UsageError("write_config needs an absolute result_filename in the configuration", found=name)
        assert config is not None
        base = Path(name).name.split(".ecsv")[0]
        directory = Path(name).parent / f"{base}_provenance"
        if directory.exists() and not overwrite:
            raise StoreExistsError("the provenance directory exists already", path=directory)
        directory.mkdir(parents=True, exist_ok=True)
        config.to_file(directory / f"{base}_config.yaml", overwrite)


def work_unit_from(reader: Reader, *, lazy: bool = True, progress: Progress | None = None) -> WorkUnit:
    """Return the WorkUnit that a store holds.

    Parameters
    ----------
    reader
        The open store; the WorkUnit keeps it while it is lazy.
    lazy
        Leave the pixels in the store until they are touched.
    progress
        Called after each image that is loaded.

    Raises
    ------
    CorruptError, FormatError
        If the store is damaged.
    """
    meta = reader.meta
    source = store_view.StoreSource(reader)
    height, width = (int(size) for size in meta.image_shape.max(axis=0))
    stack = ImageStack.over(source, meta.times, (height, width))
    if not lazy:
        stack.sci, stack.var, stack.psfs = source.load(range(meta.n_images), progress)
    return WorkUnit._of_store(reader, stack)


def _completed(table: Table, wcs: WCS | None, per_image_wcs: Sequence[WCS | None] | None) -> Table:
    """Return the table with its WCS column filled: from the list, or with the global WCS if it is empty."""
    n = len(table)
    if per_image_wcs is not None:
        if len(per_image_wcs) != n:
            raise FormatError("Incorrect number of WCS provided", expected=n, found=len(per_image_wcs))
        column = np.empty(n, dtype=object)
        column[:] = list(per_image_wcs)
        table["per_image_wcs"] = column
    if all(entry is None for entry in table["per_image_wcs"]):
        table["per_image_wcs"] = np.full(n, wcs)
    if any(entry is None for entry in table["per_image_wcs"]):
        warnings.warn("At least one image does not have a WCS.", UserWarning, stacklevel=3)
    return table


def _as_kbmod(meta: Meta) -> Meta:
    """Return what KBMOD writes: the place that it assumes, and a configuration in any case."""
    if meta.observatory is None:
        meta = replace(meta, observatory=default_observatory())
    if meta.configuration is None:
        meta = replace(meta, configuration=SearchConfiguration().to_dict())
    return meta


def _fits_options(compression_type: str, quantize_level: float, *, lossless: bool) -> dict[str, Any]:
    if lossless:
        return {"mode": "archive", "lossless": True}
    return {"mode": "kbmod", "compression_type": compression_type, "quantize_level": quantize_level}


def _load(format_name: str, path: Any, *, lazy: bool, show_progress: bool | None = None) -> WorkUnit:
    reader = open_reader(path, format=format_name)
    if lazy:
        return work_unit_from(reader)
    with reader, _bar(show_progress) as progress:
        return work_unit_from(reader, lazy=False, progress=progress)


@contextlib.contextmanager
def _bar(show: bool | None) -> Iterator[Progress | None]:
    """Give a function that moves a bar, a widget in notebooks; None if no bar is to be shown."""
    if not (is_interactive() if show is None else show):
        yield None
        return
    with shown_progress("loading images", leave=True) as progress:
        yield progress
