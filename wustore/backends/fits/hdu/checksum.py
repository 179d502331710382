"""The cards CHECKSUM and DATASUM, held against the bytes: FITS standard 4.0, section 4.4.2.7 and appendix J."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wustore.backends.fits.hdu.header import CARD
from wustore.backends.fits.hdu.header_writer import card, padding
from wustore.backends.fits.hdu.scan import Buffer, Hdu, header_end
from wustore.storage.buffers import release

__all__ = ["has_sums", "with_sums", "wrong_sums"]

_STEP = 1 << 24
"""Bytes that are added up at a time; a multiple of 4."""

_WHY = "the HDU was changed after the card was written, by damage or by a program that left the card as it was"


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


def has_sums(hdu: Hdu) -> bool:
    """Return whether an HDU carries a sum of its data or of all its bytes."""
    return any(hdu.header.get(keyword) not in {None, ""} for keyword in ("DATASUM", "CHECKSUM"))


def wrong_sums(data: Buffer, hdu: Hdu) -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong there) for the sums of an HDU that are not those of its bytes.

    A card that is missing, or empty, which the standard says if nothing was computed, says nothing.

    Parameters
    ----------
    hdu
        Where the HDU lies.
    """
    noted, claimed = (hdu.header.get(keyword) for keyword in ("DATASUM", "CHECKSUM"))
    if not has_sums(hdu):
        return
    total = _added(data, hdu.data_start, hdu.end)
    # Some writers leave out the quotes of the number.
    if noted not in {None, ""} and str(noted).strip() != str(total):
        yield f"{hdu.place}, card DATASUM", f"expected {total}; found {noted}: {_WHY}"
    if claimed not in {None, ""}:
        total = _added(data, hdu.header_start, hdu.data_start, total)
        # The card is chosen so that the sum of all bytes is minus zero.
        if total not in {0, 0xFFFFFFFF}:
            yield f"{hdu.place}, card CHECKSUM", f"expected a sum of 0xffffffff; found {total:#010x}: {_WHY}"


_PUNCTUATION = frozenset((*range(0x3A, 0x41), *range(0x5B, 0x61)))
"""Characters between the digits and letters of ASCII, which the text of a sum avoids."""


def _text_of(total: int) -> str:
    """Return the 16 characters that make a sum of ``total`` minus zero (appendix J.2)."""
    rows = []
    for byte in (0xFFFFFFFF - total).to_bytes(4, "big"):
        quarter, rest = divmod(byte, 4)
        row = [quarter + rest + 0x30, quarter + 0x30, quarter + 0x30, quarter + 0x30]
        for pair in (0, 2):
            while row[pair] in _PUNCTUATION or row[pair + 1] in _PUNCTUATION:
                row[pair] += 1
                row[pair + 1] -= 1
        rows.append(row)
    text = "".join(chr(row[k]) for k in range(4) for row in rows)
    return text[-1] + text[:-1]


def with_sums(hdu: bytes) -> bytes:
    """Return an HDU, padded to whole blocks, with the cards CHECKSUM and DATASUM at the end of its header."""
    end = header_end(hdu, 0, len(hdu))
    data = hdu[end + CARD + padding(end + CARD) :]
    cards = [
        hdu[:end].decode("ascii"),
        card("CHECKSUM", "0" * 16, "HDU checksum"),
        card("DATASUM", str(_added(data, 0, len(data))), "data unit checksum"),
        "END".ljust(CARD),
    ]
    text = "".join(cards)
    header = (text + " " * padding(len(text))).encode("ascii")
    total = _added(header + data, 0, len(header) + len(data))
    return header.replace(b"'" + b"0" * 16 + b"'", f"'{_text_of(total)}'".encode("ascii"), 1) + data
