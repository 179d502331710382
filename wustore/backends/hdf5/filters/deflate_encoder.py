"""Deflate streams of shuffled values: noise is stored or Huffman-coded, the rest is left to libdeflate.

After the shuffle filter a chunk begins with the first bytes of all values, then come the second ones, and so on. In
measured pixels the first of these planes are noise: looking for repeated strings costs most of the time of encoding,
and the few short ones that it finds make the data larger than a Huffman code alone. So each plane of noise is a block
with a Huffman code of its own, or is stored as it is, which is the fastest to decode, as long as the whole does not
become larger than what libdeflate makes of it. From the first plane on that has repeated strings, libdeflate encodes
all that is left. Every inflater reads the result.

References: RFC 1950 (zlib), RFC 1951 (deflate).
"""

from __future__ import annotations

import struct
from typing import Any, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops

__all__ = ["BLOCK_HEADER", "LARGEST_STORED", "LONGEST_CODE", "STORED", "TURNED", "code_table", "encode"]

LONGEST_CODE = 12
"""Bits of the longest code. 15 are allowed; with 12 the data are 0.01 % larger, and inflaters need one small table."""

HUFFMAN, STORED = 1, 2
"""How a plane of noise is encoded."""

TURNED = np.array([int(f"{k:04b}"[::-1], 2) for k in range(16)])
"""The codes of the lengths of codes, all of four bits, their first bit lowest."""
BLOCK_HEADER = np.array([(0, 5), (0, 5), (15, 4), *[(0, 3)] * 3, *[(4, 3)] * 16])
"""What follows the three bits of a block's kind: (value, bits). One code of a distance, which is never used; the
lengths of codes have codes of four bits, those of repetitions have none (RFC 1951, 3.2.7)."""

_HEADER = b"\x78\x01"
"""RFC 1950: deflate with a window of 32 kB, the fastest level."""
_LITERALS = 256
"""Values of a byte; the next symbol ends a block."""
LARGEST_STORED = 65535
_CODE_BYTES = 140
"""What a block's Huffman code takes, the bits of its header included."""

_SAMPLES, _SAMPLE_BYTES = 5, 2048
"""How much of a plane says whether it is noise: a smaller plane is looked at as a whole."""
_LEAST_BYTES = 1024
"""Of a plane: the code of a smaller one takes more than it saves."""
_REPEATED = 0.8
"""What repeated strings leave of Huffman's result at the most: planes of noise that follow do not outweigh that."""
_STORED_FROM = 0.97
"""What a Huffman code must leave of a plane that is stored instead."""

_LOOPS = Loops("wustore.backends.hdf5.filters.loops_numba", 1 << 24)
"""The unit is bytes of noise. With the loops 16 MB take 0.25 s less, which is what importing numba takes."""


def encode(planes: NDArray[np.uint8], level: int) -> bytes:
    """Return a zlib stream.

    Parameters
    ----------
    planes
        Shuffled values: the first bytes of all of them, then the second ones, and so on. Shape (item size, n).
    level
        For libdeflate.
    """
    kinds = _kinds(planes, level)
    if not kinds.any():
        return _packed(planes, level, raw=False)
    rest = planes[kinds.size :]
    noise = _blocks(planes[: kinds.size], kinds, not rest.size)
    tail = _packed(rest, level, raw=True) if rest.size else b""
    checksum = imagecodecs.deflate_adler32(cast(Any, planes.reshape(-1)))
    return b"".join([_HEADER, noise.data, tail, struct.pack(">I", checksum)])


def _packed(planes: NDArray[np.uint8], level: int, *, raw: bool) -> bytes:
    """Return what libdeflate makes of all bytes, as a zlib stream unless ``raw``."""
    return bytes(imagecodecs.deflate_encode(cast(Any, planes.reshape(-1)), level=level, raw=raw))


