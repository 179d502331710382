"""Edits of a store in place: another profile or layout, layers dropped, images appended.

Every edit is journalled in ``history`` (what, when, by which version). Readers see the old store or the
new one, never anything between.
"""

from __future__ import annotations

import datetime
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wustore._version import __version__
from wustore.backends.base import Backend, Progress, Reader
from wustore.backends.proxy import CheckedReader, ReaderProxy
from wustore.backends.registry import backend_for_writing, backend_named, open_reader
from wustore.errors import CorruptError, UsageError
from wustore.format.additions import names_of
from wustore.format.planes import plane_checksums
from wustore.format.version import OLDER, VERSION
from wustore.model.concat import appended
from wustore.model.meta import LAYERS, Capsule, Image, Meta
from wustore.ops.convert import refuse_same
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.ops.verify import problems
from wustore.stamps.notebook import with_bar
from wustore.storage.locks import alone, lock_of
from wustore.storage.staging import Staging
from wustore.storage.stores import address_of, is_local, name_of

__all__ = ["EditWarning", "EditedReader", "append", "drop", "history_entry", "migrate", "repack"]

DROPPABLE = ("mask", "psf", "capsule")
"""What a WorkUnit can be without; science and variance it must have."""


def history_entry(action: str, **facts: Any) -> dict[str, Any]:
    """Return an entry of ``history``: what was done, when (UTC), and by which version.

    Parameters
    ----------
    action
        ``append``, ``repack``, ``drop`` or ``migrate``.
    facts
        What else is to be known of it: JSON values.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"action": action, "when": now, "version": __version__, **facts}


class EditedReader(ReaderProxy):
    """A reader under other metadata, some layers hidden.

    Parameters
    ----------
    meta
        What to say of it instead; a layer that no image has is hidden.
    keep_capsule
        Whether its FITS reconstruction data still hold.
    """

    def __init__(self, reader: Reader, meta: Meta, *, keep_capsule: bool) -> None:
        super().__init__(reader)
        self._meta = meta
        self._keep_capsule = keep_capsule
        self._layers = tuple(layer for layer in LAYERS if meta.has_layer(layer))

    @property
    def meta(self) -> Meta:
        """The metadata given."""
        return self._meta

    def image(self, i: int, layers: Sequence[str] = LAYERS) -> Image:
        """Read an image without what is hidden; see `wustore.backends.base.Reader.image`."""
        wanted = [layer for layer in layers if layer in self._layers]
        return self.source.image(i, wanted)

    def capsule(self) -> Capsule | None:
        """Return the FITS reconstruction data, if they still hold."""
        return self.source.capsule() if self._keep_capsule else None

    def image_capsule(self, i: int, image: Image | None = None) -> bytes | None:
        """Return an image's part of them, if they still hold."""
        return self.source.image_capsule(i, image) if self._keep_capsule else None


def _rewritten(
    address: Any, reader: Reader, meta: Meta, *, keep_capsule: bool, progress: Progress | None, options: Any
) -> None:
    """Write a store anew in its own place; the old one stays until the new one is whole."""
    edited = EditedReader(reader, meta, keep_capsule=keep_capsule)
    writer = backend_named(reader.format).create(address, meta, capsule=edited.capsule(), overwrite=True, **options)
    copy(edited, writer, progress=progress, at_end=reader.close)


