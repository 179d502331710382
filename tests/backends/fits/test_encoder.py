"""What an image becomes before it goes into a FITS file, and how it travels between processes."""

from __future__ import annotations

import numpy as np
import pytest

from wustore.backends.fits.capsule import Block
from wustore.backends.fits.encoder import CanonicalEncoder, CapsuleEncoder, Hdus, Made
from wustore.backends.fits.kbmod_hdus import FitsOptions
from wustore.errors import CorruptError
from wustore.model.compare import same_bits
from wustore.model.meta import LAYERS, Image
from wustore.testing import sample

SOURCE = sample("simple")


def canonical(*, sharded: bool = False) -> CanonicalEncoder:
    return CanonicalEncoder(SOURCE.meta, FitsOptions(), sharded)


def test_canonical_hdus_come_back_from_their_piece() -> None:
    encoder, image = canonical(), SOURCE.image(0)
    made = encoder.make(0, image)
    found = encoder.parse(encoder.encode(0, image))
    assert isinstance(found, Hdus)
    assert found.pieces == [b"".join(made.pieces)]
    assert found.losses == made.losses
    assert len(found.pieces[0]) % 2880 == 0


def test_an_image_without_its_piece_of_the_capsule() -> None:
    with pytest.raises(CorruptError, match="lacks a piece") as raised:
        CapsuleEncoder(b"").make(2, SOURCE.image(0))
    assert raised.value.where == "image 2"


class Given(CapsuleEncoder):
    """Makes what it is given."""

    made: Made

    def make(self, i: int, image: Image, capsule: bytes | None = None) -> Made:  # type: ignore[override]
        return self.made


def given(made: Made) -> tuple[Given, bytes]:
    encoder = Given(b"")
    object.__setattr__(encoder, "made", made)
    return encoder, encoder.encode(0, SOURCE.image(0))


def test_blocks_and_changed_images_come_back() -> None:
    blocks = [Block(0, 2880, b"abc", 1, "SCI_0"), Block(1, 0, b"", -1, ""), Block(0, 5760, b"de", 0, "é")]
    encoder, piece = given(blocks)
    assert encoder.parse(piece) == blocks
    image = SOURCE.image(1)
    encoder, piece = given(image)
    found = encoder.parse(piece)
    assert isinstance(found, Image)
    for layer in LAYERS:
        mine, other = image.layer(layer), found.layer(layer)
        assert (mine is None) == (other is None)
        assert mine is None or same_bits(np.asarray(mine), np.asarray(other))


def test_pieces_of_another_kind_or_damaged_ones_are_refused() -> None:
    encoder, piece = given([Block(0, 0, b"abc", 1, "SCI_0")])
    with pytest.raises(CorruptError, match="in another way"):
        canonical().parse(piece)
    with pytest.raises(CorruptError, match="in another way"):
        encoder.parse(canonical().encode(0, SOURCE.image(0)))
    for bad in (piece.replace(b'"list"', b'"None"'), piece[:-1], piece[:20], b""):
        with pytest.raises(CorruptError):
            encoder.parse(bad)
