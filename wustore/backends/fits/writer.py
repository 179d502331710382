"""Writing FITS: the identical files from a capsule, KBMOD's own bytes, or an exact archive in KBMOD's layout."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, ClassVar, Literal

from wustore.backends.base import Writer
from wustore.backends.fits.capsule import ENCODING, Block, Head, meta_digest
from wustore.backends.fits.encoder import CanonicalEncoder, CapsuleEncoder, Hdus, ImageEncoder
from wustore.backends.fits.fidelity import FitsLossWarning, meta_losses, option_losses, warn_of
from wustore.backends.fits.files.output import Output
from wustore.backends.fits.hdu.header import CARD
from wustore.backends.fits.hdu.header_writer import HeaderText, card, padding
from wustore.backends.fits.hdu.image import Plane
from wustore.backends.fits.hdu.scan import scan
from wustore.backends.fits.kbmod_layout import FitsOptions, head_hdus
from wustore.backends.fits.reader import FitsReader
from wustore.backends.fits.wustore_hdu import read_wustore_hdu, wustore_hdu
from wustore.errors import CorruptError, FidelityError, IncompleteError, UsageError
from wustore.model.compare import meta_differences
from wustore.model.meta import LAYERS, Capsule, Image, Meta
from wustore.storage.threads import default_workers

__all__ = [
    "FitsLossWarning",
    "OuterChangedWarning",
    "StoreChangedWarning",
    "create",
    "encoder",
    "read_wustore_hdu",
]

Mode = Literal["archive", "kbmod"]

KBMOD_DEFAULTS = FitsOptions("RICE_1", -0.01)
LOSSLESS = FitsOptions("GZIP_2", 0)


class StoreChangedWarning(UserWarning):
    """A store's content is not what was imported, so the original files cannot be given back."""


class OuterChangedWarning(UserWarning):
    """A file that was compressed as a whole comes back with the identical content, but packed in another way."""


def create(
    path: str | os.PathLike[str],
    meta: Meta,
    *,
    capsule: Capsule | None = None,
    overwrite: bool = False,
    sharded: bool = False,
    compression_type: str | None = None,
    quantize_level: float | None = None,
    lossless: bool | None = None,
    mode: Mode = "archive",
    workers: int | None = None,
    **unknown: Any,
) -> Writer:
    """Start a FITS file or a sharded set.

    Parameters
    ----------
    path
        The file; of a sharded set the primary one, the shards are ``<i>_<name>`` beside it. A name that ends in .gz,
        .bz2 or .zip is compressed as a whole.
    meta
        Everything but the pixels.
    capsule
        FITS leftovers of an import. In mode ``archive``, and without options that ask for other bytes, the identical
        files are written.
    overwrite
        Whether existing files may be replaced; of a sharded set all of them.
    sharded
        One file for each image.
    compression_type, quantize_level
        As KBMOD's ``to_fits`` takes them. By default RICE_1 and -0.01 in mode ``kbmod``, and what loses nothing
        (GZIP_2 and 0) in mode ``archive``.
    lossless
        True for GZIP_2 without quantisation, which KBMOD reads exactly.
    mode
        ``archive``: nothing is lost; what KBMOD's layout cannot carry travels in an HDU ``WUSTORE`` of its own.
        ``kbmod``: exactly the bytes that KBMOD writes; losses are warned of by name.
    workers
        Threads that compress images, the number of processors by default.

    Raises
    ------
    StoreExistsError, StoreNotFoundError
    UsageError
        Options that cannot be meant.
    CorruptError
        The capsule is damaged.

    Notes
    -----
    Writing warns with `FitsLossWarning` of what does not fit (mode ``kbmod``), and with `StoreChangedWarning` where the
    store is no longer what was imported, so that the canonical form is written instead of the identical file, and with
    `OuterChangedWarning` where the file is identical, but not the .gz, .bz2 or .zip file around it.
    """
    how = _how(
        meta,
        capsule,
        compression_type=compression_type,
        quantize_level=quantize_level,
        lossless=lossless,
        mode=mode,
        **unknown,
    )
    arguments: dict[str, Any] = {"sharded": sharded, "overwrite": overwrite, "workers": workers}
    if how.capsule is not None:
        same = (how.capsule.document["form"] == "sharded-fits") == sharded
        kind = _Restored if same else _Transcribed
        return kind(path, meta, how.capsule, how.options, **arguments)
    if how.reason is not None:
        _warn_changed(how.reason)
    return _Canonical(path, meta, how.options, **arguments)


