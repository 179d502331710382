"""A server that shows one store in a browser of the same machine, at full resolution, reading what is looked at.

It is bound to the loopback interface, answers only below a path that holds a random token, only for its own name, and
only with tiles and pixels of the store it was given.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Reader
from wustore.errors import UsageError, WuStoreError
from wustore.model.meta import PIXEL_LAYERS
from wustore.model.select import FILTER_COLUMNS, image_column
from wustore.ops.preview import image_lines, limits_by_stretch, page_text
from wustore.stamps.picture import shrunk
from wustore.stamps.sky import linked_wcs_or_none, pixel_to_sky

__all__ = ["Viewer"]

TILE = 256
"""Side of a tile [screen pixel]; the script of the page has the same number."""

_LARGEST_FACTOR = 64


class Viewer:
    """The server for one store; a context manager.

    Parameters
    ----------
    reader
        An open store, which must stay open as long as the server runs.
    port
        To listen at; 0 for one that is free.

    Attributes
    ----------
    address
        What to open in a browser.

    Examples
    --------
    >>> with open_reader("night.zarr") as reader, Viewer(reader) as viewer:  # doctest: +SKIP
    ...     print(viewer.address)
    ...     viewer.run()
    """

    def __init__(self, reader: Reader, port: int = 0) -> None:
        self.reader = reader
        self._token = secrets.token_urlsafe(24)
        handler = type("_BoundHandler", (_Handler,), {"viewer": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self.port = int(self._server.server_address[1])
        self.address = f"http://127.0.0.1:{self.port}/{self._token}/"

    def run(self) -> None:
        """Answer requests until `close` is called from another thread, or the process is interrupted."""
        self._server.serve_forever()

    def close(self) -> None:
        """Stop `run`, and listen no longer."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def path_of(self, target: str, host: str) -> str | None:
        """Return what a request asks for below the token; None if it does not know the token or the server's name.

        A page of another site can make a browser send requests here, under another name; it cannot know the token.
        """
        if host.partition(":")[0] not in {"127.0.0.1", "localhost"}:  # at any port: a tunnel has its own
            return None
        token, slash, rest = urlsplit(target).path.removeprefix("/").partition("/")
        return rest if slash and hmac.compare_digest(token.encode(), self._token.encode()) else None

    # --- answers -------------------------------------------------------------------------------------------

    def answer(self, path: str, query: Mapping[str, str]) -> tuple[str, dict[str, str], bytes] | None:
        """Return content type, headers and body for a path, or None if there is no such path.

        Raises
        ------
        UsageError
            If a parameter is missing or out of range.
        """
        if path == "":
            return "text/html; charset=utf-8", {}, self._page().encode()
        if path == "tile":
            tile = self._tile(query)
            shape = {"X-Shape": f"{tile.shape[0]},{tile.shape[1]}"}
            return "application/octet-stream", shape, tile.astype("<f4").tobytes()
        if path == "pixel":
            return "application/json", {}, json.dumps(self._pixel(query)).encode()
        if path == "limits":
            return "application/json", {}, json.dumps(self._limits(query)).encode()
        return None

    def _page(self) -> str:
        meta = self.reader.meta
        filters = image_column(meta, FILTER_COLUMNS)
        images = [
            {"height": height, "width": width, "factor": 1, "lines": image_lines(meta, i, filters)}
            for i, (height, width) in enumerate(meta.image_shape.tolist())
        ]
        note = "Every pixel, read from the store when it is looked at; values under the pointer are as stored."
        return page_text(self.reader, images, "view", note)

    def _image(self, query: Mapping[str, str]) -> int:
        return _number(query, "image", self.reader.meta.n_images)

    def _tile(self, query: Mapping[str, str]) -> NDArray[np.float32]:
        meta, i = self.reader.meta, self._image(query)
        layer = query.get("layer", "")
        if layer not in PIXEL_LAYERS or not meta.has_layer(layer):
            raise UsageError("no such layer", found=layer)
        factor = _number(query, "factor", _LARGEST_FACTOR + 1)
        if factor < 1:
            raise UsageError("no such factor", found=factor)
        height, width = meta.shape_of("science", i)
        step = TILE * factor
        row, column = _number(query, "row", -(-height // step)), _number(query, "column", -(-width // step))
        rows = slice(row * step, min((row + 1) * step, height))
        columns = slice(column * step, min((column + 1) * step, width))
        plane = self.reader.read(layer, (slice(i, i + 1), rows, columns))[0]
        return shrunk(np.asarray(plane > 0, np.float32) if layer == "mask" else plane, factor)

    def _pixel(self, query: Mapping[str, str]) -> dict[str, Any]:
        meta, i = self.reader.meta, self._image(query)
        height, width = meta.shape_of("science", i)
        x, y = _number(query, "x", width), _number(query, "y", height)
        box = slice(i, i + 1), slice(y, y + 1), slice(x, x + 1)
        values = {
            layer: _plain(self.reader.read(layer, box)[0, 0, 0])
            for layer in PIXEL_LAYERS
            if meta.dtypes[layer][i] is not None
        }
        return {"values": values, "sky": _sky(linked_wcs_or_none(meta, i), x, y)}

    def _limits(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the limits of the stretches from the middle of an image, 512 x 512 pixels."""
        meta, i = self.reader.meta, self._image(query)
        height, width = meta.shape_of("science", i)
        rows, columns = (slice(max(size // 2 - 256, 0), min(size // 2 + 256, size)) for size in (height, width))
        planes = {
            layer: self.reader.read(layer, (slice(i, i + 1), rows, columns))[0]
            for layer in PIXEL_LAYERS
            if meta.dtypes[layer][i] is not None and layer != "mask"
        }
        return {"limits": limits_by_stretch(planes)}


def _number(query: Mapping[str, str], name: str, stop: int) -> int:
    text = query.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) >= stop:
        raise UsageError("a parameter is missing or out of range", where=name, expected=f"0 to {stop - 1}", found=text)
    return int(text)


def _plain(value: Any) -> float | int | str:
    """Return a pixel as JSON: its shortest exact text if it is not finite."""
    if isinstance(value, np.floating):
        return float(value) if math.isfinite(value) else str(value)
    return int(value)


def _sky(text: str | None, x: int, y: int) -> tuple[float, float] | None:
    ra, dec = pixel_to_sky((text,), np.array([x]), np.array([y]))
    return (float(ra[0]), float(dec[0])) if math.isfinite(ra[0]) and math.isfinite(dec[0]) else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    viewer: ClassVar[Viewer]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "wustore", ""
    timeout = 60

    def do_GET(self) -> None:
        path = self.viewer.path_of(self.path, self.headers.get("Host", ""))
        if path is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", {}, b"nothing here")
            return
        try:
            found = self.viewer.answer(path, dict(parse_qsl(urlsplit(self.path).query)))
        except UsageError as error:
            self._send(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", {}, str(error).encode())
        except (WuStoreError, OSError, MemoryError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", {}, str(error).encode())
        else:
            if found is None:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", {}, b"nothing here")
            else:
                self._send(HTTPStatus.OK, *found)

    def _send(self, status: HTTPStatus, kind: str, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: addresses hold the token."""


_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
