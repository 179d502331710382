"""Memory for planes."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.storage import buffers


@pytest.mark.parametrize("shape", [(0, 5), (3, 4), (1100, 1024), (2048, 2048)])
@pytest.mark.parametrize("kind", ["f4", "i1", "f8"])
def test_empty(shape: tuple[int, int], kind: str) -> None:
    array = buffers.empty(shape, kind)
    assert array.shape == shape
    assert array.dtype == np.dtype(kind)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    if array.nbytes >= 2 * buffers._PAGE:
        assert array.ctypes.data % buffers._PAGE == 0
    array[...] = 1
    assert np.all(array == 1)
