"""CRC-32C, with the interpreter lock released and without that."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.model import checksum
from wustore.model.checksum import crc32c, large_crc32c, plane_checksum

NOISE = np.random.default_rng(4).integers(0, 256, 3 << 20, dtype=np.uint8)


@pytest.fixture(params=["library", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the C library, for arrays of any size, and without it."""
    if request.param == "library":
        if checksum._extend() is None:
            pytest.skip("the C library cannot be reached here")
        monkeypatch.setattr(checksum, "_LARGE", 0)
    else:
        monkeypatch.setattr(checksum, "_extend", lambda: None)
    return request.param


def test_the_check_value_of_the_standard() -> None:
    # RFC 3720, B.4, and the usual check value of CRC catalogues
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.skipif(sys.platform != "linux", reason="the wheels of other systems may hide the library")
@pytest.mark.skipif(google_crc32c.implementation != "c", reason="google_crc32c was built without its C library")
def test_the_library_is_reached() -> None:
    assert checksum._extend() is not None


def test_all_short_lengths(way: str) -> None:
    assert [large_crc32c(NOISE[:n]) for n in range(2001)] == [crc32c(NOISE[:n].tobytes()) for n in range(2001)]


def test_the_check_value_of_the_standard_for_arrays(way: str) -> None:
    assert large_crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283


@settings(max_examples=60)
@given(start=st.integers(0, 70), size=st.integers(0, NOISE.size - 70))
def test_any_start_and_length(start: int, size: int) -> None:
    part = NOISE[start : start + size]
    assert large_crc32c(part) == crc32c(part.tobytes())


def test_around_the_size_from_which_the_lock_is_released() -> None:
    for n in range(checksum._LARGE - 2, checksum._LARGE + 3):
        assert large_crc32c(NOISE[:n]) == crc32c(NOISE[:n].tobytes())


@pytest.mark.parametrize("error", [OSError("no such library"), AttributeError("crc32c_extend")])
def test_without_the_library(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> object:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    checksum._extend.cache_clear()
    try:
        assert checksum._extend() is None
        assert large_crc32c(NOISE) == crc32c(NOISE.tobytes())
    finally:
        checksum._extend.cache_clear()


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "f4", ">f4", "f8", ">f8"])
def test_planes_count_as_little_endian_in_c_order(dtype: str, way: str) -> None:
    plane = np.arange(6000).reshape(60, 100).astype(dtype)
    expected = crc32c(plane.astype(plane.dtype.newbyteorder("<")).tobytes())
    assert plane_checksum(plane) == expected
    assert plane_checksum(np.asfortranarray(plane)) == expected
    assert plane_checksum(np.repeat(plane, 2, axis=1)[:, ::2]) == expected


def test_planes_without_values(way: str) -> None:
    assert plane_checksum(None) == 0
    assert plane_checksum(np.empty((0, 5), np.float32)) == 0


def test_read_only_planes(way: str) -> None:
    plane = np.frombuffer(NOISE.tobytes(), np.float32)
    assert plane_checksum(plane) == crc32c(NOISE.tobytes())


def test_threads_get_the_same(way: str) -> None:
    expected = crc32c(NOISE.tobytes())
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(large_crc32c(NOISE))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_small_planes_load_no_library() -> None:
    code = (
        "import numpy as np; from wustore.model import checksum;"
        "checksum.plane_checksum(np.zeros((64, 64), np.float32)); print(checksum._extend.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0"]
