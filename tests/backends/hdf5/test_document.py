"""The root document: which copy is read, which is checked, and what is no document."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import pytest

from wustore.backends.hdf5 import document
from wustore.backends.hdf5.backend import Hdf5Backend
from wustore.backends.hdf5.document import check_copies, parse_document, read_document
from wustore.backends.hdf5.file import DOCUMENT, DOCUMENT_CHECKSUM
from wustore.errors import CorruptError
from wustore.format.packed import PACKED
from wustore.ops.copy import copy
from wustore.testing import sample


@pytest.fixture
def path(tmp_path: Path) -> str:
    source = sample("simple")
    copy(source, Hdf5Backend().create(str(tmp_path / "a.h5"), source.meta))
    return str(tmp_path / "a.h5")


def test_the_attribute_is_the_document_that_is_packed(path: str) -> None:
    with Hdf5Backend().open(path) as reader, h5py.File(path) as file:
        assert read_document(file, path) == reader.document()
    assert list(check_copies(path)) == []


def test_a_file_without_packed_arrays_is_opened_by_its_attribute(path: str) -> None:
    with Hdf5Backend().open(path) as reader:
        expected = reader.document()
    with h5py.File(path, "r+") as file:
        del file[PACKED]
    with Hdf5Backend().open(path) as reader:
        assert reader.document() == expected
    with h5py.File(path, "r+") as file:
        file.attrs[DOCUMENT] = file.attrs[DOCUMENT].replace("wustore", "wustorf", 1)
    with pytest.raises(CorruptError, match="does not match its checksum"):
        Hdf5Backend().open(path)


def test_a_document_without_a_checksum_is_taken(path: str) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs[DOCUMENT_CHECKSUM]
        file.attrs[DOCUMENT] = '{"a": 1}'
        assert read_document(file, path) == {"a": 1}


def test_copies_that_differ_are_named(path: str) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs[DOCUMENT_CHECKSUM]
        file.attrs[DOCUMENT] = '{"a": 1}'
        file["time"][0] = 7.0
    assert [place for place, _ in check_copies(path)] == ["root attribute 'wustore'", "array time"]


def test_reading_the_copies_ends(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_PATIENCE", 0.001)
    assert ["damaged" in text for _, text in check_copies(path)] == [True]


def with_damaged_text(path: str, which: int) -> str:
    """Set the head of an object to zeros in one of the parts of the file that hold text of variable length."""
    data = Path(path).read_bytes()
    heaps = [match.start() for match in re.finditer(rb"GCOL\x01\0\0\0", data)]
    first = heaps[which] + 16
    second = first + 16 + -(-int.from_bytes(data[first + 8 : first + 16], "little") // 8) * 8
    damaged = Path(path).with_name("damaged.h5")
    damaged.write_bytes(data[:second] + bytes(16) + data[second + 16 :])
    return str(damaged)


def test_damage_that_keeps_hdf5_busy_is_found_soon(path: str) -> None:
    damaged = with_damaged_text(path, -1)
    assert ["longer than it could" in text for _, text in check_copies(damaged)] == [True]
    with Hdf5Backend().open(damaged) as reader:
        assert reader.meta.n_images > 0


def test_without_packed_arrays_such_damage_is_found_when_the_file_is_opened(path: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[PACKED]
    Hdf5Backend().open(path).close()
    with pytest.raises(CorruptError, match="longer than it could"):
        Hdf5Backend().open(with_damaged_text(path, 0))


@pytest.mark.parametrize(("text", "message"), [("[]", "not a JSON object"), ("{", "root document"), ('"x"', "str")])
def test_what_is_no_document(text: str, message: str) -> None:
    with pytest.raises(CorruptError, match=message) as raised:
        parse_document(text, "a.h5")
    assert raised.value.path == "a.h5"
