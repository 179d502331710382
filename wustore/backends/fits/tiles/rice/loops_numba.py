"""The inner loops of Rice-coded tiles, compiled by numba: many rows a call, without the interpreter lock.

They do what `rice.coder` and `tiles.quantize` do by other means, for the most common tiles: 4-byte integers, and floats
quantised without dithering. Results are equal bit for bit. `rice.coder` decides when this module is imported, because
compiling has to pay.

The coding is described in section 10.4.1 of the FITS standard 4.0. Measured on a 2048 x 2048 science plane
written with KBMOD's defaults, one thread, in one run: the Rice code is decoded in 10 ms and made in 5, where cfitsio's
coder, called a row at a time, takes 27 and 35.
"""

from __future__ import annotations

from wustore.backends.fits.tiles.rice.decode_numba import PADDING, decode_floats, decode_integers
from wustore.backends.fits.tiles.rice.encode_numba import encode_floats, encode_floats_again, encode_integers

__all__ = ["PADDING", "decode_floats", "decode_integers", "encode_floats", "encode_floats_again", "encode_integers"]
