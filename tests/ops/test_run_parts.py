"""Conversions in pieces give the same bytes as one in one go, whatever happens to them."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import deadly_worker
import pytest
from zarr.storage import MemoryStore

import wustore
from wustore.backends.memory import MemoryReader
from wustore.backends.registry import backend_for_writing
from wustore.backends.zarr.writer import DirectoryTarget
from wustore.errors import CorruptError, IncompleteError, StoreExistsError, StoreReplacedError, UsageError, WuStoreError
from wustore.model.meta import LAYERS
from wustore.ops import plans, run_parts
from wustore.ops.copy import copy
from wustore.ops.estimate import Estimate, estimate, refuse_if_too_large
from wustore.storage.journal import JOURNAL, Journal, sealed_text, unsealed
from wustore.storage.staging import partial_path, remove
from wustore.testing import assert_same, sample, with_capsule


def listing(path):
    """Return every file of a store, or of a sharded set, with its bytes."""
    path = Path(path)
    if path.is_dir():
        return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
    files = [f for f in path.parent.iterdir() if f.name.endswith(path.name) and not f.name.startswith(".")]
    return {f.name.removesuffix(path.name): f.read_bytes() for f in sorted(files)}


class Kind(NamedTuple):
    """A format to convert to."""

    suffix: str
    options: dict

    @property
    def is_fits(self):
        return ".fits" in self.suffix


KINDS = {
    "zarr": Kind(".zarr", {}),
    "zip": Kind(".zarr.zip", {}),
    "hdf5": Kind(".h5", {}),
    "fits": Kind(".fits", {}),  # the identical file, from the capsule
    "canonical": Kind(".fits", {"capsule": False}),
    "gzip": Kind(".fits.gz", {}),
    "sharded": Kind(".fits", {"format": "sharded-fits"}),
    "sharded-canonical": Kind(".fits", {"format": "sharded-fits", "capsule": False}),
}


def kinds(*names):
    return pytest.mark.parametrize("kind", names or KINDS, indirect=True)


@pytest.fixture
def kind(request):
    return KINDS[getattr(request, "param", "zarr")]


@pytest.fixture
def target(tmp_path, kind):
    return str(tmp_path / f"x{kind.suffix}")


def save(reader, path, **options):
    capsule = reader.capsule()
    copy(reader, backend_for_writing(str(path)).create(str(path), reader.meta, capsule=capsule, **options))


def repeated():
    """Twelve small images with leftovers, none of them of the same size as the next one."""
    few = with_capsule(sample("ragged"))
    images = [few.image(i % 4) for i in range(12)]
    meta = few.meta
    meta = type(meta)(
        times=meta.times.repeat(3),
        image_shape=meta.image_shape[[i % 4 for i in range(12)]],
        psf_shape=meta.psf_shape[[i % 4 for i in range(12)]],
        dtypes={layer: meta.dtypes[layer] * 3 for layer in LAYERS},
        links=tuple((i % 4,) for i in range(12)),
        constituents=meta.constituents,
    )
    return MemoryReader(meta, images, few.capsule(), [few.image_capsule(i % 4) for i in range(12)])


@pytest.fixture
def source(tmp_path, kind):
    """A store of twelve images with leftovers, to convert from: for FITS those of a FITS file."""
    path, reader = tmp_path / "source.h5", repeated()
    if not kind.is_fits:
        save(reader, path)
        return str(path)
    origin = tmp_path / "origin.fits"
    save(MemoryReader(reader.meta, [reader.image(i) for i in range(12)]), origin)
    wustore.convert(origin, path, workers=1)
    origin.unlink()
    return str(path)


@pytest.fixture
def reference(source, tmp_path, kind):
    path = tmp_path / "reference" / f"x{kind.suffix}"
    path.parent.mkdir()
    wustore.convert(source, path, workers=1, **kind.options)
    return listing(path)


def written(target):
    """The files beside a target in which images wait, some of which cannot be rebuilt from the others."""
    files = sorted(f for f in partial_path(target).rglob("*") if f.is_file())
    return [f for f in files if "science" in str(f) or f.parent.name == "pieces"]


@kinds()
def test_parts_in_any_order_with_repeats(source, reference, target, kind):
    plans.plan(source, target, parts=5, **kind.options)
    for k in (3, 0, 0, 4, 2, 3, 1):
        with pytest.raises(IncompleteError):
            wustore.open_reader(target)
        run_parts.part(target, k)
    assert plans.progress_of(target) == (12, 12)
    run_parts.finish(target)
    assert listing(target) == reference
    assert not list(Path(target).parent.glob(".*"))


@kinds()
def test_plan_is_joined_not_restarted(source, target, kind):
    first = plans.plan(source, target, parts=3, **kind.options)
    run_parts.part(target, 1)
    assert plans.plan(source, target, parts=3, **kind.options) == first
    assert plans.progress_of(target) == (4, 12)


def test_parts_cover_every_image_once(source, tmp_path):
    job = plans.plan(source, str(tmp_path / "x.zarr"), parts=5)
    assert [i for k in range(job.parts) for i in job.images_of(k)] == list(range(12))
    assert run_parts.part(job.target, 5) == 0  # an array may be larger than the number of images
    with pytest.raises(UsageError, match="part"):
        job.images_of(5)


def test_planning_again_in_another_number_of_parts_is_refused(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    assert plans.plan(source, target, parts=50).parts == 12
    for parts in (12, 100, None):  # the same number, and none in particular
        assert plans.plan(source, target, parts=parts).parts == 12
    with pytest.raises(UsageError, match="another number of parts"):
        plans.plan(source, target, parts=3)


@kinds()
def test_finish_names_what_is_missing(source, target, kind):
    plans.plan(source, target, parts=3, **kind.options)
    run_parts.part(target, 0)
    with pytest.raises(IncompleteError, match="4, 5, 6"):
        run_parts.finish(target)
    assert run_parts.part(target, 0) == 0  # nothing was thrown away


@kinds()
def test_torn_images_are_written_again(source, reference, target, kind):
    plans.plan(source, target, **kind.options)
    run_parts.part(target, 0)
    files = written(target)
    files[0].write_bytes(files[0].read_bytes()[:-3])
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 4
    files[1].write_bytes(data)
    files[2].unlink()
    assert run_parts.part(target, 0) == 3
    run_parts.finish(target)
    assert listing(target) == reference


def test_halves_of_values_do_not_stay(source, reference, tmp_path):
    target = str(tmp_path / "x.zarr")
    plans.plan(source, target)
    run_parts.part(target, 0)
    (partial_path(target) / "science" / ".c.2.0.0~host~1234-5").write_bytes(b"half")
    run_parts.finish(target)
    assert listing(target) == reference


@kinds()
def test_damage_that_finish_meets(source, reference, target, kind):
    """A bit that flipped after the last check is not taken over; the image is written again."""
    if not kind.suffix.startswith(".zarr"):
        plans.plan(source, target, **kind.options)
        run_parts.part(target, 0)
        file = written(target)[5]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(CorruptError, match=file.name):
            run_parts.finish(target)
        assert not listing(target)
    wustore.convert(source, target, resume=True, **kind.options)
    assert listing(target) == reference


@kinds("zarr", "zip")
def test_leftovers_that_finish_cannot_read(source, reference, target, kind):
    plans.plan(source, target)
    run_parts.part(target, 0)
    file = partial_path(target) / JOURNAL / "images" / "5.capsule"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CorruptError, match="image 5"):
        run_parts.finish(target)
    assert not Path(target).exists()
    assert run_parts.part(target, 0) == 1
    run_parts.finish(target)
    assert listing(target) == reference


@kinds()
def test_other_conversion_at_the_same_target(source, target, tmp_path, kind):
    plans.plan(source, target, **kind.options)
    other_options = {"lossless": True} if kind.is_fits else {"profile": "none"}
    with pytest.raises(UsageError, match="else"):
        plans.plan(source, target, **kind.options, **other_options)
    other = tmp_path / "other.h5"
    save(sample("simple"), other)
    with pytest.raises(UsageError, match="else"):
        plans.plan(str(other), target, **kind.options)


@kinds()
def test_changed_source(source, target, kind):
    plans.plan(source, target, parts=2, **kind.options)
    run_parts.part(target, 0)
    wustore.append(source, source, drop_capsule=True, duplicates=True)
    with pytest.raises(UsageError):
        plans.plan(source, target, **kind.options)
    for act in (lambda: run_parts.part(target, 1), lambda: run_parts.finish(target)):
        with pytest.raises(StoreReplacedError, match="changed"):
            act()


@kinds()
def test_source_that_changes_while_it_is_read(source, target, kind):
    ticks = itertools.count(1)

    def touch(done, total):
        os.utime(source, (0, next(ticks)))

    for resume in (False, True):
        with pytest.raises(StoreReplacedError, match="changed"):
            wustore.convert(source, target, progress=touch, workers=1, resume=resume, **kind.options)
        assert not Path(target).exists()


@pytest.mark.parametrize("target", ["ram:x", "memory://x.h5", "memory://x.fits"])
def test_targets_that_cannot_be_resumed(source, tmp_path, target):
    with pytest.raises(UsageError, match="pieces"):
        wustore.convert(source, target, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source.h5"]


@kinds()
@pytest.mark.parametrize("options", [{"resume": True}, {"processes": True}, {"scheduler": "tcp://node:8786"}])
@pytest.mark.parametrize("end", ["source", "target"])
def test_store_objects_have_no_name_for_other_processes(source, tmp_path, end, options):
    store = MemoryStore()
    places = (source, store)
    if end == "source":
        wustore.convert(source, store)
        places = (store, tmp_path / "n.zarr")
    with pytest.raises(UsageError, match="in one go"):
        wustore.convert(*places, **options)
    assert not list(tmp_path.glob("*n.zarr*"))


def test_existing_target(source, target, kind):
    wustore.convert(source, target, resume=True, **kind.options)
    before = listing(target)
    with pytest.raises(StoreExistsError):
        wustore.convert(source, target, resume=True, **kind.options)
    wustore.convert(source, target, resume=True, overwrite=True, **kind.options)
    assert listing(target) == before
    with pytest.raises(UsageError, match="Nothing is left"):
        run_parts.part(target, 0)


@kinds("zarr", "zip", "hdf5", "sharded")
def test_overwriting_is_asked_anew(source, reference, target, kind):
    """What appeared at the target since the plan may be replaced by who says so now."""
    plans.plan(source, target, **kind.options)
    save(sample("simple"), target)
    with pytest.raises(StoreExistsError):
        wustore.convert(source, target, resume=True, **kind.options)
    wustore.convert(source, target, resume=True, overwrite=True, **kind.options)
    assert listing(target) == reference


@kinds("zarr", "hdf5", "fits")
def test_leftovers_are_kept_or_not_as_planned(source, target, kind):
    for planned in (True, False):
        plans.plan(source, target, capsule=planned)
        with pytest.raises(UsageError, match="keep_capsule"):
            wustore.convert(source, target, resume=True, capsule=not planned)
        plans.discard(target)


def test_a_part_that_starts_while_the_end_is_made(source, reference, target, monkeypatch):
    """A repeated part takes nothing away from a store that is about to appear."""
    plans.plan(source, target, parts=2)
    for k in (0, 1):
        run_parts.part(target, k)
    publish = DirectoryTarget.publish

    def late(self, journal):
        assert run_parts.part(target, 1) == 0
        publish(self, journal)

    monkeypatch.setattr(DirectoryTarget, "publish", late)
    run_parts.finish(target)
    assert listing(target) == reference


@kinds("zarr", "zip", "hdf5", "sharded")
def test_two_processes_end_a_conversion(source, reference, target, kind, monkeypatch):
    """The second one is refused: it would put what is left in the place of the finished store."""
    save(sample("simple"), target)
    plans.plan(source, target, overwrite=True, **kind.options)
    run_parts.part(target, 0)
    inventory = Journal.inventory

    def twice(self, n_images):
        found = inventory(self, n_images)
        for second in (lambda: run_parts.finish(target), lambda: wustore.convert(source, target, resume=True, **again)):
            with pytest.raises(UsageError, match="another process"):
                second()
        return found

    again = {"overwrite": True, **kind.options}
    monkeypatch.setattr(Journal, "inventory", twice)
    run_parts.finish(target)
    assert listing(target) == reference
    assert not list(Path(target).parent.glob(".*"))


@kinds("zarr", "hdf5")
def test_images_of_another_conversion_do_not_count(source, reference, target, tmp_path, kind):
    """A process that outlived its conversion writes into the next one."""
    other = tmp_path / "other.h5"
    few = repeated()
    images = [replace(image, science=-image.science) for _, image in few.images()]
    save(MemoryReader(few.meta, images), other)
    plans.plan(str(other), target)
    run_parts.part(target, 0)
    kept = {name: data for name, data in listing(partial_path(target)).items() if not name.endswith("job.json")}
    plans.discard(target)
    plans.plan(source, target)
    plan = listing(partial_path(target))
    for name, data in (kept | plan).items():
        place = partial_path(target) / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
    assert run_parts.part(target, 0) == 12
    run_parts.finish(target)
    assert listing(target) == reference


def test_what_an_earlier_call_began_outlives_a_later_one(source, target):
    plans.plan(source, target, parts=2)
    run_parts.part(target, 1)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wustore.convert(source, target, processes=True, workers=1, progress=stop)
    assert plans.progress_of(target)[0] > 6
    plans.discard(target)
    with pytest.raises(KeyboardInterrupt):
        wustore.convert(source, target, processes=True, workers=1, progress=stop)
    assert not partial_path(target).exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_url_where_the_end_was_cut_off(source, tmp_path, monkeypatch, overwrite):
    """Killed between the root document and the removal of the journal: the store is finished, and stays."""
    target = f"memory://{tmp_path.name}/x.zarr"
    plans.plan(source, target, overwrite=overwrite)
    run_parts.part(target, 0)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "drop", killed)
        with pytest.raises(KeyboardInterrupt):
            run_parts.finish(target)
    with pytest.raises(UsageError, match="Nothing is left"):
        run_parts.finish(target)
    with wustore.open_reader(source) as left, wustore.open_reader(target) as right:
        assert_same(left, right)


@kinds("zarr", "zip", "hdf5", "fits")
def test_names_that_are_no_text(tmp_path, kind):
    place = tmp_path / os.fsdecode(b"d\xff[1]")
    place.mkdir()
    origin = place / os.fsdecode(b"s\xff 100%.fits")
    save(sample("simple"), origin)
    for resume in (False, True):
        target = place / f"x\u00fc#%41[a]{resume}{kind.suffix}"
        wustore.convert(origin, target, resume=resume)
        with wustore.open_reader(origin) as left, wustore.open_reader(target) as right:
            assert_same(left, right)
    assert not list(place.glob(".*"))


def test_parts_on_a_cluster_are_bounded(source, target, monkeypatch):
    """Each part opens source and target: one for each of very many images would cost the square of their number."""
    seen = []
    monkeypatch.setattr("wustore.ops.convert.PARTS_ON_A_CLUSTER", 5)
    monkeypatch.setattr("wustore.ops.convert.run_on_cluster", lambda job, scheduler, progress: seen.append(job.parts))
    wustore.convert(source, target, scheduler="tcp://nowhere:1")
    assert seen == [5]


@pytest.mark.parametrize("what", ["plan", "convert"])
@kinds("zarr", "zip", "hdf5", "fits", "sharded")
def test_a_target_that_appears_meanwhile_is_not_touched(source, target, kind, what):
    plans.plan(source, target, **kind.options)
    if what == "convert":
        run_parts.part(target, 0)  # all images are there: what stands at the target might be theirs
    Path(target).write_bytes(b"somebody else's")
    with pytest.raises(StoreExistsError):
        wustore.convert(source, target, resume=True, **kind.options)
    assert listing(target) == {"": b"somebody else's"}
    assert plans.progress_of(target) == ((12, 12) if what == "convert" else (0, 12))


@kinds("zarr", "hdf5", "sharded")
def test_worker_processes(source, reference, target, kind):
    seen = []
    options = {"workers": 2, "processes": True, "progress": lambda *state: seen.append(state)}
    wustore.convert(source, target, **options, **kind.options)
    assert listing(target) == reference
    assert seen[-1] == (12, 12)


@kinds("zarr", "hdf5", "fits")
def test_killed_worker_process(source, reference, target, kind, monkeypatch):
    """As the kernel does when memory runs out: a typed error, and a resume that ends the work."""
    with monkeypatch.context() as patch:
        patch.setattr(run_parts, "_write_one", deadly_worker.write_one)
        with pytest.raises(WuStoreError, match="worker process died") as caught:
            wustore.convert(source, target, workers=2, processes=True, resume=True, **kind.options)
    assert "--resume" in caught.value.hint
    assert not Path(target).exists()
    wustore.convert(source, target, resume=True, **kind.options)
    assert listing(target) == reference


SLOWLY = """
import json, sys, time
import wustore
from wustore.ops import copy as transfer
from wustore.storage.journal import Journal
def slow(function):
    def call(*arguments):
        time.sleep(0.02)
        return function(*arguments)
    return call