def _kinds(planes: NDArray[np.uint8], level: int) -> NDArray[np.int64]:
    """Return how to encode each of the first planes, those that are noise; samples of them decide."""
    sizes: list[float] = []
    count, gain, left = 0, 0.0, 0.0
    for plane in planes if planes.shape[1] >= _LEAST_BYTES else ():
        coded, packed = _coded_and_packed(plane, level)
        sizes.append(coded)
        gain += packed - coded
        if gain > left:
            count, left = len(sizes), gain
        elif packed < _REPEATED * coded:
            break
    kinds = np.full(count, HUFFMAN)
    for k in sorted(range(count), key=lambda k: -sizes[k]):
        left -= 1 - sizes[k]
        if left < 0 or sizes[k] < _STORED_FROM:
            break
        kinds[k] = STORED
    return kinds


def _coded_and_packed(plane: NDArray[np.uint8], level: int) -> tuple[float, float]:
    """Return about how large a Huffman code alone and libdeflate make a plane, as parts of its size."""
    if plane.size <= _SAMPLES * _SAMPLE_BYTES:
        sample = plane
    else:
        starts = np.arange(1, 2 * _SAMPLES, 2) * plane.size // (2 * _SAMPLES) - _SAMPLE_BYTES // 2
        sample = np.concatenate([plane[start : start + _SAMPLE_BYTES] for start in starts.tolist()])
    share, counts = sample.size / plane.size, np.bincount(sample)
    counts = counts[counts > 0]
    coded = float((counts * np.maximum(np.log2(sample.size / counts), 1)).sum()) / 8 + share * _CODE_BYTES
    # The code in libdeflate's result, which a larger plane does not have more often, takes about two bits a symbol.
    packed = len(_packed(sample, level, raw=True)) - (1 - share) * (counts.size / 4 + 10)
    return coded / sample.size, packed / sample.size


