"""One image HDU: its shape and dtype from the header alone, and its pixels, all or a window.

Plain images follow the FITS standard 4.0, sections 3.3.2 and 4.4.2.5 (BSCALE, BZERO and the unsigned
conventions); tile-compressed ones are decoded by `wustore.backends.fits.tiles`. Values and dtypes equal those that
astropy gives as ``.data``, in native byte order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.fits import tiles
from wustore.backends.fits.hdu.header import BLOCK, CARD, Header
from wustore.backends.fits.hdu.scan import Buffer, Hdu
from wustore.backends.fits.tiles.dtypes import PIXEL_TYPES, UNSIGNED, flipped
from wustore.errors import CorruptError, FormatError, WuStoreError
from wustore.model.quiet import quiet
from wustore.storage import buffers

__all__ = ["Fetch", "Plane"]

Fetch = Callable[[Sequence[tuple[int, int]]], list[bytes]]
"""Function giving the bytes of ranges (start, stop) of a file."""


class Plane:
    """An image HDU of two dimensions.

    Attributes
    ----------
    shape
        (y, x).
    dtype
        Of the decoded pixels, native byte order.
    tile_shape
        (y, x) of the smallest part that can be decoded; one row for a plain image.

    Raises
    ------
    FormatError
        If it is not an image of two dimensions.
    CorruptError
        If its header holds what cannot be.
    """

    __slots__ = ("_layout", "_raw", "_way", "dtype", "hdu", "path", "shape")

    def __init__(self, hdu: Hdu, path: str) -> None:
        self.hdu = hdu
        self.path = path
        self._layout: tiles.TileLayout | None = None
        header = hdu.header
        if hdu.kind == "BINTABLE" and header.get("ZIMAGE") is True:
            self._from_tiles(header)
        elif hdu.kind in {"IMAGE", "PRIMARY"}:
            self._from_image(header)
        else:
            raise FormatError(
                "an HDU that should hold an image does not",
                path=path,
                where=hdu.place,
                expected="an image, plain or tile-compressed",
                found=hdu.kind or "no XTENSION",
            )

    def _axes(self, header: Header, prefix: str) -> tuple[int, int]:
        where = self.hdu.place
        n_axes = header.integer(f"{prefix}NAXIS", path=self.path, where=where)
        if n_axes != 2:
            raise FormatError(
                "an image HDU has not two dimensions", path=self.path, where=where, expected=2, found=n_axes
            )
        width, height = (header.integer(f"{prefix}NAXIS{axis}", path=self.path, where=where) for axis in (1, 2))
        if not (0 < width < 2**31 and 0 < height < 2**31):
            raise FormatError(
                "an image without pixels, or with more than can be",
                path=self.path,
                where=where,
                expected="from 1 to 2147483647 pixels along each axis",
                found=(height, width),
            )
        return height, width

    def _from_tiles(self, header: Header) -> None:
        self.shape = self._axes(header, "Z")
        # Floats keep their type whatever the scale; for integers it takes the whole layout to know.
        bitpix = header.integer("ZBITPIX", allowed=PIXEL_TYPES, path=self.path, where=self.hdu.place)
        kind = {-32: "f4", -64: "f8"}.get(bitpix)
        self.dtype = np.dtype(kind) if kind else self.layout().dtype
        self._way = "tiles"

    def _from_image(self, header: Header) -> None:
        self.shape = self._axes(header, "")
        path, where = self.path, self.hdu.place
        bitpix = header.integer("BITPIX", allowed=PIXEL_TYPES, path=path, where=where)
        scale = header.number("BSCALE", 1, path=path, where=where)
        zero = header.number("BZERO", 0, path=path, where=where)
        blank = header.blank if bitpix > 0 else None  # of floats it says nothing
        self._raw = np.dtype(PIXEL_TYPES[bitpix])
        self._way = "plain"
        self.dtype = self._raw.newbyteorder("=")
        if (scale, zero) == (1, 0) and blank is None:
            return
        self._way = "scaled"
        if bitpix > 0 and scale == 1 and (bitpix, zero) in UNSIGNED:
            self.dtype = np.dtype(UNSIGNED[bitpix, int(zero)])
            self._way = "unsigned" if blank is None else "scaled"
        elif bitpix > 0:
            self.dtype = np.dtype("f8" if bitpix > 16 else "f4")

    def layout(self) -> tiles.TileLayout:
        """Return the layout of a tile-compressed image."""
        if self._layout is None:
            try:
                layout = tiles.TileLayout.from_cards(self.hdu.header)
            except WuStoreError as error:
                raise self._placed(error) from error
            if layout.data_size > self.hdu.data_length:
                raise CorruptError(
                    "a tile-compressed table is longer than its data",
                    path=self.path,
                    where=self.hdu.place,
                    expected=layout.data_size,
                    found=self.hdu.data_length,
                )
            self._layout = layout
        return self._layout

    def _placed(self, error: WuStoreError) -> WuStoreError:
        """Give an error of a room that knows no files its place."""
        if error.path is None:
            error.path = self.path
            error.where = self.hdu.place if error.where is None else f"{self.hdu.place}, {error.where}"
        return error

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Shape (y, x) of the smallest part that can be decoded."""
        if self._way != "tiles":
            return 1, self.shape[1]
        height, width = self.layout().tile_shape
        return min(height, self.shape[0]), min(width, self.shape[1])

    @property
    def compression(self) -> str:
        """ZCMPTYPE, or ``none`` for a plain image."""
        return str(self.hdu.header.get("ZCMPTYPE", "none")).strip() if self._way == "tiles" else "none"

    def n_decoded(self, rows: slice, columns: slice) -> int:
        """Return how many pixels reading a window decodes."""
        if self._way == "tiles":
            return int(tiles.count_tiles(self.layout(), rows, columns).pixels)
        if self._way == "scaled":
            return self.shape[0] * self.shape[1]
        return int((rows.stop - rows.start) * (columns.stop - columns.start))

    def read(
        self, data: Buffer, rows: slice | None = None, columns: slice | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Decode the image or a window of it.

        Parameters
        ----------
        rows, columns
            Slices within the image, step 1; all by default.
        out
            C-contiguous array of the window's shape and `dtype` to fill.

        Returns
        -------
        ndarray
            C-contiguous, native byte order.

        Raises
        ------
        CorruptError
            If the compressed bytes are damaged.
        """
        start = self.hdu.data_start
        if self._way == "tiles":
            table = memoryview(data)[start : start + self.hdu.data_length]
            try:
                return tiles.decode_plane(self.layout(), table, rows=rows, columns=columns, out=out)
            except WuStoreError as error:
                raise self._placed(error) from error
        values = self._plain(data)[rows or slice(None), columns or slice(None)]
        if out is None:
            out = buffers.empty(values.shape, self.dtype)
        if self._way == "unsigned":
            flipped(values, out.view(f"u{out.dtype.itemsize}"))
        else:
            out[...] = values
        return out

    def read_ranges(
        self, fetch: Fetch, rows: slice | None = None, columns: slice | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Decode the image or a window of it from a file of which only what is needed is read; see `read`."""
        rows = slice(0, self.shape[0]) if rows is None else rows
        columns = slice(0, self.shape[1]) if columns is None else columns
        # Untouched pages of zeros take no memory: the table is as long as in the file, and holds what is needed.
        body = bytearray(self.hdu.data_length)

        def fill(ranges: Sequence[tuple[int, int]]) -> None:
            start = self.hdu.data_start
            for (low, high), part in zip(ranges, fetch([(start + a, start + b) for a, b in ranges]), strict=True):
                if len(part) != high - low:
                    raise CorruptError(
                        "the file ends inside an HDU",
                        path=self.path,
                        where=self.hdu.place,
                        expected=f"{high - low} bytes at {start + low}",
                        found=len(part),
                    )
                body[low:high] = part

        whole = rows == slice(0, self.shape[0]) and columns == slice(0, self.shape[1])
        if whole or self._way == "scaled":
            fill([(0, self.hdu.data_length)])
        elif self._way == "tiles":
            layout = self.layout()
            fill([(0, layout.row_size * layout.n_rows)])
            try:
                needed = tiles.heap_ranges(layout, body, rows=rows, columns=columns)
            except WuStoreError as error:
                raise self._placed(error) from error
            fill(needed)
        else:
            width = self.shape[1] * self._raw.itemsize
            fill([(rows.start * width, min(rows.stop * width, self.hdu.data_length))])
        alone = copy.copy(self)
        alone.hdu = replace(self.hdu, data_start=0)
        return alone.read(body, rows, columns, out)

    def _plain(self, data: Buffer) -> NDArray[Any]:
        """Return the pixels as they are stored, or if they are scaled as astropy gives them."""
        if self._way == "scaled":
            return self._by_astropy(data)
        height, width = self.shape
        if self._raw.itemsize * height * width > self.hdu.data_length:
            raise CorruptError(
                "an image is longer than its data",
                path=self.path,
                where=self.hdu.place,
                expected=self._raw.itemsize * height * width,
                found=self.hdu.data_length,
            )
        plane = np.frombuffer(data, dtype=self._raw, count=height * width, offset=self.hdu.data_start)
        return plane.reshape(height, width)

    def _by_astropy(self, data: Buffer) -> NDArray[Any]:
        from astropy.io import fits

        hdu = self.hdu
        text = hdu.header.text + "END".ljust(CARD)
        block = text.ljust(-(-len(text) // BLOCK) * BLOCK).encode("latin-1")
        body = bytes(memoryview(data)[hdu.data_start : hdu.data_start + hdu.data_length])
        kind = fits.PrimaryHDU if hdu.kind == "PRIMARY" else fits.ImageHDU
        try:
            with quiet(), np.errstate(all="ignore"):
                image = kind.fromstring(block + body + bytes(-len(body) % BLOCK))
                values: NDArray[Any] = np.asarray(image.data).astype(self.dtype)
        except Exception as error:  # whatever astropy stumbles over in a damaged header
            raise CorruptError(
                "a scaled image cannot be read",
                path=self.path,
                where=hdu.place,
                found=f"{type(error).__name__}: {error}"[:200],
            ) from error
        return values
