"""Stores in Icechunk sessions: one operation a commit, readers at snapshots, writers in conflict."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import wustore
from wustore.backends.base import Reader
from wustore.backends.memory import MemoryBackend
from wustore.backends.proxy import ReaderProxy
from wustore.backends.zarr.backend import ZarrBackend
from wustore.errors import CorruptError, StoreNotFoundError, StoreReplacedError, UsageError
from wustore.model.meta import LAYERS
from wustore.ops import edit
from wustore.ops.copy import copy
from wustore.storage.icechunk import IcechunkKeys
from wustore.testing import BackendConformance, assert_same, sample, with_capsule

icechunk = pytest.importorskip("icechunk")
pytestmark = pytest.mark.filterwarnings("ignore::wustore.ops.edit.EditWarning")


def repository(path: Any = None) -> Any:
    """Return the repository in a directory, which need not be there, or a new one in memory."""
    if path is None:
        return icechunk.Repository.create(icechunk.in_memory_storage())
    return icechunk.Repository.open_or_create(icechunk.local_filesystem_storage(str(path)))


def write(repo: Any, source: Reader, **options: Any) -> str:
    """Save and commit ``source``; return the snapshot."""
    session = repo.writable_session("main")
    writer = ZarrBackend().create(session.store, source.meta, capsule=source.capsule(), **options)
    copy(source, writer)
    return str(session.commit("saved"))


def in_ram(source: Reader) -> str:
    """Return the name of a store in memory that holds ``source``."""
    name = f"ram:icechunk-{id(source)}"
    copy(source, MemoryBackend().create(name, source.meta, overwrite=True))
    return name


def read(repo: Any, snapshot: str | None = None) -> Any:
    session = repo.readonly_session("main") if snapshot is None else repo.readonly_session(snapshot_id=snapshot)
    return ZarrBackend().open(session.store)


def keys_of(repo: Any) -> list[str]:
    return sorted(IcechunkKeys(repo.readonly_session("main").store).list(""))


class OfRepositories(ZarrBackend):
    """Repositories by path: a commit follows each writer's, and readers read what is committed."""

    def open(self, path: Any, **options: Any) -> Any:
        return super().open(repository(path).readonly_session("main").store, **options)

    def create(self, path: Any, meta: Any, **options: Any) -> Any:
        session = repository(path).writable_session("main")
        writer = super().create(session.store, meta, **options)
        finish = writer.commit

        def commit() -> None:
            finish()
            session.commit("saved")

        writer.commit = commit
        return writer

    def resumes(self, path: Any) -> bool:
        return super().resumes(repository(path).readonly_session("main").store)


class EndingReader(ReaderProxy):
    """A reader that ends in an error after its first image."""

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Any:
        if i:
            raise CorruptError("the end")
        return self.source.image(i, layers)


class TestConformance(BackendConformance):
    backend = OfRepositories()
    persistent: ClassVar[bool] = False

    def test_nothing_there(self, path: str) -> None:
        for session in (repository().writable_session("main"), repository(path).readonly_session("main")):
            with pytest.raises(StoreNotFoundError, match=session.snapshot_id):
                wustore.open(session.store)


