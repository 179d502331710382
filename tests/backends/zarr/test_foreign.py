"""Arrays as other programs write them, read through zarr-python: nothing that is missing reads as fill value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from memory import traced

from wustore.backends.zarr.foreign import ForeignArray
from wustore.errors import CorruptError, FormatError
from wustore.storage.stores import open_keys
from wustore.storage.zarr_store import DirectoryKeys, StoreKeys

WHOLE = (slice(0, 3), slice(0, 10), slice(0, 12))
DATA = np.arange(360, dtype=">f4").reshape(3, 10, 12)


def made(folder: Path, **options: Any) -> ForeignArray:
    group = zarr.open_group(folder / "a.zarr", mode="w")
    group.create_array("x", data=DATA, chunks=(1, 5, 6), **options)
    return ForeignArray(DirectoryKeys(folder / "a.zarr"), "x", DATA.shape)


@pytest.mark.parametrize("shards", [None, (1, 10, 12), (2, 10, 6)])
def test_boxes(tmp_path: Path, shards: tuple[int, ...] | None) -> None:
    array = made(tmp_path, shards=shards)
    for index in (WHOLE, (slice(1, 2), slice(4, 7), slice(0, 12)), (slice(2, 2), slice(0, 10), slice(0, 0))):
        found = array.read(index)
        assert found.dtype == np.dtype("f4")
        assert found.dtype.isnative
        assert found.tolist() == DATA[index].tolist()


def test_store_objects() -> None:
    store = zarr.storage.MemoryStore()
    zarr.open_group(store, mode="w").create_array("x", data=DATA, chunks=(1, 5, 6))
    assert ForeignArray(StoreKeys(store), "x", DATA.shape).read(WHOLE).tolist() == DATA.tolist()


def test_a_missing_chunk(tmp_path: Path) -> None:
    """zarr-python would give the fill value."""
    array = made(tmp_path)
    (tmp_path / "a.zarr" / "x" / "c" / "1" / "0" / "1").unlink()
    assert zarr.open_array(tmp_path / "a.zarr", path="x", mode="r")[1, 0, 6:].tolist() == [0] * 6
    with pytest.raises(CorruptError, match=r"a chunk is missing.*chunk \(1, 0, 1\)"):
        array.read(WHOLE)
    assert array.read((slice(1, 2), slice(0, 10), slice(0, 6))).tolist() == DATA[1:2, :, :6].tolist()


def test_a_missing_chunk_in_a_shard(tmp_path: Path) -> None:
    made(tmp_path, shards=(1, 10, 12), fill_value=7)
    path = tmp_path / "a.zarr"
    zarr.open_array(path, path="x", mode="r+")[1, :5, :6] = 7  # an empty chunk is not stored
    array = ForeignArray(open_keys(str(path)), "x", DATA.shape)
    with pytest.raises(CorruptError, match=r"a chunk is missing in its shard.*1 missing"):
        array.read(WHOLE)
    assert array.read((slice(1, 2), slice(5, 10), slice(0, 12))).tolist() == DATA[1:2, 5:].tolist()


@pytest.mark.parametrize("change", [lambda raw: raw[:20], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])])
def test_a_damaged_index(tmp_path: Path, change: Any) -> None:
    array = made(tmp_path, shards=(1, 10, 12))
    shard = tmp_path / "a.zarr" / "x" / "c" / "2" / "0" / "0"
    shard.write_bytes(change(shard.read_bytes()))
    with pytest.raises(CorruptError, match=r"the index of a shard is damaged.*shard \(2, 0, 0\)"):
        array.read(WHOLE)


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
@pytest.mark.parametrize("form", ["index at the start", "index without a checksum", "behind a filter", "in shards"])
def test_shards_in_which_a_missing_chunk_is_not_found(tmp_path: Path, form: str) -> None:
    """zarr-python reads them all, and gives fill values for what is missing."""
    from zarr.codecs import BytesCodec, ShardingCodec, TransposeCodec

    codecs: list[Any] = [
        ShardingCodec(
            chunk_shape=(1, 5, 6),
            index_location="start" if form == "index at the start" else "end",
            **({"index_codecs": [BytesCodec()]} if form == "index without a checksum" else {}),
        )
    ]
    if form == "behind a filter":
        codecs = [TransposeCodec(order=(0, 1, 2)), *codecs]
    elif form == "in shards":
        codecs = [ShardingCodec(chunk_shape=(1, 10, 6), codecs=codecs)]
    array = zarr.create(
        shape=DATA.shape,
        chunks=(1, 10, 12),
        dtype="f4",
        codecs=codecs,
        store=tmp_path / "a.zarr",
        path="x",
        zarr_format=3,
        fill_value=7,
    )
    array[...] = np.where(np.arange(12) < 6, 7, DATA)
    assert array[:, :, 6:].tolist() == DATA[:, :, 6:].tolist()
    with pytest.raises(FormatError, match="a missing chunk cannot be found"):
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", DATA.shape)


def test_what_is_no_array(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "a.zarr"
    with pytest.raises(CorruptError, match="cannot be opened"):
        ForeignArray(DirectoryKeys(path), "y", DATA.shape)
    text = (path / "x" / "zarr.json").read_text()
    for wrong in ("{", text.replace('"regular"', '"irregular"'), text.replace("float32", "float31")):
        (path / "x" / "zarr.json").write_text(wrong)
        with pytest.raises(CorruptError, match="cannot be opened"):
            ForeignArray(DirectoryKeys(path), "x", DATA.shape)


def test_a_damaged_member_of_a_zip_file(tmp_path: Path) -> None:
    """The library of zip files compares members with their checksums, and has an error of its own."""
    path = tmp_path / "a.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w") as store:
        zarr.open_group(store, mode="w").create_array("x", data=DATA, chunks=(1, 5, 6), compressors=None)
    content = bytearray(path.read_bytes())
    content[content.index(DATA[0, :5, :6].astype("<f4").tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="cannot be read"):
        ForeignArray(open_keys(str(path)), "x", DATA.shape).read(WHOLE)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("shape", [3, 10, 1 << 40], r"a chunk is missing.*chunk \(0, 0, 2\)"),
        ("shape", [1 << 60, 1 << 60, 12], r"a chunk is missing.*chunk \(0, 2, 0\)"),
        ("chunk_shape", [1, 5, 1 << 40], "a size that cannot be"),
        ("chunk_shape", [1 << 60, 1 << 60, 1 << 60], "a size that cannot be"),
    ],
)
def test_sizes_that_the_stored_bytes_do_not_justify(tmp_path: Path, name: str, value: list[int], found: str) -> None:
    """Neither memory nor a list of all the chunks is made before."""
    made(tmp_path)
    document = tmp_path / "a.zarr" / "x" / "zarr.json"
    node = json.loads(document.read_text())
    (node if name == "shape" else node["chunk_grid"]["configuration"])[name] = value
    document.write_text(json.dumps(node))
    array = ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", node["shape"])
    with traced() as peak:
        with pytest.raises(CorruptError, match=found):
            array.read_small()
        assert peak.bytes < 1 << 20


def test_chunks_without_pixels(tmp_path: Path) -> None:
    made(tmp_path)
    document = tmp_path / "a.zarr" / "x" / "zarr.json"
    node = json.loads(document.read_text())
    node["chunk_grid"]["configuration"]["chunk_shape"] = [1, 0, 6]
    document.write_text(json.dumps(node))
    with pytest.raises(CorruptError, match="cannot be opened"):
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", DATA.shape)


def test_more_values_than_the_stored_bytes_justify(tmp_path: Path) -> None:
    """All chunks are there, and pack well."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("x", shape=(20, 1 << 20), chunks=(1, 1 << 20), dtype="f8")[...] = 1
    array = ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", (20, 1 << 20))
    assert array.read((slice(0, 2), slice(0, 5))).tolist() == [[1] * 5] * 2
    with pytest.raises(CorruptError, match="a size that cannot be"):
        array.read_small()


