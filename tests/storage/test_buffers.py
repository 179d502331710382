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


def test_spool_keeps_pieces_whatever_their_order_and_size(monkeypatch, tmp_path):
    monkeypatch.setattr(buffers, "_SPOOLED_IN_MEMORY", 10)
    spool = buffers.Spool(str(tmp_path))
    for i in (3, 0, 2):
        spool.add(i, bytes([i]) * 7 * i)
    spool.add(3, b"anew")
    assert [spool.get(i) for i in range(5)] == [b"", b"", b"\2" * 14, b"anew", b""]
    assert [spool.size(i) for i in range(5)] == [0, 0, 14, 4, 0]
    assert [*tmp_path.iterdir()] == []  # the file has no name
    spool.close()
