"""Conversions in pieces give the same bytes as one in one go, whatever happens to them."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wustore
from wustore import jobs
from wustore.atomic import partial_path
from wustore.backends.memory import MemoryReader
from wustore.errors import CorruptError, IncompleteError, StoreExistsError, UsageError, WuStoreError
from wustore.estimate import Estimate, estimate, refuse_if_too_large
from wustore.model import LAYERS
from wustore.registry import backend_for_writing
from wustore.testing import assert_same, sample, with_capsule
from wustore.transfer import copy


def listing(path):
    """Return every file of a store with its bytes."""
    path = Path(path)
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def save(reader, path, **options):
    capsule = reader.capsule()
    copy(reader, backend_for_writing(str(path)).create(str(path), reader.meta, capsule=capsule, **options))


@pytest.fixture
def source(tmp_path):
    """A store of twelve images with leftovers, to convert from."""
    few = with_capsule(sample("ragged"))
    images = [few.image(i % 4, capsule=True) for i in range(12)]
    repeated = few.meta
    meta = type(repeated)(
        times=repeated.times.repeat(3),
        image_shape=repeated.image_shape[[i % 4 for i in range(12)]],
        psf_shape=repeated.psf_shape[[i % 4 for i in range(12)]],
        dtypes={layer: repeated.dtypes[layer] * 3 for layer in LAYERS},
        links=tuple((i % 4,) for i in range(12)),
        constituents=repeated.constituents,
    )
    path = tmp_path / "source.h5"
    save(MemoryReader(meta, images, few.capsule()), path)
    return str(path)


@pytest.fixture
def reference(source, tmp_path):
    path = str(tmp_path / "reference.zarr")
    wustore.convert(source, path, workers=1)
    return listing(path)


def test_parts_in_any_order_with_repeats(source, reference, tmp_path):
    target = str(tmp_path / "x.zarr")
    jobs.plan(source, target, parts=5)
    for k in (3, 0, 0, 4, 2, 3, 1):
        with pytest.raises(IncompleteError):
            wustore.open_reader(target)
        jobs.part(target, k)
    assert jobs.progress_of(target) == (12, 12)
    jobs.finish(target)
    assert listing(target) == reference
    assert not partial_path(target).exists()


def test_plan_is_joined_not_restarted(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    first = jobs.plan(source, target, parts=3)
    jobs.part(target, 1)
    assert jobs.plan(source, target, parts=7) == first
    assert jobs.progress_of(target) == (4, 12)


def test_parts_cover_every_image_once(source, tmp_path):
    job = jobs.plan(source, str(tmp_path / "x.zarr"), parts=5)
    assert [i for k in range(job.parts) for i in job.images_of(k)] == list(range(12))
    with pytest.raises(UsageError, match="part"):
        jobs.part(job.target, 5)


def test_finish_names_what_is_missing(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    jobs.plan(source, target, parts=3)
    jobs.part(target, 0)
    with pytest.raises(IncompleteError, match="4, 5, 6"):
        jobs.finish(target)
    assert jobs.part(target, 0) == 0  # nothing was thrown away


def test_torn_images_are_written_again(source, reference, tmp_path):
    target = str(tmp_path / "x.zarr")
    jobs.plan(source, target)
    jobs.part(target, 0)
    files = [f for f in partial_path(target).rglob("*") if f.is_file() and "science" in str(f)]
    files[0].write_bytes(files[0].read_bytes()[:-3])
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 4
    files[1].write_bytes(data)
    files[2].unlink()
    assert jobs.part(target, 0) == 3
    jobs.finish(target)
    assert listing(target) == reference


def test_halves_of_values_do_not_stay(source, reference, tmp_path):
    target = str(tmp_path / "x.zarr")
    jobs.plan(source, target)
    jobs.part(target, 0)
    (partial_path(target) / "science" / ".c.2.0.0~host~1234-5").write_bytes(b"half")
    jobs.finish(target)
    assert listing(target) == reference


def test_other_conversion_at_the_same_target(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    jobs.plan(source, target)
    with pytest.raises(UsageError, match="else"):
        jobs.plan(source, target, profile="portable")
    other = tmp_path / "other.h5"
    save(sample("simple"), other)
    with pytest.raises(UsageError, match="else"):
        jobs.plan(str(other), target)


def test_changed_source(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    jobs.plan(source, target, parts=2)
    jobs.part(target, 0)
    os.utime(source, (1, 1))
    with pytest.raises(UsageError, match="changed"):
        jobs.plan(source, target)
    for act in (lambda: jobs.part(target, 1), lambda: jobs.finish(target)):
        with pytest.raises(CorruptError, match="changed"):
            act()


def test_source_that_changes_while_it_is_read(source, tmp_path):
    target = str(tmp_path / "x.zarr")

    ticks = itertools.count(1)

    def touch(done, total):
        os.utime(source, (0, next(ticks)))

    for resume in (False, True):
        with pytest.raises(CorruptError, match="changed"):
            wustore.convert(source, target, progress=touch, workers=1, resume=resume)
        assert not Path(target).exists()


def test_formats_that_cannot_be_resumed(source, tmp_path):
    with pytest.raises(UsageError, match="pieces"):
        wustore.convert(source, tmp_path / "x.hdf5", resume=True)
    assert not list(tmp_path.glob("*x.hdf5*"))


def test_existing_target(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    wustore.convert(source, target, resume=True)
    before = listing(target)
    with pytest.raises(StoreExistsError):
        wustore.convert(source, target, resume=True)
    wustore.convert(source, target, resume=True, overwrite=True)
    assert listing(target) == before
    with pytest.raises(UsageError, match="Nothing is left"):
        jobs.part(target, 0)


def test_worker_processes(source, reference, tmp_path):
    target = str(tmp_path / "x.zarr")
    seen = []
    wustore.convert(source, target, workers=2, processes=True, progress=lambda *state: seen.append(state))
    assert listing(target) == reference
    assert seen[-1] == (12, 12)


def test_killed_worker_process(source, tmp_path):
    """As the kernel does when memory runs out: a typed error, and a resume that ends the work."""
    target = str(tmp_path / "x.zarr")

    def kill_one(done, total):
        for entry in Path("/proc").glob("[0-9]*/stat"):
            fields = entry.read_text().rsplit(")", 1)[1].split()
            command = (entry.parent / "cmdline").read_bytes()
            if int(fields[1]) == os.getpid() and b"spawn_main" in command:
                os.kill(int(entry.parent.name), signal.SIGKILL)
                return

    with pytest.raises(WuStoreError, match="worker process died") as caught:
        wustore.convert(source, target, workers=2, processes=True, resume=True, progress=kill_one)
    assert "--resume" in caught.value.cure
    assert not Path(target).exists()
    wustore.convert(source, target, resume=True)
    wustore.convert(source, str(tmp_path / "y.zarr"))
    assert listing(target) == listing(tmp_path / "y.zarr")


SLOWLY = """
import sys, time
import wustore
from wustore.zarrio.writer import ZarrWriter
write = ZarrWriter.write
def slow(self, i, image):
    time.sleep(0.02)
    write(self, i, image)
