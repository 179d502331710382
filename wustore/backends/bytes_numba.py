"""What compiled loops over chunks of every format share: functions of C, copies of bytes, numbers in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import intp, uint32
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from wustore.backends.compiling import compiled

__all__ = ["call", "copy", "first_word"]


@intrinsic  # type: ignore[untyped-decorator]
def call(context: Any, address: Any, arguments: Any) -> Any:
    """Call a function of C that takes and returns words; a result of fewer bits has to be cut."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = values[0].type
        words = cgutils.unpack_tuple(builder, values[1], len(arguments))
        function = ir.FunctionType(word, [word] * len(words)).as_pointer()
        return builder.call(builder.inttoptr(values[0], function), words)

    return intp(address, arguments), generate


@compiled()
def copy(data: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Fill ``out`` with the bytes of ``data``."""
    for x in range(out.size):  # assigning slices is four times as slow
        out[x] = data[x]


@compiled()
def first_word(data: NDArray[np.uint8]) -> Any:
    """Return the first four bytes as a number, the lowest first."""
    return uint32(data[0]) | uint32(data[1]) << 8 | uint32(data[2]) << 16 | uint32(data[3]) << 24
