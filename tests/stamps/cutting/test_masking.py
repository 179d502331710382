"""Masked pixels are NaN, by numpy and by compiled loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wustore.stamps.cutting import masking


@settings(max_examples=60)
@given(
    arrays.arrays(np.int8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40), fill=st.just(0)),
    st.sampled_from(["f4", "f8"]),
    st.sampled_from([None, -9999.0]),
)
def test_hide(cutting: str, mask: np.ndarray, dtype: str, no_data: float | None) -> None:
    planes = [np.arange(mask.size, dtype=dtype).reshape(mask.shape) + k for k in range(2)]
    for plane in planes:
        plane[::7, ::5] = -9999
    expected = [plane.copy() for plane in planes]
    for plane in expected:
        plane[(mask > 0) | (plane == no_data)] = np.nan
    masking.hide(planes, mask, no_data)
    for plane, wanted in zip(planes, expected, strict=True):
        assert plane.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kind", ["u1", "i4"])
def test_other_flags_and_memory_with_gaps(cutting: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((30, 40)) < 0.2).astype(kind)
    plane = np.ones((30, 50), "f4")
    masking.hide([plane[:, 5:45]], mask, None)
    assert np.array_equal(np.isnan(plane[:, 5:45]), mask > 0)
    assert not np.isnan(plane[:, :5]).any()
    assert not np.isnan(plane[:, 45:]).any()


def test_nothing_beyond_a_plane_is_written(cutting: str) -> None:
    """A mask of another shape is an error, not memory of somebody else."""
    with pytest.raises(ValueError, match="broadcast"):
        masking.hide([np.ones((5, 8), "f4")], np.ones((30, 40), "i1"), None)


def test_the_loops_are_used(cutting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    hide_pixels = masking.hide_pixels
    monkeypatch.setattr(masking, "hide_pixels", lambda *a: (calls.append(a), hide_pixels(*a)))
    masking.hide([np.ones((20, 30), "f4")] * 2, np.ones((20, 30), "i1"), None)
    assert len(calls) == (0 if cutting == "compiled" else 2)
