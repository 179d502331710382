"""Pictures of planes."""

from __future__ import annotations

import string

import imagecodecs
import numpy as np
import pytest

from wustore.compat.wcs import make_fake_wcs
from wustore.errors import UsageError
from wustore.format.wcs import wcs_to_text
from wustore.stamps import picture as preview
from wustore.stamps.picture import HEIGHT, STEP, drawn


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


def test_masked_pixels_have_a_colour():
    plane = np.array([[1.0, np.nan], [0.0, 1.0]])
    shown = preview.coloured(plane, np.array([[1, 0], [0, 0.25]]), (0, 1))
    assert shown.shape == (2, 2, 3)
    assert shown[1, 0].tolist() == list(preview.MASKED)  # the first row is below
    assert shown[1, 1].tolist() == list(preview.EMPTY)
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[0, 1].tolist() == [round(255 / 2 + value / 2) for value in preview.MASKED]
    assert len(set(preview.MASKED)) > 1


def test_asinh_shows_both_sky_and_star():
    rng = np.random.default_rng(1)
    plane = rng.normal(0, 1, (50, 50))
    plane[10, 10:20] = [10, 50, 100, 200, 300, 400, 500, 600, 800, 1000]
    linear, bent = (preview.grey(plane, None, stretch)[10, 10:20] for stretch in preview.STRETCHES)
    assert (linear == 255).all()
    assert (np.diff(bent.astype(int)) >= 0).all()
    assert len(set(bent.tolist())) > 5
    with pytest.raises(UsageError, match="stretch"):
        preview.limits_of(plane, "cubic")


def test_shrunk_is_the_mean_of_what_is_there():
    plane = np.arange(12.0).reshape(3, 4)
    plane[0, 0] = np.nan
    plane[2, 2:] = np.inf
    small = preview.shrunk(plane, 2)
    assert np.allclose(small, [[(1 + 4 + 5) / 3, (2 + 3 + 6 + 7) / 4], [8.5, np.nan]], equal_nan=True)
    assert preview.shrunk(np.ones((5, 7), bool), 3).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert np.array_equal(preview.shrunk(plane, 1), plane.astype(np.float32), equal_nan=True)


def test_labelled_pages():
    tile = preview.Tile(np.full((20, 30, 3), 200, np.uint8), ("above",), ("below", "two"))
    page = preview.labelled_sheet([tile] * 5, columns=2, title="title", legend=("legend",))
    assert (page == 200).all(axis=2).sum() == 5 * 600
    assert page.shape[0] > 3 * (20 + 3 * 10)
    with pytest.raises(UsageError):
        preview.labelled_sheet([])


def test_compass_and_scale_bar():
    wcs = make_fake_wcs(10.0, 5.0, 200, 100, 2 / 3600)
    marks = preview.marks_of(wcs_to_text(wcs), 100, 50)
    here = wcs.pixel_to_world(100, 50)
    north = wcs.pixel_to_world(100 + 10 * marks.north[0], 50 + 10 * marks.north[1])
    east = wcs.pixel_to_world(100 + 10 * marks.east[0], 50 + 10 * marks.east[1])
    assert here.position_angle(north).wrap_at("180d").deg == pytest.approx(0, abs=1e-3)
    assert here.position_angle(east).deg == pytest.approx(90, abs=1e-3)
    assert marks.scale == pytest.approx(2, rel=1e-5)
    assert preview.marks_of(None, 0, 0) is None
    picture = np.zeros((100, 100, 3), np.uint8)
    preview.draw_marks(picture, marks, 1.0)
    assert picture.any()
    tiny = np.zeros((9, 9, 3), np.uint8)
    preview.draw_marks(tiny, marks, 1.0)
    assert not tiny.any()


@pytest.mark.parametrize(
    ("scale", "longest", "text"),
    [(0.2, 100, '20"'), (0.25, 700, "2'"), (10, 1000, "2 deg"), (0.01, 30, '0.2"'), (1, 59, '50"'), (2, 1000, "30'")],
)
def test_scale_bars_are_round(scale, longest, text):
    arcsec, pixels = preview.scale_bar(scale, longest)
    assert preview.angle_text(arcsec) == text
    assert pixels <= longest
    assert arcsec == pytest.approx(pixels * scale)


def test_every_letter_has_a_shape_of_its_own():
    shapes = {letter: drawn(letter).tobytes() for letter in map(chr, range(32, 127))}
    assert len(set(shapes.values())) == 95
    assert not drawn(" ").any()
    assert all(drawn(letter).any() for letter in string.ascii_letters + string.digits)


def test_lines():
    assert drawn("12.5").shape == (HEIGHT, 4 * STEP)
    assert drawn("").shape == (HEIGHT, 0)
    assert drawn("é").tobytes() == drawn("?").tobytes()
    rows = ["".join(" #"[pixel] for pixel in row).rstrip() for row in drawn("L").tolist()]
    assert rows == ["#"] * 6 + ["#####"]
