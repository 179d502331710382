"""The main table of a tile-compressed image in a form that zlib packs well, for an index of the file.

Its rows are cut into columns: the descriptors (FITS standard 4.0, section 7.3.5) number by number and byte by byte, the
rest word by word. Layout: docs/spec.md, "Index of FITS files".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.errors import CorruptError

__all__ = ["Pairs", "pack_table", "unpack_table"]

Pairs = Sequence[tuple[int, int, int]]
"""Of the descriptors in a row: first byte, bytes of a number (4 or 8), bytes of an element in the heap."""

_ROW = struct.Struct("<IB")
_PAIR = struct.Struct("<IBB")


def _columns_of(n_bytes: int) -> int:
    """Return the bytes of the words that what is no descriptor is cut into."""
    return next(size for size in (8, 4, 2, 1) if n_bytes % size == 0)


def _transposed(rows: NDArray[Any], size: int) -> bytes:
    """Return rows of bytes, word by word of ``size`` bytes: first all first words, then all second ones."""
    return rows.reshape(len(rows), -1, size).transpose(1, 0, 2).tobytes()


def pack_table(table: bytes, row_size: int, pairs: Pairs) -> bytes:
    """Return a table of tiles in a form that zlib packs well.

    An array in the heap starts as a rule where the one before it ends: what is kept of its place is the difference to
    that, which is nearly always 0.
    """
    rows = np.frombuffer(table, np.uint8).reshape(-1, row_size)
    rest = np.ones(row_size, bool)
    parts = [_ROW.pack(row_size, len(pairs)), *(_PAIR.pack(*pair) for pair in pairs)]
    for offset, width, item in pairs:
        rest[offset : offset + 2 * width] = False
        cells = np.ascontiguousarray(rows[:, offset : offset + 2 * width]).view(f">u{width}").astype(f"<u{width}")
        counts, starts = cells[:, 0].copy(), cells[:, 1].copy()
        starts[1:] -= cells[:-1, 1] + counts[:-1] * starts.dtype.type(item)
        parts += [_transposed(part.view(np.uint8).reshape(len(rows), width), 1) for part in (counts, starts)]
    others = np.ascontiguousarray(rows[:, rest])
    if others.size:
        parts.append(_transposed(others, _columns_of(others.shape[1])))
    return b"".join(parts)


def unpack_table(packed: bytes, size: int) -> bytes:
    """Return a table of ``size`` bytes from its packed form.

    Raises
    ------
    CorruptError
    """
    try:
        row_size, n_pairs = _ROW.unpack_from(packed)
        at = _ROW.size
        pairs = [_PAIR.unpack_from(packed, at + k * _PAIR.size) for k in range(n_pairs)]
        at += n_pairs * _PAIR.size
        if len(packed) - at != size or size % row_size:
            raise ValueError(f"{len(packed) - at} bytes in rows of {row_size}, for {size}")
        n = size // row_size
        rows = np.zeros((n, row_size), np.uint8)
        rest = np.ones(row_size, bool)
        for offset, width, item in pairs:
            if width not in (4, 8) or not rest[offset : offset + 2 * width].sum() == 2 * width:
                raise ValueError(f"a descriptor of numbers of {width} bytes at {offset}")
            rest[offset : offset + 2 * width] = False
            counts, starts = (
                np.frombuffer(packed, np.uint8, n * width, at + k * n * width).reshape(width, n).T.copy()
                for k in (0, 1)
            )
            at += 2 * n * width
            cells = np.stack([part.view(f"<u{width}")[:, 0] for part in (counts, starts)], axis=1)
            cells[1:, 1] += cells[:-1, 0] * cells.dtype.type(item)
            cells[:, 1] = np.cumsum(cells[:, 1], dtype=cells.dtype)
            rows[:, offset : offset + 2 * width] = cells.astype(f">u{width}").view(np.uint8)
        n_others = int(rest.sum())
        if n_others:
            word = _columns_of(n_others)
            others = np.frombuffer(packed, np.uint8, n * n_others, at).reshape(n_others // word, n, word)
            rows[:, rest] = others.transpose(1, 0, 2).reshape(n, n_others)
    except (struct.error, ValueError, ZeroDivisionError, TypeError) as error:
        raise CorruptError("a table of tiles in the index is damaged", found=str(error)[:200]) from error
    return rows.tobytes()
