"""Reading at a place, with and without the system's own call."""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wustore.storage import files
from wustore.storage.buffers import release
from wustore.storage.zarr_store import DirectoryKeys


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


def test_directories_that_cannot_be_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems refuse it, which is no error; that the disk failed is one."""

    def fail(number: int) -> None:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    fail(errno.EINVAL)
    files.sync(tmp_path)
    fail(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.sync(tmp_path)


def test_directories_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: a directory is read by its name."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    (tmp_path / "x").write_bytes(b"value")
    keys = DirectoryKeys(tmp_path, hold=True)
    assert keys.get("x") == b"value"
    assert keys.is_same() is None
    keys.close()


def test_mapped_memory_that_cannot_be_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    (tmp_path / "x").write_bytes(bytes(1 << 17))
    with (tmp_path / "x").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        release(data)
        assert data[:1] == b"\0"


@pytest.fixture(params=["writev", "write"])
def how_written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the call for several pieces and without it."""
    if request.param == "write":
        monkeypatch.delattr(os, "writev", raising=False)
    elif not hasattr(os, "writev"):
        pytest.skip("the system has no writev")
    return str(request.param)


@pytest.mark.parametrize("most", [None, 1, 7, 1000])
def test_pieces_are_written_one_after_the_other(
    how_written: str, most: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [b"", *(os.urandom(k % 50) for k in range(2100)), b"", b"end", b""]
    content = b"".join(pieces)
    if most is not None:  # the system takes less than it is given
        pieces = pieces[:300] if most == 1 else pieces
        content, write = b"".join(pieces), os.write
        if how_written == "writev":
            monkeypatch.setattr(os, "writev", lambda handle, left: write(handle, b"".join(left)[:most]))
        else:
            monkeypatch.setattr(os, "write", lambda handle, left: write(handle, left[:most]))
    handle = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
    try:
        files.write_all(handle, pieces)
    finally:
        os.close(handle)
    assert (tmp_path / "x").read_bytes() == content


def test_no_pieces(how_written: str, tmp_path: Path) -> None:
    handle = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
    try:
        files.write_all(handle, [])
        files.write_all(handle, [b"", b""])
    finally:
        os.close(handle)
    assert (tmp_path / "x").read_bytes() == b""
