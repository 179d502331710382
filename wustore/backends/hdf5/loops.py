"""The inner loops of chunks, compiled by numba: many chunks a call, without the interpreter lock.

`wustore.backends.hdf5.filters` has an equivalent with numpy for each of them, and decides when this module is
imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uint16, uint32, uint64
from numpy.typing import NDArray

from wustore.storage.compiling import compiled

__all__ = ["place"]


@compiled(entry=True)
def place(
    source: NDArray[np.uint8],
    starts: NDArray[np.int64],
    shuffled: NDArray[np.bool_],
    parts: NDArray[np.int64],
    chunk: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Copy parts of decoded chunks to where they belong, and undo the shuffle filter on the way.

    Parameters
    ----------
    source
        Decoded chunks.
    starts, shuffled
        Where each begins, and whether its bytes are shuffled.
    chunk
        Shape of a chunk, three axes.
    out
        One axis, unsigned integers of the values' size.
    """
    size = out.itemsize
    step = chunk[0] * chunk[1] * chunk[2]
    raw_out = out.view(np.uint8)
    for n in range(parts.shape[0]):
        k = parts[n, 0]
        for z in range(parts[n, 3]):
            for y in range(parts[n, 4]):
                low = parts[n, 1] + (z * chunk[1] + y) * chunk[2]
                high = parts[n, 2] + z * parts[n, 6] + y * parts[n, 7]
                count = parts[n, 5]
                if shuffled[k] and size > 1:
                    _join(source[starts[k] + low :], step, out[high : high + count])
                else:
                    first = starts[k] + low * size
                    _copy(source[first : first + count * size], raw_out[high * size : (high + count) * size])


@compiled()
def _copy(data: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    for x in range(out.size):  # assigning slices is four times as slow
        out[x] = data[x]


@compiled()
def _join(data: NDArray[np.uint8], step: int, out: NDArray[Any]) -> None:
    """Put values together whose bytes lie ``step`` apart."""
    b, c, d = data[step:], data[2 * step :], data[3 * step :]
    if out.itemsize == 2:
        for x in range(out.size):
            out[x] = uint16(data[x]) | (uint16(b[x]) << uint16(8))
    elif out.itemsize == 4:
        for x in range(out.size):
            out[x] = uint32(data[x]) | (uint32(b[x]) << 8) | (uint32(c[x]) << 16) | (uint32(d[x]) << 24)
    else:
        e, f, g, h = data[4 * step :], data[5 * step :], data[6 * step :], data[7 * step :]
        for x in range(out.size):
            low = uint32(data[x]) | (uint32(b[x]) << 8) | (uint32(c[x]) << 16) | (uint32(d[x]) << 24)
            high = uint32(e[x]) | (uint32(f[x]) << 8) | (uint32(g[x]) << 16) | (uint32(h[x]) << 24)
            out[x] = uint64(low) | (uint64(high) << 32)
