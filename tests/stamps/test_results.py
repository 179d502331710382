"""What stamps and coadds say of themselves, and the pictures they make."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from pictures import WCS, night

from wustore.errors import MissingDependencyError, UsageError
from wustore.stamps.picture import MASKED
from wustore.stamps.trajectory_stamps import stamps, trajectory_coadds, trajectory_stamps

MOTIONS = [(10, 20, 10, 0), (30, 10, 0, 0), (500, 10, 0, 0)]


def test_reprs_fit_on_one_screen():
    made = trajectory_stamps(night(), MOTIONS, 5)
    assert repr(made).splitlines() == [
        "Stamps",
        "  positions  3",
        "  images     3, MJD 60000.00000 to 60000.20000",
        "  size       11 x 11 pixels",
        "  source     night",
        "  layers     science (float32), variance (float32), mask (int32)",
        "  memory     14.2 kB",
        "  outside    3 of 9 stamps have no pixel of their image",
    ]
    html = made._repr_html_()
    assert html.count("<tr>") == 7
    assert html.count("data:image/png;base64,") == 1
    assert "&lt;b&gt;" in trajectory_stamps(with_path(night(), "<b>"), MOTIONS, 5)._repr_html_()
    coadds = trajectory_coadds(night(), MOTIONS, 5, "median")
    assert repr(coadds).splitlines()[0] == "Coadds"
    assert repr(coadds).splitlines()[-1] == "  kind       median"
    assert "data:image/png" in coadds._repr_html_()
    no_image = trajectory_stamps(night(), MOTIONS, 2, images=[])
    for few in (stamps(night(), 10, 20, 0), stamps(night(), [], [], 2), no_image):
        assert repr(few).startswith("Stamps\n")
        assert few._repr_html_().startswith("<div>")
    for kind in ("mean", "median"):
        assert not trajectory_coadds(night(), MOTIONS, 2, kind, images=[]).values.any()
    assert trajectory_coadds(night(), [], 2)._repr_html_().startswith("<div>")


def with_path(reader, path):
    reader.path = path
    return reader


def test_sheets():
    made = trajectory_stamps(night(), MOTIONS, 10)
    picture = made.sheet("median")
    assert picture.ndim == 3
    assert (picture == MASKED).all(axis=2).any()
    whole = made._tile(next(made._rows("sum", 1))[0], None).picture
    assert whole.shape == (84, 84, 3)
    assert made.coadds("mean").values.tobytes() == made.coadd("mean").tobytes()
    assert made.coadds("mean").sheet().ndim == 3
    with pytest.raises(UsageError, match="science"):
        stamps(night(), 5, 5, 2, layers=("mask",)).sheet()
    with pytest.raises(UsageError, match="nothing"):
        trajectory_stamps(night(), [], 2).sheet()


def test_a_sheet_of_many_says_how_many_it_shows():
    made = trajectory_stamps(night(), np.tile(MOTIONS, (200, 1)), 10)
    assert made._titled(600, made._fitting(600, 4)).startswith("night: the first 2")
    height, width = made.sheet().shape[:2]
    assert height * width < 20e6


def test_centres_on_the_sky():
    made = trajectory_stamps(night(), MOTIONS, 2)
    ra, dec = made.sky()
    assert ra.shape == (3, 3)
    assert np.allclose((ra, dec), WCS.all_pix2world(made.x, made.y, 0), atol=1e-12)
    no_wcs = stamps(night(), 5, 5, 2)
    assert np.isnan(type(no_wcs)(**{**vars(no_wcs), "wcs": ()}).sky()).all()


def test_plots():
    pytest.importorskip("matplotlib")
    made = trajectory_stamps(night(), MOTIONS, 5)
    figure = made.plot()
    assert len(figure.axes) == 3 * 4
    assert figure.axes[0].get_title() == "id 0\nmean"
    assert np.asarray(figure.axes[1].images[0].get_array()).shape == (11, 11)
    assert len(made.coadds("sum").plot(positions=2).axes) == 2


def test_plots_are_on_the_sky_if_there_is_a_wcs():
    pytest.importorskip("matplotlib")
    made = trajectory_stamps(night(), MOTIONS, 5)
    for figure in (made.plot(), made.coadds().plot()):
        assert {type(axes).__name__ for axes in figure.axes} == {"WCSAxes"}
        figure.canvas.draw()
    stamp = made.plot().axes[1]  # of the first motion, in the first image
    ra, dec = stamp.wcs.all_pix2world(5, 5, 0)
    assert np.allclose((ra, dec), [values[0, 0] for values in made.sky()], atol=1e-9)
    plain = replace(made, wcs=(None,) * 3).plot()
    assert {type(axes).__name__ for axes in plain.axes} == {"Axes"}


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="plot"):
        stamps(night(), 5, 5, 2).plot()