TEXTS = ["g", "", "r' band", "ü"]


def texts(folder: Path, compressors: Any = "auto") -> Path:
    """Write an array of texts in two chunks, and return its folder."""
    group = zarr.open_group(folder / "a.zarr", mode="w")
    group.create_array("x", shape=(4,), chunks=(2,), dtype=str, compressors=compressors)[...] = np.array(TEXTS)
    return folder / "a.zarr" / "x"


@pytest.mark.parametrize("compressors", ["auto", None, zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()])
def test_texts(compressors: Any, tmp_path: Path) -> None:
    texts(tmp_path, compressors)
    assert ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", (4,)).read_small().tolist() == TEXTS


@pytest.mark.parametrize("head", [b"\xff\xff\xff\x7f", b"\x28\xb5\x2f\xfd", b"\x04\0\0\0", b"\x01"])
def test_more_texts_than_the_stored_bytes_hold(head: bytes, tmp_path: Path) -> None:
    """A number of texts that a chunk states is no reason to take memory."""
    chunk = texts(tmp_path, None) / "c" / "1"
    chunk.write_bytes(head + chunk.read_bytes()[4:] if len(head) == 4 else head)
    array = ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", (4,))
    with traced() as peak:
        with pytest.raises(CorruptError, match="cannot be read"):
            array.read_small()
        assert peak.bytes < 1 << 23


