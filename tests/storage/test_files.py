"""Reading at a place, with and without the system's own call."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wustore.storage import files


@pytest.mark.parametrize("read", [files.pread, files._seek_and_read])
def test_places(read: object, tmp_path: Path) -> None:
    assert callable(read)
    content = os.urandom(5000)
    (tmp_path / "x").write_bytes(content)
    handle = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda at: read(handle, 10, at), range(0, 5000, 5)))
        assert found == [content[at : at + 10] for at in range(0, 5000, 5)]
    finally:
        os.close(handle)


def test_short_answers_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(5000)
    (tmp_path / "x").write_bytes(content)
    once = files._once
    monkeypatch.setattr(files, "_once", lambda handle, length, offset: once(handle, min(length, 700), offset))
    handle = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        assert files.pread(handle, 3000, 1000) == content[1000:4000]
        assert files.pread(handle, 3000, 4000) == content[4000:]
        assert files.pread(handle, 3000, 6000) == b""
    finally:
        os.close(handle)
