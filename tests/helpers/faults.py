"""Operations under faults of the system: killed, with errors of the device, and without room; and what must hold then.

The process that runs them is loaded with ``faults.c`` (see `start`). It forks for every step, so that each begins with
imported modules, no threads and no open files.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KILL, ONE_ERROR, ERRORS, NO_ROOM, COUNT = 1, 2, 3, 4, 5
SUFFIX = {
    "zarr": ".zarr",
    "zarr-zip": ".zarr.zip",
    "hdf5": ".h5",
    "fits": ".fits",
    "fits.gz": ".fits.gz",
    "sharded-fits": ".fits",
}


def available() -> str:
    """Return why faults cannot be made here, or nothing."""
    if not sys.platform.startswith("linux"):
        return "needs LD_PRELOAD and /proc"
    return "" if shutil.which("cc") else "needs a C compiler (cc)"


def start(*words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run this module in a process that is loaded with the compiled ``faults.c``."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "faults.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "PYTHONWARNINGS": "ignore",
            "PYTHONDONTWRITEBYTECODE": "1",  # a module that is cut off would be in the way of other processes
        }
        return subprocess.run(
            [sys.executable, str(HERE / "faults.py"), *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )


@dataclass(frozen=True)
class Operation:
    """Something that writes ``target`` in a folder with two sources ``a.fits`` and ``b.fits``."""

    kind: str
    before: tuple[str, ...]
    """Steps that make the state before, each a name of `STEPS`."""
    step: str
    again: str = ""
    """The step that must succeed afterwards, if it is another one."""


def _convert(source: str, **options: Any) -> Callable[[Path, str], Any]:
    def run(target: Path, kind: str) -> Any:
        import wustore

        form = kind if kind == "sharded-fits" else None
        return wustore.convert(target.parent.parent / source, target, format=form, workers=2, **options)

    return run


def _plan(target: Path, kind: str) -> None:
    import wustore

    form = kind if kind == "sharded-fits" else None
    wustore.plan(str(target.parent.parent / "a.fits"), str(target), parts=2, format=form)


def _call(name: str, *arguments: Any, **options: Any) -> Callable[[Path, str], Any]:
    def run(target: Path, kind: str) -> Any:
        import wustore

        return getattr(wustore, name)(str(target), *arguments, **options)

    return run


def _append(target: Path, kind: str) -> None:
    import wustore

    wustore.append(str(target), str(target.parent.parent / "b.fits"), drop_capsule=True, duplicates=True)


STEPS: dict[str, Callable[[Path, str], Any]] = {
    "convert a": _convert("a.fits"),
    "convert b over": _convert("b.fits", overwrite=True),
    "convert a over": _convert("a.fits", overwrite=True),
    "resume a": _convert("a.fits", resume=True),
    "resume b over": _convert("b.fits", resume=True, overwrite=True),
    "plan a": _plan,
    "part 0": _call("part", 0, workers=1),
    "part 1": _call("part", 1, workers=1),
    "finish": _call("finish"),
    "append b": _append,
    "drop masks": _call("drop", ["mask", "capsule"]),
    "repack": _call("repack", profile="fast"),
}
"""What is done to a target. Sources are in the folder above it."""


def operations() -> Iterator[Operation]:
    """Every writer, edit and end of a job."""
    for kind in SUFFIX:
        yield Operation(kind, (), "convert a")
        yield Operation(kind, ("convert a",), "convert b over")
        yield Operation(kind, (), "resume a")
        yield Operation(kind, ("convert a",), "resume b over")
        yield Operation(kind, ("plan a", "part 0", "part 1"), "finish", again="resume a")
        yield Operation(kind, ("plan a", "part 0"), "part 1", again="resume a")
    for kind in ("zarr", "zarr-zip", "hdf5"):
        yield Operation(kind, ("convert a",), "repack")
        yield Operation(kind, ("convert a",), "drop masks")
        if kind != "zarr-zip":
            yield Operation(kind, ("convert a",), "append b")


# --- a step in a process of its own -------------------------------------------------------------------------


def forked(work: Callable[[], Any]) -> Any:
    """Run ``work`` in a forked process; return its result, or ``{"died": how}``."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            answer = work()
        except BaseException:
            answer = {"raised": traceback.format_exc()[-900:]}
        with os.fdopen(write, "w") as stream:
            stream.write(json.dumps(answer))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else {"died": status}


def ended(step: str, target: Path, kind: str) -> str:
    """Do a step; return "done", the name of the error if it is one of those allowed, or raise."""
    from wustore.errors import WuStoreError

    try:
        STEPS[step](target, kind)
    except (WuStoreError, OSError, MemoryError) as error:
        str(error)
        return type(error).__name__
    return "done"


