"""Damaged and hostile tables: only our own errors, and nothing allocated that the bytes cannot justify."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import traced
from tile_reference import tables

from wustore.backends.fits.tiles import TileLayout, decode, decode_integers, decode_plane, encode_plane
from wustore.errors import CorruptError, FormatError, WuStoreError

pytestmark = pytest.mark.usefixtures("coder")

SAMPLES = tables()
HOSTILE = [0, -1, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, None, "x", "", 1.5, float("nan"), True]


def attempt(cards: dict[str, Any], data: bytes) -> None:
    try:
        layout = TileLayout.from_cards(cards)
        decode_plane(layout, data)
        decode_plane(layout, data, rows=slice(2, 5), columns=slice(3, 9))
        if layout.quantised:
            decode_integers(layout, data)
    except WuStoreError:
        pass


@settings(max_examples=250)
@given(data=st.data(), sample=st.integers(0, len(SAMPLES) - 1), seed=st.integers(0, 2**32))
def test_fuzzed_bytes(data: st.DataObject, sample: int, seed: int) -> None:
    cards, table = SAMPLES[sample]
    rng = np.random.default_rng(seed)
    changed = bytearray(table)
    main = cards["NAXIS1"] * cards["NAXIS2"]
    kind = data.draw(st.sampled_from(["bits", "block", "descriptor", "cut"]))
    if kind == "bits":
        for place in rng.integers(0, len(changed), 4):
            changed[place] ^= 1 << int(rng.integers(8))
    elif kind == "block":
        start = int(rng.integers(main, len(changed)))
        stop = min(len(changed), start + int(rng.integers(1, 200)))
        changed[start:stop] = bytes([data.draw(st.sampled_from([0, 1, 128, 255]))]) * (stop - start)
    elif kind == "descriptor":
        changed[int(rng.integers(main))] = int(rng.integers(256))
    else:
        del changed[int(rng.integers(len(changed))) :]
    attempt(cards, bytes(changed))


@settings(max_examples=250)
@given(data=st.data(), sample=st.integers(0, len(SAMPLES) - 1))
def test_fuzzed_cards(data: st.DataObject, sample: int) -> None:
    cards, table = SAMPLES[sample]
    changed = dict(cards)
    for keyword in data.draw(st.lists(st.sampled_from(sorted(cards)), min_size=1, max_size=3)):
        value = data.draw(st.sampled_from(HOSTILE))
        changed[keyword] = value
        if value is None:
            del changed[keyword]
    attempt(changed, table)


@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_header_bombs_allocate_nothing(sample: int) -> None:
    cards, table = SAMPLES[sample]
    bombs = [
        {"ZNAXIS1": 2**31 - 1, "ZTILE1": 2**31 - 1},
        {"ZNAXIS1": 2**30, "ZNAXIS2": 2**30, "ZTILE1": 2**30, "ZTILE2": 2**30},
        {"ZNAXIS1": 2**40},
        {"NAXIS2": 2**40},
        {"NAXIS1": 2**40},
        {"PCOUNT": 2**40},
        {"THEAP": 2**40},
        {"ZNAXIS": 2**40},
        {"TFIELDS": 2**40},
    ]
    for bomb in bombs:
        with traced() as peak:
            with pytest.raises((FormatError, CorruptError)):
                decode_plane(TileLayout.from_cards(cards | bomb), table)
            assert peak.bytes < 70_000_000  # np.empty counts, though its pages were never touched


def test_truncation_is_noticed() -> None:
    for cards, table in SAMPLES:
        layout = TileLayout.from_cards(cards)
        with pytest.raises(CorruptError):
            decode_plane(layout, table[:-1])


def test_short_rice_tiles_do_not_read_beyond_their_end() -> None:
    # A run of zero bits, which the decoder follows without any limit, at the very end of the buffer.
    encoded = encode_plane(np.tile(np.arange(2048, dtype=np.int32) ** 2, (3, 1)))
    for length in range(200, len(encoded.heap), 997):
        heap = encoded.heap[:length] + bytes(len(encoded.heap) - length)
        with pytest.raises(CorruptError):
            decode_plane(encoded.layout, encoded.table + heap)


@pytest.mark.slow
@pytest.mark.parametrize("sample", range(len(SAMPLES)))
def test_no_crash_under_a_checking_allocator(sample: int) -> None:
    code = f"""
import numpy as np
from test_damage import SAMPLES, attempt
cards, table = SAMPLES[{sample}]
rng = np.random.default_rng(0)
for _ in range(1500):
    changed = bytearray(table)
    start = int(rng.integers(len(changed)))
    stop = min(len(changed), start + int(rng.integers(1, 40)))
    changed[start:stop] = rng.bytes(stop - start)
    attempt(cards, bytes(changed))
"""
    helpers = Path(__file__).parents[3] / "helpers"
    environment = {
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "165",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(helpers),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        timeout=1000,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.parametrize("kind", range(len(SAMPLES)))
def test_a_large_image_of_few_bytes_is_decoded_before_its_memory_is_touched(
    kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If its last tile is damaged, the array to decode into is as it was; a small image is decoded in one go."""
    cards, data = SAMPLES[kind]
    layout = TileLayout.from_cards(cards)
    whole = decode_plane(layout, data)
    monkeypatch.setattr(decode, "_UNSUSPICIOUS", -4 * layout.data_size)
    out = np.full(whole.shape, 7, whole.dtype)
    decode_plane(layout, data, out=out)
    assert out.tobytes() == whole.tobytes()
    table = bytearray(data)
    last = (layout.n_tiles - 1) * layout.row_size
    column = layout.column("COMPRESSED_DATA")
    assert column is not None
    table[last + column.offset : last + column.offset + 8] = b"\xff" * 8
    out[...] = 7
    with pytest.raises(CorruptError):
        decode_plane(layout, bytes(table), out=out)
    assert (out == 7).all()
