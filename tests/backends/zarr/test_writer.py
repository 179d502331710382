"""Unfinished stores: journal, resume, several writers, death; and stores that are not directories."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from digests import digest
from endless_writer import write_without_end
from zarr.storage import MemoryStore

from wustore.backends.zarr import writer as zarr_writer
from wustore.backends.zarr.append import append_images
from wustore.backends.zarr.backend import ZarrBackend, ZarrZipBackend
from wustore.errors import (
    CorruptError,
    FormatError,
    IncompleteError,
    StoreExistsError,
    StoreNotFoundError,
    UsageError,
)
from wustore.model.meta import LAYERS
from wustore.ops.copy import copy
from wustore.storage.journal import JOURNAL, Journal
from wustore.storage.locks import CLAIM
from wustore.storage.staging import partial_path
from wustore.storage.zarr_store import DirectoryKeys
from wustore.testing import assert_same, sample, with_capsule

BACKENDS = pytest.mark.parametrize("backend", [ZarrBackend(), ZarrZipBackend()], ids=["zarr", "zip"])


@BACKENDS
class TestResume:
    def undisturbed(self, tmp_path: Path, backend: ZarrBackend) -> dict[str, str]:
        source = with_capsule(sample("ragged"))
        copy(source, backend.create(str(tmp_path / "plain"), source.meta, capsule=source.capsule()))
        return digest(tmp_path / "plain")

    def test_goes_on(self, tmp_path: Path, backend: ZarrBackend) -> None:
        """Whole images are kept, torn ones are found and written again; the bytes are those of an undisturbed run."""
        source = with_capsule(sample("ragged"))
        path = str(tmp_path / "x")

        def start() -> object:
            return backend.create(path, source.meta, capsule=source.capsule(), resume=True, fingerprint="f")

        writer = start()
        for i in (0, 1, 3):
            writer.write(i, source.image(i), source.image_capsule(i))  # type: ignore[attr-defined]
        writer.abort()  # type: ignore[attr-defined]
        with pytest.raises(StoreNotFoundError):
            backend.open(path)
        staging = partial_path(path)
        torn = staging / "science" / "c.1.0.0"
        torn.write_bytes(torn.read_bytes()[:-7])
        changed = staging / "variance" / "c.3.0.0"
        changed.write_bytes(b"\0" + changed.read_bytes()[1:])
        writer = start()
        assert writer.unwritten(range(4)) == [1, 2, 3]  # type: ignore[attr-defined]
        for i in writer.unwritten(range(4)):  # type: ignore[attr-defined]
            writer.write(i, source.image(i), source.image_capsule(i))  # type: ignore[attr-defined]
        writer.commit()  # type: ignore[attr-defined]
        assert not staging.exists()
        assert digest(Path(path)) == self.undisturbed(tmp_path, backend)

    @pytest.mark.parametrize("change", ["fingerprint", "profile", "source", "capsule"])
    def test_only_the_same_conversion(self, tmp_path: Path, backend: ZarrBackend, change: str) -> None:
        source = with_capsule(sample("ragged"))
        path = str(tmp_path / "x")
        backend.create(path, source.meta, capsule=source.capsule(), resume=True, fingerprint="a").write(
            0, source.image(0)
        )
        meta = sample("simple").meta if change == "source" else source.meta
        with pytest.raises(UsageError, match="unfinished"):
            backend.create(
                path,
                meta,
                capsule=None if change == "capsule" else source.capsule(),
                resume=True,
                fingerprint="b" if change == "fingerprint" else "a",
                profile="fast" if change == "profile" else "compact",
            )
        assert partial_path(path).exists()

    def test_missing_images_are_named(self, tmp_path: Path, backend: ZarrBackend) -> None:
        source = sample("ragged")
        writer = backend.create(str(tmp_path / "x"), source.meta, resume=True)
        writer.write(2, source.image(2))
        with pytest.raises(IncompleteError, match="missing: 0, 1, 3"):
            writer.commit()

    def test_inventory(self, tmp_path: Path, backend: ZarrBackend) -> None:
        """A shard that went away between writing and finishing is found."""
        source = sample("simple")
        writer = backend.create(str(tmp_path / "x"), source.meta, resume=True)
        for i in range(source.meta.n_images):
            writer.write(i, source.image(i))
        (partial_path(tmp_path / "x") / "mask" / "c.1.0.0").unlink()
        with pytest.raises(CorruptError, match="image 1"):
            writer.commit()

    def test_several_writers(self, tmp_path: Path, backend: ZarrBackend) -> None:
        """Writers that share a plan, each with images of its own and some in common, give one store."""
        source = with_capsule(sample("ragged"))
        path = str(tmp_path / "x")
        writers = [
            backend.create(path, source.meta, capsule=source.capsule(), resume=True, fingerprint="f") for _ in range(3)
        ]
        for writer, images in zip(writers, ((2, 0), (0, 1), (3, 2)), strict=True):
            for i in images:
                writer.write(i, source.image(i), source.image_capsule(i))
        writers[0].commit()
        assert digest(Path(path)) == self.undisturbed(tmp_path, backend)


def test_a_plain_save_writes_one_object_for_each_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a resume there is no journal, and no byte is checksummed for one."""
    source = with_capsule(sample("simple"))
    written: list[str] = []
    set_ = DirectoryKeys.set_pieces
    monkeypatch.setattr(
        DirectoryKeys, "set_pieces", lambda self, key, pieces: (written.append(key), set_(self, key, pieces))[1]
    )
    writer = ZarrBackend().create(str(tmp_path / "x.zarr"), source.meta, capsule=source.capsule(), workers=1)
    assert written == []
    for i in range(source.meta.n_images):
        writer.write(i, source.image(i), source.image_capsule(i))
    layers = [name for name in LAYERS if source.meta.has_layer(name)]
    assert written == [f"{name}/c.{i}.0.0" for i in range(source.meta.n_images) for name in layers]
    writer.commit()
    assert not [key for key in written if key.startswith(JOURNAL)]
    assert len(written) == len(set(written)), "no object is written twice"
    with ZarrBackend().open(str(tmp_path / "x.zarr")) as store:
        assert [store.image_capsule(i) for i in range(3)] == [source.image_capsule(i) for i in range(3)]


