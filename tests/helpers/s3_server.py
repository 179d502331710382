"""An S3 server on this machine (moto's), which lists its requests."""

from __future__ import annotations

import threading

from moto.server import ThreadedMotoServer


class Server:
    """moto's S3 server, its requests in a list: method, path, bytes sent; paths that hold ``refuses`` are forbidden.

    A request is answered when the one before it is over: moto compares the condition of a write and then writes, as if
    nobody could write between the two.
    """

    def __init__(self):
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.address = host, port
        self.calls = []
        self.on_request = lambda: None
        self.refuses = None
        self._alone = threading.Lock()
        self._application = self._server._server.app
        self._server._server.app = self._counted

    def _counted(self, environ, start):
        def noted(status, headers, *more):
            length = dict(headers).get("Content-Length") or dict(headers).get("content-length") or 0
            self.calls.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], int(length)))
            return start(status, headers, *more)

        if self.refuses is not None and self.refuses in environ["PATH_INFO"]:
            start("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        self.on_request()
        with self._alone:
            return self._application(environ, noted)

    def bytes_sent(self):
        return sum(length for method, _, length in self.calls if method == "GET")

    def stop(self):
        self._server.stop()
