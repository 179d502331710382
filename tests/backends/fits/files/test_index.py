"""Indexes of FITS files: what is written, and what is refused when one is read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import wustore
from wustore.backends.fits.files import index as module
from wustore.backends.fits.files.index import CHECKED, Index
from wustore.backends.fits.indexing import make_index
from wustore.backends.registry import backend_for_writing
from wustore.errors import CorruptError, OtherFormatError, VersionError
from wustore.format import schema
from wustore.model.checksum import crc32c
from wustore.ops.copy import copy
from wustore.testing import sample


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "night.fits"
    source = sample("chunked")
    copy(source, backend_for_writing(str(path)).create(str(path), source.meta), workers=1)
    make_index(str(path))
    return path


def taken_apart(path: Path) -> tuple[dict[str, Any], bytes]:
    data = Path(f"{path}.wuindex").read_bytes()
    length = int.from_bytes(data[8:12], "little")
    return json.loads(zlib.decompress(data[16 : 16 + length])), data[16 + length :]


def put_together(document: Any, parts: bytes) -> bytes:
    head = zlib.compress(json.dumps(document).encode())
    return b"WUINDEX\n" + len(head).to_bytes(4, "little") + crc32c(head).to_bytes(4, "little") + head + parts


def test_the_document_follows_its_schema(night: Path) -> None:
    document, _ = taken_apart(night)
    jsonschema.Draft202012Validator.check_schema(schema.load("index"))
    jsonschema.Draft202012Validator(schema.load("index")).validate(document)
    assert set(document) == set(schema.load("index")["properties"])


def test_it_holds_what_the_specification_says(night: Path) -> None:
    # With nothing but the page: zlib, JSON and the CRC-32C of blocks.
    document, parts = taken_apart(night)
    content = night.read_bytes()
    (file,) = document["files"]
    place = document["metadata"]
    metadata = zlib.decompress(parts[place["at"] : place["at"] + place["length"]])
    assert metadata == b"".join(content[start:stop] for start, stop in file["kept"])
    count = -(-len(content) // CHECKED)
    sums = parts[file["checksums"] : file["checksums"] + 4 * count]
    assert sums == b"".join(
        crc32c(content[k * CHECKED : (k + 1) * CHECKED]).to_bytes(4, "little") for k in range(count)
    )
    index = Index(f"{night}.wuindex")
    assert file["tables"]
    for table in file["tables"]:
        start, stop = table["range"]
        assert index.files[0].known(start, stop) == content[start:stop]


def test_the_same_file_gives_the_same_index(night: Path, tmp_path: Path) -> None:
    make_index(str(night), str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == Path(f"{night}.wuindex").read_bytes()


def test_parts_behind_the_start_are_read_when_they_are_needed(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 4096)
    assert Path(f"{night}.wuindex").stat().st_size > 4096
    with wustore.open_reader(f"{night}.wuindex") as reader:
        assert list(reader.audit()) == []


def _audit(path: Path) -> None:
    with wustore.open_reader(path, format="fits-index") as reader:
        for place, what in reader.audit():
            raise CorruptError(what, where=place)


def _set(*keys: Any, value: Any) -> Any:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value(place[keys[-1]]) if callable(value) else value

    return change


FAULTS = {
    "another format": _set("format", value="wustore"),
    "no files": _set("files", value=[]),
    "another block": _set("block", value=4096),
    "a negative place": _set("metadata", "at", value=-1),
    "a place behind the end": _set("metadata", "at", value=10**12),
    "another checksum": _set("metadata", "crc32c", value=lambda crc: crc ^ 1),
    "a larger file": _set("files", 0, "size", value=lambda size: size + 1),
    "a smaller file": _set("files", 0, "size", value=10),
    "overlapping ranges": _set("files", 0, "kept", 1, 0, value=0),
    "a range too many": _set("files", 0, "kept", value=lambda kept: [*kept, kept[-1]]),
    "a range too few": _set("files", 0, "kept", value=lambda kept: kept[:-1]),
    "a table elsewhere": _set("files", 0, "tables", 0, "range", value=[0, 2880]),
    "checksums elsewhere": _set("files", 0, "checksums", value=lambda at: at + 4),
    "a path for a name": _set("files", 0, "name", value="../night.fits"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_wrong_document_is_refused(fault: str, night: Path, tmp_path: Path) -> None:
    document, parts = taken_apart(night)
    FAULTS[fault](document)
    (tmp_path / "night.fits").write_bytes(night.read_bytes())
    path = tmp_path / "night.fits.wuindex"
    path.write_bytes(put_together(document, parts))
    with pytest.raises((CorruptError, wustore.StoreReplacedError)):
        _audit(path)


def test_versions(night: Path, tmp_path: Path) -> None:
    document, parts = taken_apart(night)
    path = tmp_path / "night.fits.wuindex"
    path.write_bytes(put_together({**document, "version": "2.0"}, parts))
    with pytest.raises(VersionError, match=r"2\.0"):
        Index(str(path))
    path.write_bytes(put_together({**document, "version": "1.9", "more": 1}, parts))
    assert Index(str(path)).kind == "fits"


def test_what_is_no_index(tmp_path: Path, night: Path) -> None:
    with pytest.raises(OtherFormatError):
        Index(str(night))
    data = Path(f"{night}.wuindex").read_bytes()
    for cut in (0, 7, 8, 15, 16, 100, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut.fits.wuindex"
        path.write_bytes(data[:cut])
        (tmp_path / "cut.fits").write_bytes(night.read_bytes())
        with pytest.raises((OtherFormatError, CorruptError)):
            _audit(path)
