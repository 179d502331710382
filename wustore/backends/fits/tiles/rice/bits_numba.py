"""Bits in compiled loops: words at any byte, and what a processor does with one."""

# What numba gives back is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import uint8, uint64
from numba.extending import intrinsic
from numpy.typing import NDArray

from wustore.backends.compiling import inlined

__all__ = ["as_float", "leading_zeros", "put_word", "word_at"]


@intrinsic  # type: ignore[untyped-decorator]
def leading_zeros(context: Any, value: Any) -> Any:
    """Count the zero bits above the highest one; 64 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return numba.uint64(numba.uint64), generate


@intrinsic  # type: ignore[untyped-decorator]
def as_float(context: Any, value: Any) -> Any:
    """Return the float64 that has these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return numba.float64(numba.uint64), generate


# Indices are unsigned throughout: with numba's care for negative ones LLVM would not see one 8-byte load or store.


@inlined
def word_at(heap: NDArray[np.uint8], p: int) -> int:
    """Return the 8 bytes from ``p`` on, the first one highest."""
    return (
        (uint64(heap[p]) << uint64(56))
        | (uint64(heap[p + uint64(1)]) << uint64(48))
        | (uint64(heap[p + uint64(2)]) << uint64(40))
        | (uint64(heap[p + uint64(3)]) << uint64(32))
        | (uint64(heap[p + uint64(4)]) << uint64(24))
        | (uint64(heap[p + uint64(5)]) << uint64(16))
        | (uint64(heap[p + uint64(6)]) << uint64(8))
        | uint64(heap[p + uint64(7)])
    )


@inlined
def put_word(out: NDArray[np.uint8], p: int, word: int) -> None:
    """Write 8 bytes at ``p``, the highest one first."""
    out[p] = uint8(word >> uint64(56))
    out[p + uint64(1)] = uint8(word >> uint64(48))
    out[p + uint64(2)] = uint8(word >> uint64(40))
    out[p + uint64(3)] = uint8(word >> uint64(32))
    out[p + uint64(4)] = uint8(word >> uint64(24))
    out[p + uint64(5)] = uint8(word >> uint64(16))
    out[p + uint64(6)] = uint8(word >> uint64(8))
    out[p + uint64(7)] = uint8(word)