transfer._checked = slow(transfer._checked)
Journal.value = slow(Journal.value)
print("ready", flush=True)
wustore.convert(sys.argv[1], sys.argv[2], workers=2, **json.loads(sys.argv[3]))
"""


def killed_runs(source, target, kills, generator, options):
    """Start the conversion again and again, kill it at a random moment; return how many images each run left."""
    left = []
    for _ in range(kills):
        command = [sys.executable, "-c", SLOWLY, source, target, json.dumps(options)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.3))
        process.kill()
        process.wait()
        process.stdout.close()
        if Path(target).exists():
            break
        with pytest.raises(WuStoreError):
            wustore.open_reader(target)
        try:
            left.append(plans.progress_of(target)[0])
        except IncompleteError:
            left.append(0)
    return left


def check_kills(source, reference, target, kind, kills, seed=7):
    options = {"resume": True, **kind.options}
    left = killed_runs(source, target, kills, random.Random(seed), options)
    assert left == sorted(left)  # nothing that was whole is lost
    go_on(source, reference, target, options)


def go_on(source, reference, target, options):
    """End what a process was killed at, at whatever moment, and remove what it left."""
    if Path(target).exists():
        # Whether the store that stands there is the new one, and what is left to do, is found out.
        with suppress(StoreExistsError):
            wustore.convert(source, target, **{**options, "resume": True})
    else:
        wustore.convert(source, target, **{**options, "resume": True})
    assert listing(target) == reference
    assert not partial_path(target).exists()
    # The next one that writes there sweeps up what is left.
    wustore.convert(source, target, **{**options, "resume": False, "overwrite": True})
    assert listing(target) == reference
    assert not list(Path(target).parent.glob(".*"))


@kinds("zarr", "hdf5", "fits", "sharded")
def test_sigkill_and_resume(source, reference, target, kind):
    check_kills(source, reference, target, kind, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rounds"), [("zarr", 20), ("hdf5", 20), ("zip", 4), ("fits", 4), ("sharded", 4)], indirect=["kind"]
)
def test_a_hundred_sigkills(source, reference, tmp_path, kind, rounds):
    for round_ in range(rounds):
        directory = tmp_path / str(round_)
        directory.mkdir()
        check_kills(source, reference, str(directory / f"x{kind.suffix}"), kind, 5, seed=round_)


DEADLY = """
import os, shutil, signal, sys
from pathlib import Path
from wustore.ops import run_parts, plans
left = int(sys.argv[2])
def deadly(function):
    def call(*arguments, **keywords):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call