class TestEdits:
    def test_append(self) -> None:
        """Each state stays readable at its snapshot; appending does not touch the chunks that are there."""
        repo, source = repository(), with_capsule(sample("simple"))
        first = write(repo, source)
        session = repo.writable_session("main")
        assert edit.append(session.store, in_ram(source), duplicates=True) == 3
        assert session.status().updated_chunks["/science"] == [[i, 0, 0] for i in (3, 4, 5)]
        second = session.commit("appended")
        with read(repo, first) as old, read(repo, second) as new:
            assert_same(source, old)
            assert old.capsule() is not None
            assert (new.meta.n_images, new.capsule()) == (6, None)
            for i in range(6):
                for layer in LAYERS:
                    assert new.image(i).layer(layer).tobytes() == source.image(i % 3).layer(layer).tobytes()
        assert not [key for key in keys_of(repo) if key.startswith("fits")]
        assert wustore.verify(repo.readonly_session("main").store) == []

    def test_repack_and_drop(self) -> None:
        repo, source = repository(), with_capsule(sample("chunked"))
        write(repo, source)
        for change in (
            lambda store: edit.repack(store, profile="portable", layout="cutouts"),
            lambda store: edit.drop(store, ["mask", "capsule"]),
        ):
            session = repo.writable_session("main")
            change(session.store)
            session.commit("edited")
            assert wustore.verify(repo.readonly_session("main").store) == []
        with read(repo) as reader:
            assert reader.describe()["chunks"]["science"] == [1, 67, 67]
            assert [entry["action"] for entry in reader.meta.history] == ["repack", "drop"]
            assert not reader.meta.has_layer("mask")
            for i in range(3):
                assert reader.image(i).science.tobytes() == source.image(i).science.tobytes()
        assert not [key for key in keys_of(repo) if key.startswith(("mask", "fits"))]

    def test_overwriting_with_fewer_images(self) -> None:
        """Nothing of the store before stays, whatever it held."""
        repo, small = repository(), sample("bare")
        write(repo, with_capsule(sample("rich")))
        write(repo, small, overwrite=True)
        expected = repository()
        write(expected, small)
        assert keys_of(repo) == keys_of(expected)
        with read(repo) as reader:
            assert_same(small, reader)

    @pytest.mark.parametrize("operation", ["append", "repack", "overwrite", "create"])
    def test_an_error_takes_back_everything(self, operation: str) -> None:
        repo, source = repository(), sample("chunked")
        if operation != "create":
            write(repo, source)

        session = repo.writable_session("main")
        with ZarrBackend().open(session.store) if operation == "repack" else nullcontext(source) as reader:
            failing = EndingReader(reader)
            if operation == "append":

                def change() -> Any:
                    return ZarrBackend().append(session.store, [failing], lambda n: {})
            else:
                options = {} if operation == "create" else {"overwrite": True, "profile": "fast"}

                def change() -> Any:
                    return copy(failing, ZarrBackend().create(session.store, source.meta, **options), workers=1)

            with pytest.raises(CorruptError, match="the end"):
                change()
        assert not session.has_uncommitted_changes
        if operation != "create":
            with ZarrBackend().open(session.store) as reader:
                assert_same(source, reader)

    def test_a_store_replaced_by_itself(self) -> None:
        """Image by image in the same session; reading an image after it was replaced is an error, which is undone."""
        repo, source = repository(), sample("chunked")
        first = write(repo, source)
        session = repo.writable_session("main")
        wustore.save(wustore.open(session.store).cutout(100, 200, 50, 60), session.store, overwrite=True)
        session.commit("cut")
        pinned = wustore.open(repo.readonly_session(snapshot_id=first).store)
        with read(repo) as reader:
            assert reader.meta.shape_of("science", 0) == (60, 50)
            assert reader.image(2).science.tobytes() == source.image(2).science[170:230, 75:125].tobytes()
        repo.reset_branch("main", first)
        session = repo.writable_session("main")
        with pytest.raises(CorruptError):
            wustore.save(wustore.open(session.store).select(images=[2, 0]), session.store, overwrite=True, workers=1)
        with ZarrBackend().open(session.store) as reader:
            assert_same(source, reader)
        wustore.save(pinned.select(images=[2, 0]), session.store, overwrite=True)
        with ZarrBackend().open(session.store) as reader:
            assert reader.image(1).science.tobytes() == source.image(0).science.tobytes()


