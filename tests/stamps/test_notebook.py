"""Facts as text and HTML."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.stamps.notebook import facts_html, facts_text, span_of, text_of_bytes


def test_facts():
    facts = {"a": 1, "longer": "x<y", "none": None}
    assert facts_text("Title", facts) == "Title\n  a       1\n  longer  x<y"
    html = facts_html("T&T", facts, np.zeros((2, 3), np.uint8))
    assert "T&amp;T" in html
    assert "x&lt;y" in html
    assert "none" not in html
    assert "data:image/png;base64," in html


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1234567, "1.23 MB"), (5e15, "5e+03 TB")])
def test_bytes(size, text):
    assert text_of_bytes(size) == text


def test_times():
    assert span_of(np.array([60000.5, np.nan, 60001])) == "3, MJD 60000.50000 to 60001.00000"
    assert span_of(np.array([60000.5])) == "1, MJD 60000.50000"
    assert span_of(np.array([np.nan])) == "1"
