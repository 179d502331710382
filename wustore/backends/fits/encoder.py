"""What an image becomes before it goes into a file: the bytes of its HDUs.

An encoder needs no file, so it works in any thread and process. What it makes can be kept as one piece of bytes
(`ImageEncoder.encode`) and taken apart again (`ImageEncoder.parse`), with nothing in it that is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Encoder
from wustore.backends.fits.capsule import Block, ChangedError, regenerate
from wustore.backends.fits.fidelity import image_losses
from wustore.backends.fits.kbmod_hdus import FitsOptions, image_hdus, kbmod_mask
from wustore.errors import CorruptError, FormatError
from wustore.format.arrays import ArraySpec
from wustore.format.packed import pack, unpack
from wustore.model.meta import LAYERS, Image, Meta, object_array

__all__ = ["CanonicalEncoder", "CapsuleEncoder", "Hdus", "ImageEncoder", "Made"]


@dataclass(frozen=True)
class Hdus:
    """The HDUs of an image in KBMOD's layout, one behind the other in pieces, and what they lose."""

    pieces: list[bytes | memoryview]
    losses: list[str]


Made = Hdus | list[Block] | Image
"""Canonical HDUs; regenerated ones with their places; or the image itself, whose pixels were changed since."""


class ImageEncoder(Encoder):
    """Makes the bytes of images.

    Attributes
    ----------
    makes
        What `make` may return.
    """

    makes: ClassVar[tuple[type, ...]]

    def make(self, i: int, image: Image, capsule: bytes | None = None) -> Made:
        """Make what goes into the file; arguments as for `wustore.backends.base.Writer.write`."""
        raise NotImplementedError

    def encode(self, i: int, image: Image, capsule: bytes | None = None) -> bytes:
        """Make it as one piece of bytes; see `wustore.backends.base.Encoder.encode`."""
        made = self.make(i, image, capsule)
        kind = type(made).__name__
        arrays = {"kind": object_array([kind]), **_ARRAYS[kind](made)}
        return pack(ArraySpec(name, array, (name,)) for name, array in arrays.items()).data.tobytes()

    def parse(self, piece: bytes) -> Made:
        """Return what `make` made.

        Raises
        ------
        CorruptError
            If the piece is damaged, or was made by another encoder.
        """
        arrays = unpack(np.frombuffer(piece, np.uint8))
        try:
            made = _MADE[arrays["kind"].item()](arrays)
        except (KeyError, ValueError, TypeError) as error:
            raise CorruptError("an encoded image is damaged", found=repr(error)) from error
        if not isinstance(made, self.makes):
            raise CorruptError("an image was encoded in another way than it is to be written", found=type(made))
        return made


@dataclass(frozen=True)
class CanonicalEncoder(ImageEncoder):
    """Makes the HDUs of KBMOD's current layout.

    Attributes
    ----------
    sharded
        Whether each image has a file of its own.
    """

    makes: ClassVar[tuple[type, ...]] = (Hdus,)
    meta: Meta
    options: FitsOptions
    sharded: bool

    def make(self, i: int, image: Image, capsule: bytes | None = None) -> Hdus:
        """Make the HDUs, and say what of the pixels they lose."""
        losses: list[str] = []
        mask, infinite = (None, None) if self.options.exact else kbmod_mask(image)
        if not self.options.exact or self.options.quantize_level != 0:
            losses += image_losses(i, image, self.options, infinite)
        return Hdus(list(image_hdus(self.meta, i, image, self.options, mask, sharded=self.sharded)), losses)


@dataclass(frozen=True)
class CapsuleEncoder(ImageEncoder):
    """Makes the HDUs that an image was imported from.

    Attributes
    ----------
    template
        See `wustore.backends.fits.capsule.Head`.
    """

    makes: ClassVar[tuple[type, ...]] = (list, Image)
    template: bytes

    def make(self, i: int, image: Image, capsule: bytes | None = None) -> list[Block] | Image:
        """Make the HDUs with their places, or return the image if it is not what was imported."""
        if capsule is None:
            raise CorruptError("the FITS capsule lacks a piece", where=f"image {i}")
        try:
            return list(regenerate(capsule, i, image, self.template))
        except ChangedError:
            return image


# --- as arrays ----------------------------------------------------------------------------------------

_Arrays = Mapping[str, NDArray[Any]]


def _bytes(pieces: Sequence[bytes | memoryview]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(pieces), np.uint8)


def _blocks_from(arrays: _Arrays) -> list[Block]:
    data = arrays["data"].tobytes()
    ends = np.cumsum(arrays["size"]).tolist()
    if ends and (ends[-1] != len(data) or arrays["size"].min() < 0):
        raise FormatError("the HDUs have the wrong size", expected=ends[-1], found=len(data))
    columns = (arrays[name].tolist() for name in ("file", "offset", "layer", "name"))
    return [
        Block(file, offset, data[start:end], layer, name)
        for start, end, file, offset, layer, name in zip([0, *ends[:-1]], ends, *columns, strict=True)
    ]


def _image_from(arrays: _Arrays) -> Image:
    return Image(arrays["science"], arrays["variance"], arrays.get("mask"), arrays.get("psf"))


_ARRAYS: dict[str, Callable[[Any], dict[str, NDArray[Any]]]] = {
    "Hdus": lambda made: {"data": _bytes(made.pieces), "losses": object_array(made.losses)},
    "list": lambda blocks: {
        "data": _bytes([block.data for block in blocks]),
        "size": np.array([len(block.data) for block in blocks], np.int64),
        "file": np.array([block.file for block in blocks], np.int64),
        "offset": np.array([block.offset for block in blocks], np.int64),
        "layer": np.array([block.layer for block in blocks], np.int64),
        "name": object_array([block.name for block in blocks]),
    },
    "Image": lambda image: {name: plane for name in LAYERS if (plane := image.layer(name)) is not None},
}

_MADE: dict[str, Callable[[_Arrays], Made]] = {
    "Hdus": lambda arrays: Hdus([arrays["data"].tobytes()], [str(text) for text in arrays["losses"].tolist()]),
    "list": _blocks_from,
    "Image": _image_from,
}