class TestSessions:
    def test_one_operation_a_commit(self) -> None:
        repo, source = repository(), sample("simple")
        session = repo.writable_session("main")
        copy(source, ZarrBackend().create(session.store, source.meta))
        for change in (
            lambda: edit.append(session.store, in_ram(source), duplicates=True),
            lambda: edit.repack(session.store, layout="cutouts"),
            lambda: ZarrBackend().create(session.store, source.meta, overwrite=True),
        ):
            with pytest.raises(UsageError, match="not committed"):
                change()
        with ZarrBackend().open(session.store) as reader:  # the first one is still there
            assert_same(source, reader)
        store = session.store
        session.commit("saved")
        for there in (store, session.store, repo.readonly_session("main").store):
            with pytest.raises(UsageError, match="read"):
                edit.append(there, in_ram(source), duplicates=True)

    @pytest.mark.parametrize("solve", ["nothing", "detect", "ours", "theirs"])
    def test_of_two_writers_one_is_refused(self, solve: str) -> None:
        repo, source = repository(), sample("simple")
        write(repo, source)
        first, second = (repo.writable_session("main") for _ in range(2))
        edit.append(first.store, in_ram(sample("simple", 1)))
        edit.append(second.store, *(in_ram(sample("simple", k)) for k in (2, 3)))
        winner = first.commit("first")
        solver = {
            "nothing": None,
            "detect": icechunk.ConflictDetector(),
            "ours": icechunk.BasicConflictSolver(on_chunk_conflict=icechunk.VersionSelection.UseOurs),
            "theirs": icechunk.BasicConflictSolver(on_chunk_conflict=icechunk.VersionSelection.UseTheirs),
        }[solve]
        with pytest.raises(icechunk.ConflictError if solver is None else icechunk.RebaseFailedError):
            second.commit("second", rebase_with=solver)
        assert repo.lookup_branch("main") == winner
        with read(repo) as reader:
            assert reader.meta.n_images == 6
            assert reader.image(3).science.tobytes() == sample("simple", 1).image(0).science.tobytes()
        again = repo.writable_session("main")
        assert edit.append(again.store, in_ram(sample("simple", 2))) == 3
        again.commit("second")
        with read(repo) as reader:
            assert reader.meta.n_images == 9

    def test_tags_and_roll_back(self) -> None:
        repo, source = repository(), sample("simple")
        first = write(repo, source)
        repo.create_tag("night-1", snapshot_id=first)
        write(repo, sample("ragged"), overwrite=True)
        with ZarrBackend().open(repo.readonly_session(tag="night-1").store) as reader:
            assert_same(source, reader)
        repo.reset_branch("main", first)
        with read(repo) as reader:
            assert_same(source, reader)

    def test_a_reader_belongs_to_one_state(self) -> None:
        repo, source = repository(), sample("simple")
        first = write(repo, source)
        reading = repo.writable_session("main")
        with ZarrBackend().open(reading.store) as reader, read(repo) as pinned:
            assert reader.state() == pinned.state()
            session = repo.writable_session("main")
            edit.append(session.store, in_ram(sample("simple", 1)))
            session.commit("appended")
            reader.check_state()  # its session has not moved
            reading.rebase(icechunk.ConflictDetector())
            assert reader.image(2).science.tobytes() == source.image(2).science.tobytes()
            with pytest.raises(StoreReplacedError):
                reader.check_state()
            pinned.check_state()
            with read(repo, first) as again:
                assert again.state() == pinned.state()

    def test_pickles(self, tmp_path: Path) -> None:
        """What is read in a read-only session is read by other processes; a writable one is refused in our words."""
        repo, source = repository(tmp_path), sample("simple")
        write(repo, source)
        work_unit = wustore.open(repo.readonly_session("main").store)
        write(repo, sample("ragged"), overwrite=True)
        other = pickle.loads(pickle.dumps(work_unit))
        for i in range(3):
            planes = [unit.im_stack.get_single_image(i).sci for unit in (other, work_unit)]
            assert np.array_equal(*planes, equal_nan=True)
        in_memory = repository()
        write(in_memory, source)
        with read(in_memory) as reader, pytest.raises(StoreNotFoundError):
            pickle.loads(pickle.dumps(reader))  # only this repository object knows it
        session = repo.writable_session("main")
        with pytest.raises(UsageError, match=r"readonly_session.*store"):
            pickle.dumps(wustore.open(session.store))
        with pytest.raises(UsageError, match=r"session\.store"):
            wustore.open(session)

    def test_no_journal(self) -> None:
        session = repository().writable_session("main")
        with pytest.raises(UsageError, match="in one go"):
            wustore.convert(in_ram(sample("simple")), session.store, resume=True)


class TestDamage:
    def test_missing_nodes_and_chunks(self) -> None:
        repo = repository()
        write(repo, sample("simple"))
        session = repo.writable_session("main")
        keys = IcechunkKeys(session.store)
        keys.delete("science/c/1/0/0")
        keys.delete_below("variance/")
        session.commit("damage")
        with read(repo) as reader:
            assert reader.image(1, ("psf",)).psf is not None
            with pytest.raises(CorruptError, match="a shard is missing"):
                reader.image(1, ("science",))
            with pytest.raises(CorruptError, match="a shard is missing"):
                reader.image(0, ("variance",))
        assert len(wustore.verify(repo.readonly_session("main").store)) >= 2

    def test_lost_objects_are_errors(self, tmp_path: Path) -> None:
        repo = repository(tmp_path)
        write(repo, sample("chunked"))
        for chunk in (tmp_path / "chunks").iterdir():
            chunk.unlink()
        with pytest.raises((OSError, CorruptError)), read(repo) as reader:
            reader.image(0)

    def test_no_range_beyond_the_end_is_asked_for(self, capfd: Any) -> None:
        """Icechunk's threads panic at such ranges, and say so on the terminal."""
        session = repository().writable_session("main")
        keys = IcechunkKeys(session.store)
        text = b'{"zarr_format":3,"node_type":"group","attributes":{}}'
        keys.set("zarr.json", text)
        assert keys.get_tail("zarr.json", 1000) == text
        assert keys.get_tail("zarr.json", 3) == text[-3:]
        assert keys.get_ranges("zarr.json", [(0, 5), (50, 1000), (1000, 5)]) == [text[:5], text[50:], b""]
        assert "panicked" not in capfd.readouterr().err

    def test_keys_that_icechunk_does_not_know(self) -> None:
        keys = IcechunkKeys(repository().writable_session("main").store)
        for key in (".wustore-journal/plan.json", "science/c.0.0.0", "science/c/0/0/0", "zarr.json", "notes.txt"):
            assert (keys.get(key), keys.size(key)) == (None, None)
            assert keys.get_tail(key, 4) is None
            assert keys.get_ranges(key, [(0, 4)]) is None
        assert list(keys.list("fits/")) == []
        keys.delete_below("fits/")


