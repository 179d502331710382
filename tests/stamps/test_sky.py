"""Which WCS an image's pixels have, and positions on the sky in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wustore.compat.wcs import make_fake_wcs
from wustore.errors import UsageError
from wustore.format.wcs import wcs_to_text
from wustore.model.meta import Column, ConstituentTable, Meta, object_array
from wustore.stamps.sky import (
    linked_wcs,
    linked_wcs_or_none,
    numbers_alike,
    pixel_to_sky,
    shared_wcs,
    sky_to_pixel,
    texts_sky_to_pixel,
)
from wustore.testing import sample

HERE, THERE = (wcs_to_text(make_fake_wcs(ra, -5.0, 200, 300, 0.001)) for ra in (10.0, 10.02))


def meta_of(texts: list[str | None], links: list[tuple[int, ...]] | None, wcs: str | None = None) -> Meta:
    """Return the metadata of three images whose constituents have these WCSes."""
    column = Column("per_image_wcs", "wcs", object_array(texts))
    table = ConstituentTable(len(texts), (column,))
    return replace(sample("chunked").meta, constituents=table, links=None if links is None else tuple(links), wcs=wcs)


def test_the_linked_constituent_has_the_wcs_not_the_row() -> None:
    meta = meta_of([HERE, THERE, None], [(1,), (0,), (2,)])
    assert [linked_wcs_or_none(meta, i) for i in range(3)] == [THERE, HERE, None]
    assert [linked_wcs_or_none(replace(meta, links=None), i) for i in range(3)] == [HERE, THERE, None]
    assert linked_wcs(replace(meta, wcs=THERE), 2) == THERE
    with pytest.raises(UsageError, match="an image has no WCS"):
        linked_wcs(meta, 2)


def test_an_image_of_several_constituents_has_none_of_their_own() -> None:
    assert linked_wcs_or_none(meta_of([HERE, HERE], [(0, 1), (), (1,)]), 0) is None
    assert linked_wcs_or_none(meta_of([HERE, HERE], [(0, 1), (), (1,)]), 1) is None


def test_shared_wcs() -> None:
    assert shared_wcs(meta_of([HERE, THERE, HERE], [(0,), (2,), (0,)]), "no", "hint") == HERE
    with pytest.raises(UsageError, match=r"different WCSs, so no line.*2 different ones.*Do that"):
        shared_wcs(meta_of([HERE, THERE, HERE], None), "no line", "Do that.")


def test_positions_and_back() -> None:
    meta = meta_of([HERE, THERE, HERE], None)
    x, y = sky_to_pixel(meta, [10.0, 10.01], [-5.0, -4.99], np.arange(3))
    assert x.shape == y.shape == (2, 3)
    assert x[0, 0] == x[0, 2] == pytest.approx(99)  # as KBMOD: CRPIX1 is half the height
    assert abs(x[0, 1] - x[0, 0]) > 10  # another WCS, another pixel
    ra, dec = pixel_to_sky([HERE, THERE, HERE], x, y)
    assert ra == pytest.approx(np.array([[10.0] * 3, [10.01] * 3]))
    assert dec == pytest.approx(np.array([[-5.0] * 3, [-4.99] * 3]))


def test_without_wcs_there_is_no_position() -> None:
    ra, dec = pixel_to_sky([None, HERE], np.array([1, 99]), np.array([1, 149]))
    assert np.isnan([ra[0], dec[0]]).all()
    assert (ra[1], dec[1]) == (pytest.approx(10.0), pytest.approx(-5.0))
    assert [value.shape for value in texts_sky_to_pixel([], [1.0, 2.0], [3.0, 4.0])] == [(2, 0), (2, 0)]


def test_numbers_of_one_shape() -> None:
    x, y = numbers_alike("pix", x=[[1], [2]], y=[3, 4, 5])
    assert x.tolist() == [[1, 1, 1], [2, 2, 2]]
    assert y.shape == (2, 3)
    with pytest.raises(UsageError, match=r"as many numbers of each.*ra and dec"):
        numbers_alike("deg", ra=[1, 2], dec=[1, 2, 3])
