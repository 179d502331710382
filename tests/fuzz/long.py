"""The same mutations, as many as there is time for: prints what was raised, and what took long or much memory.

    python tests/fuzz/long.py [SECONDS] [TARGET...]

Each target runs in a process of its own, so that a crash of a library is seen, too. Exits 1 if anything but the allowed
exceptions was raised, a mutation took more than 5 seconds, or a process was killed.

A mutation that takes more than 5 seconds is made again, and both times are printed. The first may be that of numba,
which compiles loops once for an installation, in the first process that has coded enough for them to be worth it. The
second fails if it has used 5 seconds of the processor, or taken a minute: on a busy machine it may wait for longer than
it works. MemoryError is allowed and printed: another machine may have that memory.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
SLOW = 5.0
STUCK = 60.0


def processor_time() -> float:
    """Return the seconds that this process and those that it started have worked."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run(name: str, seconds: float, first: int) -> dict[str, object]:
    """Mutate one target until the time is over."""
    import fuzzing

    def once(seed: int) -> tuple[str, float, float]:
        begun, worked = time.monotonic(), processor_time()
        try:
            how = fuzzing.use(fuzzing.TARGETS[name](seeds, work, random.Random(f"{name} {seed}")), work)
        except Exception:
            wrong.append(f"{name} {seed}: {traceback.format_exc()[-600:]}")
            how = "WRONG"
        return how, time.monotonic() - begun, processor_time() - worked

    warnings.simplefilter("ignore")
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    notes: list[str] = []
    slowest, busiest, seed, end = 0.0, 0.0, first, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        seeds, work = Path(folder, "seeds"), Path(folder, "work")
        seeds.mkdir()
        work.mkdir()
        while time.monotonic() < end:
            print(json.dumps({"seed": seed}), flush=True)
            how, took, worked = once(seed)
            ended[how] += 1
            if how == "MemoryError":
                notes.append(f"{name} {seed}: MemoryError")
            if took > SLOW:
                _, again, worked = once(seed)
                is_slow = worked > SLOW or again > STUCK
                text = f"{name} {seed}: took {took:.1f} s, then {again:.1f} s, of the processor {worked:.1f} s"
                (wrong if is_slow else notes).append(text)
                took = min(took, again)
            slowest, busiest = max(slowest, took), max(busiest, worked)
            seed += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {
        "ended": ended,
        "wrong": wrong,
        "notes": notes,
        "slowest": round(slowest, 2),
        "busiest": round(busiest, 2),
        "peak MB": peak,
        "mutations": seed - first,
    }


def main(words: list[str]) -> int:
    """Run the targets one after the other."""
    if words[:1] == ["--one"]:
        print(json.dumps(run(words[1], float(words[2]), int(words[3]))), flush=True)
        return 0
    import fuzzing

    seconds = float(words[0]) if words else 60.0
    first = int(os.environ.get("SEED", "1000"))
    failed = False
    for name in words[1:] or fuzzing.TARGETS:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, str(seconds), str(first)],
            capture_output=True,
            text=True,
            check=False,
        )
        last = json.loads((done.stdout.splitlines() or ["{}"])[-1])
        if done.returncode or "ended" not in last:
            print(f"{name}: ended with {done.returncode} at {last}: {done.stderr[-300:]}")
            failed = True
            continue
        print(
            f"{name}: {last['mutations']} mutations, {last['ended']}, slowest {last['slowest']} s, "
            f"of the processor {last['busiest']} s, {last['peak MB']} MB"
        )
        for text in last["notes"]:
            print("  note", text)
        for text in last["wrong"]:
            print("  WRONG", text)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
