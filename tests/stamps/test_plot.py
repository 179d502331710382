"""Figures with matplotlib."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import night

from wustore.errors import UsageError
from wustore.stamps.plot import plot_image
from wustore.testing import sample

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("stretch", ["zscale", "asinh"])
def test_an_image_with_coordinates_of_the_sky(tmp_path, stretch):
    figure = plot_image(night(), 1, stretch=stretch)
    (axes,) = figure.axes
    assert type(axes).__name__ == "WCSAxes"
    assert axes.get_xlabel() == "RA"
    assert np.asarray(axes.images[0].get_array()).shape == (40, 60)
    assert len(axes.images) == 2  # and the masked pixels
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_an_image_without_wcs():
    figure = plot_image(sample("chunked"), 0, "variance")
    assert figure.axes[0].get_ylabel() == "y [pixel]"


@pytest.mark.parametrize("options", [{"i": 3}, {"i": -1}, {"layer": "mask"}, {"stretch": "cubic"}])
def test_refused(options):
    with pytest.raises(UsageError):
        plot_image(night(), **options)
