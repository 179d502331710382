"""How FITS files are written: the options of KBMOD's writer, checked."""

from __future__ import annotations

from dataclasses import dataclass

from wustore.errors import UsageError

__all__ = ["COMPRESSION_TYPES", "KBMOD_COLUMNS", "FitsOptions"]

COMPRESSION_TYPES = ("NOCOMPRESS", "RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1")

KBMOD_COLUMNS = ("data_loc", "ebd_wcs", "geocentric_distance", "per_image_wcs")
"""The columns that every WorkUnit of KBMOD has, in its order."""


@dataclass(frozen=True)
class FitsOptions:
    """How the pixels are written.

    Attributes
    ----------
    compression_type, quantize_level
        As KBMOD's ``to_fits`` takes them.
    exact
        Write every layer with its own dtype and values, and none that is absent (except the PSF, without which KBMOD
        cannot read the file), instead of what KBMOD makes of them.
    """

    compression_type: str = "RICE_1"
    quantize_level: float = -0.01
    exact: bool = False

    def __post_init__(self) -> None:
        if self.compression_type not in COMPRESSION_TYPES:
            raise UsageError(
                "an unknown compression type",
                where="compression_type",
                expected=", ".join(COMPRESSION_TYPES),
                found=repr(self.compression_type),
            )
        if self.compression_type == "HCOMPRESS_1" and self.quantize_level == 0:
            raise UsageError(
                "HCOMPRESS_1 without quantisation gives a file that nobody can read",
                where="quantize_level",
                hint="Use lossless=True (GZIP_2).",
            )
