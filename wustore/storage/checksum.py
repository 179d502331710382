"""The checksum of stored bytes: CRC-32C."""

from __future__ import annotations

from collections.abc import Callable

import google_crc32c

__all__ = ["crc32c"]


crc32c: Callable[[bytes], int] = google_crc32c.value
"""Return the CRC-32C (RFC 3720) of some bytes, with the interpreter lock released."""