def encoder(meta: Meta, *, capsule: Capsule | None = None, sharded: bool = False, **options: Any) -> ImageEncoder:
    """Return what makes the bytes of images for the writer that `create` makes of the same arguments."""
    how = _how(meta, capsule, **options)
    if how.capsule is None:
        return CanonicalEncoder(meta, how.options, sharded)
    return CapsuleEncoder(Head.decode(how.capsule.head).template)


@dataclass(frozen=True)
class _How:
    """What is written.

    Attributes
    ----------
    options
        Of the pixels, in KBMOD's canonical layout.
    capsule
        What gives back the identical files; None where the canonical layout is written.
    reason
        Why the capsule that there is cannot be used.
    """

    options: FitsOptions
    capsule: Capsule | None = None
    reason: str | None = None


def _how(
    meta: Meta,
    capsule: Capsule | None,
    *,
    compression_type: str | None = None,
    quantize_level: float | None = None,
    lossless: bool | None = None,
    mode: Mode = "archive",
    **unknown: Any,
) -> _How:
    if unknown:
        raise UsageError("unknown options", where="FITS writer", found=", ".join(sorted(unknown)))
    if mode not in ("archive", "kbmod"):
        raise UsageError("an unknown mode", where="mode", expected="'archive' or 'kbmod'", found=repr(mode))
    default = LOSSLESS if lossless or (lossless is None and mode == "archive") else KBMOD_DEFAULTS
    if lossless and (compression_type, quantize_level) not in ((None, None), ("GZIP_2", 0)):
        raise UsageError(
            "lossless=True chooses the compression itself",
            where="compression_type, quantize_level",
            expected="neither",
            found=(compression_type, quantize_level),
        )
    options = FitsOptions(
        default.compression_type if compression_type is None else compression_type,
        default.quantize_level if quantize_level is None else quantize_level,
        exact=mode == "archive",
    )
    chosen = compression_type is not None or quantize_level is not None or lossless is not None
    if capsule is None or mode != "archive" or chosen:
        return _How(options)
    reason = _unusable(capsule, meta)
    return _How(options, capsule if reason is None else None, reason)


def _warn_changed(reason: str) -> None:
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


def _unusable(capsule: Capsule, meta: Meta) -> str | None:
    """Return why a capsule does not belong to this content, None where it does."""
    try:
        encoding, form, digest = (capsule.document[key] for key in ("encoding", "form", "meta"))
        files = capsule.document["files"]
        n_files = len(files)
        bad = any(not isinstance(entry["size"], int) or not isinstance(entry["sha256"], str) for entry in files)
    except (KeyError, TypeError) as error:
        raise CorruptError("the FITS capsule is damaged", where="document", found=repr(error)) from error
    if encoding != ENCODING:
        return f"its leftovers were recorded by another version of wustore (encoding {encoding}, not {ENCODING})"
    if digest != meta_digest(meta):
        return "the metadata were changed after the import"
    if bad or form not in ("fits", "sharded-fits") or n_files != (1 if form == "fits" else 1 + meta.n_images):
        raise CorruptError("the FITS capsule is damaged", where="document", found=f"{n_files} files, form {form!r}")
    return None


class _Parallel(Writer):
    """Compresses images in threads, at most ``workers`` + 1 of them at a time, and hands the results on.

    Parameters
    ----------
    n_images
        Images that must come before `commit`.
    encoder
        What makes their bytes.
    output
        Where they go.
    workers
        Threads.
    """

    def __init__(self, n_images: int, encoder: ImageEncoder, output: Output, workers: int | None) -> None:
        self._n_images = n_images
        self._encoder = encoder
        self._output = output
        self._workers = default_workers() if workers is None else max(1, workers)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="wustore-fits")
        self._lock = threading.RLock()
        self._written: set[int] = set()
        self._pending: deque[tuple[int, Future[Any]]] = deque()
        self._ended = False

    def _store(self, i: int, made: Any) -> None:
        """Write them; runs under the lock."""
        raise NotImplementedError

    def write(self, i: int, image: Image, capsule: bytes | None = None) -> None:
        """Write image ``i``; see `wustore.backends.base.Writer.write`."""
        with self._lock:
            self._claim(i)
            self._pending.append((i, self._pool.submit(self._encoder.make, i, image, capsule)))
            while len(self._pending) > self._workers:
                self._next()

    def place(self, i: int, piece: bytes) -> None:
        """Write image ``i`` as it was encoded; see `wustore.backends.base.Writer.place`."""
        made = self._encoder.parse(piece)
        with self._lock:
            self._claim(i)
            self._store(i, made)

    def _claim(self, i: int) -> None:
        if self._ended or i in self._written or not 0 <= i < self._n_images:
            raise UsageError("an image that cannot be written now", where=f"image {i}")
        self._written.add(i)

    def _next(self) -> None:
        i, future = self._pending.popleft()
        self._store(i, future.result())

    def _finish(self) -> None:
        """Complete the files when all images are there."""

    def commit(self) -> None:
        """Let the files appear; see `wustore.backends.base.Writer.commit`."""
        with self._lock:
            missing = sorted(set(range(self._n_images)) - self._written)
            if missing:
                raise IncompleteError(
                    "images were never written",
                    path=self._output.target,
                    expected=f"{self._n_images} images",
                    found=f"{len(missing)} missing, the first is {missing[0]}",
                )
            while self._pending:
                self._next()
            self._finish()
            self._output.commit()
            self._ended = True
            self._pool.shutdown()

    def abort(self) -> None:
        """Drop everything; see `wustore.backends.base.Writer.abort`."""
        with self._lock:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pending.clear()
            if not self._ended:
                self._ended = True
                self._output.abort()


