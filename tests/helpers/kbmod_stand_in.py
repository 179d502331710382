"""KBMOD's classes as small stand-ins that ask for types as KBMOD does."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from wustore.compat import kbmod_stack
from wustore.compat.configuration import SearchConfiguration


class ImageStackPy:
    """KBMOD's image stack: plain attributes, lists."""

    def __init__(self, times: Any = None, sci: Any = None, var: Any = None, mask: Any = None, psfs: Any = None) -> None:
        times = [] if times is None else times
        self.num_times = len(times)
        self.times = np.asarray(times, dtype=float)
        self.zeroed_times = self.times - self.times[0] if len(self.times) else self.times
        self.sci, self.var, self.psfs = list(sci or []), list(var or []), list(psfs or [])
        self.height, self.width = self.sci[0].shape if self.sci else (-1, -1)

    def __len__(self) -> int:
        return self.num_times

    def get_mask(self, k: int) -> Any:
        return np.isnan(self.sci[k]) | np.isnan(self.var[k])

    def num_masked_pixels(self) -> Any:
        return np.array([np.count_nonzero(self.get_mask(k)) for k in range(self.num_times)], dtype=float)

    def mask_by_science_bounds(self, high: float) -> None:
        for k in range(self.num_times):
            self.sci[k][self.sci[k] > high] = np.nan

    def validate(self) -> bool:
        raise AssertionError("this reads every pixel")


class KbmodConfiguration:
    """KBMOD's configuration: it cannot be pickled, and is not ours."""

    def __init__(self) -> None:
        self._params = SearchConfiguration().to_dict()

    def __getitem__(self, name: str) -> Any:
        return self._params[name]

    def set(self, name: str, value: Any) -> None:
        self._params[name] = value

    def set_multiple(self, values: Any) -> None:
        self._params.update(values)


class KbmodWorkUnit:
    """KBMOD's WorkUnit."""

    def __init__(
        self,
        im_stack: Any,
        config: Any,
        wcs: Any = None,
        per_image_wcs: Any = None,
        reprojected: bool = False,
        reprojection_frame: Any = None,
        per_image_indices: Any = None,
        barycentric_distance: Any = None,
        lazy: bool = False,
        file_paths: Any = None,
        obstimes: Any = None,
        org_image_meta: Any = None,
        observatory: Any = None,
    ) -> None:
        self.im_stack, self.config, self.wcs, self.lazy, self.file_paths = im_stack, config, wcs, lazy, file_paths
        self.reprojected, self.reprojection_frame = reprojected, reprojection_frame
        self.barycentric_distance, self.observatory, self._obstimes = barycentric_distance, observatory, obstimes
        self._per_image_indices, self.org_img_meta = per_image_indices, org_image_meta
        self.n_constituents = len(org_image_meta)
        if not lazy:
            im_stack.validate()


def search(work: Any) -> list[float]:
    """Ask what KBMOD's search asks, and return the sum of each image."""
    assert type(work.config) is KbmodConfiguration
    assert isinstance(work.im_stack, ImageStackPy)
    assert isinstance(work.im_stack.sci, list)
    assert isinstance(work.im_stack.psfs, list)
    assert not work.lazy
    assert len(work.im_stack) == work.im_stack.num_times == len(work.im_stack.times) == len(work._obstimes)
    return [float(np.nansum(sci) + np.nansum(var)) for sci, var in zip(work.im_stack.sci, work.im_stack.var)]  # noqa: B905


def reproject_image(image: Any, original_wcs: Any, common_wcs: Any) -> tuple[Any, Any]:
    """Move an image by whole pixels, as far as the reference pixels differ."""
    new = np.full(common_wcs.array_shape, np.nan, np.float32)
    footprint = np.zeros(common_wcs.array_shape, np.ubyte)
    x, y = (int(a - b) for a, b in zip(common_wcs.wcs.crpix, original_wcs.wcs.crpix, strict=True))
    place = slice(y, y + image.shape[0]), slice(x, x + image.shape[1])
    new[place], footprint[place] = image, 1
    return new, footprint


@pytest.fixture
def kbmod_stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make ``import kbmod`` find the stand-ins."""
    for name, attributes in {
        "kbmod": {},
        "kbmod.core": {},
        "kbmod.configuration": {"SearchConfiguration": KbmodConfiguration},
        "kbmod.core.image_stack_py": {"ImageStackPy": ImageStackPy},
        "kbmod.work_unit": {"WorkUnit": KbmodWorkUnit},
        "kbmod.reprojection": {"reproject_image": reproject_image},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    kbmod_stack.store_stack_class.cache_clear()
    yield types.SimpleNamespace(
        ImageStackPy=ImageStackPy,
        SearchConfiguration=KbmodConfiguration,
        WorkUnit=KbmodWorkUnit,
        search=search,
    )
    kbmod_stack.store_stack_class.cache_clear()
