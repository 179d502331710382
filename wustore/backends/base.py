"""The contract between wustore and a storage format: what a plug-in has to write.

A format is a `Backend`: it recognises paths, opens a `Reader` and creates a `Writer`. Save, load and
convert are all `wustore.ops.copy.copy` from one to the other. A third-party package adds a format by
naming its `Backend` class in the entry-point group ``wustore.backends`` and proves it with the test
class `wustore.testing.BackendConformance`.

Rules that every implementation keeps:

- ``open`` and ``meta`` read metadata only, never a pixel.
- ``read`` and ``image`` touch only the chunks that the request intersects, and give native-endian,
  C-contiguous arrays that the caller may write to.
- Damage is an error, never data: `CorruptError` with the place.
- A reader is immutable and safe to use from several threads; it pickles by address.
- A reader gives one state of the store. If the store is replaced while it is open, or between pickling and unpickling,
  it gives the old state or raises `StoreReplacedError`, never a mixture of the two (`wustore.backends.state`).
- Nothing appears at the target path before ``commit``; after ``abort`` (or death) the target is as before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from wustore.backends.chunk_grid import Grid, Index, regular_grid
from wustore.backends.state import replaced, state_of_files
from wustore.errors import OtherFormatError, UsageError
from wustore.model.meta import LAYERS, Capsule, Image, Meta
from wustore.storage.threads import read_ahead

__all__ = ["Backend", "Encoder", "Index", "Reader", "ResumableWriter", "Writer"]

RECOGNISED = 4096
"""Bytes that `Backend.recognises` is given."""


class Reader(ABC):
    """An open store: metadata at hand, pixels on request.

    Attributes
    ----------
    format
        The backend's name.
    path
        Where the store is, as given; pickling goes by it.
    """

    format: str
    path: str
    _state: str | None = None

    @property
    @abstractmethod
    def meta(self) -> Meta:
        """Everything but pixels, PSF values and the FITS reconstruction data (the capsule)."""

    @abstractmethod
    def read(self, layer: str, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read a box of the padded array of a layer.

        Parameters
        ----------
        layer
            One of `wustore.model.meta.LAYERS`.
        index
            Slices (time, y, x) within ``meta.layer_shape(layer)``, step 1.
        out
            Array of the box's shape and the layer's dtype to fill, instead of a new one.

        Returns
        -------
        ndarray
            Shape (time, y, x) of the box. Outside the true size of an image, and for an image that lacks
            the layer: NaN for floating dtypes, 0 for integers.

        Raises
        ------
        CorruptError
            If the stored bytes are damaged or missing.
        """

    def read_boxes(
        self, layer: str, boxes: Sequence[Index], out: Sequence[NDArray[Any]] | None = None
    ) -> list[NDArray[Any]]:
        """Read several boxes of a layer, best those that share no chunk.

        The default implementation makes one `read` for each; a backend overrides it if it can do better, such as
        with one request for all.

        Parameters
        ----------
        layer
            One of `wustore.model.meta.LAYERS`.
        boxes
            As ``index`` of `read`; they may overlap and may be empty.
        out
            An array for each box to fill instead of a new one, as for `read`; its rows need not be adjacent.

        Returns
        -------
        list of ndarray
            What `read` gives for each box, in order.

        Raises
        ------
        CorruptError
            If the stored bytes are damaged or missing.
        """
        targets = [None] * len(boxes) if out is None else out
        return [self.read(layer, box, target) for box, target in zip(boxes, targets, strict=True)]

    def read_layers(self, wanted: Sequence[tuple[str, Sequence[Index], Sequence[NDArray[Any]]]]) -> None:
        """Read boxes of several layers into arrays; a backend overrides it if threads can work on all of them at once.

        Parameters
        ----------
        wanted
            Layer, boxes and arrays as `read_boxes` takes them.

        Raises
        ------
        CorruptError
            If the stored bytes are damaged or missing.
        """
        for layer, boxes, out in wanted:
            self.read_boxes(layer, boxes, out)

    def fills_chunks(self, layer: str) -> bool:
        """Return whether `read_boxes` takes arrays of shape (time, rows of chunks, chunks of a row, y, x), too.

        The box of such an array is of whole chunks, also beyond the end of an image; each of them is decoded in place.

        Parameters
        ----------
        layer
            One of `wustore.model.meta.LAYERS`.

        Returns
        -------
        bool
            False, unless a backend says otherwise.
        """
        return False

    @abstractmethod
    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read one image in its true shape and source dtypes.

        Parameters
        ----------
        i
            Index of the image, 0 <= i < n_images.
        layers
            The layers wanted. Science and variance of the result are empty arrays of shape (0, 0) where
            they were not asked for; mask and PSF are None.

        Returns
        -------
        Image
            Planes of shape (y, x).
        """

    def images(
        self,
        indices: Iterable[int] | None = None,
        layers: Sequence[str] = LAYERS,
        *,
        workers: int | None = None,
    ) -> Iterator[tuple[int, Image]]:
        """Yield (i, image), reading ahead in threads.

        At most one and a half times as many images as ``workers`` are held at a time, at least one more. The default
        implementation keeps a bounded window of `image` calls in a thread pool; a backend overrides it if it knows
        better.

        Parameters
        ----------
        indices
            Of the images, in the order wanted; all by default.
        layers
            Layers wanted.
        workers
            Threads; the number of processors by default.
        """
        wanted = list(range(self.meta.n_images) if indices is None else indices)
        best = self.images_at_once(len(wanted))  # asked for in any case: a backend then gets ready for so many
        workers = best if workers is None else workers
        return read_ahead(lambda i: self.image(i, layers), wanted, workers)

    def images_at_once(self, n_images: int) -> int | None:
        """Return by how many threads images are best read, None for the number of processors; get ready for them.

        Parameters
        ----------
        n_images
            How many are about to be read, all their layers.
        """
        return None

    @abstractmethod
    def chunks(self, layer: str) -> tuple[int, int, int]:
        """Return the shape (time, y, x) of the smallest unit that can be read of this layer.

        Parameters
        ----------
        layer
            Its name.
        """

    def grid(self, layer: str) -> Grid:
        """Return where the chunks of a layer lie.

        Parameters
        ----------
        layer
            Its name.
        """
        return regular_grid(self.meta.layer_shape(layer), self.chunks(layer))

    def capsule(self) -> Capsule | None:
        """Return the FITS reconstruction data, or None. A FITS reader reads and hashes the files for this."""
        return None

    def image_capsule(self, i: int, image: Image | None = None) -> bytes | None:
        """Return the part of the FITS reconstruction data that belongs to image ``i``, or None.

        Parameters
        ----------
        i
            Index of the image.
        image
            The image with all its layers, if it has been read already: a FITS reader regenerates the bytes from it
            to prove them, and would read it again.
        """
        return None

    def checksums(self) -> NDArray[np.uint32] | None:
        """Return the stored CRC-32C of every plane, shape (n_images, 4), or None (`planes.plane_checksum`)."""
        return None

    def protection(self) -> str:
        """Return what protects the stored bytes, compared once all is read and audited; empty if nothing does."""
        return "" if self.checksums() is None else "every plane matches its checksum"

    def document(self) -> Mapping[str, Any] | None:
        """Return the root document as it is stored, or None for a format that has none."""
        return None

    def audit(self) -> Iterator[tuple[str, str]]:
        """Yield (place, what is wrong there) for stored parts that reading does not touch.

        Such are copies kept for other programs and metadata that only they look at; ``wustore verify`` asks.
        """
        return iter(())

    def foreign(self) -> Iterator[str]:
        """Yield in words what others added to the store: arrays, groups, attributes, files.

        An edit that would lose it is refused. The default knows of nothing.
        """
        return iter(())

    def places(self) -> list[str]:
        """Return the files or URLs this store consists of, as far as they tell whether it has changed."""
        return [self.path]

    def state(self) -> str:
        """Return what identifies the state of the store that this reader gives.

        It is the same in every process, and another one once the store was written anew with other content. The
        default is made of names, sizes and modification times of `places`, taken when it is first asked for; a
        backend overrides it if it knows the content, and fixes it when the store is opened.
        """
        if self._state is None:
            self._state = state_of_files(self.places())
        return self._state

    def check_state(self) -> None:
        """Check that the store is still in the state that was opened.

        Raises
        ------
        StoreReplacedError
            If it was replaced, changed or removed.
        """
        if state_of_files(self.places()) != self.state():
            raise replaced(self.path)

    def describe(self) -> dict[str, Any]:
        """Return facts of this store for ``wustore info``: JSON values, keys in the order to show them."""
        return {}

    def close(self) -> None:  # noqa: B027 - most readers hold nothing open
        """Release files; reading afterwards is an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Encoder(ABC):
    """The costly half of writing: what makes an image's bytes, without a file to put them into.

    It is safe to use from several threads, and the bytes depend on the image and its metadata only. So they can be
    made in any order, by any process, more than once, and `Writer.place` puts them into the store later.
    """

    @abstractmethod
    def encode(self, i: int, image: Image, capsule: bytes | None = None) -> bytes:
        """Return what `Writer.place` needs of image ``i``; what is read back from it is checked, never executed.

        Parameters
        ----------
        i, image, capsule
            As for `Writer.write`.
        """


