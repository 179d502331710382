"""Readers over another reader: one that passes everything on, and one that checks every image that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore.backends.base import Index, Reader
from wustore.errors import CorruptError
from wustore.format.planes import plane_checksums, plane_problems
from wustore.model.meta import LAYERS, Capsule, Image, Meta

__all__ = ["CheckedReader", "ReaderProxy"]


class ReaderProxy(Reader):
    """A reader that gives what another one gives; closing it leaves the other one open."""

    def __init__(self, source: Reader) -> None:
        self.source = source
        self.format = source.format
        self.path = source.path

    @property
    def meta(self) -> Meta:
        """The metadata of the other reader."""
        return self.source.meta

    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:  # noqa: D102
        return self.source.read(layer, index, out)

    def read_boxes(  # noqa: D102
        self, layer: str, boxes: Sequence[Index], out: Sequence[NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        return self.source.read_boxes(layer, boxes, out)

    def read_layers(  # noqa: D102
        self, wanted: Sequence[tuple[str, Sequence[Index], Sequence[NDArray[Any]]]]
    ) -> None:
        self.source.read_layers(wanted)

    def fills_chunks(self, layer: str) -> bool:  # noqa: D102
        return self.source.fills_chunks(layer)

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:  # noqa: D102
        return self.source.image(i, layers)

    def images_at_once(self, n_images: int) -> int | None:  # noqa: D102
        return self.source.images_at_once(n_images)

    def chunks(self, layer: str) -> tuple[int, int, int]:  # noqa: D102
        return self.source.chunks(layer)

    def capsule(self) -> Capsule | None:  # noqa: D102
        return self.source.capsule()

    def image_capsule(self, i: int, image: Image | None = None) -> bytes | None:  # noqa: D102
        return self.source.image_capsule(i, image)

    def checksums(self) -> NDArray[np.uint32] | None:  # noqa: D102
        return self.source.checksums()

    def document(self) -> Mapping[str, Any] | None:  # noqa: D102
        return self.source.document()

    def audit(self) -> Iterator[tuple[str, str]]:  # noqa: D102
        return self.source.audit()

    def foreign(self) -> Iterator[str]:  # noqa: D102
        return self.source.foreign()

    def places(self) -> list[str]:  # noqa: D102
        return self.source.places()

    def state(self) -> str:  # noqa: D102
        return self.source.state()

    def check_state(self) -> None:  # noqa: D102
        self.source.check_state()

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return self.source.describe()


class CheckedReader(ReaderProxy):
    """A reader that holds every image against the metadata and against the stored checksums of its planes.

    Whoever copies reads through it: the bytes of a misplaced chunk are whole in themselves, and a copy would get
    checksums of its own. The checksums are handed on with the image, so that a writer does not compute them again.
    """

    def __init__(self, source: Reader) -> None:
        super().__init__(source)
        self._sums = source.checksums()

    def _checked(self, i: int, image: Image, layers: Sequence[str]) -> Image:
        if self._sums is not None:
            image = replace(image, checksums=plane_checksums(image))
        for wrong in plane_problems(self.meta, i, image, self._sums, layers):
            self.check_state()
            raise CorruptError(
                wrong.what,
                path=self.path,
                where=f"image {i}, {wrong.layer}",
                expected=wrong.expected,
                found=wrong.found,
                hint="Restore the store from a copy, or save what is whole with wustore repair.",
            )
        return image

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read one image and check it.

        Raises
        ------
        CorruptError
            If a plane has another shape, dtype or checksum than the store says.
        """
        return self._checked(i, self.source.image(i, layers), layers)

    def images(
        self, indices: Iterable[int] | None = None, layers: Sequence[str] = LAYERS, *, workers: int | None = None
    ) -> Iterator[tuple[int, Image]]:
        """Yield (i, image), each checked; see `wustore.backends.base.Reader.images`."""
        for i, image in self.source.images(indices, layers, workers=workers):
            yield i, self._checked(i, image, layers)
