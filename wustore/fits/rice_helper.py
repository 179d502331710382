"""The process that codes Rice tiles for another one (`wustore.fits.parallel`), and what the two say to each other.

A request is a `Request` in a socket; pixels, bytes and spans lie in memory that both map. Little is imported here:
this is what a helper loads when it starts.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import struct
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.fits import rice

__all__ = ["DONE", "REFUSED", "Arena", "Request", "exactly", "serve"]

IDLE = 20.0
"""Seconds without work after which a helper leaves."""

DONE, REFUSED = b"\1", b"\0"
"""Answers: the result is in the arena; the tiles do not decode, or the helper is not able to."""

_MESSAGE = struct.Struct("<?4sqqqq")
_ALIGNMENT = 64


@dataclass(frozen=True)
class Request:
    """Tiles to code.

    Attributes
    ----------
    encode
        Whether to encode.
    kind
        dtype of the pixels, as ``dtype.str`` has it.
    n_rows, n_pixels
        Tiles, and pixels of each.
    block_size
        Pixels per coding block.
    n_bytes
        Bytes of all tiles together; of those to come at most so many.
    """

    encode: bool
    kind: bytes
    n_rows: int
    n_pixels: int
    block_size: int
    n_bytes: int

    SIZE = _MESSAGE.size

    def pack(self) -> bytes:
        """Return the message."""
        return _MESSAGE.pack(*astuple(self))

    @classmethod
    def unpack(cls, message: bytes) -> Request:
        """Read a message."""
        encode, kind, *numbers = _MESSAGE.unpack(message)
        return cls(encode, kind.rstrip(b"\0"), *numbers)

    def places(self) -> tuple[int, int, int]:
        """Return where in the arena the pixels and the bytes begin, behind the spans, and where all ends."""
        dtype = np.dtype(self.kind.decode())
        pixels = _aligned(16 * self.n_rows)
        tiles = _aligned(pixels + self.n_rows * self.n_pixels * dtype.itemsize)
        return pixels, tiles, _aligned(tiles + self.n_bytes)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Arena:
    """Views of the shared memory, as a request divides it.

    Attributes
    ----------
    spans
        First and last byte of each tile. Shape (2, n_rows).
    pixels
        Shape (n_rows, n_pixels).
    tiles
        The bytes of the tiles.
    """

    def __init__(self, memory: mmap.mmap, request: Request) -> None:
        pixels, tiles, _ = request.places()
        n_rows, n_pixels = request.n_rows, request.n_pixels
        self.spans = np.frombuffer(memory, np.int64, 2 * n_rows).reshape(2, n_rows)
        dtype = np.dtype(request.kind.decode())
        self.pixels: NDArray[Any] = np.frombuffer(memory, dtype, n_rows * n_pixels, pixels).reshape(n_rows, n_pixels)
        self.tiles = np.frombuffer(memory, np.uint8, request.n_bytes, tiles)


def exactly(channel: socket.socket, count: int) -> bytes:
    """Receive so many bytes; raise EOFError where the other side is gone."""
    message = b""
    while len(message) < count:
        part = channel.recv(count - len(message))
        if not part:
            raise EOFError
        message += part
    return message


def serve(descriptor: int) -> None:
    """Answer requests that come through a socket until it closes, or until there was none for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that asked; it closes the socket
    channel = socket.socket(fileno=descriptor)
    channel.settimeout(IDLE)
    memory: mmap.mmap | None = None
    with channel, contextlib.suppress(EOFError, OSError):
        channel.sendall(DONE)
        while True:
            message, files, _, _ = socket.recv_fds(channel, Request.SIZE, 1)
            if not message:
                return
            message += exactly(channel, Request.SIZE - len(message))
            if files:
                memory = mmap.mmap(files[0], 0)
                os.close(files[0])
            assert memory is not None
            try:
                _answer(Request.unpack(message), memory)
            except Exception:  # the process that asked does the work itself, and says what is wrong
                channel.sendall(REFUSED)
            else:
                channel.sendall(DONE)


def _answer(request: Request, memory: mmap.mmap) -> None:
    arena = Arena(memory, request)
    if request.encode:
        arena.spans[1] = np.cumsum(rice.encode_into(arena.pixels, request.block_size, arena.tiles.data))
        arena.spans[0, 1:] = arena.spans[1, :-1]
        arena.spans[0, 0] = 0
    else:
        first, last = arena.spans.tolist()
        rice.decode_rows(arena.tiles, first, last, arena.pixels, request.block_size, range(request.n_rows))
