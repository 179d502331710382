"""What an image becomes before it goes into a file, and how it travels between processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wustore.backends.hdf5.encoder import Encoder
from wustore.errors import CorruptError, FormatError, UsageError
from wustore.format.planes import plane_checksums
from wustore.model.meta import LAYERS
from wustore.testing import sample


def encoder(name: str = "chunked", chunks: tuple[int, int] | None = None, layout: str = "images") -> Encoder:
    return Encoder("a.h5", sample(name).meta, "portable", layout, chunks, 1)


def test_an_axis_is_cut_into_equal_parts_unless_sides_are_given() -> None:
    """600 x 530: two parts of 300 rows rather than 256, 256 and 88, so that no chunk is mostly filling."""
    assert encoder().layers[0].chunks == (1, 300, 530)
    given = encoder(chunks=(256, 600)).layers[0]
    assert given.chunks == (1, 256, 530)
    assert given.corners == [(0, 0), (256, 0), (512, 0)]


def test_pixels_outside_of_the_image_are_filling() -> None:
    made = encoder(chunks=(256, 600))
    science = made.layers[0]
    image = sample("chunked").image(0)
    skipped, stored = made.make(0, image).layers[0][2]
    raw = np.frombuffer(stored, np.uint8)
    decoded = science.pipeline.decode(raw, np.zeros(1, np.int64), np.array([raw.size]), np.array([skipped], np.uint32))
    out = np.empty(256 * 530, np.uint32)
    decoded.place(np.array([[0, 0, 0, 1, 256, 530, 256 * 530, 530]]), out)
    plane = out.view("f4").reshape(256, 530)
    assert np.array_equal(plane[:88].view("u4"), image.science[512:].view("u4"))
    assert np.isnan(plane[88:]).all()


def test_planes_that_an_image_does_not_have_are_one_chunk_of_filling() -> None:
    """All chunks of such a plane are the same object: it is encoded once."""
    source = sample("missing")
    made = Encoder("a.h5", source.meta, "portable", "images", (4, 4), 1)
    i = next(i for i in range(source.meta.n_images) if source.meta.dtypes["mask"][i] is None)
    k = [layer.spec.name for layer in made.layers].index("mask")
    chunks = made.make(i, source.image(i)).layers[k]
    assert len(chunks) > 1
    assert len({id(chunk) for chunk in chunks}) == 1


def test_an_encoded_image_comes_back_from_its_piece() -> None:
    made, image = encoder(), sample("chunked").image(1)
    encoded = made.make(1, image, b"capsule")
    found = made.parse(made.encode(1, image, b"capsule"))
    assert [list(layer) for layer in found.layers] == [list(layer) for layer in encoded.layers]
    assert found.capsule == b"capsule"
    assert list(found.checksums) == list(plane_checksums(image)) == list(encoded.checksums)
    assert found.size == encoded.size == sum(len(data) for layer in encoded.layers for _, data in layer)


def test_pieces_of_another_file_or_cut_ones_are_refused() -> None:
    piece = encoder().encode(0, sample("chunked").image(0))
    for other in (encoder(chunks=(64, 64)), encoder("simple")):
        with pytest.raises(CorruptError, match="an encoded image is damaged"):
            other.parse(piece)
    with pytest.raises(CorruptError):
        encoder().parse(piece[:-1])


def test_images_that_are_not_what_the_metadata_say() -> None:
    made, image = encoder(), sample("chunked").image(0)
    assert len(made.layers) == len(LAYERS)
    with pytest.raises(FormatError, match="image 0, science"):
        made.make(0, replace(image, science=image.science[:-1]))
    with pytest.raises(UsageError, match="no such image"):
        made.make(3, image)
