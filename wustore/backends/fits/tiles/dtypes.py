"""Numbers as FITS stores them: BITPIX, formats of table columns, and the offsets that stand for unsigned integers.

FITS standard 4.0, tables 8, 11, 18 and 19. Everything is big-endian.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wustore.errors import UsageError

__all__ = [
    "COLUMN_TYPES",
    "NUMBERS",
    "PIXEL_TYPES",
    "UNSIGNED",
    "ColumnFormat",
    "big_endian",
    "big_endian_bytes",
    "column_format",
    "flipped",
    "to_stored",
]

PIXEL_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
"""dtype by BITPIX."""

UNSIGNED = {(8, -128): "i1", (16, 1 << 15): "u2", (32, 1 << 31): "u4", (64, 1 << 63): "u8"}
"""What is stored with an offset because FITS has no code for it: dtype by bits of a number, and BZERO or TZERO.

Adding the offset flips the highest bit, whatever the width.
"""

NUMBERS = "BIJKED"
"""The letters of columns of real numbers."""

COLUMN_TYPES = {
    "L": "u1",
    "A": "u1",
    "B": "u1",
    "I": ">i2",
    "J": ">i4",
    "K": ">i8",
    "E": ">f4",
    "D": ">f8",
    "C": ">c8",
    "M": ">c16",
}
"""dtype of an element of a table column by the letter of its format."""

_DESCRIPTORS = {"P": 8, "Q": 16}
"""Bytes of the descriptor of a variable-length array."""

_TFORM = re.compile(r"\s*(\d*)\s*([LXBIJKAEDCMPQ])([BIJKEDLXACM]?)[ -&(-~]*", re.ASCII)
_LONGEST_FORMAT = 68
"""Characters: a format is in one card."""


class ColumnFormat(NamedTuple):
    """The format of a table column (TFORMn).

    Attributes
    ----------
    repeat
        Elements in a row.
    code
        The letter: P or Q for descriptors of variable-length arrays.
    element
        The letter of the elements of such an array; empty if it is missing.
    """

    repeat: int
    code: str
    element: str

    @property
    def width(self) -> int:
        """Bytes of the column in a row."""
        if self.code == "X":
            return -(-self.repeat // 8)
        size = _DESCRIPTORS.get(self.code) or np.dtype(COLUMN_TYPES[self.code]).itemsize
        return self.repeat * size


def column_format(text: object) -> ColumnFormat | None:
    """Return the format that a card gives, None for what is none."""
    match = _TFORM.fullmatch(text) if isinstance(text, str) and len(text) <= _LONGEST_FORMAT else None
    return None if match is None else ColumnFormat(int(match[1] or 1), match[2], match[3])


def flipped(stored: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return integers as unsigned ones in native byte order, their highest bit flipped; in ``out`` if that is given."""
    kind = np.dtype(f"u{stored.dtype.itemsize}")
    unsigned = stored.view(kind.newbyteorder(stored.dtype.byteorder))
    turned: NDArray[Any] = np.bitwise_xor(unsigned, kind.type(1 << (8 * kind.itemsize - 1)), out=out, dtype=kind)
    return turned


def to_stored(array: NDArray[Any]) -> tuple[NDArray[Any], int, int]:
    """Return pixels as FITS stores them but for the byte order, with BITPIX and BZERO.

    Raises
    ------
    UsageError
        If FITS has no such numbers.
    """
    kind = array.dtype
    bits = 8 * kind.itemsize
    if kind.kind == "f" and bits in {32, 64}:
        return array, -bits, 0
    if kind.kind not in "iu":
        raise UsageError("FITS has no image of this dtype", found=kind)
    if kind == np.uint8 or (kind.kind == "i" and bits > 8):
        return array, bits, 0
    if kind == np.int8:
        return flipped(array.view(np.uint8)), bits, -128
    return flipped(array).view(f"i{kind.itemsize}"), bits, 1 << (bits - 1)


def big_endian(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return stored pixels in the byte order of FITS, in C order; the same array if it is that already."""
    return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">"), copy=False))


def big_endian_bytes(pixels: NDArray[Any]) -> memoryview:
    """Return stored pixels as the bytes of FITS; the memory of the array if they are that already."""
    return big_endian(pixels).reshape(-1).view(np.uint8).data
