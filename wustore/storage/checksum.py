"""The checksum of stored bytes: CRC-32C."""

from __future__ import annotations

import google_crc32c

__all__ = ["crc32c"]


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C (RFC 3720) of some bytes."""
    return int(google_crc32c.value(data))
