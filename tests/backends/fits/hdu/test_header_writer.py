"""Cards as astropy writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from wustore.backends.fits.hdu.header_writer import card, float_text


@pytest.mark.parametrize(
    "value", [0.1, -30.165300000000002, 1e-300, -1.2345678901234567e-10, 1e20, 60300.348836837526, 1 / 3, -0.0, 5e-324]
)
def test_cards_of_numbers(value: float) -> None:
    assert card("KEY", value) == fits.Card("KEY", value).image
    assert len(float_text(value)) <= 20


@pytest.mark.parametrize(
    "value", ["", "a", "it's", "x" * 60, "y" * 68, "y" * 70, "'" * 40, True, -5, None, np.int64(3)]
)
def test_cards_of_others(value: Any) -> None:
    assert card("KEY", value) == fits.Card("KEY", value).image
    if value not in ("", None) and len(str(value)) < 40:
        assert card("KEY", value, "note") == fits.Card("KEY", value, "note").image


def test_numbers_without_form() -> None:
    assert card("MJD", float("nan")).rstrip() == "MJD     ="
