"""Quantisation: the random sequence of the standard."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.backends.fits.tiles import (
    quantize,
)

pytestmark = pytest.mark.usefixtures("coder")


def test_random_sequence_is_that_of_the_standard() -> None:
    sequence = quantize._random_sequence()
    assert round(float(sequence[9999]) * 2147483647) == pytest.approx(1043618065, abs=64)
    # Its starting points are the same in single and in double precision: C code has both.
    single = (sequence * np.float32(500)).astype(int)
    assert (single == (sequence.astype(float) * 500.0).astype(int)).all()
