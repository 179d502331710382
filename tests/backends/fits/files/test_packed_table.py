"""Tables of tiles in the packed form of an index: every table comes back, and damage is an error."""

from __future__ import annotations

import contextlib
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wustore.backends.fits.files.packed_table import Pairs, pack_table, unpack_table
from wustore.errors import CorruptError


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, int, Pairs]:
    parts = draw(st.lists(st.sampled_from(["P1", "P2", "Q1", 1, 2, 4, 8, 3]), min_size=1, max_size=5))
    pairs, width = [], 0
    for part in parts:
        if isinstance(part, str):
            size = 8 if part[0] == "Q" else 4
            pairs.append((width, size, int(part[1])))
            width += 2 * size
        else:
            width += part
    n = draw(st.integers(1, 20))
    return draw(st.binary(min_size=n * width, max_size=n * width)), width, pairs


@given(tables())
def test_any_table_comes_back(table: tuple[bytes, int, Pairs]) -> None:
    content, row_size, pairs = table
    assert unpack_table(pack_table(content, row_size, pairs), len(content)) == content


@given(tables(), st.data())
def test_damage_is_an_error_or_another_table(table: tuple[bytes, int, Pairs], data: st.DataObject) -> None:
    content, row_size, pairs = table
    packed = bytearray(pack_table(content, row_size, pairs))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del packed[data.draw(st.integers(0, len(packed) - 1)) :]
    with contextlib.suppress(CorruptError):
        assert len(unpack_table(bytes(packed), len(content))) == len(content)


def test_tiles_that_follow_one_another_take_a_byte_each() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(2000, 2200, 4000)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    table = np.stack([counts, starts], axis=1).astype(">i4").tobytes()
    assert len(zlib.compress(pack_table(table, 8, [(0, 4, 1)]), 9)) < 1.2 * 4000
    assert len(zlib.compress(table, 9)) > 3 * 4000


@pytest.mark.parametrize("packed", [b"", b"\0", b"\0\0\0\0\0", b"\x08\0\0\0\x02" + bytes(12) + bytes(8)])
def test_what_is_no_table(packed: bytes) -> None:
    with pytest.raises(CorruptError):
        unpack_table(packed, 8)
