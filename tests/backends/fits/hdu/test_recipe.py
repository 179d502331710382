"""One HDU as a recipe: the shortest way that gives its bytes again, and recipes that are damaged."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray

from wustore.backends.fits.hdu.image import Plane
from wustore.backends.fits.hdu.recipe import Recipe, rebuild, record
from wustore.backends.fits.hdu.scan import scan
from wustore.errors import CorruptError

FLOATS = np.random.default_rng(9).normal(0, 5, (20, 30)).astype(np.float32)


def hdu_of(hdu: Any) -> tuple[bytes, NDArray[Any]]:
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(buffer)
    raw = buffer.getvalue()
    found = scan(raw, "a.fits").hdus[1]
    return raw[found.header_start :], Plane(found, "a.fits").read(raw)


def recipe_of(raw: bytes, plane: NDArray[Any] | None) -> Recipe:
    whole = fits.PrimaryHDU().header.tostring().encode() + raw
    hdu = scan(whole, "a.fits").hdus[1]
    head, data = whole[hdu.header_start : hdu.data_start], whole[hdu.data_start :]
    return record(hdu.header, head, data, hdu.data_length, plane)


def kept(recipe: Recipe) -> int:
    return sum(map(len, recipe.blobs))


PLAIN = hdu_of(fits.ImageHDU(FLOATS))
TILES = hdu_of(fits.CompImageHDU(FLOATS, compression_type="RICE_1", quantize_level=-0.01))


@pytest.mark.parametrize(("source", "method"), [(PLAIN, "plain"), (TILES, "tiles")], ids=["plain", "tiles"])
def test_pixels_are_not_kept_twice(source: tuple[bytes, NDArray[Any]], method: str) -> None:
    raw, plane = source
    recipe = recipe_of(raw, plane)
    assert recipe.control["method"] == method
    assert kept(recipe) < 200
    assert rebuild(recipe, plane) == raw
    with pytest.raises(CorruptError, match="needs a layer"):
        rebuild(recipe, None)


def test_without_pixels_the_data_are_kept() -> None:
    raw, _ = PLAIN
    recipe = recipe_of(raw, None)
    assert (recipe.control["method"], kept(recipe)) == ("kept", FLOATS.nbytes)
    assert rebuild(recipe, None) == raw


def test_few_bytes_that_differ_are_patches_and_many_are_kept() -> None:
    raw, plane = PLAIN
    start = len(raw) // 2880 * 2880 - 2880
    few, many = bytearray(raw), bytearray(raw)
    few[start + 5] ^= 1
    for k in range(0, FLOATS.nbytes, 8):
        many[start + k] ^= 1
    recipe = recipe_of(bytes(few), plane)
    assert recipe.control["method"] == "plain"
    assert "patch" in recipe.control
    assert kept(recipe) < 50
    assert rebuild(recipe, plane) == few
    recipe = recipe_of(bytes(many), plane)
    assert recipe.control["method"] == "kept"
    assert "patch" not in recipe.control
    assert rebuild(recipe, plane) == many


def test_padding_that_is_not_zero_is_kept() -> None:
    raw, plane = PLAIN
    odd = raw[:-1] + b"x"
    recipe = recipe_of(odd, plane)
    assert recipe.control["tail"] is True
    assert rebuild(recipe, plane) == odd
    assert "tail" not in recipe_of(raw, plane).control


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"header": 10**6}, "header"), ({"header": 0}, "header"), ({"method": "other"}, "recipe")],
)
def test_damaged_recipes(changes: dict[str, Any], where: str) -> None:
    recipe = recipe_of(*PLAIN)
    with pytest.raises(CorruptError, match="capsule is damaged") as raised:
        rebuild(replace(recipe, control=recipe.control | changes), PLAIN[1])
    assert raised.value.where == where
    with pytest.raises(CorruptError) as raised:
        rebuild(replace(recipe, header=recipe.header.replace(b"END", b"   ")), PLAIN[1])
    assert raised.value.where == "header"
