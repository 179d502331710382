"""Memory for planes."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wustore.storage import buffers


@pytest.mark.parametrize("shape", [(0, 5), (3, 4), (1100, 1024), (2048, 2048)])
@pytest.mark.parametrize("kind", ["f4", "i1", "f8"])
def test_empty(shape: tuple[int, int], kind: str) -> None:
    array = buffers.empty(shape, kind)
    assert array.shape == shape
    assert array.dtype == np.dtype(kind)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    if array.nbytes >= 2 * buffers._PAGE:
        assert array.ctypes.data % buffers._PAGE == 0
    array[...] = 1
    assert np.all(array == 1)


@pytest.fixture
def no_spare(monkeypatch: pytest.MonkeyPatch) -> dict[int, np.ndarray]:
    gc.collect()  # planes that other tests left would come here
    spare: dict[int, np.ndarray] = {}
    monkeypatch.setattr(buffers, "_SPARE", spare)
    return spare


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_memory_is_used_again_when_no_view_of_it_is_left(no_spare: dict[int, np.ndarray]) -> None:
    first = buffers.empty((2048, 1024), "f4")
    place, view = address(first), first[5:, 3:].view("i4")[::2]
    del first
    assert not no_spare, "a view of a view is left"
    assert address(buffers.empty((2048, 1024), "f4")) != place
    no_spare.clear()
    del view
    assert len(no_spare) == 1
    again = buffers.empty((1024, 2048), "u4")
    assert address(again) == place
    assert not no_spare
    assert address(buffers.empty((2048, 1024), "f4")) != place, "two arrays never share memory"


def test_little_memory_is_kept(no_spare: dict[int, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_KEPT", 20 << 20)
    arrays = [buffers.empty((8 << 20,), "u1") for _ in range(4)]
    last = [address(array) for array in arrays[2:]]
    while arrays:
        del arrays[0]
    assert [address(memory) for memory in no_spare.values()] == last
    buffers.empty((30 << 20,), "u1")
    assert [address(memory) for memory in no_spare.values()] == [], "more than all that is kept"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what it may take")
def test_the_system_may_take_what_is_kept() -> None:
    """Kept memory is not held: it goes when another process needs it, and an array that is made of it is whole."""
    code = (
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from wustore.storage import buffers\n"
        "def held():\n"
        "    lines = Path('/proc/self/smaps_rollup').read_text().splitlines()\n"
        "    kB = {line.split()[0]: int(line.split()[1]) for line in lines if line.endswith('kB')}\n"
        "    return kB['Anonymous:'] + kB['Swap:'] - kB['LazyFree:'] >> 10\n"
        "first = buffers.empty((4096, 4097), 'f4')\n"
        "first[...], address = 3, first.ctypes.data\n"
        "used = held()\n"
        "del first\n"
        "kept = held()\n"
        "again = buffers.empty((4096, 4097), 'f4')\n"
        "again[...] = 5\n"
        "print(used - kept, held() - kept, again.ctypes.data == address, (again == 5).all())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given, taken, *same = done.stdout.split()
    assert int(given) > 60, "in MB; what the system has taken already is not held either"
    assert int(taken) > 60
    assert same == ["True", "True"]


def test_memory_of_another_size_is_left(no_spare: dict[int, np.ndarray]) -> None:
    buffers.empty((16 << 20,), "u1")
    assert len(buffers.empty((8 << 20,), "u1")) == 8 << 20
    assert [len(memory) for memory in no_spare.values()][:1] == [16 << 20]


def test_spool_keeps_pieces_whatever_their_order_and_size(monkeypatch, tmp_path):
    monkeypatch.setattr(buffers, "_SPOOLED_IN_MEMORY", 10)
    spool = buffers.Spool(str(tmp_path))
    for i in (3, 0, 2):
        spool.add(i, bytes([i]) * 7 * i)
    spool.add(3, b"anew")
    assert [spool.get(i) for i in range(5)] == [b"", b"", b"\2" * 14, b"anew", b""]
    assert [spool.size(i) for i in range(5)] == [0, 0, 14, 4, 0]
    assert [*tmp_path.iterdir()] == []  # the file has no name
    spool.close()


@pytest.mark.parametrize(
    "keeper", ["", "def late(): return planes", "import json; json.planes = planes", "buffers.planes = planes"]
)
def test_planes_may_outlive_the_modules(keeper: str) -> None:
    """When Python ends, a plane may go after the modules have been cleared, when nothing can be imported any more."""
    code = f"""
from wustore.storage import buffers
planes = [buffers.empty((2048, 2048), "f4") for _ in range(9)]
{keeper}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