@with_bar("repacking")
def repack(
    path: Any,
    *,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write a store anew with another profile, layout or chunks, in its own place.

    Parameters
    ----------
    path
        A Zarr store (path, URL or Store object) or an HDF5 file. As much free space as the new store takes is needed
        beside it.
    progress
        Called with (images done, images in all).
    storage_options
        Of URLs, as in `wustore.open`.
    options
        Of its format: ``profile``, ``layout``, ``chunks``.

    Raises
    ------
    UsageError
        For a format that has no profiles, a store elsewhere, an unknown option, or where another process is changing
        it.
    StoreNotFoundError, FormatError, VersionError, IncompleteError, CorruptError, OSError
    """
    place = address_of(path, to_write=True, storage_options=storage_options)
    with _editing(place, same_content=True) as (address, reader):
        meta = reader.meta
        meta = replace(meta, history=(*meta.history, history_entry("repack", options=dict(options))))
        kept = _settings(reader)
        if "chunks" in options or "layout" in options:
            kept.pop("layout", None)
            kept.pop("chunks", None)
        _rewritten(address, reader, meta, keep_capsule=True, progress=progress, options=kept | options)


@with_bar("migrating")
def migrate(path: Any, out: Any = None, *, overwrite: bool = False, progress: Progress | None = None) -> bool:
    """Write a store of an older version of the format in the current one, and compare the two before it appears.

    Stores of every version since 0.1.0 are read as they are; this is for programs that know the current one only.

    Parameters
    ----------
    path
        A Zarr or HDF5 store: path, URL or Store object.
    out
        Where the new store will be, in the format that its ending names; in place of the old one by default, which
        must be local.
    overwrite
        Whether an existing ``out`` may be replaced.
    progress
        Called with (images done, images in all).

    Returns
    -------
    bool
        False if the store has the current version already; then nothing is written.

    Raises
    ------
    UsageError
        For a format without versions, a store elsewhere without ``out``, content that wustore did not write, or if
        another process is changing it.
    CorruptError
        The store is damaged; or the new one is not the same, and does not appear (at a URL it is there: remove it).
    StoreNotFoundError, StoreExistsError, UnknownFormatError, FormatError, VersionError, IncompleteError, OSError
    """
    source = address_of(path, to_write=out is None)
    with open_reader(source) as reader:
        document = reader.document()
        if document is None:
            raise UsageError("this format has no versions", path=reader.path, expected="a store", found=reader.format)
        if document["version"] not in OLDER:
            return False
        if out is not None:
            _refuse_foreign(reader, same_content=True)
            target = address_of(out, to_write=True)
            refuse_same(source, target)
            _migrated(reader, target, backend_for_writing(target), overwrite=overwrite, progress=progress)
            return True
    with _editing(source, same_content=True) as (address, reader):
        _migrated(reader, address, backend_named(reader.format), overwrite=True, progress=progress)
    return True


def _migrated(reader: Reader, target: Any, backend: Backend, *, overwrite: bool, progress: Progress | None) -> None:
    entry = history_entry("migrate", **{"from": (reader.document() or {})["version"], "to": VERSION})
    meta = replace(reader.meta, history=(*reader.meta.history, entry))
    edited = EditedReader(reader, meta, keep_capsule=True)

    def write(place: Any, *, replaces: bool) -> None:
        writer = backend.create(place, meta, capsule=edited.capsule(), overwrite=replaces, **_settings(reader))
        copy(edited, writer, progress=progress)
        with open_reader(place, format=backend.name) as made:
            for wrong in itertools.chain(problems(made), differences(edited, made)):
                raise CorruptError("the new store is not what it was made from", path=name_of(target), found=str(wrong))

    if not is_local(target):
        write(target, replaces=overwrite)
        return
    with Staging(target, overwrite=overwrite) as staging:
        write(str(staging.path), replaces=False)
        reader.close()  # Windows replaces no file that is open


@with_bar("rewriting")
def drop(
    path: Any,
    names: Iterable[str],
    *,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Remove layers, or the FITS reconstruction data (the capsule), from a store.

    Parameters
    ----------
    path
        A Zarr store (path, URL or Store object) or an HDF5 file.
    names
        Of `DROPPABLE`. Without ``mask`` or ``psf`` the original FITS files cannot be given back, so the
        capsule goes with them; if it is not named, a warning says so before anything is written.
    progress
        Called with (images done, images in all).
    storage_options
        Of URLs, as in `wustore.open`.

    Raises
    ------
    UsageError
        For another name, a layer that is not there, a store elsewhere, or where another process is changing it.
    StoreNotFoundError, FormatError, VersionError, IncompleteError, CorruptError, OSError
    """
    wanted = set(names)
    if not wanted or not wanted <= set(DROPPABLE):
        raise UsageError(
            "cannot drop this", expected=", ".join(DROPPABLE), found=", ".join(sorted(wanted)) or "nothing"
        )
    with _editing(address_of(path, to_write=True, storage_options=storage_options)) as (address, reader):
        meta = reader.meta
        there = {layer for layer in LAYERS if meta.has_layer(layer)}
        has_capsule = reader.capsule() is not None
        there |= {"capsule"} if has_capsule else set()
        if not wanted <= there:
            missing = ", ".join(sorted(wanted - there))
            raise UsageError("there is nothing of this name to drop", path=reader.path, found=missing)
        if has_capsule and "capsule" not in wanted:
            error = _capsule_would_end(reader, "this", f"Naming it agrees to it: {', '.join(sorted(wanted))}, capsule.")
            warnings.warn(EditWarning(str(error)), stacklevel=2)
        dtypes = {layer: (None,) * meta.n_images if layer in wanted else kept for layer, kept in meta.dtypes.items()}
        psf_shape = np.zeros_like(meta.psf_shape) if "psf" in wanted else meta.psf_shape
        entry = history_entry("drop", names=sorted(wanted))
        meta = replace(meta, dtypes=dtypes, psf_shape=psf_shape, history=(*meta.history, entry))
        options = _settings(reader)
        _rewritten(address, reader, meta, keep_capsule=False, progress=progress, options=options)


@with_bar("appending")
def append(
    path: Any,
    *sources: Any,
    drop_capsule: bool | None = None,
    duplicates: bool | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Append the images of other WorkUnits to a Zarr or HDF5 store; no existing pixel chunk is encoded again.

    A Zarr store is added to; an HDF5 file is replaced by one that takes over the stored chunks as they are. The new
    table rows follow the store's, in its units, and the new links point to these. The configuration stays the store's.

    Parameters
    ----------
    path
        A Zarr store (directory or URL), or an HDF5 file.
    sources
        Stores of any format, in order.
    drop_capsule
        Give up the FITS reconstruction data of the store: the files it came from do not hold the new images. True
        agrees to it, False refuses it; by default a warning says so before anything is written.
    duplicates
        The same for images that are in the store already, with the same time and the same pixels.
    progress
        Called with (images done, images to append).
    storage_options
        Of the store and the sources, those of them that are URLs, as in `wustore.open`.

    Returns
    -------
    int
        How many images were appended.

    Raises
    ------
    UsageError
        For another format, images that do not belong into this store or are there already, FITS reconstruction data
        that would be lost, content that wustore did not write, or if another process is changing it.
    StoreNotFoundError, FormatError, VersionError, IncompleteError, CorruptError, OSError

    Warns
    -----
    EditWarning
        Of the end of the FITS reconstruction data, and of images that are there already.
    """
    address = address_of(path, to_write=True, storage_options=storage_options)
    sources = tuple(address_of(source, storage_options=storage_options) for source in sources)
    if not sources:
        raise UsageError("nothing to append", path=name_of(address), hint="Name at least one source.")
    names = [name_of(source) for source in sources]
    with ExitStack() as stack:
        with open_reader(address) as store:
            backend = backend_named(store.format)
            readers = [CheckedReader(stack.enter_context(open_reader(source))) for source in sources]
            if store.document() is not None:  # of another format the backend says that it takes no images
                _refuse_loss(store, readers, drop_capsule=drop_capsule, duplicates=duplicates)
        return backend.append(
            address, readers, lambda count: history_entry("append", images=count, sources=names), progress=progress
        )


class EditWarning(UserWarning):
    """What an edit is about to give up, or to double."""


def _refuse_loss(
    store: Reader, sources: Sequence[Reader], *, drop_capsule: bool | None, duplicates: bool | None
) -> None:
    """Refuse an append that would lose something, or double it; warn of what was not spoken of."""
    meta = store.meta
    for source in sources:
        meta = appended(meta, source.meta, path=source.path)
    _refuse_foreign(store)
    if not drop_capsule and store.capsule() is not None:
        error = _capsule_would_end(store, "an append", "drop_capsule=True, or --drop-capsule, agrees to it.")
        _refuse_or_warn(error, drop_capsule)
    if not duplicates:
        found = _duplicate(store, sources)
        if found is not None:
            _refuse_or_warn(found, duplicates)


def _refuse_or_warn(error: UsageError, answer: bool | None) -> None:
    if answer is False:
        raise error
    warnings.warn(EditWarning(str(error)), stacklevel=5)


def _refuse_foreign(reader: Reader, *, same_content: bool = False) -> None:
    """Refuse an edit of a store that others, or a later version, added something to: it would be lost or untrue.

    What a later version added to the document stays if the content stays the same.
    """
    found = [*reader.foreign(), *([] if same_content else names_of(reader.meta.additions))]
    if found:
        raise UsageError(
            "the store holds what this wustore did not write, and an edit would lose it",
            path=reader.path,
            found=", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else ""),
            hint="Move it elsewhere, or convert the store into a new one, which leaves it out.",
        )


def _capsule_would_end(reader: Reader, what: str, hint: str) -> UsageError:
    return UsageError(
        f"{what} ends the FITS reconstruction data: the original files cannot be given back afterwards",
        path=reader.path,
        hint=hint,
    )


def _duplicate(store: Reader, sources: Sequence[Reader]) -> UsageError | None:
    """Return what is wrong with the first image that is there already: the same time and the same pixels."""
    by_time: dict[bytes, list[tuple[Reader, int]]] = {}
    for reader in (store, *sources):
        for i, time in enumerate(reader.meta.times):
            by_time.setdefault(time.tobytes(), []).append((reader, i))
    sums = {reader: reader.checksums() for reader in (store, *sources)}
    for alike in by_time.values():
        known: dict[object, tuple[Reader, int]] = {}
        for reader, i in alike if alike[-1][0] is not store and len(alike) > 1 else ():
            other, j = known.setdefault(_pixels(reader, i, sums[reader]), (reader, i))
            if reader is not store and (other, j) != (reader, i):
                return UsageError(
                    "an image is there already",
                    path=reader.path,
                    where=f"image {i}",
                    found=f"the same time and pixels as image {j} of {other.path}",
                    hint="duplicates=True, or --duplicates, agrees to it.",
                )
    return None


def _pixels(reader: Reader, i: int, sums: NDArray[np.uint32] | None) -> object:
    """Return what two images have in common that hold the same pixels."""
    checksums = plane_checksums(reader.image(i)) if sums is None else tuple(sums[i].tolist())
    return checksums, *((reader.meta.shape_of(layer, i), reader.meta.dtypes[layer][i]) for layer in LAYERS)


def _settings(reader: Reader) -> dict[str, Any]:
    """Return the options that a store was written with."""
    described = reader.describe()
    settings = {name: described[name] for name in ("profile", "layout") if isinstance(described.get(name), str)}
    if isinstance(described.get("layout"), list):
        settings["chunks"] = described["layout"]
    return settings


@contextmanager
def _editing(path: Any, *, same_content: bool = False) -> Iterator[tuple[Any, Reader]]:
    """Open a store that nobody else changes meanwhile; give its place and reader."""
    address = address_of(path, to_write=True)
    if not is_local(address):
        with open_reader(address) as reader:
            if reader.format != "zarr":
                raise UsageError(
                    "only local files and Zarr stores are edited in place",
                    path=reader.path,
                    found=reader.format,
                    hint="Convert it to another place.",
                )
            _refuse_foreign(reader, same_content=same_content)
            yield address, reader
        return
    if not address or not Path(address).exists():
        with open_reader(address):  # says what is wrong
            pass
    place = Path(address).resolve()  # a link goes on leading to the store
    with alone(lock_of(place), address), open_reader(str(place)) as reader:
        if reader.format not in {"zarr", "zarr-zip", "hdf5"}:
            raise UsageError(
                "stores of this format are not edited in place",
                path=address,
                expected="zarr, zarr-zip or hdf5",
                found=reader.format,
                hint="Convert it first.",
            )
        _refuse_foreign(reader, same_content=same_content)
        yield str(place), reader
