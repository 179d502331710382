"""The compiled loops against cfitsio's coder and numpy's quantisation: the same bytes and bits, tile by tile."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wustore.backends.compiling import Loops
from wustore.backends.fits.tiles import decode, decode_plane, encode_plane, geometry, quantize
from wustore.backends.fits.tiles.rice import coder as rice
from wustore.errors import CorruptError


def state() -> Loops:
    """Return the loops as a process has them that has coded nothing yet."""
    return Loops("wustore.backends.fits.tiles.rice.loops_numba", rice._WORTHWHILE)


loops: Any = state()._import()
loops_of_encoder: Any = loops and importlib.import_module("wustore.backends.fits.tiles.rice.encode_numba")
pytestmark = pytest.mark.skipif(loops is None, reason="there is no numba for this Python")
quickly = settings(max_examples=150)


def integers(kind: str, shape: tuple[int, int], seed: int) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.normal(0, 10 ** rng.uniform(-1, 9), shape).clip(-(2**31), 2**31 - 1).astype(np.int32)
    if kind == "any":
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    values = np.zeros(shape, np.int32)  # mostly flat: a few jumps make quotients of any length
    values[rng.random(shape) < 0.05] = rng.integers(-(2**31), 2**31 >> int(rng.integers(1, 31)))
    return values


def floats(shape: tuple[int, int], seed: int, kind: str) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 10 ** rng.uniform(-4, 8), shape).astype(kind)
    odd = [np.nan, -np.nan, -0.0, 1e-45, 3e38, np.inf, -np.inf]
    with np.errstate(all="ignore"):
        values[rng.random(shape) < 0.1] = rng.choice(odd[: int(rng.integers(1, 8))])
    return values


def placed(tiles: list[bytes], block_size: int) -> rice.Tiles:
    ends = np.cumsum([len(tile) for tile in tiles])
    starts = ends - [len(tile) for tile in tiles]
    return rice.Tiles(np.frombuffer(b"".join(tiles), np.uint8), starts, ends, np.arange(len(tiles)), block_size)


def table_of(
    tiles: list[bytes], scale: NDArray[np.float64], zero: NDArray[np.float64], block_size: int
) -> tuple[NDArray[np.uint8], rice.Fields]:
    """Return a table of tiles: ZZERO, the descriptor and ZSCALE in each row; nothing follows the last tile."""
    main = np.zeros(len(tiles), [("zero", ">f8"), ("size", ">i4"), ("start", ">i4"), ("scale", ">f8")])
    ends = np.cumsum([len(tile) for tile in tiles])
    main["size"], main["start"] = [len(tile) for tile in tiles], ends - [len(tile) for tile in tiles]
    main["scale"], main["zero"] = scale, zero
    table = np.frombuffer(main.tobytes() + b"".join(tiles), np.uint8)
    return table, rice.Fields(24, 8, 16, 0, main.nbytes, block_size)


@quickly
@given(
    kind=st.sampled_from(["noise", "any", "jumps"]),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 200)),
    block_size=st.sampled_from([1, 2, 7, 16, 32, 33, 1000]),
    seed=st.integers(0, 2**32),
)
def test_integers(kind: str, shape: tuple[int, int], block_size: int, seed: int) -> None:
    rows = integers(kind, shape, seed)
    room = rice.room_for(shape[1], 4, block_size)
    scratch = memoryview(bytearray(room))
    expected = [bytes(imagecodecs.rcomp_encode(row, nblock=block_size, out=scratch)) for row in rows]

    out, sizes = np.full(len(rows) * room + 1, 77, np.uint8), np.empty(len(rows), np.int64)
    end = loops.encode_integers(rows, block_size, out[:-1], sizes)
    ends = np.cumsum(sizes)
    tiles = [out[stop - size : stop].tobytes() for stop, size in zip(ends, sizes, strict=True)]
    assert end == ends[-1]
    assert out[-1] == 77
    if block_size <= 64 or not (np.abs(np.diff(rows.astype(np.int64))) >= 2**30).any():
        assert tiles == expected

    padded = placed(tiles, block_size).padded(loops.PADDING)
    assert padded is not None
    found = np.empty_like(rows)
    assert loops.decode_integers(*padded, block_size, found) == -1
    np.testing.assert_array_equal(found, rows)


@quickly
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 120)),
    step=st.sampled_from([0.01, 1e-5, 3.0]),
    kind=st.sampled_from(["f4", "f8"]),
    seed=st.integers(0, 2**32),
)
def test_floats(shape: tuple[int, int], step: float, kind: str, seed: int) -> None:
    values = floats(shape, seed, kind)
    numbers = np.empty(shape, np.int32)
    expected = quantize.quantise(values, step, numbers)
    room = rice.room_for(shape[1], 4, 32)
    out, sizes, zero = np.empty(len(values) * room, np.uint8), np.empty(len(values), np.int64), np.empty(len(values))
    end, has_blank = loops.encode_floats(values, values.view(f"i{values.itemsize}"), step, 32, out, sizes, zero)
    if end < 0:  # left to numpy: something is far away
        largest = np.nanmax(np.abs(values.astype(np.float64)))
        assert largest / step > 2**30
        return
    assert not expected.failed.any()
    assert has_blank == expected.has_blank
    assert zero.tobytes() == expected.zero.tobytes()
    tiles = rice.encode_rows(numbers, 32)
    assert out[:end].tobytes() == b"".join(tiles)

    table, fields = table_of(tiles, expected.scale, zero, 32)
    for blank in (quantize.BLANK, None):
        decoded, wanted = np.empty_like(values), np.empty_like(values)
        limits = rice.size_limits(shape[1], 4, 32)
        arguments = *fields, *limits, rice._NO_PIXEL if blank is None else blank
        assert loops.decode_floats(table, np.arange(len(tiles)), *arguments, decoded) == -1
        quantize.dequantise(numbers, expected.scale, zero, wanted, blank=blank)
        assert decoded.tobytes() == wanted.tobytes()
        again = np.empty(shape, np.int32)
        quantize.requantise(wanted, expected.scale, zero, again, blank=blank)
        end = loops.encode_floats_again(decoded, expected.scale, zero, quantize.BLANK, 32, out, sizes)
        assert out[:end].tobytes() == b"".join(rice.encode_rows(again, 32))


@quickly
@given(
    n=st.integers(1, 40),
    step=st.sampled_from([0.01, 1e-5, 3.0, 2.0**-20, 1e-299, 1e299]),
    kind=st.sampled_from(["f4", "f8"]),
    spread=st.integers(-3, 9),
    seed=st.integers(0, 2**32),
)
def test_levels_that_multiplying_finds(n: int, step: float, kind: str, spread: int, seed: int) -> None:
    """They are those of a division, or it says that they may not be: beside the middle between two, far away."""
    rng = np.random.default_rng(seed)
    origin = float(rng.integers(-(10**9), 10**9)) * step
    with np.errstate(all="ignore"):
        exact = origin + (rng.integers(0, 10 ** max(spread, 1), n) + 0.5) * step
        exact += rng.choice([0, *(sign * 10.0**k for sign in (-1, 1) for k in range(-16, 1))], n) * step
        values = exact.astype(kind)
        values[rng.random(n) < 0.1] = np.nan
        quotient = (values.astype(np.float64) - origin) / step
        levels, halves = np.empty(n, np.int32), np.trunc(quotient + np.copysign(0.5, quotient))
        is_sure = loops_of_encoder._is_rounded(values, origin, step, levels)
    found = np.where(levels == quantize.BLANK, np.nan, levels.astype(np.float64))
    if is_sure:
        np.testing.assert_array_equal(found, halves)
        np.testing.assert_array_equal(found, np.rint(quotient))


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_most_levels_are_found_by_multiplying(kind: str) -> None:
    """Without them the loops would be right, and slow."""
    values, levels = np.random.default_rng(5).normal(0, 5, (500, 300)).astype(kind), np.empty(300, np.int32)
    values[:, 7] = np.nan
    assert sum(loops_of_encoder._is_rounded(row, -20.0, 0.01, levels) for row in values) > 450
    for odd in (np.inf, -np.inf, 1e30, 0.01 * 2**31):
        values[0, 3] = odd
        assert not loops_of_encoder._is_rounded(values[0], -20.0, 0.01, levels)
    for step in (np.nan, np.inf, 0.0, -0.01, 1e-301, 1e301):
        assert not loops_of_encoder._is_rounded(values[1], 0.0, step, levels)


@quickly
@given(n=st.integers(1, 70), kind=st.sampled_from(["f4", "f8"]), seed=st.integers(0, 2**32))
def test_extremes(n: int, kind: str, seed: int) -> None:
    values = floats((1, n), seed, kind)[0]
    values[np.random.default_rng(seed).random(n) < 0.2] = np.nan
    found = np.empty(2, kind)
    bits = f"i{found.itemsize}"
    loops_of_encoder._extremes(values.view(bits), np.array(np.inf, kind).view(bits)[()], found.view(bits))
    with np.errstate(all="ignore"):
        expected = (np.nanmin(values), np.nanmax(values)) if not np.isnan(values).all() else (0, 0)
    assert tuple(found) == expected


def test_large_blocks_with_a_rare_jump() -> None:
    """Here the bytes of cfitsio (imagecodecs 2026.3) cannot be decoded: it takes the code for a negative number."""
    row = np.zeros((1, 952), np.int32)
    row[0, 400:] = 2**30 + 7
    room = rice.room_for(952, 4, 1000)
    out, sizes = np.empty(room, np.uint8), np.empty(1, np.int64)
    end = loops.encode_integers(row, 1000, out, sizes)
    found = np.empty_like(row)
    rice.decode_rows(placed([out[:end].tobytes()], 1000), found)
    np.testing.assert_array_equal(found, row)


@pytest.mark.parametrize("selector", range(32))
def test_selectors(selector: int) -> None:
    """Five bits say how a block is split, up to 26: what is above nothing writes, so it is damage."""
    rng = np.random.default_rng(selector)
    tile = rng.integers(0, 256, 400).astype(np.uint8)
    tile[4] = selector << 3 | (tile[4] & 7)
    found, expected = np.empty((1, 8), np.int32), np.empty((1, 8), np.int32)
    assert loops.decode_integers(tile, np.array([[0], [300]]), 32, found) == (-1 if selector <= 26 else 0)
    if selector <= 26:
        imagecodecs.rcomp_decode(memoryview(tile)[:300], nblock=32, out=expected[0])
        np.testing.assert_array_equal(found, expected)


@quickly
@given(seed=st.integers(0, 2**32), cut=st.integers(0, 40))
def test_damaged_tiles(seed: int, cut: int) -> None:
    """A tile that is cut short is found, and what follows it in the heap is not taken for its pixels."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 300, (3, 64)).astype(np.int32)
    tiles = rice.encode_rows(rows, 32)
    whole = placed(tiles, 32)
    short = rice.Tiles(whole.heap, whole.starts, whole.ends - np.array([0, min(cut, 60), 0]), whole.names, 32)
    padded = short.padded(loops.PADDING)
    assert padded is not None
    assert loops.decode_integers(*padded, 32, np.empty_like(rows)) == (1 if cut else -1)

    heap = whole.heap.copy()
    heap[rng.integers(0, heap.size, 3)] = rng.integers(0, 256, 3)
    heap[int(rng.integers(0, heap.size)) :] = rng.choice([0, 255])
    padded = rice.Tiles(heap, whole.starts, whole.ends, whole.names, 32).padded(loops.PADDING)
    assert padded is not None
    assert loops.decode_integers(*padded, 32, np.empty_like(rows)) in (-1, 0, 1, 2)