def test_texts_of_which_the_metadata_lost_a_codec(tmp_path: Path) -> None:
    folder = texts(tmp_path)
    node = json.loads((folder / "zarr.json").read_text())
    assert [codec["name"] for codec in node["codecs"]] == ["vlen-utf8", "zstd"]
    node["codecs"].pop()
    (folder / "zarr.json").write_text(json.dumps(node))
    with pytest.raises(CorruptError, match="states 4247762216 texts"):
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", (4,)).read_small()


def changed(folder: Path, **members: Any) -> None:
    """Change members of the metadata document: ``shape``, or ``chunk_shape`` of the grid or (``inner``) of shards."""
    document = folder / "a.zarr" / "x" / "zarr.json"
    node = json.loads(document.read_text())
    for name, value in members.items():
        if name == "shape":
            node["shape"] = value
        else:
            outer = node["chunk_grid"] if name == "chunk_shape" else node["codecs"][0]
            outer["configuration"]["chunk_shape"] = value
    document.write_text(json.dumps(node))


@pytest.mark.parametrize("shards", [None, (1, 10, 12)])
@pytest.mark.parametrize(
    "members",
    [
        {"shape": [10, 12]},
        {"shape": [1, 3, 10, 12]},
        {"shape": []},
        {"chunk_shape": [10, 12]},
        {"chunk_shape": [1, 1, 10, 12]},
        {"chunk_shape": []},
        {"shape": [10, 12], "chunk_shape": [10, 12]},
        {"shape": [1, 3, 10, 12], "chunk_shape": [1, 1, 10, 12]},
        {"shape": [], "chunk_shape": []},
    ],
)
def test_another_number_of_axes(tmp_path: Path, shards: tuple[int, ...] | None, members: dict[str, Any]) -> None:
    made(tmp_path, shards=shards)
    changed(tmp_path, **members)
    with pytest.raises(CorruptError, match=r"cannot be opened|another number of axes") as caught:
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", DATA.shape)
    assert caught.value.where == "array x"
    assert caught.value.found is not None


def test_the_error_names_both_numbers_of_axes(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(CorruptError, match="another number of axes") as caught:
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", (10, 12))
    assert (caught.value.expected, caught.value.found) == (
        "2: (10, 12)",
        "shape (3, 10, 12), chunks of (1, 5, 6), shards of None",
    )


@pytest.mark.parametrize("inner", [[1, 5], [1, 1, 5, 6], [1, 5, 5], [1, 3, 6], [1, 20, 12], [1, 0, 6], [1, -5, 6], []])
def test_shards_that_are_no_multiple_of_their_chunks(tmp_path: Path, inner: list[int]) -> None:
    made(tmp_path, shards=(1, 10, 12))
    changed(tmp_path, inner=inner)
    with pytest.raises(CorruptError, match=r"cannot be opened|another number of axes"):
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", DATA.shape)


def test_another_dtype(tmp_path: Path) -> None:
    """Its bytes would be read as other numbers, and cast to what the root says."""
    array = made(tmp_path)
    again = ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", DATA.shape, np.dtype("f4"))
    assert again.read(WHOLE).tolist() == array.read(WHOLE).tolist()
    with pytest.raises(CorruptError, match=r"another dtype.*expected int32; found float32"):
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", DATA.shape, np.dtype("i4"))


def test_an_array_that_ends_early(tmp_path: Path) -> None:
    """zarr-python gives what there is: fewer values than were asked for."""
    array = made(tmp_path)
    for index in ((slice(2, 4), *WHOLE[1:]), (slice(3, 4), *WHOLE[1:]), (*WHOLE[:2], slice(0, 13))):
        with pytest.raises(CorruptError, match="ends before what is read"):
            array.read(index)
    with pytest.raises(CorruptError, match="ends before what is read"):
        ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", (4, 10, 12)).read_small()


def test_arrays_without_axes(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("x", data=np.array(7.5))
    found = ForeignArray(DirectoryKeys(tmp_path / "a.zarr"), "x", ()).read_small()
    assert (found.shape, found.dtype, found[()]) == ((), np.float64, 7.5)
