"""Damage, loss and foreign stores: a typed error with its place, never data."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unbound import unbind

from wustore.backends.base import Reader
from wustore.backends.zarr.backend import ZarrBackend, ZarrZipBackend
from wustore.backends.zarr.metadata import document_checksum
from wustore.errors import CorruptError, FormatError, IncompleteError, OtherFormatError, WuStoreError
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample, with_capsule

BACKEND = ZarrBackend()


def make(path: Path, name: str = "simple", backend: ZarrBackend = BACKEND, **options: Any) -> Reader:
    source = with_capsule(sample(name))
    copy(source, backend.create(str(path), source.meta, capsule=source.capsule(), **options))
    return source


def read_all(path: Path, backend: ZarrBackend, source: Reader) -> str | None:
    """Return the error that reading everything gives, or None where it gives exactly ``source``."""
    try:
        with backend.open(str(path)) as reader:
            assert_same(source, reader)
            capsule, expected = reader.capsule(), source.capsule()
            assert capsule is not None
            assert expected is not None
            assert capsule.head == expected.head
            for i in range(source.meta.n_images):
                assert (reader.image_capsule(i) or b"") == (source.image_capsule(i) or b"")
            sums = reader.checksums()
            assert sums is not None
    except (WuStoreError, OSError) as error:
        return str(error)
    return None


class TestBitFlips:
    @pytest.mark.parametrize("profile", ["compact", "portable", "fast", "none"])
    def test_every_file(self, tmp_path: Path, profile: str) -> None:
        """A flipped bit in any file of a store is an error or harmless, never other data."""
        path = tmp_path / "x.zarr"
        source = make(path, profile=profile)
        rng = np.random.default_rng(11)
        found = 0
        # Small arrays and metadata are the same in every profile.
        where = "*" if profile == "compact" else "c.*.0.0"
        files = sorted(entry for entry in path.rglob(where) if entry.is_file())
        assert len(files) > 7
        for file in files:
            whole = file.read_bytes()
            for place in {len(whole) - 1, int(rng.integers(0, len(whole)))}:
                damaged = bytearray(whole)
                damaged[place] ^= 1 << int(rng.integers(0, 8))
                file.write_bytes(damaged)
                error = read_all(path, BACKEND, source)
                found += error is not None
                assert error is not None or not file.name.startswith("c.") or not file.match("*/c.*.0.0"), file
            file.write_bytes(whole)
        assert found >= 14
        assert read_all(path, BACKEND, source) is None

    def test_root_document(self, tmp_path: Path) -> None:
        """Every byte of the root's own attributes is under its checksum."""
        path = tmp_path / "x.zarr"
        source = make(path)
        file = path / "zarr.json"
        whole = file.read_bytes()
        rng = np.random.default_rng(3)
        for place in rng.choice(len(whole), 150, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(0, 8))
            file.write_bytes(damaged)
            read_all(path, BACKEND, source)  # asserts inside that nothing else than the source comes back

    def test_zip(self, tmp_path: Path) -> None:
        path = tmp_path / "x.zarr.zip"
        backend = ZarrZipBackend()
        source = make(path, backend=backend)
        whole = path.read_bytes()
        rng = np.random.default_rng(4)
        for place in rng.choice(len(whole), 60, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(damaged)
            read_all(path, backend, source)
        path.write_bytes(whole)
        assert read_all(path, backend, source) is None


class TestLoss:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        path = tmp_path / "x.zarr"
        make(path, "chunked")
        return path

    @pytest.mark.parametrize("layer", ["science", "variance", "mask", "psf"])
    def test_missing_shard(self, store: Path, layer: str) -> None:
        (store / layer / "c.1.0.0").unlink()
        with BACKEND.open(str(store)) as reader:
            reader.image(0)
            with pytest.raises(CorruptError, match=f"missing.*{layer}, image 1"):
                reader.image(1)
            with pytest.raises(CorruptError):
                reader.read(layer, (slice(0, 3), slice(0, 1), slice(0, 1)))

    @pytest.mark.parametrize("cut", [1, 4, 20, 100_000])
    def test_truncated_shard(self, store: Path, cut: int) -> None:
        file = store / "science" / "c.1.0.0"
        whole = file.read_bytes()
        file.write_bytes(whole[: max(len(whole) - cut, 0)])
        self.refused(store, "image 1")

    def test_bytes_lost_in_the_middle(self, store: Path) -> None:
        file = store / "science" / "c.1.0.0"
        whole = file.read_bytes()
        file.write_bytes(whole[:50] + whole[60:])
        self.refused(store, "image 1, chunk")

    def test_empty_and_replaced(self, store: Path) -> None:
        file = store / "science" / "c.1.0.0"
        file.write_bytes(b"")
        self.refused(store, "truncated")
        file.unlink()
        file.mkdir()
        with BACKEND.open(str(store)) as reader, pytest.raises((CorruptError, OSError)):
            reader.image(1)

    def rewrite_index(self, store: Path, change: Callable[[np.ndarray], None]) -> None:
        """Change the index of a shard and give it a right checksum again."""
        from wustore.backends.zarr.filters.decode import with_crc

        unbind(store)
        file = store / "science" / "c.1.0.0"
        whole = file.read_bytes()
        with BACKEND.open(str(store)) as reader:
            chunk = reader.chunks("science")
            shape = reader.meta.layer_shape("science")
        n = -(-shape[1] // chunk[1]) * -(-shape[2] // chunk[2])
        index = np.frombuffer(whole[-16 * n - 4 : -4], "<u8").reshape(n, 2).copy()
        change(index)
        file.write_bytes(whole[: -16 * n - 4] + with_crc(index.tobytes()))

    def test_missing_inner_chunk(self, store: Path) -> None:
        """zarr-python would give fill values; here it is damage, and the chunk is named."""

        def drop(index: np.ndarray) -> None:
            index[-1] = 2**64 - 1

        self.rewrite_index(store, drop)
        self.refused(store, "chunk is missing in its shard.*image 1, chunk")

    @pytest.mark.parametrize("entry", [(2**63, 10), (10**9, 10), (0, 2**40), (2**64 - 1, 5), (0, 0), (0, 3)])
    def test_wild_index(self, store: Path, entry: tuple[int, int]) -> None:
        def change(index: np.ndarray) -> None:
            index[0] = entry

        self.rewrite_index(store, change)
        self.refused(store, "image 1")

    def refused(self, store: Path, pattern: str) -> None:
        with BACKEND.open(str(store)) as reader:
            reader.image(0)
            with pytest.raises(CorruptError, match=pattern) as caught:
                reader.image(1)
            assert caught.value.path == str(store)
            with pytest.raises(CorruptError):
                reader.read_boxes(
                    "science", [(slice(1, 2), *(slice(0, n) for n in reader.meta.layer_shape("science")[1:]))]
                )

    def test_missing_metadata(self, store: Path) -> None:
        (store / "packed" / "c.0").unlink()
        with pytest.raises(CorruptError, match="packed"):
            BACKEND.open(str(store))

    def test_missing_chunk_through_zarr_python(self, tmp_path: Path) -> None:
        """The fallback finds what is missing, too."""
        from wustore.backends.zarr.foreign import ForeignArray
        from wustore.storage.zarr_store import DirectoryKeys

        make(tmp_path / "x.zarr", "chunked", profile="none")
        keys = DirectoryKeys(tmp_path / "x.zarr")
        shape = json.loads((tmp_path / "x.zarr" / "science" / "zarr.json").read_text())["shape"]
        array = ForeignArray(keys, "science", shape)
        box = tuple(slice(0, n) for n in shape)
        array.read(box)
        self.rewrite_index(tmp_path / "x.zarr", lambda index: index.__setitem__(0, 2**64 - 1))
        with pytest.raises(CorruptError, match="missing in its shard"):
            array.read(box)
        (tmp_path / "x.zarr" / "science" / "c.1.0.0").unlink()
        with pytest.raises(CorruptError, match="a chunk is missing"):
            array.read(box)


class TestForeign:
    def test_other_zarr(self, tmp_path: Path) -> None:
        import zarr

        zarr.create_group(str(tmp_path / "a.zarr")).create_array("x", shape=(3,), dtype="f4")
        zarr.create_array(str(tmp_path / "b.zarr"), shape=(3,), dtype="f4")
        zarr.create_group(str(tmp_path / "c.zarr"), zarr_format=2)
        for name, pattern in (("a", "not one of wustore"), ("b", "not a Zarr v3 group"), ("c", "Zarr v2")):
            with pytest.raises(FormatError, match=pattern) as caught:
                BACKEND.open(str(tmp_path / f"{name}.zarr"))
            assert not isinstance(caught.value, OtherFormatError)

    def test_empty_directory(self, tmp_path: Path) -> None:
        assert BACKEND.try_open(str(tmp_path)) is None
        with pytest.raises(FormatError, match="not a Zarr store"):
            BACKEND.open(str(tmp_path))

    def test_consolidated_metadata_is_not_required(self, tmp_path: Path) -> None:
        path = tmp_path / "x.zarr"
        source = make(path)
        root = json.loads((path / "zarr.json").read_text())
        del root["consolidated_metadata"]
        (path / "zarr.json").write_text(json.dumps(root, indent=4))
        assert read_all(path, BACKEND, source) is None

    def test_every_byte_of_the_root_is_verified(self, tmp_path: Path) -> None:
        """Also those that neither the checksum of the document nor opening covers."""
        path = tmp_path / "x.zarr"
        source = make(path)
        text = (path / "zarr.json").read_bytes()
        start = text.index(b'"wustore"')
        document = json.dumps(json.loads(text)["attributes"]["wustore"], separators=(",", ":")).encode()
        end = text.index(document) + len(document)
        missed = []
        for at in (*range(start), *range(end, end + 100), *range(len(text) - 30, len(text))):
            for bit in (0, 3):
                flipped = bytearray(text)
                flipped[at] ^= 1 << bit
                (path / "zarr.json").write_bytes(flipped)
                try:
                    with BACKEND.open(str(path)) as reader:
                        found = list(reader.audit())
                except (WuStoreError, OSError):
                    continue
                if not found:
                    missed.append((at, bit, text[at - 20 : at + 20]))
        assert not missed
        (path / "zarr.json").write_bytes(text)
        assert read_all(path, BACKEND, source) is None

    def test_without_the_packed_copy(self, tmp_path: Path) -> None:
        """The arrays themselves hold everything; ``packed`` only makes opening quick."""
        path = tmp_path / "x.zarr"
        source = make(path, "ragged")
        root = json.loads((path / "zarr.json").read_text())
        document = root["attributes"]["wustore"]
        document["packed"] = False
        document["crc32c"] = document_checksum(document)
        (path / "zarr.json").write_text(json.dumps(root))
        shutil.rmtree(path / "packed")
        assert read_all(path, BACKEND, source) is None

    def test_unfinished(self, tmp_path: Path) -> None:
        source = sample("simple")
        writer = BACKEND.create(str(tmp_path / "x.zarr"), source.meta, resume=True)
        writer.write(0, source.image(0))
        (staging,) = tmp_path.iterdir()
        with pytest.raises(IncompleteError, match="1 images written"):
            BACKEND.open(str(staging))

    def test_zip_by_another_tool(self, tmp_path: Path) -> None:
        """A store packed, and compressed, by another tool is read as well."""
        path = tmp_path / "x.zarr"
        source = make(path)
        packed = shutil.make_archive(str(tmp_path / "y.zarr"), "zip", path)
        with zipfile.ZipFile(packed) as archive:
            assert any(info.compress_type == zipfile.ZIP_DEFLATED for info in archive.infolist())
        assert read_all(Path(packed), ZarrZipBackend(), source) is None


class TestAxes:
    """Arrays with another number of axes than the format says, in the root, in their own document, or in both."""

    @pytest.mark.parametrize("where", ["root", "own", "both"])
    @pytest.mark.parametrize("name", ["science", "time", "image_shape", "packed", "fits/bound", "fits/data"])
    def test_errors_only(self, tmp_path: Path, name: str, where: str) -> None:
        path = tmp_path / "x.zarr"
        source = make(path)
        whole = (path / "zarr.json").read_bytes(), (path / name / "zarr.json").read_bytes()
        node = json.loads(whole[1])
        shape, chunk = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
        found = 0
        for wrong in (shape[1:], [1, *shape], [*shape, 1], [], [0], [0, 2**62, 2**62], [0] * 70, [1] * 70, [0, 10**30]):
            for new in ((wrong, chunk), (shape, wrong), (wrong, wrong)):
                changed = json.loads(whole[1])
                changed["shape"], changed["chunk_grid"]["configuration"]["chunk_shape"] = new
                root = json.loads(whole[0])
                if where != "own":
                    root["consolidated_metadata"]["metadata"][name] = changed
                (path / "zarr.json").write_text(json.dumps(root))
                (path / name / "zarr.json").write_text(json.dumps(changed if where != "root" else node))
                found += read_all(path, BACKEND, source) is not None  # or everything is as it was
                with contextlib.suppress(WuStoreError), BACKEND.open(str(path)) as reader:
                    found += len(list(reader.audit())) > 0
        (path / "zarr.json").write_bytes(whole[0])
        (path / name / "zarr.json").write_bytes(whole[1])
        assert found >= 9
        assert read_all(path, BACKEND, source) is None
