"""Every tile-compressed plane of the KBMOD corpus: astropy's values, and the same bytes when built again."""

from __future__ import annotations

import bz2
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from numpy.typing import NDArray
from tile_reference import assert_same

from wustore.backends.fits.tiles import LOSSLESS, TileLayout, decode_plane, reencode_plane, tile_bytes
from wustore.backends.fits.tiles.gzip import GzipParameters, recognise_gzip
from wustore.backends.fits.tiles.layout import Table

pytestmark = pytest.mark.usefixtures("coder")

OPENERS: dict[str, Any] = {".gz": gzip.decompress, ".bz2": bz2.decompress}
#: 1100 images of 8 x 6 pixels take astropy minutes and show nothing that the others do not.
LEFT_OUT = "n_1100"


def planes(path: Path) -> Iterator[tuple[int, dict[str, Any], bytes, NDArray[Any]]]:
    """Number, cards, data and pixels of the tile-compressed HDUs of a file; those that are whole."""
    raw = OPENERS.get(path.suffix, bytes)(path.read_bytes())
    with (
        fits.open(io.BytesIO(raw), disable_image_compression=True, ignore_missing_end=True) as tables,
        fits.open(io.BytesIO(raw), ignore_missing_end=True) as images,
    ):
        for number, hdu in enumerate(tables):
            if hdu.header.get("ZIMAGE"):
                cards: dict[str, Any] = {}
                for card in hdu.header.cards:
                    cards.setdefault(card.keyword, card.value)
                start = hdu.fileinfo()["datLoc"]
                data = raw[start : start + cards["NAXIS1"] * cards["NAXIS2"] + cards["PCOUNT"]]
                if start + hdu.fileinfo()["datSpan"] <= len(raw):
                    yield number, cards, data, images[number].data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["head", "history", "real", "written"])
def test_corpus(corpus: Path, part: str) -> None:
    seen = 0
    for path in sorted((corpus / part).rglob("*.fits*")):
        if LEFT_OUT in path.name or path.suffix == ".txt":
            continue
        for number, cards, data, values in planes(path):
            layout = TileLayout.from_cards(cards)
            found = decode_plane(layout, data)
            assert_same(found, np.asarray(values))
            table = Table(layout, data)
            streams: dict[int, GzipParameters] = {}
            for tile in range(layout.n_tiles):
                kind, stored = tile_bytes(layout, data, tile)
                if kind == LOSSLESS or layout.compression.startswith("GZIP"):
                    parameters = recognise_gzip(stored)
                    assert parameters is not None
                    streams[tile] = parameters
            rebuilt = reencode_plane(layout, found, table.scalars("ZSCALE"), table.scalars("ZZERO"), gzip=streams)
            assert rebuilt == data, f"{path} HDU {number}"
            seen += 1
    assert seen > 0
