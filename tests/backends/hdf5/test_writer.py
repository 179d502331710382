"""Writing where the system refuses: a message, nothing left, and a library that can end in peace."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wustore.backends.hdf5 import file
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.hdf5.file import Output
from wustore.errors import CorruptError, UsageError
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample, with_capsule


def write(path: Path) -> None:
    source = with_capsule(sample("rich"))
    copy(source, Hdf5Backend().create(str(path), source.meta, capsule=source.capsule()), workers=1)


@pytest.mark.parametrize("part", range(12))
def test_an_error_of_the_system_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """It is the one that was met first; the next attempt succeeds."""
    write(tmp_path / "whole.h5")
    limit = (tmp_path / "whole.h5").stat().st_size * part // 12
    real = Output.write

    def refuse(self: Output, data: Any) -> int:
        if self.tell() + len(data) > limit:
            self._fail(OSError(errno.ENOSPC, "No space left on device"))
        return real(self, data)

    monkeypatch.setattr(Output, "write", refuse)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.h5")
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole.h5"]
    monkeypatch.undo()
    write(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


LIMITED = """
import resource, sys
from pathlib import Path
from wustore.backends.hdf5 import file
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.ops.copy import copy
from wustore.testing import sample
source = sample("rich")
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        copy(source, Hdf5Backend().create(sys.argv[1], source.meta), workers=1)
    except OSError as error:
        print(limit, type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the size of files is limited as POSIX does it")
def test_the_library_ends_without_a_crash(tmp_path: Path) -> None:
    limits = [0, 1, 100, 4096, 9000, 30_000]
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED, str(tmp_path / "a.h5"), *map(str, limits)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [text for limit in limits for text in (str(limit), "OSError")], done.stderr
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_was_dropped_reads_as_zeros(tmp_path: Path) -> None:
    output = Output(tmp_path / "a")
    output.write(b"abc")
    output._fail(OSError(errno.EIO, "broken"))
    output.write(b"def")
    output.truncate(100)
    output.seek(0)
    memory = bytearray(b"xxxxxx")
    assert output.readinto(memory) == 6
    assert memory == b"abc\0\0\0"
    with pytest.raises(OSError, match="broken"):
        output.check()
    output.close()
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_reading_back(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    with Hdf5Backend().open(str(tmp_path / "a.h5")) as reader:
        assert_same(with_capsule(sample("rich")), reader)


def test_chunks_are_written_by_the_thread_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 only finds the places; the file is the one that it writes by itself."""
    if not hasattr(os, "pwrite"):
        pytest.skip("the system writes at the place of the file only")
    at_places: list[int] = []
    write_at = Output.write_at

    def in_place(self: Output, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        at_places.append(sum(map(len, pieces)))
        write_at(self, offset, pieces)

    monkeypatch.setattr(Output, "write_at", in_place)
    write(tmp_path / "a.h5")
    monkeypatch.undo()
    with Hdf5Backend().open(str(tmp_path / "a.h5")) as reader:
        n_images = reader.meta.n_images
    assert len(at_places) >= n_images
    with monkeypatch.context() as patch:
        patch.delattr(os, "pwrite")
        patch.setattr(Output, "write_at", None)
        write(tmp_path / "b.h5")
    content = (tmp_path / "a.h5").read_bytes()
    assert content == (tmp_path / "b.h5").read_bytes()
    assert sum(at_places) < len(content)


def test_bytes_that_the_library_copies_are_written_at_once(tmp_path: Path) -> None:
    output = Output(tmp_path / "a")
    data = b"abc"
    assert output.place(data, lambda: output.write(bytearray(data))) is None
    assert output.tell() == 3
    if hasattr(os, "pwrite"):
        assert output.place(data, lambda: output.write(data)) == 3
        assert output.tell() == 6
        assert (tmp_path / "a").read_bytes() == b"abc"
        output.write_at(3, [b"de", b"", b"f"])
        assert (tmp_path / "a").read_bytes() == b"abcdef"
    output.close()


def test_an_error_while_flushing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(file, "_FLUSHED_BYTES", 1)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        write(tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


class Hashed(Mapping[str, Any]):
    """The document of FITS reconstruction data that takes time to make."""

    def __init__(self, document: Mapping[str, Any], error: Exception | None = None) -> None:
        self._document = document
        self._error = error
        self.asked, self.known = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[str]:
        self.asked.set()
        assert self.known.wait(60)
        if self._error is not None:
            raise self._error
        return iter(self._document)

    def __getitem__(self, key: str) -> Any:
        return self._document[key]

    def __len__(self) -> int:
        return len(self._document)


def test_images_are_encoded_while_files_are_hashed(tmp_path: Path) -> None:
    """The first image waits for that; the others are written after it, with the same bytes."""
    source = with_capsule(sample("rich"))
    write(tmp_path / "whole.h5")
    capsule = source.capsule()
    document = Hashed(capsule.document)
    writer = Hdf5Backend().create(
        str(tmp_path / "a.h5"), source.meta, capsule=replace(capsule, document=document), workers=2
    )
    assert not document.asked.is_set()

    def put(i: int) -> None:
        writer.write(i, source.image(i), source.image_capsule(i))

    first = threading.Thread(target=put, args=(2,))
    first.start()
    assert document.asked.wait(60)
    for i in (3, 0, 1):
        put(i)
    with pytest.raises(UsageError, match="twice"):
        put(0)
    assert first.is_alive()
    document.known.set()
    first.join()
    writer.commit()
    with pytest.raises(UsageError, match="ended"):
        put(0)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_an_error_while_files_are_hashed(tmp_path: Path) -> None:
    source = with_capsule(sample("rich"))
    capsule = source.capsule()
    document = Hashed(capsule.document, CorruptError("the file was changed"))
    document.known.set()
    writer = Hdf5Backend().create(str(tmp_path / "a.h5"), source.meta, capsule=replace(capsule, document=document))
    with pytest.raises(CorruptError, match="was changed"):
        copy(source, writer, workers=2)
    assert not [*tmp_path.iterdir()]
