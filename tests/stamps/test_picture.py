"""Pictures of planes."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from wustore.stamps import picture as preview


def test_grey_is_linear_between_limits():
    plane = np.array([[0.0, 5.0, 10.0], [-1.0, 99.0, np.nan]])
    assert preview.grey(plane, (0.0, 10.0)).tolist() == [[0, 128, 255], [0, 255, preview.BACKGROUND]]


@pytest.mark.parametrize("plane", [np.full((3, 3), np.nan), np.zeros((3, 3)), np.full((2, 2), np.inf)])
def test_planes_without_contrast(plane):
    assert preview.grey(plane).shape == plane.shape


def test_stretch_follows_the_sky():
    rng = np.random.default_rng(1)
    plane = rng.normal(100, 5, (200, 200))
    plane[50:53, 50:53] = 1e6
    plane[0, 0] = np.nan
    low, high = preview.zscale(plane)
    assert 70 < low < 100 < high < 130


def test_contact_sheet():
    planes = [np.full((2, 3), k, dtype=np.float32) for k in range(3)]
    sheet = preview.contact_sheet(planes, columns=2, zoom=2, gap=1, limits=(0, 2))
    assert sheet.shape == (2 * 4 + 1, 2 * 6 + 1)
    assert sheet[0, 0] == 0
    assert sheet[0, 7] == 128
    assert sheet[5, 0] == 255
    assert (sheet[4] == preview.BACKGROUND).all()  # gap between rows
    assert (sheet[5:, 7:] == preview.BACKGROUND).all()  # no fourth plane


def test_first_row_is_at_the_bottom():
    sheet = preview.contact_sheet([np.array([[0.0, 0.0], [1.0, 1.0]])], limits=(0, 1))
    assert sheet.tolist() == [[255, 255], [0, 0]]


def test_nothing_to_show():
    with pytest.raises(ValueError, match="at least one"):
        preview.contact_sheet([])


def test_png_comes_back():
    picture = np.arange(35, dtype=np.uint8).reshape(5, 7)
    data = preview.png(picture)
    assert data.startswith(b"\x89PNG")
    assert (imagecodecs.png_decode(data) == picture).all()


def test_terminal():
    text = preview.terminal(np.full((5, 300), 255, dtype=np.uint8), max_width=100)
    lines = text.split("\n")
    assert len(lines) == 1
    assert lines[0].count("\u2580") == 100
    assert "38;5;255" in lines[0]
    assert len(preview.terminal(np.zeros((5, 4), np.uint8)).split("\n")) == 3
