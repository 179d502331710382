"""Writing FITS: the identical files from a capsule, KBMOD's own bytes, or an exact archive in KBMOD's layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from wustore.backends.base import Writer
from wustore.backends.fits.capsule import ENCODING, Head, is_digest_of
from wustore.backends.fits.encoder import CanonicalEncoder, CapsuleEncoder, ImageEncoder
from wustore.backends.fits.fidelity import FitsLossWarning
from wustore.backends.fits.hdu.wustore_hdu import read_wustore_hdu
from wustore.backends.fits.kbmod_hdus import FitsOptions
from wustore.backends.fits.parallel_writer import CanonicalWriter
from wustore.backends.fits.restored_files import RestoringWriter, TranscribingWriter, warn_changed
from wustore.errors import CorruptError, UsageError
from wustore.model.meta import Capsule, Meta

__all__ = ["FitsLossWarning", "create", "encoder", "read_wustore_hdu"]

Mode = Literal["archive", "kbmod"]

KBMOD_DEFAULTS = FitsOptions("RICE_1", -0.01)
LOSSLESS = FitsOptions("GZIP_2", 0)


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
    checksum: bool = False,
    workers: int | None = None,
    **unknown: Any,
) -> Writer:
    """Start a FITS file or a sharded set.

    Parameters
    ----------
    path
        The file; of a sharded set the primary one, the shards are ``<i>_<name>`` next to it. A name that ends in .gz,
        .bz2 or .zip is compressed as a whole.
    meta
        Everything but the pixels.
    capsule
        FITS reconstruction data of an import. In mode ``archive``, and without options that ask for other bytes, the
        identical files are written.
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
    checksum
        Write the cards CHECKSUM and DATASUM into every HDU, so that damage is found later. KBMOD writes none.
    workers
        Threads that compress images, the number of processors by default.

    Raises
    ------
    StoreExistsError, StoreNotFoundError
    UsageError
        Options that are invalid.
    CorruptError
        The capsule is damaged.

    Notes
    -----
    Writing warns with `FitsLossWarning` of what does not fit (mode ``kbmod``), and with `StoreChangedWarning` if the
    store is no longer what was imported, so that the canonical form is written instead of the identical file, and with
    `OuterChangedWarning` if the file is identical, but not the .gz, .bz2 or .zip file around it.
    """
    how = _how(
        meta,
        capsule,
        compression_type=compression_type,
        quantize_level=quantize_level,
        lossless=lossless,
        mode=mode,
        checksum=checksum,
        **unknown,
    )
    arguments: dict[str, Any] = {"sharded": sharded, "overwrite": overwrite, "workers": workers}
    if how.capsule is not None:
        same = (how.capsule.document["form"] == "sharded-fits") == sharded
        kind = RestoringWriter if same else TranscribingWriter
        return kind(path, meta, how.capsule, how.options, **arguments)
    if how.reason is not None:
        warn_changed(how.reason)
    return CanonicalWriter(path, meta, how.options, **arguments)


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
        What gives back the identical files; None if the canonical layout is written.
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
    checksum: bool = False,
    **unknown: Any,
) -> _How:
    if unknown:
        raise UsageError("unknown options", where="FITS writer", found=", ".join(sorted(unknown)))
    if mode not in ("archive", "kbmod"):
        raise UsageError("an unknown mode", where="mode", expected="'archive' or 'kbmod'", found=repr(mode))
    if not isinstance(checksum, bool):
        raise UsageError("not a choice", where="checksum", expected="true or false", found=repr(checksum))
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
        checksum=checksum,
    )
    chosen = checksum or not (compression_type is None and quantize_level is None and lossless is None)
    if capsule is None or mode != "archive" or chosen:
        return _How(options)
    reason = _unusable(capsule, meta)
    return _How(options, capsule if reason is None else None, reason)


def _unusable(capsule: Capsule, meta: Meta) -> str | None:
    """Return why a capsule does not belong to this content, None if it does."""
    try:
        encoding, form, digest = (capsule.document[key] for key in ("encoding", "form", "meta"))
        files = capsule.document["files"]
        n_files = len(files)
        bad = any(not isinstance(entry["size"], int) or not isinstance(entry["sha256"], str) for entry in files)
    except (KeyError, TypeError) as error:
        raise CorruptError("the FITS capsule is damaged", where="document", found=repr(error)) from error
    if encoding != ENCODING:
        return f"its FITS reconstruction data are of another version of wustore (encoding {encoding}, not {ENCODING})"
    if not is_digest_of(digest, meta):
        return "the metadata were changed after the import"
    if bad or form not in ("fits", "sharded-fits") or n_files != (1 if form == "fits" else 1 + meta.n_images):
        raise CorruptError("the FITS capsule is damaged", where="document", found=f"{n_files} files, form {form!r}")
    return None


# --- KBMOD's canonical layout ---------------------------------------------------------------------------


# --- the identical files ----------------------------------------------------------------------------------
