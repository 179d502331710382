"""The dtype of a layer, and casts to it: no bit is lost, or there is none."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.errors import FormatError
from wustore.model.casting import cast_plane, common_dtype


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["f4", None, "f4"], "f4"),
        (["f4", "f8"], "f8"),
        (["i2", "f4"], "f4"),
        (["u1", "i1"], "i2"),
        (["i4", "f4"], "f8"),
        (["i8"], "i8"),
    ],
)
def test_the_common_dtype_holds_every_value(dtypes: list[str | None], expected: str) -> None:
    given = [None if text is None else np.dtype(text) for text in dtypes]
    assert common_dtype(given, "science") == np.dtype(expected)
    for dtype in filter(None, given):
        extremes = np.array(
            [np.iinfo(dtype).min, np.iinfo(dtype).max] if dtype.kind in "iu" else [np.finfo(dtype).tiny]
        )
        plane = extremes.astype(dtype).reshape(1, -1)
        assert cast_plane(cast_plane(plane, np.dtype(expected)), dtype).tobytes() == plane.tobytes()


@pytest.mark.parametrize("dtypes", [["i8", "f8"], ["u8", "i8"], ["u8", "f4"], [None], []])
def test_without_an_exact_dtype_it_is_refused(dtypes: list[str | None]) -> None:
    with pytest.raises(FormatError) as caught:
        common_dtype([None if text is None else np.dtype(text) for text in dtypes], "variance")
    assert "variance" in str(caught.value)


def test_every_kind_of_float_survives_a_wider_dtype() -> None:
    exponents = np.arange(512, dtype=np.uint32) << 23  # both signs, every exponent
    fractions = np.array([0, 1, 0x200000, 0x3FFFFF, 0x400000, 0x7FFFFF], np.uint32)
    plane = (exponents[:, None] | fractions).view(np.float32)
    wide = cast_plane(plane, np.dtype(np.float64))
    assert cast_plane(wide, np.dtype(np.float32)).tobytes() == plane.tobytes()
    assert np.array_equal(np.isnan(wide), np.isnan(plane))
    numbers = ~np.isnan(plane)
    assert (wide[numbers] == plane[numbers]).all()
    assert cast_plane(plane, plane.dtype) is plane


def test_cast_keeps_every_nan():
    bits = np.array([0x7F800001, 0xFF800001, 0x7FC0BEEF, 0xFFFFFFFF, 0x80000000, 0x7F800000, 0x3F800000], np.uint32)
    plane = bits.view(np.float32).reshape(1, -1)
    wide = cast_plane(plane, np.dtype(np.float64))
    assert np.array_equal(np.isnan(wide), np.isnan(plane))
    assert cast_plane(wide, np.dtype(np.float32)).view(np.uint32).tolist() == [bits.tolist()]
