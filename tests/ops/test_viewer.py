"""The server of ``wustore view``: who may ask, what is answered, and the page in a browser."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from browser import Browser
from pictures import WCS, night, shown, under_pointer

from wustore.ops.viewer import TILE, Viewer
from wustore.testing import sample


@contextmanager
def serving(reader):
    with Viewer(reader) as viewer:
        thread = threading.Thread(target=viewer.run)
        thread.start()
        try:
            yield viewer
        finally:
            viewer.close()
            thread.join()


def ask(viewer, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=60)
    try:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_only_who_knows_the_address_is_answered():
    with serving(night()) as viewer:
        assert viewer.address.startswith("http://127.0.0.1:")
        base = viewer.address.removeprefix(f"http://127.0.0.1:{viewer.port}")
        assert len(base) > 30
        status, headers, body = ask(viewer, base)
        assert status == 200
        assert b"<canvas" in body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        for path in ("/", base[:-1], base[:-2] + "/", "/x" + base, f"/x{base}tile", base + "../", base + "zarr.json"):
            status, _, body = ask(viewer, path)
            assert (status, body) == (404, b"nothing here"), path
        assert ask(viewer, base, host="evil.example")[0] == 404
        assert ask(viewer, base, host="localhost:8642")[0] == 200  # through a tunnel
    with Viewer(night()) as other:
        assert other.address != viewer.address


def test_tiles_and_pixels():
    reader = sample("chunked")  # 600 x 530
    with serving(reader) as viewer:
        base = viewer.address.removeprefix(f"http://127.0.0.1:{viewer.port}")
        status, headers, body = ask(viewer, base + "tile?image=1&layer=science&factor=1&row=2&column=1")
        assert status == 200
        assert headers["X-Shape"] == "88,256"
        tile = np.frombuffer(body, "<f4").reshape(88, 256)
        assert np.array_equal(tile, reader.image(1).science[2 * TILE :, TILE : 2 * TILE], equal_nan=True)
        status, headers, _ = ask(viewer, base + "tile?image=1&layer=mask&factor=4&row=0&column=0")
        assert headers["X-Shape"] == "150,133"
        status, _, body = ask(viewer, base + "pixel?image=2&x=529&y=599")
        assert json.loads(body)["values"]["mask"] == int(reader.image(2).mask[599, 529])
        for query in (
            "tile?image=3&layer=science&factor=1&row=0&column=0",
            "tile?image=0&layer=psf&factor=1&row=0&column=0",
            "tile?image=0&layer=science&factor=0&row=0&column=0",
            "tile?image=0&layer=science&factor=65&row=0&column=0",
            "tile?image=0&layer=science&factor=1&row=3&column=0",
            "tile?image=-1&layer=science&factor=1&row=0&column=0",
            "pixel?image=0&x=530&y=0",
            "pixel?image=0&x=1",
            "pixel?image=0&x=1&y=²",
        ):
            assert ask(viewer, base + query.replace("²", "%C2%B2"))[0] == 400, query


def test_in_a_browser():
    reader = night(3, (600, 700))
    with serving(reader) as viewer, Browser() as browser:
        browser.open(viewer.address)
        shown(browser, 0, "science")
        for x, y in ((10, 20), (3, 4), (31, 30), (699, 599)):
            found = under_pointer(browser, x, y)
            for layer, value in found["values"].items():
                stored = reader.image(0).layer(layer)[y, x]
                assert value == ("nan" if np.isnan(stored) else stored)
            assert np.allclose(found["sky"], WCS.all_pix2world(x, y, 0), atol=1e-10)
        browser.key("2")
        shown(browser, 0, "variance")
        browser.key("ArrowRight")
        shown(browser, 1, "variance")
        browser.key("+")
        browser.key("+")
        shown(browser, 1, "variance")
        assert any(" 1 " in key for key in browser.value("[...cache.keys()]"))
        assert browser.screenshot().startswith(b"\x89PNG")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_ends_when_it_is_interrupted(tmp_path):
    from wustore.backends.registry import backend_for_writing
    from wustore.ops.copy import copy

    path, reader = str(tmp_path / "night.zarr"), night()
    copy(reader, backend_for_writing(path).create(path, reader.meta))
    command = [sys.executable, "-m", "wustore", "view", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\S+/\n", address)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/" + address.split("/", 3)[3].strip())
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
