"""Facts as text and HTML, and bars."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pictures import night

import wustore
from wustore.backends.memory import MemoryBackend
from wustore.ops.copy import copy
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


@pytest.fixture
def bars(monkeypatch):
    """The bars that are made in what looks like a notebook: (label, [(done, total), ...])."""
    made = []

    class Bar:
        def __init__(self, desc, **options):
            self.n, self.total, self.steps = 0, None, []
            made.append((desc, self.steps))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            self.n += count
            self.steps.append((self.n, self.total))

    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    return made


def test_notebooks_show_bars(bars, tmp_path):
    # The sources are in memory: only what is named here shows a bar.
    reader = night(3)
    copy(reader, MemoryBackend().create("ram:bars", reader.meta, overwrite=True))
    path = tmp_path / "night.zarr"
    wustore.convert("ram:bars", path)
    wustore.append(path, "ram:bars", duplicates=True)
    assert wustore.verify(path) == []
    with wustore.open(path) as wu:
        wu.trajectory_stamps([[20, 20, 1, 1]], radius=2)
        wu.trajectory_coadds([[20, 20, 1, 1]], radius=2)
        wu.stamps(20, 20, radius=2)
        wu.load_images()
        wustore.save(wu, tmp_path / "night.h5")
    assert [label for label, _ in bars] == [
        *("converting", "appending", "verifying", "cutting", "coadding", "cutting", "loading images", "saving"),
    ]
    for label, steps in bars:
        assert steps, label
        done, total = steps[-1]
        assert done == total == (3 if label in {"converting", "appending"} else 6), label


def test_no_bar_for_what_is_asked_for_or_in_a_script(bars, monkeypatch, tmp_path):
    seen = []
    reader = night(3)
    copy(reader, MemoryBackend().create("ram:bars", reader.meta, overwrite=True))
    wustore.convert("ram:bars", tmp_path / "a.zarr", progress=lambda *step: seen.append(step))
    assert seen[-1] == (3, 3)
    monkeypatch.delitem(sys.modules, "ipykernel")
    wustore.convert("ram:bars", tmp_path / "b.zarr")
    assert bars == []