for owner, names in ((Path, "rename replace unlink"), (os, "unlink rmdir")):
    for name in names.split():
        setattr(owner, name, deadly(getattr(owner, name)))
run_parts.finish(sys.argv[1])
"""
"""Finish a conversion; die just before something is renamed or removed for the n-th time."""


def check_every_step(source, reference, target, kind, steps, *, overwrite=False):
    """Kill `finish` before each name that it changes: a resume always ends the work."""
    options = {"overwrite": overwrite, **kind.options}
    old = with_capsule(sample("simple")) if not kind.is_fits else sample("simple")
    if overwrite:
        save(old, target)
    plans.plan(source, target, **options)
    run_parts.part(target, 0)
    whole = partial_path(target)
    kept = whole.with_name("kept")
    whole.rename(kept)
    for step in steps:
        shutil.copytree(kept, whole)
        done = subprocess.run([sys.executable, "-c", DEADLY, target, str(step)], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        appeared = Path(target).exists()
        if appeared:
            with wustore.open_reader(target) as reader:
                assert reader.meta.n_images == 12 or overwrite
        else:
            with pytest.raises(WuStoreError):
                wustore.open_reader(target)
            assert plans.progress_of(target) == (12, 12)
        ended = appeared and not partial_path(target).exists() and not Path(target, JOURNAL).exists()
        go_on(source, reference, target, options)
        for file in Path(target).parent.glob(f"*{Path(target).name}"):
            remove(file)
        if ended:
            return  # all that was left to do is to remove what has no use any more
        if overwrite:
            save(old, target)


def test_an_unfinished_store_that_was_moved_keeps_its_journal(source, target):
    """Only where there is a root document does a journal below the target say that it is finished."""
    plans.plan(source, target)
    run_parts.part(target, 0)
    partial_path(target).rename(target)
    before = listing(target)
    with pytest.raises(UsageError):
        run_parts.part(target, 0)
    assert listing(target) == before
    with pytest.raises(IncompleteError):
        wustore.open_reader(target)


@kinds("zarr")
def test_little_is_left_when_the_store_appears(source, reference, target, monkeypatch):
    """A process that is about to end should: the records of the images are gone by then, and nothing is done again."""
    plans.plan(source, target)
    run_parts.part(target, 0)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wustore.storage.staging.Staging.commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run_parts.finish(target)
    whole = partial_path(target)
    assert sorted(entry.name for entry in (whole / JOURNAL).rglob("*") if entry.is_file()) == [
        "capsule.bin", "job.json", "plan.json", "sealed"
    ]  # fmt: skip
    assert plans.progress_of(target) == (12, 12)
    monkeypatch.setattr("wustore.backends.zarr.encoder.encode_block", None)
    wustore.convert(source, target, resume=True)
    assert listing(target) == reference


@kinds("zarr", "hdf5", "gzip", "sharded")
def test_sigkill_at_the_end(source, reference, target, kind):
    check_every_step(source, reference, target, kind, [0, 1, 14])


@pytest.mark.slow
@kinds()
def test_sigkill_at_every_step_of_the_end(source, reference, target, kind):
    check_every_step(source, reference, target, kind, itertools.count())


@pytest.mark.slow
@kinds("zarr", "zip", "hdf5", "fits")
def test_sigkill_at_every_step_of_replacing(source, reference, target, kind):
    # Most steps of a Zarr store remove a file of the old one.
    check_every_step(source, reference, target, kind, [0, 1, 2, 3, 10, 50, 1000], overwrite=True)


def test_sigkill_without_resume_leaves_the_target_as_it_was(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    old = sample("simple")
    save(old, target)
    for delay in (0.0, 0.05, 0.1, 0.2):
        command = [sys.executable, "-c", SLOWLY, source, target, '{"overwrite": true}']
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
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
@kinds("zarr", "hdf5", "fits", "sharded")
def test_dask_cluster(source, reference, target, kind):
    import dask
    from distributed import LocalCluster

    patient = {"distributed.comm.timeouts.connect": "60s"}
    with (
        dask.config.set(patient),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
    ):
        wustore.convert(source, target, scheduler=cluster.scheduler_address, **kind.options)
    assert listing(target) == reference


PYTHON = [sys.executable, "-B", "-c"]
"""Python that keeps no compiled modules: cut off by a limit of file sizes, they would be in the way of others."""


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
    result = subprocess.run([*PYTHON, script, source, str(target)], capture_output=True, text=True)
    assert result.stdout.strip() == "OSError", result.stderr
    assert not list(target.parent.iterdir())


@kinds("zarr", "zip", "hdf5", "fits", "sharded")
@pytest.mark.parametrize("limit", [100, 6000, 20_000])
def test_no_room_and_resume(source, reference, target, kind, limit):
    """Wherever the disk is full, at an image or at the end: an OSError, no store, and later the work goes on."""
    script = (
        "import json, resource, sys, wustore\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try: wustore.convert(sys.argv[1], sys.argv[2], workers=1, resume=True, **json.loads(sys.argv[3]))\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    command = [*PYTHON, script, source, target, json.dumps(kind.options)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    failed = result.stdout.strip() == "OSError"
    assert failed or result.returncode == 0, result.stderr
    assert failed or all(len(data) <= limit for data in reference.values())
    assert Path(target).exists() != failed
    if failed:
        wustore.convert(source, target, resume=True, **kind.options)
    assert listing(target) == reference
    assert not list(Path(target).parent.glob(".*"))


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reference", "source.h5"]


def test_too_large_is_refused():
    found = Estimate((0,), 1, 1000, 1, 1, 1.0, 1, 1050)
    assert not found.fits
    with pytest.raises(WuStoreError, match="free space"):
        refuse_if_too_large(found, "x.zarr")


def test_job_is_json(source, tmp_path):
    target = str(tmp_path / "x.zarr")
    plans.plan(source, target, profile="portable")
    text = (partial_path(target) / ".wustore-journal" / "job.json").read_text()
    assert json.loads(text)["options"] == {"profile": "portable"}
    plans.discard(target)
    assert not partial_path(target).exists()
    with pytest.raises(IncompleteError):
        run_parts.part(target, 0)


def test_a_plan_is_for_the_place_where_it_is_found(source, tmp_path, kind):
    (tmp_path / "old").mkdir()
    target = tmp_path / "old" / f"x{kind.suffix}"
    plans.plan(source, str(target), parts=1, **kind.options)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = tmp_path / "new" / target.name
    assert run_parts.part(str(moved), 0) == 12
    run_parts.finish(str(moved))
    assert moved.exists()
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "[" * 100_000, '{"source": 1}', '{"nothing": 1}'])
def test_a_plan_of_any_shape_is_refused(source, target, text):
    plans.plan(source, target)
    document = unsealed(next(partial_path(target).rglob("job.json")).read_bytes())
    for name in document:
        next(partial_path(target).rglob("job.json")).write_bytes(sealed_text(document | {name: -1.5}))
        with pytest.raises(CorruptError, match="plan"):
            run_parts.part(target, 0)
    next(partial_path(target).rglob("job.json")).write_text(text)
    with pytest.raises(CorruptError, match="plan"):
        run_parts.part(target, 0)


def test_a_worker_of_a_pool_takes_threads(source, target, monkeypatch):
    monkeypatch.setattr(type(run_parts.multiprocessing.current_process()), "daemon", True)
    wustore.convert(source, target, workers=2, processes=True)
    with wustore.open_reader(source) as left, wustore.open_reader(target) as right:
        assert_same(left, right)


def test_parts_that_replace_a_store_in_an_object_store(tmp_path):
    """The old store stays until the parts are finished, and when they are discarded."""
    pytest.importorskip("fsspec", reason="memory:// needs fsspec")
    source, target = str(tmp_path / "source.zarr"), f"memory://{tmp_path.name}/a.zarr"
    save(sample("chunked"), source)
    save(sample("simple"), target)
    plans.plan(source, target, parts=2, overwrite=True)
    run_parts.part(target, 0)
    with wustore.open_reader(target) as reader:
        assert_same(sample("simple"), reader)
    plans.discard(target)
    with wustore.open_reader(target) as reader:
        assert_same(sample("simple"), reader)
    plans.plan(source, target, parts=2, overwrite=True)
    for k in range(2):
        run_parts.part(target, k)
    with pytest.raises(StoreExistsError):
        wustore.convert(source, target, resume=True)
    run_parts.finish(target)
    with wustore.open_reader(target) as reader:
        assert_same(sample("chunked"), reader)
    assert wustore.verify(target) == []
    with pytest.raises(UsageError, match="no unfinished conversion"):
        run_parts.finish(target)