# --- KBMOD's canonical layout ---------------------------------------------------------------------------


class _InOrder:
    """Appends the parts of numbered images in order; those that come early wait in a temporary file."""

    def __init__(self, output: Output, offset: int) -> None:
        self._output = output
        self.offset = offset
        self.starts: dict[int, int] = {}
        self._next = 0
        self._waiting: dict[int, tuple[int, int]] = {}
        self._spool: IO[bytes] | None = None

    def add(self, i: int, pieces: Sequence[bytes]) -> None:
        if i != self._next:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(dir=self._output.target.parent)  # noqa: SIM115 - lives on
            start = self._spool.seek(0, os.SEEK_END)
            self._spool.writelines(pieces)
            self._waiting[i] = start, self._spool.tell() - start
            return
        self.starts[i] = self.offset
        self.offset = self._output.write_at(0, self.offset, *pieces)
        self._next += 1
        while self._next in self._waiting:
            self._append_waiting(self._next)
            self._next += 1

    def _append_waiting(self, i: int) -> None:
        assert self._spool is not None
        start, size = self._waiting.pop(i)
        self._spool.seek(start)
        self.starts[i] = self.offset
        self.offset = self._output.write_at(0, self.offset, self._spool.read(size))

    def append_all(self) -> None:
        """Append those that wait, though images before them never came."""
        for i in sorted(self._waiting):
            self._append_waiting(i)

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()


class _Canonical(_Parallel):
    """Writes KBMOD's current layout."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: Meta,
        options: FitsOptions,
        *,
        sharded: bool,
        overwrite: bool,
        workers: int | None,
    ) -> None:
        self._meta = meta
        self._options = options
        self._sharded = sharded
        self._losses: list[str] = []
        if not options.exact:
            self._losses += [*option_losses(options), *meta_losses(meta)]
        head = head_hdus(meta, exact=options.exact, configuration=sharded or not options.exact)
        output = Output(path, meta.n_images if sharded else None, overwrite=overwrite)
        super().__init__(meta.n_images, CanonicalEncoder(meta, options, sharded), output, workers)
        try:
            offset = output.write_at(0, 0, *head)
        except BaseException:
            super().abort()  # a full disk at the first byte: nobody has a writer yet that could be aborted
            raise
        self._order = _InOrder(output, offset)

    def _store(self, i: int, made: Hdus) -> None:
        self._losses += made.losses
        if self._sharded:
            self._output.write_at(1 + i, 0, *made.pieces)
        else:
            self._order.add(i, made.pieces)

    def _finish(self) -> None:
        self._order.close()
        if self._options.exact:
            _add_sidecar(self._output, self._meta, self._order.offset)
        warn_of(self._losses)

    def abort(self) -> None:
        """Drop everything; see `wustore.backends.base.Writer.abort`."""
        super().abort()
        self._order.close()


def _add_sidecar(output: Output, meta: Meta, end: int) -> None:
    """Append the HDU WUSTORE where the file as it stands does not read back as ``meta``."""
    output.flush()
    with FitsReader(output.path, "sharded-fits" if output.sharded else "fits") as reader:
        plain = reader.meta
    if next(meta_differences(meta, plain), None) is not None:
        output.write_at(0, end, wustore_hdu(meta, meta_digest(plain)))


# --- the identical files ----------------------------------------------------------------------------------


class _FromCapsule(_Parallel):
    """Regenerates HDUs from a capsule; falls back to the canonical layout where the pixels were changed."""

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
            _Canonical, path, meta, options, sharded=sharded, overwrite=overwrite, workers=workers
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
        _warn_changed(f"the pixels of image {i} were changed after the import")
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


class _Restored(_FromCapsule):
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


class _Transcribed(_FromCapsule):
    """Moves the HDUs of a single file into a sharded set, or the other way round, unchanged."""

    _same_files = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._sharded = bool(keywords["sharded"])
        self._order = _InOrder(self._output, 0)
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
