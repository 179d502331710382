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

import itertools
import struct
from functools import lru_cache
from typing import Any, cast

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wustore.backends.compiling import Loops, addresses_of

__all__ = [
    "BLOCK_HEADER",
    "CODE_BYTES",
    "HUFFMAN",
    "LARGEST_STORED",
    "LEAST_BYTES",
    "LONGEST_CODE",
    "REPEATED",
    "SAMPLES",
    "SAMPLE_BYTES",
    "STORED",
    "STORED_FROM",
    "TURNED",
    "code_table",
    "code_terms",
    "encode",
    "functions",
    "pack",
]

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
CODE_BYTES = 140
"""What a block's Huffman code takes, the bits of its header included."""

SAMPLES, SAMPLE_BYTES = 5, 2048
"""How much of a plane says whether it is noise: a smaller plane is looked at as a whole."""
LEAST_BYTES = 1024
"""Of a plane: the code of a smaller one takes more than it saves."""
REPEATED = 0.8
"""What repeated strings leave of Huffman's result at the most: planes of noise that follow do not outweigh that."""
STORED_FROM = 0.97
"""What a Huffman code must leave of a plane that is stored instead."""

_LOOPS = Loops("wustore.backends.hdf5.filters.deflate_numba", 1 << 24)
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


def pack(
    plane: NDArray[Any],
    shape: tuple[int, int],
    corners: NDArray[np.int64],
    level: int,
    *,
    is_shuffled: bool,
    is_summed: bool,
) -> tuple[list[bytes | memoryview], list[bool]] | None:
    """Encode chunks of a plane in one call without the interpreter lock, each as by itself.

    Parameters
    ----------
    plane
        C-contiguous, in the byte order of the file.
    shape, corners
        Of a chunk, and the first pixel (y, x) of each; they lie within the plane.
    is_shuffled, is_summed
        Whether there are the filters shuffle and fletcher32.

    Returns
    -------
    tuple of list, or None
        The stored bytes of each chunk, and whether it is not deflated, which would make it larger. None if there are
        no compiled loops, or libdeflate is not found.
    """
    loops = _LOOPS.get()
    found = None if loops is None else functions()
    if loops is None or found is None:
        return None
    item, n = plane.dtype.itemsize, len(corners)
    size = shape[0] * shape[1] * item
    # Chunks are no larger than their values and a checksum, but for the one that is tried.
    out = np.empty(n * (size + 4) + 2 * size + 8192, np.uint8)  # what is not touched takes no memory
    ends, skipped = np.zeros(n, np.int64), np.zeros(n, bool)
    values = shape[0] * shape[1] if is_shuffled else size
    terms = code_terms(min(values, SAMPLES * SAMPLE_BYTES))
    raw = plane.view(np.uint8).reshape(len(plane), -1)
    sides = np.array(shape, np.int64)
    if not loops.pack(found, level, raw, item, corners, sides, is_shuffled, is_summed, terms, out, ends, skipped):
        return None
    places = [0, *ends.tolist()]
    return [out.data[start:stop] for start, stop in itertools.pairwise(places)], skipped.tolist()


def functions() -> NDArray[np.intp] | None:
    """Return the addresses of libdeflate's functions, None if they are not found.

    What makes a compressor, deflates raw and as a zlib stream, bounds the size, makes an Adler-32, frees a compressor.
    """
    return addresses_of(
        ("imagecodecs._deflate", "libdeflate_alloc_compressor"),
        ("imagecodecs._deflate", "libdeflate_deflate_compress"),
        ("imagecodecs._deflate", "libdeflate_zlib_compress"),
        ("imagecodecs._deflate", "libdeflate_zlib_compress_bound"),
        ("imagecodecs._deflate", "libdeflate_adler32"),
        ("imagecodecs._deflate", "libdeflate_free_compressor"),
    )


@lru_cache(8)
def code_terms(size: int) -> NDArray[np.float64]:
    """Return how many bits all bytes of one value take in a Huffman code, by their number in a sample of this size."""
    counts = np.arange(1, size + 1)
    return np.concatenate([[0.0], counts * np.maximum(np.log2(size / counts), 1)])


def _packed(planes: NDArray[np.uint8], level: int, *, raw: bool) -> bytes:
    """Return what libdeflate makes of all bytes, as a zlib stream unless ``raw``."""
    return bytes(imagecodecs.deflate_encode(cast(Any, planes.reshape(-1)), level=level, raw=raw))


def _kinds(planes: NDArray[np.uint8], level: int) -> NDArray[np.int64]:
    """Return how to encode each of the first planes, those that are noise; samples of them decide."""
    sizes: list[float] = []
    count, gain, left = 0, 0.0, 0.0
    for plane in planes if planes.shape[1] >= LEAST_BYTES else ():
        coded, packed = _coded_and_packed(plane, level)
        sizes.append(coded)
        gain += packed - coded
        if gain > left:
            count, left = len(sizes), gain
        elif packed < REPEATED * coded:
            break
    kinds = np.full(count, HUFFMAN)
    for k in sorted(range(count), key=lambda k: -sizes[k]):
        left -= 1 - sizes[k]
        if left < 0 or sizes[k] < STORED_FROM:
            break
        kinds[k] = STORED
    return kinds


def _coded_and_packed(plane: NDArray[np.uint8], level: int) -> tuple[float, float]:
    """Return about how large a Huffman code alone and libdeflate make a plane, as parts of its size."""
    if plane.size <= SAMPLES * SAMPLE_BYTES:
        sample = plane
    else:
        starts = np.arange(1, 2 * SAMPLES, 2) * plane.size // (2 * SAMPLES) - SAMPLE_BYTES // 2
        sample = np.concatenate([plane[start : start + SAMPLE_BYTES] for start in starts.tolist()])
    share, counts = sample.size / plane.size, np.bincount(sample)
    counts = counts[counts > 0]
    coded = float(code_terms(sample.size)[counts].sum()) / 8 + share * CODE_BYTES
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
        return np.asarray(loops.blocks(planes, kinds, is_end))
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
