"""Writing FITS files again from their reconstruction data: the identical files, or the same HDUs in another form."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from wustore.backends.base import Writer
from wustore.backends.fits.capsule import Block, Head
from wustore.backends.fits.encoder import CapsuleEncoder
from wustore.backends.fits.files.output import Output
from wustore.backends.fits.hdu.header import CARD
from wustore.backends.fits.hdu.header_writer import HeaderText, card, padding
from wustore.backends.fits.hdu.image import Plane
from wustore.backends.fits.hdu.scan import scan
from wustore.backends.fits.kbmod_hdus import FitsOptions
from wustore.backends.fits.parallel_writer import CanonicalWriter, InOrder, ParallelWriter
from wustore.errors import CorruptError, FidelityError
from wustore.model.meta import LAYERS, Capsule, Image, Meta

__all__ = ["OuterChangedWarning", "StoreChangedWarning"]


class StoreChangedWarning(UserWarning):
    """A store's content is not what was imported, so the original files cannot be given back."""


class OuterChangedWarning(UserWarning):
    """A file that was compressed as a whole comes back with the identical content, but packed in another way."""


def warn_changed(reason: str) -> None:
    warnings.warn(
        f"the original files cannot be given back: {reason}; KBMOD's canonical layout is written, losing nothing",
        StoreChangedWarning,
        stacklevel=4,
    )


def _warn_repacked(names: list[str]) -> None:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    warnings.warn(
        f"{names[0]}{more}: the FITS file inside is the identical one, the compressed file around it is not, because "
        "the settings of its compressor are not known",
        OuterChangedWarning,
        stacklevel=4,
    )