def test_fits_bytes_and_stamps(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    planes = list(rng.normal(0, 5, (4, 40, 50)).astype(np.float32))
    stack = wustore.ImageStack(times=60000 + np.arange(4.0), sci=planes, var=[abs(plane) + 1 for plane in planes])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised, and without a WCS
        wustore.WorkUnit(stack, wustore.SearchConfiguration()).to_fits(tmp_path / "night.fits")
    repo = repository()
    with repo.transaction("main", message="night") as store:
        wustore.convert(tmp_path / "night.fits", store)
        assert wustore.diff(tmp_path / "night.fits", store) == []
    with repo.transaction("main", message="repacked") as store:
        edit.repack(store, layout="cutouts")
    store = repo.readonly_session("main").store
    wustore.convert(store, tmp_path / "again.fits")
    assert (tmp_path / "again.fits").read_bytes() == (tmp_path / "night.fits").read_bytes()
    assert wustore.verify(store, fits=True) == []
    cut = wustore.open(store).stamps(20, 12, radius=3).science
    assert cut.tobytes() == wustore.open(tmp_path / "night.fits").stamps(20, 12, radius=3).science.tobytes()


def test_values_through_zarr_and_xarray() -> None:
    """Other programs read the same pixels: chunk keys and documents are those of Zarr."""
    import xarray
    import zarr

    repo, source = repository(), sample("simple")
    write(repo, source, profile="portable")
    store = repo.readonly_session("main").store
    science = np.stack([source.image(i).science for i in range(3)])
    assert zarr.open_array(store, path="science", mode="r")[...].tobytes() == science.tobytes()
    with xarray.open_dataset(store, engine="wustore") as dataset:
        assert dataset["science"].values.tobytes() == science.tobytes()


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A server whose bucket is called ``bucket``."""
    pytest.importorskip("moto.server", reason="the S3 server of the tests needs moto[server]")
    import boto3
    from s3_server import Server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "very-secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url="http://{}:{}".format(*server.address), **keys).create_bucket(Bucket="bucket")
    yield server
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:moto")
class TestS3:
    def storage(self, s3: Any, prefix: str = "repository") -> Any:
        return icechunk.s3_storage(
            bucket="bucket",
            prefix=prefix,
            endpoint_url="http://{}:{}".format(*s3.address),
            allow_http=True,
            force_path_style=True,
            region="us-east-1",
            access_key_id="test",
            secret_access_key="very-secret",
        )

    def test_all_of_it(self, s3: Any) -> None:
        """Saved, appended to, read at both snapshots, of two writers one refused; each shard is one request."""
        source = sample("chunked")
        repo = icechunk.Repository.create(self.storage(s3))
        first = write(repo, source)
        sessions = [repo.writable_session("main") for _ in range(2)]
        for session in sessions:
            edit.append(session.store, in_ram(source), duplicates=True)
        sessions[0].commit("appended")
        with pytest.raises(icechunk.ConflictError):
            sessions[1].commit("appended as well")
        repo = icechunk.Repository.open(self.storage(s3))  # with nothing in its cache
        with read(repo, first) as old, pickle.loads(pickle.dumps(read(repo))) as new:
            assert_same(source, old)
            assert new.meta.n_images == 6
            s3.calls.clear()
            new.image(5)
            assert sum("/chunks/" in path for _, path, _ in s3.calls) == 3  # the kernel is in a manifest
        assert wustore.verify(repo.readonly_session("main").store) == []

    def test_a_server_that_refuses(self, s3: Any) -> None:
        repo = icechunk.Repository.create(self.storage(s3, "refused"))
        write(repo, sample("chunked"))
        with read(repo) as reader:
            s3.refuses = "/chunks/"
            try:
                with pytest.raises(OSError, match="icechunk snapshot"):
                    reader.image(0)
            finally:
                s3.refuses = None
