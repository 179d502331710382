"""Planes of layers: what the arrays are, and what distinguishes an image from its metadata."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wustore.format.planes import layers_of, plane_checksums, plane_problems
from wustore.testing import sample


def test_layers_are_padded_to_the_largest_image() -> None:
    meta = sample("ragged").meta
    specs = {spec.name: spec for spec in layers_of(meta)}
    assert specs["science"].shape == (meta.n_images, *meta.image_shape.max(axis=0).tolist())
    assert np.isnan(specs["science"].fill)
    assert specs["psf"].dims == ("time", "psf_y", "psf_x")
    assert [spec.name for spec in layers_of(sample("bare").meta)] == ["science", "variance"]


def test_flags_that_the_mask_cannot_hold_are_not_named() -> None:
    meta = replace(sample("flags").meta, mask_flags={"BAD PIXEL": 1, "SIGN": 1 << 31})
    (mask,) = (spec for spec in layers_of(meta) if spec.name == "mask")
    assert mask.attributes["flag_masks"] == [1]
    assert mask.attributes["flag_meanings"] == "BAD_PIXEL"


def test_problems_of_planes() -> None:
    reader = sample("simple")
    meta, image = reader.meta, reader.image(0)
    sums = np.array([plane_checksums(reader.image(i)) for i in range(meta.n_images)], np.uint32)
    assert list(plane_problems(meta, 0, image, sums)) == []
    changed = image.science.copy()
    changed[0, 0] = 17
    for wrong, what in (
        (replace(image, science=changed), "the pixels of an image are not those"),
        (replace(image, science=image.science[1:]), "shape and dtype"),
        (replace(image, science=np.zeros(image.science.shape)), "shape and dtype"),
        (replace(image, mask=None), "shape and dtype"),
    ):
        (problem,) = plane_problems(meta, 0, wrong, sums)
        assert problem.layer == ("mask" if wrong.mask is None else "science")
        assert what in problem.what
    assert list(plane_problems(meta, 0, replace(image, science=changed))) == []  # without checksums nobody knows
    assert list(plane_problems(meta, 0, replace(image, mask=None), sums, ("science",))) == []


@pytest.mark.parametrize("name", ["simple", "dtypes", "flags"])
def test_checksums_are_computed_once(name: str) -> None:
    image = sample(name).image(0)
    sums = plane_checksums(image)
    assert plane_checksums(replace(image, checksums=(1, 2, 3, 4))) == (1, 2, 3, 4)
    assert len(set(sums)) > 1
