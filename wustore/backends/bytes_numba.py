"""What compiled loops over chunks of every format share: functions of C, copies of bytes, numbers in bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import intp, uint32, void
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from wustore.backends.compiling import compiled

__all__ = ["LINE", "call", "copy", "fence", "first_word", "move", "prefetch", "stream"]

LINE = 64
"""Bytes that `stream` copies: a line of the cache."""


@intrinsic  # type: ignore[untyped-decorator]
def call(context: Any, address: Any, arguments: Any) -> Any:
    """Call a function of C that takes and returns words; a result of fewer bits has to be cut."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = values[0].type
        words = cgutils.unpack_tuple(builder, values[1], len(arguments))
        function = ir.FunctionType(word, [word] * len(words)).as_pointer()
        return builder.call(builder.inttoptr(values[0], function), words)

    return intp(address, arguments), generate


@intrinsic  # type: ignore[untyped-decorator]
def move(context: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy bytes from one address to another; they must not overlap."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to, of = (builder.inttoptr(value, cgutils.voidptr_t) for value in values[:2])
        cgutils.raw_memcpy(builder, to, of, values[2], 1)
        return context.get_dummy_value()

    return void(intp, intp, intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(context: Any, address: Any) -> Any:
    """Let a line of memory come into the cache, to be read soon; any address will do."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        reading, often, data = ir.Constant(number, 0), ir.Constant(number, 3), ir.Constant(number, 1)
        builder.call(function, [place, reading, often, data])
        return context.get_dummy_value()

    return void(intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def stream(context: Any, target: Any, source: Any) -> Any:
    """Copy a line of the cache to an address that is a multiple of its length, past the cache.

    A line that is written in the usual way is read first. When all have been written, `fence` has to be called.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), LINE // 4)
        to, of = (builder.inttoptr(value, line.as_pointer()) for value in values)
        loaded = builder.load(of)
        loaded.align = 1
        stored = builder.store(loaded, to)
        stored.align = LINE
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return void(intp, intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def fence(context: Any) -> Any:
    """Let other threads see what was written past the cache before what is written from here on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return void(), generate


@compiled()
def copy(data: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Fill ``out`` with the bytes of ``data``."""
    for x in range(out.size):  # assigning slices is four times as slow
        out[x] = data[x]


@compiled()
def first_word(data: NDArray[np.uint8]) -> Any:
    """Return the first four bytes as a number, the lowest first."""
    return uint32(data[0]) | uint32(data[1]) << 8 | uint32(data[2]) << 16 | uint32(data[3]) << 24