class Writer(ABC):
    """A store being written, invisible until `commit`.

    Attributes
    ----------
    keeps_capsule
        Whether `write` is to be given each image's part of the FITS reconstruction data.
    """

    keeps_capsule: bool = False

    @abstractmethod
    def write(self, i: int, image: Image, capsule: bytes | None = None) -> None:
        """Write image ``i``. Each image is written once; any order; calls may come from several threads.

        Parameters
        ----------
        i
            Index of the image.
        image
            All its layers.
        capsule
            What `Reader.image_capsule` gave for it, if the writer keeps that.
        """

    def place(self, i: int, piece: bytes) -> None:
        """Write image ``i`` as the format's `Encoder` made it; the same bytes result as from `write`.

        Parameters
        ----------
        i
            Of the image.
        piece
            What `Encoder.encode` returned.

        Raises
        ------
        CorruptError
            If the piece is damaged.
        """
        raise NotImplementedError(f"{type(self).__name__} has no encoder")

    @abstractmethod
    def commit(self) -> None:
        """Finish: make all bytes durable, then let the store appear at the target path in one step.

        Raises
        ------
        IncompleteError
            If an image was never written.
        """

    @abstractmethod
    def abort(self) -> None:
        """Drop everything written. Safe to call twice, and after a failed `commit`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()


class ResumableWriter(Writer):
    """A writer of a store that another process can go on with, or help to write.

    The same image written twice, by whomever, gives the same bytes. `Writer.abort` keeps what is written, and
    `Writer.commit` takes up images that other writers of the same store wrote.
    """

    @abstractmethod
    def is_written(self, i: int) -> bool:
        """Return whether image ``i`` is there and whole: its bytes are read and compared with their checksums.

        Parameters
        ----------
        i
            Of the image.
        """

    def unwritten(self, indices: Iterable[int]) -> list[int]:
        """Return those of ``indices`` whose images are still to be written.

        Parameters
        ----------
        indices
            Of images.
        """
        return [i for i in indices if not self.is_written(i)]


class Backend(ABC):
    """A storage format.

    Attributes
    ----------
    name
        The format's name, as ``--format`` takes it.
    suffixes
        File name endings that mean this format when there is nothing to sniff, longest first.
    description
        One line for the help text.
    options
        Options of `create` and what they mean, for ``wustore convert -o help``.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str] = ""
    options: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def open(self, path: str, **options: Any) -> Reader:
        """Open an existing store.

        Parameters
        ----------
        path
            What to open.
        options
            ``workers``: how many threads read and decode, as for `wustore.storage.threads.worker_count`; every backend
            takes it. Others are the backend's, looked at once the content is known to be of this format.

        Raises
        ------
        OtherFormatError
            If the content is of another format. What was meant to be of this one, but is damaged, is another error.
        StoreNotFoundError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
        """

    def try_open(self, path: str, **options: Any) -> Reader | None:
        """Open a store whose format nobody named; return None if the content is of another one.

        The default calls `open`.

        Parameters
        ----------
        path
            Where it is.
        options
            As for `open`.

        Raises
        ------
        StoreNotFoundError, FormatError, VersionError, IncompleteError, CorruptError, UsageError
            As for `open`.
        """
        try:
            return self.open(path, **options)
        except OtherFormatError:
            return None

    def recognises(self, start: bytes) -> bool:
        """Return whether a file with these first bytes may be of this format.

        It keeps files from being opened in vain, if their names do not say what they are. The default says yes.

        Parameters
        ----------
        start
            The first `RECOGNISED` bytes of a file; all of them if there are fewer.
        """
        return True

    @abstractmethod
    def create(
        self,
        path: str,
        meta: Meta,
        *,
        capsule: Capsule | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> Writer:
        """Start a new store.

        Parameters
        ----------
        path
            Where it will appear.
        meta
            Everything but the pixels.
        capsule
            FITS reconstruction data of the source: a FITS backend regenerates the files from it, any other one keeps
            it. ``None`` writes none.
        overwrite
            Whether an existing store may be replaced (it stays until the new one is whole).
        options
            Of the backend (``profile``, ``layout``, …); an unknown one is a `UsageError`. Every backend takes
            ``workers``: threads that encode, the number of processors by default; 1 encodes in the calling thread.
            The result does not depend on it.

        Returns
        -------
        Writer

        Raises
        ------
        StoreExistsError
            If the target exists and ``overwrite`` is False.
        """

    def lossy(self, options: Mapping[str, Any]) -> str | None:
        """Return why a store written with these options does not hold the values exactly, or None if it does.

        Such options are refused unless the user asks for the loss by name.

        Parameters
        ----------
        options
            As for `create`.
        """
        return None

    def resumes(self, path: str) -> bool:
        """Return whether a store at ``path`` can be written in pieces: whether there is `resume`.

        Parameters
        ----------
        path
            Of the target.
        """
        return False

    def resume(
        self,
        path: str,
        meta: Meta,
        *,
        fingerprint: str,
        capsule: Capsule | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> ResumableWriter:
        """Start a store that can be written in pieces, or join the one that is being written.

        What is written stays next to the target (`staging.partial_path`) until it is whole. A format whose
        images are files of their own writes them there; any other one gives its `Encoder` to
        `wustore.backends.pieces.PieceWriter`.

        Parameters
        ----------
        fingerprint
            What the images come from: only the same conversion is joined.
        path, meta, capsule, overwrite, options
            As for `create`.

        Returns
        -------
        ResumableWriter

        Raises
        ------
        UsageError
            If something else is being written there, or the format knows no pieces.
        """
        raise UsageError("this format cannot be written in pieces", path=path, found=self.name)

    def append(
        self,
        path: str,
        sources: Sequence[Reader],
        history: Callable[[int], dict[str, Any]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Append every image of ``sources`` to the store at ``path``; no existing chunk is encoded again.

        Parameters
        ----------
        path
            A store of this format.
        sources
            Open stores of any format.
        history
            Function of the number of images that gives the entry to journal.
        progress
            Called with (images done, images to append).

        Returns
        -------
        int
            How many images were appended.

        Raises
        ------
        UsageError
            If the images do not belong into this store, or the format cannot be appended to.
        """
        raise UsageError(
            "images are not appended to stores of this format",
            path=path,
            found=self.name,
            hint="Convert the store to Zarr or HDF5 first.",
        )

    def finish_edit(self, path: str, *, dry_run: bool = False) -> list[str]:
        """Write what a killed edit has left to write, and return the names of it; the default knows of nothing.

        Only what other programs read may be left so: for `Reader` the store has the state before or after the edit.

        Parameters
        ----------
        path
            Of the store.
        dry_run
            Only return the names.

        Returns
        -------
        list of str
        """
        return []


Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""
