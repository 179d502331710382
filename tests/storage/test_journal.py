"""Every entry of a journal has a checksum: a changed one counts as not written."""

from __future__ import annotations

import pytest

from wustore.storage.journal import JOURNAL, Entry, Journal, sealed_text, unsealed
from wustore.storage.zarr_store import DirectoryKeys


def test_every_changed_bit_of_an_entry_is_noticed(tmp_path):
    keys = DirectoryKeys(tmp_path)
    journal = Journal(keys)
    journal.begin({"format": "zarr"})
    entry = Entry({"science/c.0": (10, 20)}, (1, 2, 3, 4))
    journal.record(0, entry)
    assert journal.entry(0) == entry
    key = f"{JOURNAL}images/0.json"
    text = keys.get(key)
    assert text is not None
    for at in range(8 * len(text)):
        changed = bytearray(text)
        changed[at // 8] ^= 1 << at % 8
        keys.set(key, bytes(changed))
        assert journal.entry(0) is None, at
    keys.set(f"{JOURNAL}images/1.json", text)
    assert journal.entry(1) is None  # of another image


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"1", b"\xff", b"[" * 100_000, b'{"crc32c": 0}'])
def test_any_shape(text):
    with pytest.raises(ValueError, match=r"checksum|decode|Expecting"):
        unsealed(text)
    assert unsealed(sealed_text({"a": [1, None]})) == {"a": [1, None]}
