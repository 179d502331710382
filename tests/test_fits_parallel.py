from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fits_samples as samples
import pytest

from wustore.backends.fits import FitsBackend, ShardedFitsBackend
from wustore.errors import CorruptError
from wustore.fits import parallel
from wustore.model import LAYERS

pytestmark = pytest.mark.skipif(not parallel.available(), reason="no shared memory by descriptor on this system")


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    yield
    parallel._leave_all()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return samples.small(tmp_path_factory.mktemp("x") / "wu.fits", 12, shape=(60, 50), compressed=True)


def bits(reader: Any, **options: Any) -> list[tuple[int, list[bytes]]]:
    return [
        (i, [plane.tobytes() for layer in LAYERS if (plane := image.layer(layer)) is not None])
        for i, image in reader.images(**options)
    ]


def wait_for_helper() -> None:
    deadline = time.monotonic() + 60
    while not parallel._idle:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def warm(path: str) -> None:
    bits(FitsBackend().open(path), workers=2)
    wait_for_helper()


def test_helpers_give_the_same_bits_in_order(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FitsBackend().open(path)
    expected = bits(reader, workers=1)
    warm(path)
    jobs = []
    decode = parallel._Helper.decode
    monkeypatch.setattr(parallel._Helper, "decode", lambda self, job: jobs.append(job) or decode(self, job))
    before = reader.pixels_decoded
    assert bits(reader, workers=2) == expected
    assert jobs
    assert reader.pixels_decoded - before == 12 * (3 * 60 * 50 + 9)
    order = [5, 0, 7, 7, 1]
    assert bits(reader, indices=order, workers=2) == [expected[i] for i in order]
    (image,) = [image for _, image in reader.images([3], ("mask",), workers=2)]
    assert image.science.shape == (0, 0)


def test_a_killed_helper_is_done_without(path: str) -> None:
    reader = FitsBackend().open(path)
    expected = bits(reader, workers=1)
    warm(path)
    process = parallel._idle[0]._process
    os.kill(process.pid, signal.SIGSTOP)  # it still counts as alive when it is taken
    killer = threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL))
    killer.start()
    found = bits(reader, workers=2)
    killer.join()
    assert found == expected


def test_damage_found_by_a_helper_is_the_same_error(path: str, tmp_path: Path) -> None:
    data = bytearray(Path(path).read_bytes())
    reader = FitsBackend().open(path)
    for image in reader.layout.images:
        plane = image.planes["science"]
        start = plane.hdu.data_start + plane.layout().heap_start
        data[start : start + 40] = bytes(40)
    damaged = tmp_path / "damaged.fits"
    damaged.write_bytes(data)
    warm(path)
    reader = FitsBackend().open(str(damaged))
    for workers in (1, 2):
        with pytest.raises(CorruptError) as caught:
            bits(reader, workers=workers)
        assert caught.value.path == str(damaged)
        assert "SCI_" in str(caught.value.where)


def test_sharded_sets(tmp_path: Path) -> None:
    from astropy.io import fits

    for i in range(6):
        hdus = samples.image_hdus(i, shape=(40, 30), compressed=True)
        samples.write(tmp_path / f"{i}_wu.fits", [fits.PrimaryHDU(), *hdus])
    reader = ShardedFitsBackend().open(samples.write(tmp_path / "wu.fits", [samples.primary_hdu(6)]))
    expected = bits(reader, workers=1)
    bits(reader, workers=2)
    wait_for_helper()
    assert bits(reader, workers=2) == expected


def test_an_abandoned_stream_leaves_no_process_behind(path: str) -> None:
    script = (
        "import sys; from wustore.fits import parallel; parallel.WORTHWHILE = 0\n"
        "from wustore.backends.fits import FitsBackend\n"
        "reader = FitsBackend().open(sys.argv[1])\n"
        "next(reader.images(workers=2))\n"
        "list(reader.images(workers=2))\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, path], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, "")