class _FromCapsule(ParallelWriter):
    """Regenerates HDUs from a capsule; falls back to the canonical layout if the pixels were changed."""

    keeps_capsule = True
    _same_files: ClassVar[bool]
    """Whether the files come out as they were imported, and not only their HDUs."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: Meta,
        capsule: Capsule,
        options: FitsOptions,
        *,
        sharded: bool,
        overwrite: bool,
        workers: int | None,
    ) -> None:
        self._head = Head.decode(capsule.head)
        self._files = capsule.document["files"]
        originals = self._files if self._same_files else ()
        output = Output(path, meta.n_images if sharded else None, overwrite=overwrite, originals=originals)
        super().__init__(meta.n_images, CapsuleEncoder(self._head.template), output, workers)
        self._fallback: Writer | None = None
        self._canonical = partial(
            CanonicalWriter, path, meta, options, sharded=sharded, overwrite=overwrite, workers=workers
        )
        self._done: dict[int, list[tuple[int, int, int, int]]] = {}

    def _blocks(self, i: int, blocks: list[Block]) -> Iterator[tuple[int, int, Block]]:
        """Yield file number, offset and block."""
        raise NotImplementedError

    def _store(self, i: int, made: list[Block] | Image) -> None:
        if self._fallback is not None:
            self._fallback.write(i, made if isinstance(made, Image) else self._image([(b, b.layer) for b in made]))
            return
        if isinstance(made, Image):
            self._fall_back(i)
            self._store(i, made)
            return
        places = self._done[i] = []
        for number, offset, block in self._blocks(i, made):
            self._output.write_at(number, offset, block.data)
            places.append((number, offset, len(block.data), block.layer))

    def _image(self, blocks: list[tuple[Any, int]]) -> Image:
        """Decode an image from its HDUs."""
        planes: dict[str, Any] = {}
        for block, layer in blocks:
            if layer >= 0 and LAYERS[layer] not in planes:
                data = block.data if isinstance(block, Block) else block
                hdu = scan(_as_file(data), "").hdus[-1]
                planes[LAYERS[layer]] = Plane(hdu, "").read(_as_file(data))
        return Image(planes["science"], planes["variance"], planes.get("mask"), planes.get("psf"))

    def _fall_back(self, i: int) -> None:
        warn_changed(f"the pixels of image {i} were changed after the import")
        self._fallback = self._canonical()
        for done, places in sorted(self._done.items()):
            self._fallback.write(
                done,
                self._image([(self._output.read_at(n, at, size), layer) for n, at, size, layer in places]),
            )
        self._output.abort()

    def commit(self) -> None:
        """Let the files appear; see `wustore.backends.base.Writer.commit`."""
        with self._lock:
            while self._pending:
                self._next()
            if self._fallback is None:
                super().commit()
                if self._output.repacked:
                    _warn_repacked(self._output.repacked)
                return
            self._ended = True
            self._pool.shutdown()
            self._fallback.commit()

    def abort(self) -> None:
        """Drop everything; see `wustore.backends.base.Writer.abort`."""
        super().abort()
        if self._fallback is not None:
            self._fallback.abort()


_EMPTY_PRIMARY = HeaderText(
    [
        ("SIMPLE", True, "conforms to FITS standard"),
        ("BITPIX", 8, "array data type"),
        ("NAXIS", 0, "number of array dimensions"),
        ("EXTEND", True),
    ]
).block()
"""What astropy puts before a first HDU that cannot be a primary one."""


def _as_file(hdu: bytes) -> bytes:
    return hdu if hdu.startswith(b"SIMPLE") else _EMPTY_PRIMARY + hdu


class RestoringWriter(_FromCapsule):
    """Gives the identical files back, verified against their recorded sha256."""

    _same_files = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._covered = [0] * len(self._files)
        try:
            for number, offset, data in self._head.segments:
                self._put(number, offset, data)
        except BaseException:
            self.abort()
            raise

    def _put(self, number: int, offset: int, data: bytes) -> None:
        if not 0 <= number < len(self._files) or not 0 <= offset <= self._files[number]["size"] - len(data):
            raise CorruptError("the FITS capsule is damaged", where=f"file {number}, byte {offset}")
        self._output.write_at(number, offset, data)
        self._covered[number] += len(data)

    def _blocks(self, i: int, blocks: list[Block]) -> Iterator[tuple[int, int, Block]]:
        for block in blocks:
            size = self._files[block.file]["size"] if 0 <= block.file < len(self._files) else -1
            if not 0 <= block.offset <= size - len(block.data):
                raise CorruptError("the FITS capsule is damaged", where=f"image {i}, HDU {block.name}")
            self._covered[block.file] += len(block.data)
            yield block.file, block.offset, block

    def _finish(self) -> None:
        for number, entry in enumerate(self._files):
            if self._covered[number] == entry["size"] and self._output.sha256(number) == entry["sha256"]:
                continue
            raise FidelityError(
                "a file does not come out as it was imported, though each of its HDUs does",
                path=self._output.target,
                where=str(entry.get("name")),
                expected=f"sha256 {entry['sha256']} over {entry['size']} bytes",
                found=f"{self._covered[number]} bytes written",
                hint="Export with --no-capsule.",
            )


class TranscribingWriter(_FromCapsule):
    """Moves the HDUs of a single file into a sharded set, or the other way round, unchanged."""

    _same_files = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._sharded = bool(keywords["sharded"])
        self._order = InOrder(self._output, 0)
        try:
            head = _whole_hdus([data for _, _, data in self._head.segments])
            self._order.offset = self._output.write_at(0, 0, head)
        except BaseException:
            self.abort()
            raise

    def _blocks(self, i: int, blocks: list[Block]) -> Iterator[tuple[int, int, Block]]:
        return iter(())  # pragma: no cover - `_store` places the blocks itself

    def _store(self, i: int, made: list[Block] | Image) -> None:
        if self._fallback is not None or isinstance(made, Image):
            super()._store(i, made)
            return
        blocks = [b for b in made if b.name != "trailing bytes" and not (b.layer < 0 and _is_empty(b.data))]
        if not blocks:
            raise CorruptError("the FITS capsule is damaged", where=f"image {i}", found="no HDU")
        pieces = [block.data + bytes(padding(len(block.data))) for block in blocks]
        number, at = (1 + i if self._sharded else 0), 0
        if not self._sharded:
            pieces = [_as_extension(piece) for piece in pieces]
            self._order.add(i, pieces)  # where it stands is known when all before it are there: see `_fall_back`
        else:
            if not pieces[0].startswith(b"SIMPLE"):
                at = self._output.write_at(number, 0, _EMPTY_PRIMARY)
            self._output.write_at(number, at, *pieces)
        self._done[i] = []
        for block, piece in zip(blocks, pieces, strict=True):
            self._done[i].append((number, at, len(piece), block.layer))
            at += len(piece)

    def _fall_back(self, i: int) -> None:
        if not self._sharded and self._done:
            self._order.append_all()
            for done, places in self._done.items():
                start = self._order.starts[done]
                self._done[done] = [(number, start + at, size, layer) for number, at, size, layer in places]
        self._order.close()
        super()._fall_back(i)

    def _finish(self) -> None:
        self._order.close()

    def abort(self) -> None:
        """Drop everything; see `wustore.backends.base.Writer.abort`."""
        super().abort()
        self._order.close()


def _is_empty(hdu: bytes) -> bool:
    """Return whether an HDU is the empty primary one that astropy adds by itself."""
    return hdu.startswith(b"SIMPLE") and hdu.rstrip(b" ") == _EMPTY_PRIMARY.rstrip(b" ")


def _whole_hdus(segments: list[bytes]) -> bytes:
    """Join what belongs to no image, without bytes behind the last HDU, padded to whole blocks."""
    joined = b"".join(segments)
    end = scan(joined, "").trailing_start
    return joined[:end] + bytes(padding(end))


_STRUCTURE = re.compile(r"(SIMPLE|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT) *")


def _as_extension(hdu: bytes) -> bytes:
    """Return a primary HDU with an image as an image extension: other first cards, all others unchanged."""
    if not hdu.startswith(b"SIMPLE"):
        return hdu
    found = scan(hdu, "").hdus[0]
    images = [found.header.text[at : at + CARD] for at in range(0, len(found.header.text), CARD)]
    structure = [image for image in images if _STRUCTURE.fullmatch(image[:8]) and image[:6] not in ("SIMPLE", "EXTEND")]
    counts = [image for image in structure if image[:6] in ("PCOUNT", "GCOUNT")]
    if not counts:
        counts = [card("PCOUNT", 0, "number of parameters"), card("GCOUNT", 1, "number of groups")]
    axes = [image for image in structure if image[:6] not in ("PCOUNT", "GCOUNT")]
    rest = [image for image in images if not _STRUCTURE.fullmatch(image[:8])]
    text = "".join([card("XTENSION", "IMAGE", "Image extension"), *axes, *counts, *rest, "END".ljust(CARD)])
    block = text + " " * padding(len(text))
    return block.encode("latin-1") + hdu[found.data_start :]