def code_table(  # noqa: PLR0912 - it is compiled as one function
    counts: NDArray[np.int64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return Huffman codes; also compiled.

    Parameters
    ----------
    counts
        How often each symbol of a block occurs, at least two of them. Shape (blocks, symbols).
    order
        The symbols of each block in ascending order of their counts.

    Returns
    -------
    ndarray
        For each symbol 16 times its code (the first bit lowest) plus its length; 0 for one that does not occur.
    """
    n_blocks, n_symbols = counts.shape
    table = np.zeros((n_blocks, n_symbols), np.int64)
    weights = np.zeros(2 * n_symbols, np.int64)
    parents, depths = np.zeros_like(weights), np.zeros_like(weights)
    for k in range(n_blocks):
        skipped = 0
        while counts[k, order[k, skipped]] == 0:
            skipped += 1
        n = n_symbols - skipped
        for j in range(n):
            weights[j] = counts[k, order[k, skipped + j]]
        deepest = LONGEST_CODE + 1
        while deepest > LONGEST_CODE:
            leaf, inner = 0, n
            for made in range(n, 2 * n - 1):  # of the two lightest nodes
                weights[made] = 0
                for _ in range(2):
                    if leaf < n and (inner == made or weights[leaf] <= weights[inner]):
                        child = leaf
                        leaf += 1
                    else:
                        child = inner
                        inner += 1
                    weights[made] += weights[child]
                    parents[child] = made
            depths[2 * n - 2] = 0
            for node in range(2 * n - 3, -1, -1):
                depths[node] = depths[parents[node]] + 1
            deepest = depths[0]
            for j in range(n):  # more alike, for the case that a code is too long; their order stays
                weights[j] = (weights[j] + 1) // 2
        for j in range(n):
            table[k, order[k, skipped + j]] = depths[j]
        code = 0
        for length in range(1, deepest + 1):  # RFC 1951, 3.2.2
            for symbol in range(n_symbols):
                if table[k, symbol] == length:  # codes that are there already are 16 or more
                    turned, bits = 0, code
                    for _ in range(length):
                        turned, bits = turned << 1 | bits & 1, bits >> 1
                    table[k, symbol] = turned << 4 | length
                    code += 1
            code <<= 1
    return table


def _blocks(planes: NDArray[np.uint8], kinds: NDArray[np.int64], is_end: bool) -> NDArray[np.uint8]:
    """Return a block for each plane, and if that is not the end of the stream, what leads to the next whole byte."""
    loops = _LOOPS.get(planes.size)
    if loops is not None:
        counts = loops.counts(planes)
        table = loops.code_table(counts, np.argsort(counts, kind="stable"))
        return np.asarray(loops.blocks(planes, kinds, table, is_end))
    bits = _Bits()
    for k, (plane, kind) in enumerate(zip(planes, kinds.tolist(), strict=True)):
        is_last = is_end and k == kinds.size - 1
        if kind == STORED:
            for start in range(0, plane.size, LARGEST_STORED):
                part = plane[start : start + LARGEST_STORED]
                bits.add(int(is_last and start + part.size == plane.size), 3)
                bits.add_bytes(struct.pack("<HH", part.size, part.size ^ 0xFFFF) + part.tobytes())
            continue
        counts = np.append(np.bincount(plane, minlength=_LITERALS), 1)[None]
        table = code_table(counts, np.argsort(counts, kind="stable"))[0]
        codes, lengths = (table >> 4).astype(np.uint32), (table & 15).astype(np.uint32)
        bits.add(is_last | 4, 3)
        bits.add(*BLOCK_HEADER.T)
        bits.add(TURNED[np.append(lengths, 1)], 4)
        bits.add(codes[plane], lengths[plane])
        bits.add(codes[_LITERALS], lengths[_LITERALS])
    if not is_end:
        bits.add(0, 3)
        bits.add_bytes(struct.pack("<HH", 0, 0xFFFF))
    return bits.whole()


class _Bits:
    """Bits that become bytes, the first one lowest."""

    def __init__(self) -> None:
        self._values: list[NDArray[np.uint64]] = []
        self._widths: list[NDArray[np.uint64]] = []
        self._bytes: list[NDArray[np.uint8]] = []

    def add(self, values: Any, widths: Any) -> None:
        """Add the lowest bits of numbers, at most 16 of each."""
        values, widths = np.broadcast_arrays(np.atleast_1d(values).astype(np.uint32), np.asarray(widths, np.uint32))
        missing = np.zeros(-values.size % 4, np.uint32)
        values, widths = np.append(values, missing).reshape(-1, 2), np.append(widths, missing).reshape(-1, 2)
        values, widths = values[:, 0] | values[:, 1] << widths[:, 0], widths[:, 0] + widths[:, 1]  # two and two
        values, widths = values.reshape(-1, 2).astype(np.uint64), widths.reshape(-1, 2).astype(np.uint64)
        self._values.append(values[:, 0] | values[:, 1] << widths[:, 0])
        self._widths.append(widths[:, 0] + widths[:, 1])

    def add_bytes(self, data: bytes) -> None:
        """Add bytes, from the next whole byte on."""
        self._flush()
        self._bytes.append(np.frombuffer(data, np.uint8))

    def whole(self) -> NDArray[np.uint8]:
        """Return all bytes."""
        self._flush()
        return np.concatenate(self._bytes)

    def _flush(self) -> None:
        if not self._values:
            return
        values, widths = np.concatenate(self._values), np.concatenate(self._widths)
        self._values, self._widths = [], []
        ends = widths.cumsum()
        starts = ends - widths
        words, shifts = (starts >> np.uint64(6)).astype(np.int64), starts & np.uint64(63)
        found = np.zeros(words[-1] + 2, np.uint64)
        first = np.flatnonzero(np.diff(words, prepend=-1))
        last = np.append(first[1:], words.size) - 1
        found[words[first]] = np.bitwise_or.reduceat(values << shifts, first)
        found[words[last] + 1] |= values[last] >> np.uint64(1) >> (np.uint64(63) - shifts[last])
        self._bytes.append(found.astype("<u8").view(np.uint8)[: -(-int(ends[-1]) // 8)])
