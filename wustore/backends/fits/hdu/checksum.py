"""The cards CHECKSUM and DATASUM, held against the bytes: FITS standard 4.0, section 4.4.2.7 and appendix J."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wustore.backends.fits.hdu.scan import Buffer, Hdu
from wustore.storage.buffers import release

__all__ = ["wrong_sums"]

_STEP = 1 << 24
"""Bytes that are added up at a time; a multiple of 4."""

_CURE = "the HDU was changed after the card was written, by damage or by a program that left the card as it was"


def _added(data: Buffer, start: int, stop: int, total: int = 0) -> int:
    """Add bytes to a 32-bit one's complement sum, as big-endian words; a last one that is cut short ends in zeros."""
    view = memoryview(data)
    for low in range(start, stop, _STEP):
        high = min(low + _STEP, stop)
        whole = low + (high - low) // 4 * 4
        total += int(np.frombuffer(view[low:whole], ">u4").sum(dtype=np.uint64))
        if whole < high:
            total += int.from_bytes(bytes(view[whole:high]).ljust(4, b"\0"), "big")
        release(data, low, high)
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def wrong_sums(data: Buffer, hdu: Hdu) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong there) for the sums of an HDU that are not those of its bytes.

    A card that is missing, or empty as the standard wants it where nothing was computed, says nothing.

    Parameters
    ----------
    data
        All bytes of the file.
    hdu
        Where the HDU lies.
    """
    noted, claimed = (hdu.header.get(keyword) for keyword in ("DATASUM", "CHECKSUM"))
    if noted in {None, ""} and claimed in {None, ""}:
        return
    total = _added(data, hdu.data_start, hdu.end)
    # Some writers leave out the quotes of the number.
    if noted not in {None, ""} and str(noted).strip() != str(total):
        yield f"{hdu.place}, card DATASUM", f"expected {total}; found {noted}: {_CURE}"
    if claimed not in {None, ""}:
        total = _added(data, hdu.header_start, hdu.data_start, total)
        # The card is chosen so that the sum of all bytes is minus zero.
        if total not in {0, 0xFFFFFFFF}:
            yield f"{hdu.place}, card CHECKSUM", f"expected a sum of 0xffffffff; found {total:#010x}: {_CURE}"