def state(target: Path, *, cleaned: bool = False) -> str:
    """Return a digest of what it says, or "absent"; raise if it is damaged, but for what ``clean`` puts right."""
    import numpy as np

    import wustore

    if not target.exists():
        return "absent"
    found = [str(problem) for problem in wustore.verify(target) if cleaned or "wustore clean" not in str(problem)]
    assert not found, found
    total = hashlib.sha256()
    with wustore.open_reader(target) as reader:
        total.update(np.asarray(reader.meta.times).tobytes())
        for i in range(reader.meta.n_images):
            image = reader.image(i)
            for plane in (image.science, image.variance, image.mask, image.psf):
                total.update(b"-" if plane is None else np.ascontiguousarray(plane).tobytes())
    return total.hexdigest()


def make_sources(folder: Path) -> None:
    """Write ``a.fits`` and ``b.fits``."""
    import numpy as np

    import wustore

    for seed, name in enumerate(("a.fits", "b.fits")):
        rng = np.random.default_rng(seed)
        stack = wustore.ImageStack(
            times=60000.0 + seed + np.arange(3) * 0.01,
            sci=[rng.normal(0, 5, (40, 50)).astype("f4") for _ in range(3)],
            var=[rng.uniform(20, 30, (40, 50)).astype("f4") for _ in range(3)],
        )
        wustore.WorkUnit(stack, wustore.SearchConfiguration()).to_fits(folder / name)