@pytest.mark.parametrize("existing", [False, True])
def test_killed_writer(tmp_path: Path, existing: bool) -> None:
    """SIGKILL leaves the target as it was, and what was left behind does not open; the next writer clears it up."""
    path = str(tmp_path / "x.zarr")
    old, new = sample("simple"), sample("ragged")
    if existing:
        copy(old, ZarrBackend().create(path, old.meta))
    process = multiprocessing.get_context("spawn").Process(target=write_without_end, args=(path, existing))
    process.start()
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".x.zarr~*/variance/c.*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (left,) = tmp_path.glob(".x.zarr~*.wustore-partial")
    with pytest.raises(IncompleteError):
        ZarrBackend().open(str(left))
    if existing:
        with ZarrBackend().open(path) as reader:
            assert_same(old, reader)
    else:
        with pytest.raises(StoreNotFoundError):
            ZarrBackend().open(path)
    copy(new, ZarrBackend().create(path, new.meta, overwrite=existing))
    with ZarrBackend().open(path) as reader:
        assert_same(new, reader)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.zarr"]


@pytest.mark.parametrize(
    "names",
    [[".c.0.0.0~host-1-0"], [".c.1.0.0~host-1-3", "c.0.0.0"], ["c.0.0.0"], ["c/0/0/0"], ["zarr.json", "c.0.0.0"]],
)
def test_what_a_killed_writer_leaves_is_no_other_format(tmp_path: Path, names: list[str]) -> None:
    """Whatever the first file is that the system lists: a whole chunk, or a half that was being written."""
    for name in names:
        file = tmp_path / "x.zarr" / "science" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    with pytest.raises(IncompleteError, match="no root document"):
        ZarrBackend().open(str(tmp_path / "x.zarr"))


class TestStoreObjects:
    """Any zarr Store: written with the root document last, read by ranges."""

    def test_round_trip(self) -> None:
        from zarr.storage import MemoryStore

        for name in ("simple", "ragged", "missing", "chunked"):
            source = with_capsule(sample(name))
            store = MemoryStore()
            copy(source, ZarrBackend().create(store, source.meta, capsule=source.capsule()))
            with ZarrBackend().open(store) as reader:
                assert_same(source, reader)
                capsule = reader.capsule()
                assert capsule is not None
                assert capsule.head == source.capsule().head  # type: ignore[union-attr]

    def test_same_bytes_as_a_directory(self, tmp_path: Path) -> None:
        from zarr.storage import MemoryStore

        source = sample("ragged")
        store = MemoryStore()
        copy(source, ZarrBackend().create(store, source.meta))
        copy(source, ZarrBackend().create(str(tmp_path / "x"), source.meta))
        files = {str(f.relative_to(tmp_path / "x")): f.read_bytes() for f in (tmp_path / "x").rglob("*") if f.is_file()}
        assert {key: value.to_bytes() for key, value in store._store_dict.items()} == files

    def test_root_document_is_last(self) -> None:
        from zarr.storage import MemoryStore

        source = sample("simple")
        store = MemoryStore()
        writer = ZarrBackend().create(store, source.meta)
        for i in range(source.meta.n_images):
            writer.write(i, source.image(i))
        with pytest.raises(IncompleteError):
            ZarrBackend().open(store)
        with pytest.raises(FormatError):
            ZarrBackend().open(MemoryStore())
        writer.commit()
        with pytest.raises(StoreExistsError):
            ZarrBackend().create(store, source.meta)
        new = sample("ragged")
        copy(new, ZarrBackend().create(store, new.meta, overwrite=True))
        with ZarrBackend().open(store) as reader:
            assert_same(new, reader)

    def test_abort_leaves_nothing(self) -> None:
        from zarr.storage import MemoryStore

        source = sample("simple")
        store = MemoryStore()
        writer = ZarrBackend().create(store, source.meta)
        writer.write(0, source.image(0))
        writer.abort()
        assert not store._store_dict

    def test_url(self, tmp_path: Path) -> None:
        pytest.importorskip("fsspec")
        source = sample("ragged")
        url = f"memory://{tmp_path.name}/x.zarr"
        copy(source, ZarrBackend().create(url, source.meta))
        with ZarrBackend().open(url) as reader:
            assert_same(source, pickle.loads(pickle.dumps(reader)))

    def test_missing_object(self) -> None:
        from zarr.storage import MemoryStore

        source = sample("simple")
        store = MemoryStore()
        copy(source, ZarrBackend().create(store, source.meta))
        del store._store_dict["science/c.1.0.0"]
        with ZarrBackend().open(store) as reader, pytest.raises(CorruptError, match="image 1"):
            reader.image(1)

    def test_requests_to_open(self) -> None:
        """Opening takes two requests, however many images and columns there are."""
        from zarr.storage import LoggingStore, MemoryStore

        source = sample("ragged")
        store = MemoryStore()
        copy(source, ZarrBackend().create(store, source.meta))
        counted = LoggingStore(store, log_level="CRITICAL")
        with ZarrBackend().open(counted) as reader:
            assert reader.meta.n_images == 4
        assert {name: count for name, count in counted.counter.items() if name != "_ensure_open"} == {"get": 2}