def test_the_error_names_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = state()
    fresh.module = loops
    monkeypatch.setattr(rice, "_loops", fresh)
    rows = np.arange(3000, dtype=np.int32).reshape(3, 1000) ** 2
    whole = placed(rice.encode_rows(rows, 32), 32)
    short = rice.Tiles(whole.heap, whole.starts, whole.ends - np.array([0, 9, 0]), whole.names + 40, 32)
    with pytest.raises(CorruptError, match="tile 41"):
        rice.decode_rows(short, np.empty_like(rows))


def test_tiles_that_the_loops_leave_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is damaged, or stored in another way, is for those who can say what it is."""
    fresh = state()
    fresh.module = loops
    monkeypatch.setattr(rice, "_loops", fresh)
    rows = np.arange(3000, dtype=np.int32).reshape(3, 1000) ** 2
    tiles = rice.encode_rows(rows, 32)
    good, fields = table_of(tiles, np.ones(3), np.zeros(3), 32)
    out = np.empty(rows.shape)
    assert rice.decode_floats(good, fields, np.array([2, 0]), None, out[:2])
    np.testing.assert_array_equal(out[:2], rows[[2, 0]])
    heap = len(good) - fields.heap_start
    kind = [("zero", ">f8"), ("size", ">i4"), ("start", ">i4"), ("scale", ">f8")]
    for name, value in (
        *(("size", size) for size in (0, -1, 3, len(tiles[2]) - 9, len(tiles[2]) + 1, 2**31 - 1)),
        *(("start", start) for start in (-1, heap - len(tiles[2]) + 1, heap, 2**31 - 1, -(2**31))),
        *((factor, odd) for factor in ("scale", "zero") for odd in (np.nan, np.inf, -np.inf)),
    ):
        table = good.copy()
        table[: fields.heap_start].view(kind)[name][2] = value
        assert not rice.decode_floats(table, fields, np.arange(3), None, out), (name, value)
        assert rice.decode_floats(table, fields, np.arange(2), None, out[:2]), "the other tiles are whole"


def test_a_tile_for_the_long_way_takes_its_batch_along(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = state()
    fresh.module = loops
    monkeypatch.setattr(rice, "_loops", fresh)
    monkeypatch.setitem(geometry._LARGER, "RICE_1", 3 * 100)
    values = np.random.default_rng(1).normal(0, 1, (9, 100)).astype(np.float32)
    values[4, ::2] = 1e30  # cannot be quantised
    encoded = encode_plane(values, quantize_level=-0.01)
    done: list[tuple[int, bool]] = []
    real = rice.decode_floats

    def note(table: Any, fields: Any, rows: Any, blank: Any, out: Any) -> bool:
        done.append((len(rows), real(table, fields, rows, blank, out)))
        return done[-1][1]

    monkeypatch.setattr(rice, "decode_floats", note)
    found = decode_plane(encoded.layout, encoded.data)
    assert done == [(9, False), (3, True), (3, False), (3, True)]
    assert found[4].tobytes() == values[4].tobytes()
    monkeypatch.setattr(rice, "decode_floats", lambda *_: False)
    assert decode_plane(encoded.layout, encoded.data).tobytes() == found.tobytes()


@pytest.mark.parametrize("workers", [1, 2, 5, 9, 16])
def test_a_plane_for_several_threads(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = state()
    fresh.module = loops
    monkeypatch.setattr(rice, "_loops", fresh)
    encoded = encode_plane(np.random.default_rng(1).normal(0, 1, (9, 100)).astype(np.float32), quantize_level=-0.01)
    whole = decode_plane(encoded.layout, encoded.data)
    monkeypatch.setattr(decode, "worker_count", lambda work: workers)
    assert decode_plane(encoded.layout, encoded.data).tobytes() == whole.tobytes()
    damaged = bytearray(encoded.data)
    main = np.frombuffer(damaged, np.uint8)[: encoded.layout.heap_start].reshape(9, -1)
    for tile in (3, 8):
        main[tile, encoded.layout.columns[0].offset + 3] -= 9  # bytes of the tile
    with pytest.raises(CorruptError, match="tile 3"):
        decode_plane(encoded.layout, damaged)


# --- when they are used ---------------------------------------------------------------------------------


def test_small_work_is_left_to_cfitsio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rice, "_loops", state())
    assert rice.compiled_loops(1000) is None
    assert rice.compiled_loops(rice._WORTHWHILE) is loops
    assert rice.compiled_loops(1) is loops


def test_pixels_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way they are coded, and though the loops are asked for first."""
    fresh = state()
    monkeypatch.setattr(rice, "_loops", fresh)
    encoded = encode_plane(floats((4, 1000), 1, "f4"))
    assert fresh.done == 4000
    decode_plane(encoded.layout, encoded.data)
    assert fresh.done == 8000


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_without_numba(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rice, "_loops", state())
    monkeypatch.setitem(sys.modules, missing, None)
    package = "wustore.backends.fits.tiles.rice"
    for name in [name for name in sys.modules if name.startswith(package) and name.endswith("_numba")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(f"{package}.loops_numba")
    assert rice.compiled_loops(rice._WORTHWHILE) is None
    rows = np.arange(64, dtype=np.int32).reshape(2, 32)
    assert len(rice.encode_rows(rows, 32)) == 2


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "numba":
                raise OSError("Could not find/load shared object file 'libllvmlite.so'")  # what llvmlite says

    monkeypatch.setattr(rice, "_loops", state())
    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert rice.compiled_loops(rice._WORTHWHILE) is None


def test_jit_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    monkeypatch.setattr(rice, "_loops", state())
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert rice.compiled_loops(rice._WORTHWHILE) is None


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of file sizes")
def test_machine_code_that_cannot_be_kept(tmp_path: Path) -> None:
    """A full disk or a spent quota, here a limit of the size of files: reading needs no room on a disk."""
    script = (
        "import resource, numpy as np\n"
        "from wustore.backends.fits.tiles.rice import loops_numba as loops\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))\n"
        "out, sizes = np.empty(400, np.uint8), np.empty(1, np.int64)\n"
        "print(loops.encode_integers(np.zeros((1, 40), np.int32), 32, out, sizes))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-B", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "6\n", done.stderr


def test_without_a_directory_for_machine_code(tmp_path: Path) -> None:
    """An installation that cannot be written to, and no home: compiled for this process alone."""
    script = (
        "import numba, numpy as np\n"
        "compiler = numba.njit\n"
        "def njit(*functions, cache=False, **options):\n"
        "    if cache:\n"
        "        raise RuntimeError('no locator available')\n"  # what numba says then
        "    return compiler(*functions, **options)\n"
        "numba.njit = njit\n"
        "from wustore.backends.fits.tiles.rice import loops_numba as loops\n"
        "out, sizes = np.empty(400, np.uint8), np.empty(1, np.int64)\n"
        "print(loops.encode_integers(np.zeros((1, 40), np.int32), 32, out, sizes))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "6\n", done.stderr