class Bench:
    """Runs operations in ``folder`` and keeps what went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wrong: list[str] = []
        self.ended: Counter[str] = Counter()
        made = forked(lambda: make_sources(folder))
        assert made is None, made
        self._faults = ctypes.CDLL(None)
        self._known: dict[Operation, tuple[str, str, int, int]] = {}

    def _arm(self, mode: int, at: int) -> None:
        self._faults.faults_arm(os.fsencode(self.folder / "work"), mode, ctypes.c_long(at))

    def _fresh(self, operation: Operation) -> Path:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        saved = self.folder / f"saved {operation.kind} {' '.join(operation.before)}"
        if not saved.exists():
            saved.mkdir()
            for step in operation.before:
                end = forked(lambda step=step: ended(step, saved / f"t{SUFFIX[operation.kind]}", operation.kind))
                assert end == "done", (operation, step, end)
        shutil.copytree(saved, work, symlinks=True)
        # A job that was planned elsewhere would not be this one: plan it in its place.
        if "plan a" in operation.before:
            shutil.rmtree(work)
            work.mkdir()
            for step in operation.before:
                end = forked(lambda step=step: ended(step, work / f"t{SUFFIX[operation.kind]}", operation.kind))
                assert end == "done", (operation, step, end)
        return work / f"t{SUFFIX[operation.kind]}"

    def known(self, operation: Operation) -> tuple[str, str, int, int]:
        """Return the states before and after, and the numbers of calls and bytes of an undisturbed run."""
        if operation not in self._known:
            target = self._fresh(operation)
            old = forked(lambda: state(target))

            def counted(mode: int) -> Any:
                self._arm(mode, 1 << 40)
                end = ended(operation.step, target, operation.kind)
                return end, self._faults.faults_count(), self._faults.faults_bytes()

            end, calls, _ = forked(lambda: counted(KILL))  # counts what changes something, and kills never
            assert end == "done", (operation, end)
            new = forked(lambda: state(target))
            self._fresh(operation)
            _, all_calls, written = forked(lambda: counted(COUNT))
            assert isinstance(old, str), old
            assert isinstance(new, str), new
            self._known[operation] = old, new, calls, (all_calls, written)
        return self._known[operation]

    def points(self, operation: Operation, mode: int) -> int:
        """Return at how many places a fault of this mode can strike."""
        _, _, changes, (calls, written) = self.known(operation)
        return {KILL: changes, ONE_ERROR: calls, ERRORS: calls, NO_ROOM: written}[mode]

    def strike(self, operation: Operation, mode: int, at: int) -> None:
        """Run the operation with a fault: then the target must be old, new or absent, and it must be possible again."""
        old, new, _, _ = self.known(operation)
        target = self._fresh(operation)
        name = f"{operation} mode {mode} at {at}"

        def disturbed() -> str:
            self._arm(mode, at)
            try:
                return ended(operation.step, target, operation.kind)
            finally:
                self._arm(0, 0)

        begun = time.monotonic()  # an undisturbed run takes less than a second
        end = forked(disturbed)
        if isinstance(end, dict) and end.get("died") == signal.SIGKILL and mode == KILL:
            end = "killed"
        if not isinstance(end, str):
            self.wrong.append(f"{name}: {end}")
            end = "WRONG"
        self.ended[end] += 1
        if time.monotonic() - begun > 120:
            self.wrong.append(f"{name}: took {time.monotonic() - begun:.0f} s")
        now = self._now(operation, target)
        if now not in (old, new) or (end == "done" and now != new):
            self.wrong.append(f"{name}: ended with {end}, and the target is {now}, not {old} or {new}")
            return
        if now == old or operation.again:
            self._again(operation, name, target, new)
        elif forked(lambda: _cleaned_state(target)) != new:
            self.wrong.append(f"{name}: not whole after clean")

    def _now(self, operation: Operation, target: Path) -> str:
        """Return the state of a target; that of an old set of files that is set aside, which is whole until the end."""
        now = forked(lambda: state(target))
        if now == "absent" and operation.kind == "sharded-fits" and list(target.parent.glob(".*-old/t.fits")):
            return self.known(operation)[0]  # such a set cannot be exchanged at once
        return now

    def _again(self, operation: Operation, name: str, target: Path, new: str) -> None:
        if operation.again and forked(lambda: state(target)) == new:
            return  # the job had ended
        end = forked(lambda: ended(operation.again or operation.step, target, operation.kind))
        now = forked(lambda: state(target))
        cleaned = forked(lambda: _cleaned_state(target))
        if (end, now, cleaned) != ("done", new, new):
            self.wrong.append(f"{name}: done again it ended with {end}; the target is {now}, and {cleaned} after clean")
            return
        left = sorted(path.name for path in target.parent.iterdir() if path.name.startswith("."))
        if left:
            self.wrong.append(f"{name}: left behind after a second run and clean: {left}")

    def race(self, kind: str, rng: random.Random) -> None:
        """Two writers at one target, one or none of them killed: in the end one of the two is there, whole."""
        operation = Operation(kind, ("convert a",), "convert b over")
        old, new, _, _ = self.known(operation)
        target = self._fresh(operation)
        children = []
        for step in ("convert b over", "convert a over"):
            child = os.fork()
            if not child:
                try:
                    ended(step, target, kind)
                    os._exit(0)
                except BaseException:
                    os._exit(9)
            children.append(child)
        time.sleep(rng.uniform(0, 0.1))
        if rng.random() < 0.7:
            os.kill(rng.choice(children), signal.SIGKILL)
        ends = [os.waitpid(child, 0)[1] for child in children]
        now = self._now(operation, target)
        self.ended["race"] += 1
        if now not in (old, new) or any(end not in (0, signal.SIGKILL) for end in ends):
            self.wrong.append(f"two writers of {kind}: {ends}, and the target is {now}")
        end = forked(lambda: ended("convert b over", target, kind))
        if end != "done" or forked(lambda: state(target)) != new:
            self.wrong.append(f"two writers of {kind}: a third one ended with {end}")


def _cleaned_state(target: Path) -> str:
    import wustore

    wustore.clean(target, unfinished=True)
    return state(target, cleaned=True)


def main(words: list[str]) -> int:
    """``faults.py KILLS ERRORS SIZES RACES [SEED]``: print one JSON line of what was done and what went wrong."""
    warnings.simplefilter("ignore")
    kills, errors, sizes, races, seed = (*map(int, words[:4]), int(words[4]) if len(words) > 4 else 0)
    import h5py  # noqa: F401 - imported before any fork
    import zarr  # noqa: F401

    import wustore.api
    import wustore.backends.fits.backend
    import wustore.backends.fits.tiles.rice.loops_numba
    import wustore.backends.hdf5.backend
    import wustore.backends.zarr.backend  # noqa: F401

    rng = random.Random(seed)
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        table = list(operations())
        rng.shuffle(table)
        for number, modes in ((kills, [KILL]), (errors, [ONE_ERROR, ERRORS]), (sizes, [NO_ROOM])):
            for k in range(number):
                operation, mode = table[k % len(table)], modes[k // len(table) % len(modes)]
                points = bench.points(operation, mode)
                bench.strike(operation, mode, rng.randrange(1, points + 1) if points else 1)
                done[{KILL: "kills", NO_ROOM: "sizes"}.get(mode, "errors")] += 1
                if bench.wrong and len(words) > 5:
                    print(bench.wrong[-1], file=sys.stderr, flush=True)
        for k in range(races):
            bench.race(list(SUFFIX)[k % len(SUFFIX)], rng)
            done["races"] += 1
    print(json.dumps({"done": done, "ended": bench.ended, "wrong": bench.wrong}), flush=True)
    return bool(bench.wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