class _Stopped(MemoryStore):
    """A store in which one change fails, or (killed) that one and all that follow."""

    def __init__(self, held: dict[str, Any], at: int = 1 << 60, *, killed: bool = False) -> None:
        super().__init__(held)
        self.at, self.killed, self.changes = at, killed, 0

    def _change(self) -> None:
        self.changes += 1
        if self.changes == self.at or (self.killed and self.changes > self.at):
            raise OSError(errno.EIO, "the store does not answer")

    async def set(self, *args: Any, **options: Any) -> None:
        self._change()
        await super().set(*args, **options)

    async def delete(self, *args: Any, **options: Any) -> None:
        self._change()
        await super().delete(*args, **options)


def _replace(store: MemoryStore) -> None:
    """Let a store with fewer layers take the place of what is there."""
    copy(sample("bare"), ZarrBackend().create(store, sample("bare").meta, overwrite=True, workers=1), workers=1)


@pytest.mark.parametrize("killed", [False, True], ids=["one error", "killed"])
def test_a_store_without_renames_is_old_or_new_after_each_change(killed: bool) -> None:
    """An error after the root was replaced took the new chunks away; a kill left arrays that counted as others'."""
    first: dict[str, Any] = {}
    old, new = sample("simple"), sample("bare")
    copy(old, ZarrBackend().create(MemoryStore(first), old.meta), workers=1)
    counted = _Stopped(dict(first))
    _replace(counted)
    ends = Counter[str]()
    for at in range(1, counted.changes + 1):
        held = dict(first)
        with pytest.raises(OSError, match="does not answer"):
            _replace(_Stopped(held, at, killed=killed))
        if killed and CLAIM in held:  # this process lives, but the one that wrote does not
            held[CLAIM] = type(held[CLAIM]).from_bytes(b"{}")
        with ZarrBackend().open(MemoryStore(held)) as reader:
            ends["old" if reader.meta.n_images == old.meta.n_images else "new"] += 1
            assert_same(old if reader.meta.n_images == old.meta.n_images else new, reader)
            assert not list(reader.foreign()), at
        if reader.meta.n_images != old.meta.n_images:
            again = dict(held)
            append_images(MemoryStore(again), [new], lambda count: {"action": "append", "images": count})
            with ZarrBackend().open(MemoryStore(again)) as reader:
                assert not list(reader.foreign()), at
                assert not list(reader.audit()), at
        _replace(MemoryStore(held))
        with ZarrBackend().open(MemoryStore(held)) as reader:
            assert_same(new, reader)
            assert not list(reader.audit())
        assert CLAIM not in held
    assert min(ends["old"], ends["new"]) > 10


def test_what_is_sealed_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume does not look at it again: a power failure right after the seal must not find it empty."""
    order: list[str] = []
    monkeypatch.setattr(zarr_writer, "sync_tree", lambda path: order.append(f"sync {len(list(path.rglob('c*')))}"))
    monkeypatch.setattr(Journal, "seal", lambda journal: order.append("seal"))
    source = sample("simple")
    copy(source, ZarrBackend().create(str(tmp_path / "x.zarr"), source.meta, resume=True, fingerprint="f"))
    chunks = len(list((tmp_path / "x.zarr").rglob("c*")))
    assert order == [f"sync {chunks}", "seal"]
    assert chunks > source.meta.n_images
