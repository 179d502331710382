"""A web server that answers ranges and counts what it is asked for."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["RangeServer", "serving"]


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        size = path.stat().st_size if path.is_file() else 0
        low, high, status, extra = 0, size, 200 if path.is_file() else 404, []
        wanted = self.headers.get("Range")
        if wanted and status == 200:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            low, high = int(first), min(int(last or size - 1), size - 1) + 1
            status = 206 if low < size else 416
            extra = [("Content-Range", f"bytes {low}-{high - 1}/{size}")]
        data = b""
        if status in {200, 206}:
            with path.open("rb") as file:
                file.seek(low)
                data = file.read(high - low)
        if path.name in self.server.versions:
            extra.append(("ETag", self.server.versions[path.name]))
        time.sleep(self.server.latency)
        self.server.calls.append((self.command, path.name, len(data) if body else 0))
        self.send_response(status)
        for name, value in [("Content-Length", str(len(data))), ("Accept-Ranges", "bytes"), *extra]:
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


class RangeServer(http.server.ThreadingHTTPServer):
    """A directory at a URL.

    Attributes
    ----------
    url
        Of the directory.
    calls
        Method, name and bytes sent of each request.
    versions
        Names to what the server calls their version (ETag).
    latency
        Seconds that each request takes.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        def handler(*arguments: Any) -> _Handler:
            return _Handler(*arguments, directory=str(directory))

        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.calls: list[tuple[str, str, int]] = []
        self.versions: dict[str, str] = {}
        self.latency = 0.0

    def take(self) -> list[tuple[str, str, int]]:
        """Return the requests so far, and begin to count anew."""
        calls, self.calls = self.calls, []
        return calls


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[RangeServer]:
    """Serve a directory."""
    with RangeServer(directory) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
