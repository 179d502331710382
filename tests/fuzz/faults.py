"""Faults of the system at random places of every writer and edit: kills, errors of the device, no room, two writers.

    python tests/fuzz/faults.py [KILLS ERRORS SIZES RACES [SEED]]

The target must be old, new or absent each time, and the same must succeed afterwards. Prints what was done, how the
operations ended, and what went wrong; exits 1 if anything did. Needs Linux and a C compiler.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))


def main(words: list[str]) -> int:
    """Run the faults in a process that is loaded with the library that makes them."""
    import faults

    missing = faults.available()
    if missing:
        print(missing)
        return 2
    done = faults.start(*(words or ["400", "450", "400", "60"]))
    print(done.stdout, done.stderr[-2000:])
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