ZarrWriter.write = slow
print("ready", flush=True)
wustore.convert(sys.argv[1], sys.argv[2], resume="resume" in sys.argv, workers=2)
"""


def killed_runs(source, target, kills, generator, *words):
    """Start the conversion again and again, kill it at a random moment; return how many images each run left."""
    left = []
    for _ in range(kills):
        command = [sys.executable, "-c", SLOWLY, source, target, *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        process.wait()
        process.stdout.close()
        if Path(target).exists():
            break
        with pytest.raises(WuStoreError):
            wustore.open_reader(target)
        try:
            left.append(jobs.progress_of(target)[0])
        except IncompleteError:
            left.append(0)
    return left


def check_kills(source, reference, tmp_path, kills):
    target = str(tmp_path / "x.zarr")
    left = killed_runs(source, target, kills, random.Random(7), "resume")
    assert left == sorted(left)  # nothing that was whole is lost
    if not Path(target).exists():
        wustore.convert(source, target, resume=True)
    assert listing(target) == reference


def test_sigkill_and_resume(source, reference, tmp_path):
    check_kills(source, reference, tmp_path, 5)


@pytest.mark.slow
def test_a_hundred_sigkills(source, reference, tmp_path):
    for round_ in range(20):
        directory = tmp_path / str(round_)
        directory.mkdir()
        check_kills(source, reference, directory, 5)


def test_sigkill_without_resume_leaves_the_target_as_it_was(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    old = sample("simple")
    save(old, target)
    command = SLOWLY.replace("workers=2", "workers=2, overwrite=True")
    for delay in (0.0, 0.05, 0.1, 0.2):
        process = subprocess.Popen([sys.executable, "-c", command, source, target], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        with wustore.open_reader(target) as reader:
            if reader.meta.n_images == 3:
                assert_same(old, reader)
    wustore.convert(source, target, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.h5", "x.zarr"]


@pytest.mark.slow
def test_dask_cluster(source, reference, tmp_path):
    from distributed import LocalCluster

    target = str(tmp_path / "x.zarr")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        wustore.convert(source, target, scheduler=cluster.scheduler_address)
    assert listing(target) == reference


@pytest.mark.parametrize("suffix", [".zarr", ".h5", ".fits", ".zarr.zip"])
def test_no_room(source, tmp_path, suffix):
    """A file that may not grow, as on a full disk: an OSError, and nothing left behind."""
    target = tmp_path / "out" / f"x{suffix}"
    target.parent.mkdir()
    script = (
        "import resource, sys, wustore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: wustore.convert(sys.argv[1], sys.argv[2], capsule=False)\n"
        "except OSError as error: print('OSError')\n"
    )
    result = subprocess.run([sys.executable, "-c", script, source, str(target)], capture_output=True, text=True)
    assert result.stdout.strip() == "OSError", result.stderr
    assert not list(target.parent.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)


def test_target_that_cannot_be_written(source):
    for suffix in (".zarr", ".h5", ".fits"):
        with pytest.raises(OSError, match=r"."):
            wustore.convert(source, f"/proc/x{suffix}", capsule=False)


def test_estimate(source, reference, tmp_path):
    with wustore.open_reader(source) as reader:
        found = estimate(reader, str(tmp_path / "x.zarr"), workers=1)
    assert found.n_images == 12
    assert found.sampled == (0, 6)
    assert found.fits
    files = len(reference) - sum(name.startswith("fits") for name in reference)
    assert abs(found.target_files - files) <= 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reference.zarr", "source.h5"]


def test_too_large_is_refused():
    found = Estimate((0,), 1, 1000, 1, 1, 1.0, 1, 1050)
    assert not found.fits
    with pytest.raises(WuStoreError, match="free space"):
        refuse_if_too_large(found, "x.zarr")


def test_job_is_json(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    jobs.plan(source, target, profile="portable")
    text = (partial_path(target) / ".wustore-journal" / "job.json").read_text()
    assert json.loads(text)["options"] == {"profile": "portable"}
    jobs.discard(target)
    assert not partial_path(target).exists()
    with pytest.raises(IncompleteError):
        jobs.part(target, 0)
