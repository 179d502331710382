"""Stated sizes are believed as far as the bytes they come from justify."""

from __future__ import annotations

import pytest

from wustore.errors import CorruptError
from wustore.model.sizes import check_size, most_believed


def test_what_is_believed():
    check_size(1 << 27, 10)
    check_size(64 << 24, 1 << 24)
    assert most_believed(1 << 24) == 64 << 24
    for claimed, stored in (((1 << 27) + 1, 10), (-1, 10), (10**30, 1 << 20)):
        with pytest.raises(CorruptError, match="cannot be"):
            check_size(claimed, stored)
