"""What the benchmark scripts share: the data, the clock, one line a figure.

Run a script by hand on an idle machine: ``python tests/benchmarks/archive.py``. Each line is a figure, its floor (or
ceiling) and whether it holds; the exit code is 1 where one does not. Ratios are taken in one run on one machine.
``N_IMAGES`` and ``SIDE`` in the environment make the data smaller; the floors are meant for 10 images of 2048 x 2048.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import wustore

N_IMAGES = int(os.environ.get("N_IMAGES", "10"))
SIDE = int(os.environ.get("SIDE", "2048"))

_missed: list[str] = []


def planes(rng: np.random.Generator, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Noise of sigma 5 with a slope in its variance; 2 % masked, in squares and columns."""
    variance = np.broadcast_to(25 * (1 + 0.1 * np.sin(np.arange(side) / side * 3)), (side, side)).copy()
    science = rng.normal(0, 1, (side, side)) * np.sqrt(variance)
    for _ in range(int(0.02 * side * side / 900)):
        y, x = rng.integers(0, side - 30, 2)
        science[y : y + 30, x : x + 30] = variance[y : y + 30, x : x + 30] = np.nan
    columns = rng.integers(0, side, 3)
    science[:, columns] = variance[:, columns] = np.nan
    return science.astype(np.float32), variance.astype(np.float32)


def stack(n_images: int = N_IMAGES, side: int = SIDE, seed: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [planes(rng, side) for _ in range(n_images)]


def work_unit(images: list[tuple[np.ndarray, np.ndarray]]) -> wustore.WorkUnit:
    times = 60000 + np.arange(len(images)) * 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wustore.WorkUnit(
            wustore.ImageStack(
                times=times, sci=[science.copy() for science, _ in images], var=[var.copy() for _, var in images]
            ),
            wustore.SearchConfiguration(),
        )


def seconds(task: Callable[[], object], repeats: int = 3) -> float:
    """The best of several runs."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        taken.append(time.perf_counter() - start)
    return min(taken)


def load(path: str | Path) -> wustore.WorkUnit:
    loaded = wustore.open(path)
    loaded.load_images()
    return loaded


def stored_chunks(path: str | Path) -> list[tuple[object, bytes, list[tuple[int, int]]]]:
    """Return the shards of science and variance of a Zarr store: how each is cut, its bytes, where its chunks are."""
    shards = []
    with wustore.open_reader(path) as reader:
        for layer in [reader._layer(name) for name in ("science", "variance")]:
            for i in range(reader.meta.n_images):
                shard = layer.keys.get(layer.key(i))
                bounds, _ = layer._index(i, shard[-layer._tail_size :])
                shards.append((layer.grid, shard, bounds.tolist()))
    return shards


def decode_shard(shard: tuple[object, bytes, list[tuple[int, int]]]) -> None:
    """Decode the chunks of a shard and throw the values away."""
    grid, stored, bounds = shard
    for k in range(0, len(bounds), grid.block):
        grid.chain.decode_block(stored, bounds[k : k + grid.block], grid.chunk[0] * grid.chunk[1])


def size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def at_least(name: str, value: float, floor: float, note: str = "") -> None:
    _line(name, value, f"floor {floor:g}", value >= floor, note)


def at_most(name: str, value: float, ceiling: float, note: str = "") -> None:
    _line(name, value, f"ceiling {ceiling:g}", value <= ceiling, note)


def _line(name: str, value: float, bound: str, holds: bool, note: str) -> None:
    if not holds:
        _missed.append(name)
    print(f"{'ok  ' if holds else 'MISS'} {name}: {value:.4g} ({bound}) {note}".rstrip(), flush=True)


def child(code: str, *arguments: str) -> str:
    """Run Python code in a new process and return what it prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


@contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="wustore-benchmark-") as name:
        yield Path(name)


def finish() -> None:
    print("missed: " + ", ".join(_missed) if _missed else "every bound holds")
    sys.exit(bool(_missed))
