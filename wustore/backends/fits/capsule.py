"""The FITS capsule: what, besides the pixels and the metadata, gives back the identical files.

A capsule has a *document* (JSON: form, files, sizes, sha256), a *head* (bytes that belong to no image) and a *piece*
for every image. Head and pieces are opaque to all but this module. Their encoding, version 1::

    head  = "WUH1" | deflate(block)          piece = "WUP1" | deflate(block, dictionary = the head's template)
    block = uint32 length of control | control (JSON) | parts, one after another (lengths in the control)

Deflate is a zlib stream (RFC 1950), integers are little-endian. The head's parts are the template (image headers of
the first image) and then the byte ranges of the files that belong to no image; a piece's parts are, for each HDU
of its image, the header cards and what its recipe needs (`fits.hdu.recipe`). Every HDU carries its place in the
file and a CRC-32; every plane its CRC-32C.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wustore.backends.fits.files.container import describe_outer
from wustore.backends.fits.hdu.recipe import Recipe, rebuild, record
from wustore.backends.fits.hdu.scan import Buffer, Hdu, ScannedFile
from wustore.errors import CorruptError, FidelityError, WuStoreError
from wustore.format.document import arrays_of, document_of
from wustore.format.planes import plane_checksums
from wustore.model.meta import LAYERS, Capsule, Image, Meta
from wustore.storage.buffers import release
from wustore.storage.url import redact

__all__ = ["ENCODING", "Block", "ChangedError", "Head", "build", "is_digest_of", "meta_digest", "piece", "regenerate"]

_HASHED = 1 << 24
"""Bytes of a mapped file that are hashed at a time."""
ENCODING = 1
"""Version of head and pieces."""

_HEAD, _PIECE = b"WUH1", b"WUP1"
_TEMPLATE = 32768
"""Bytes that deflate can refer back to."""
_IMAGE_HDU = re.compile(r"(SCI|VAR|MSK|PSF)_(0|[1-9]\d*)")
_LAYER_OF = {"SCI": 0, "VAR": 1, "MSK": 2, "PSF": 3}


class ChangedError(WuStoreError):
    """The pixels are no longer those that were imported."""


class _File(Protocol):
    """One file: its path, its unpacked bytes, its HDUs, and how it is compressed as a whole."""

    path: str
    scan: ScannedFile
    compression: str | None

    @property
    def data(self) -> Buffer: ...


class FitsSource(Protocol):
    """What a capsule is made from: a reader of FITS files.

    Attributes
    ----------
    format
        ``fits`` or ``sharded-fits``: then file 0 is the primary one and file ``1 + i`` the shard of image i.
    files
        The files.
    meta
        What was read from them.
    """

    format: str
    files: list[Any]

    @property
    def meta(self) -> Meta: ...


class _Plan:
    """Which HDUs belong to which image, worked out once per reader."""

    def __init__(self, source: FitsSource) -> None:
        self.sharded = source.format == "sharded-fits"
        self.files: list[_File] = list(source.files)
        self.n_images = source.meta.n_images
        self.document: _Document | None = None
        self._by_image: dict[int, list[tuple[int, Hdu, int]]] = {}
        if not self.sharded:
            for hdu in self.files[0].scan.hdus:
                match = _IMAGE_HDU.fullmatch(hdu.name)
                if match and int(match[2]) < self.n_images:
                    self._by_image.setdefault(int(match[2]), []).append((0, hdu, _LAYER_OF[match[1]]))
        self.owned_hdus = {hdu.index for hdus in self._by_image.values() for _, hdu, _ in hdus}
        self.template = self._template()

    def owned(self, i: int) -> list[tuple[int, Hdu, int]]:
        """Return the HDUs of image ``i`` in file order: file number, HDU, layer number (-1 for no layer)."""
        if self.sharded:
            return [(1 + i, hdu, _role(hdu, i)) for hdu in self.files[1 + i].scan.hdus]
        return self._by_image.get(i, [])

    def _template(self) -> bytes:
        text = b""
        for number, hdu, layer in self.owned(0):
            if layer >= 0:
                text += bytes(memoryview(self.files[number].data)[hdu.header_start : hdu.data_start]).rstrip(b" ")
        return text[:_TEMPLATE]


_plans: weakref.WeakKeyDictionary[Any, _Plan] = weakref.WeakKeyDictionary()
_plans_lock = threading.Lock()


def _plan_of(source: FitsSource) -> _Plan:
    with _plans_lock:
        plan = _plans.get(source)
        if plan is None:
            plan = _plans[source] = _Plan(source)
        return plan


def _role(hdu: Hdu, i: int) -> int:
    match = _IMAGE_HDU.fullmatch(hdu.name)
    return _LAYER_OF[match[1]] if match and int(match[2]) == i else -1


# --- the encoding -------------------------------------------------------------------------------------


def _encode(magic: bytes, control: Any, parts: Sequence[bytes], template: bytes = b"") -> bytes:
    text = json.dumps(control, separators=(",", ":")).encode()
    payload = b"".join((struct.pack("<I", len(text)), text, *parts))
    # Large only where data are kept: tables of compressed tiles, which a higher level does not make smaller.
    level = 9 if len(payload) < 1 << 20 else 1
    engine = zlib.compressobj(level, zlib.DEFLATED, 15, 9, 0, template) if template else zlib.compressobj(level)
    return magic + engine.compress(payload) + engine.flush()


def _decode(magic: bytes, data: bytes, template: bytes = b"") -> tuple[Any, memoryview]:
    if data[:4] != magic:
        raise CorruptError("the FITS capsule is damaged", expected=magic, found=data[:4])
    engine = zlib.decompressobj(15, template) if template else zlib.decompressobj()
    payload = engine.decompress(data[4:])
    if not engine.eof or engine.unused_data:
        raise CorruptError("the FITS capsule is damaged", expected="one zlib stream", found="more or less than that")
    size = struct.unpack_from("<I", payload)[0]
    return json.loads(payload[4 : 4 + size]), memoryview(payload)[4 + size :]


_DAMAGE = (
    LookupError,
    ArithmeticError,
    ValueError,
    TypeError,
    AttributeError,
    struct.error,
    zlib.error,
    RecursionError,
)
"""What decoding damaged bytes may raise."""


def _damaged(where: str, error: Exception) -> CorruptError:
    if isinstance(error, CorruptError):
        return error
    return CorruptError(
        "the FITS capsule is damaged",
        where=where,
        found=f"{type(error).__name__}: {error}"[:200],
        hint="Export without the capsule, or import the source again.",
    )


# --- import -------------------------------------------------------------------------------------------


def meta_digest(meta: Meta) -> str:
    """Return a sha256 over everything of the metadata except ``source``, ``history`` and additions."""
    document = document_of(replace(meta, source={}, history=(), additions={}))
    for key in ("source", "history", "version"):
        document.pop(key)
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass"))
    for array in arrays_of(meta):
        values = array.data
        digest.update(f"{array.name}{values.dtype.newbyteorder('<').str}{values.shape}".encode())
        if values.dtype.hasobject:
            digest.update(json.dumps(values.tolist(), ensure_ascii=False).encode(errors="surrogatepass"))
        else:
            digest.update(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def is_digest_of(digest: object, meta: Meta) -> bool:
    """Return whether `meta_digest` gave ``digest`` for this metadata.

    Early versions of wustore digested the barycentric distance as an integer if its card was one, and stores and files
    of theirs are to be given back, too.
    """
    if digest == meta_digest(meta):
        return True
    distance = meta.barycentric_distance
    if distance is None or not float(distance).is_integer():
        return False
    return digest == meta_digest(replace(meta, barycentric_distance=int(distance)))


def _head(plan: _Plan) -> bytes:
    segments: list[tuple[int, int, int]] = []
    parts = [plan.template]
    # Everything in a shard belongs to its image; the first file is the only one with bytes that belong to none.
    scanned = plan.files[0].scan
    content = memoryview(plan.files[0].data)
    spans = [(hdu.header_start, hdu.end) for hdu in scanned.hdus if hdu.index not in plan.owned_hdus]
    spans.append((scanned.trailing_start, scanned.size))
    joined: list[list[int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        elif start < end:
            joined.append([start, end])
    for start, end in joined:
        segments.append((0, start, end - start))
        parts.append(bytes(content[start:end]))
    return _encode(_HEAD, {"template": len(plan.template), "segments": segments}, parts)


class _Document(Mapping[str, Any]):
    """The document of a capsule, whose files are hashed while their images are read.

    A thread at a time hashes what the images that were begun are of all: nothing waits for it, and each file is read
    from the disk once. Whoever looks at the document hashes what is left.
    """

    def __init__(self, source: FitsSource, files: Sequence[_File]) -> None:
        self._lock = threading.Lock()
        self._n_files, self._n_images = len(files), source.meta.n_images
        self._begun = set[int]()
        self._hashed = 0.0
        self._error: BaseException | None = None
        self._entries: dict[str, Any] = {
            "encoding": ENCODING,
            "form": source.format,
            "meta": meta_digest(source.meta),
            "files": [],
        }
        self._steps = _describe(files, self._entries["files"])

    def __getitem__(self, key: str) -> Any:
        return self._whole()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._whole(),)

    def begin(self, i: int) -> None:
        """Hash the part of image ``i``, unless another thread is at it, which then does it."""
        self._begun.add(i)
        while self._hashed * self._n_images < self._n_files * len(self._begun) and self._lock.acquire(blocking=False):
            try:
                self._step()
            finally:
                self._lock.release()

    def _whole(self) -> dict[str, Any]:
        with self._lock:
            while self._hashed < math.inf:
                self._step()
        return self._entries

    def _step(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            self._hashed = next(self._steps, math.inf)
        except BaseException as error:
            self._error = error
            raise


def _describe(files: Sequence[_File], entries: list[dict[str, Any]]) -> Iterator[float]:
    """Add what is known of each file, a few of their bytes at a time; yield how many files are done."""
    for k, file in enumerate(files):
        content, digest = file.data, hashlib.sha256()
        size = len(content)
        for start in range(0, size, _HASHED):
            digest.update(memoryview(content)[start : start + _HASHED])
            release(content, start, min(start + _HASHED, size))
            yield k + start / size
        entry: dict[str, Any] = {"name": Path(redact(file.path)).name, "size": size, "sha256": digest.hexdigest()}
        if file.compression is not None:
            entry["outer"] = describe_outer(file.path, file.compression, content)
        _ = file.data  # raises if the file was changed meanwhile
        entries.append(entry)


def build(source: FitsSource) -> Capsule:
    """Make the capsule of a WorkUnit: what belongs to no image, and hashes of the files as soon as they are needed."""
    plan = _plan_of(source)
    plan.document = _Document(source, plan.files)
    return Capsule(plan.document, _head(plan))


def piece(source: FitsSource, i: int, image: Image) -> bytes:
    """Make the piece of image ``i`` and prove it.

    Parameters
    ----------
    i, image
        The image as it was read from them.
    """
    plan = _plan_of(source)
    if plan.document is not None:
        plan.document.begin(i)
    entries: list[dict[str, Any]] = []
    headers: list[bytes] = []
    blobs: list[bytes] = []
    owned = plan.owned(i)
    # Asking for the bytes looks whether the file was changed: once an image, not once an HDU.
    contents = {number: memoryview(plan.files[number].data) for number in {number for number, *_ in owned}}
    for number, hdu, layer in owned:
        content = contents[number]
        head = bytes(content[hdu.header_start : hdu.data_start])
        data = content[hdu.data_start : hdu.end]
        plane = image.layer(LAYERS[layer]) if layer >= 0 else None
        recipe = record(hdu.header, head, data, hdu.data_length, plane)
        entry = recipe.control | {"file": number, "at": hdu.header_start, "layer": layer, "name": hdu.name}
        entry["parts"] = [len(recipe.header), *(len(blob) for blob in recipe.blobs)]
        entries.append(entry)
        headers.append(recipe.header)
        blobs += recipe.blobs
    control: dict[str, Any] = {"hdus": entries}
    # Every layer, used or not: a changed store must not export the old pixels.
    present = [layer for layer in range(len(LAYERS)) if image.layer(LAYERS[layer]) is not None]
    checksums = plane_checksums(image)
    control["planes"] = {str(layer): checksums[layer] for layer in present}
    if plan.sharded:
        file = plan.files[1 + i]
        if file.scan.trailing_start < file.scan.size:
            trailing = bytes(memoryview(file.data)[file.scan.trailing_start : file.scan.size])
            control["trailing"] = [1 + i, file.scan.trailing_start, len(trailing)]
            blobs.append(trailing)
    return _encode(_PIECE, control, [*headers, *blobs], plan.template)


# --- export -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A capsule's head, decoded.

    Attributes
    ----------
    template
        Dictionary of the pieces.
    segments
        File number, offset and bytes of what belongs to no image.
    """

    template: bytes
    segments: list[tuple[int, int, bytes]]

    @classmethod
    def decode(cls, data: bytes) -> Head:
        """Decode a head."""
        try:
            control, parts = _decode(_HEAD, data)
            at = int(control["template"])
            template = bytes(parts[:at])
            segments = []
            for number, start, size in control["segments"]:
                if not 0 <= size <= len(parts) - at or start < 0:
                    raise CorruptError("the FITS capsule is damaged", where="head", found=size)
                segments.append((int(number), int(start), bytes(parts[at : at + size])))
                at += size
        except (WuStoreError, *_DAMAGE) as error:
            raise _damaged("head", error) from error
        return cls(template, segments)


@dataclass(frozen=True)
class Block:
    """The bytes of one HDU, or of what lies behind the last one.

    Attributes
    ----------
    file, offset
        Where it goes.
    data
        The bytes.
    layer
        Its layer's number; -1 if it has none.
    name
        EXTNAME.
    """

    file: int
    offset: int
    data: bytes
    layer: int
    name: str


def regenerate(data: bytes, i: int, image: Image, template: bytes) -> Iterator[Block]:
    """Yield the HDUs of image ``i`` again, each checked against its recorded CRC-32.

    Raises
    ------
    ChangedError
        The pixels are not those that were imported.
    FidelityError
        The pixels are the same, the bytes are not: a compression library writes other bytes than it did.
    CorruptError
        The piece is damaged.
    """
    where = f"piece of image {i}"
    try:
        control, parts = _decode(_PIECE, data, template)
        entries = control["hdus"]
        found = plane_checksums(image)
        for layer, checksum in control["planes"].items():
            if image.layer(LAYERS[int(layer)]) is None or found[int(layer)] != checksum:
                raise ChangedError("pixels differ from those imported", where=f"image {i}, {LAYERS[int(layer)]}")
        at = 0
        headers = []
        for entry in entries:
            headers.append(bytes(parts[at : at + entry["parts"][0]]))
            at += entry["parts"][0]
        for entry, header in zip(entries, headers, strict=True):
            blobs = []
            for size in entry["parts"][1:]:
                blobs.append(bytes(parts[at : at + size]))
                at += size
            layer = int(entry["layer"])
            plane = image.layer(LAYERS[layer]) if layer >= 0 else None
            block = rebuild(Recipe(entry, header, blobs), plane)
            if zlib.crc32(block) != entry["crc"]:
                raise FidelityError(
                    "an HDU does not come out as it was imported",
                    where=f"HDU {entry['name'] or 'unnamed'} of image {i}",
                    expected=f"CRC-32 {entry['crc']:08x} over {entry['all']} bytes",
                    found=f"CRC-32 {zlib.crc32(block):08x} over {len(block)} bytes",
                    hint="Export with --no-capsule, or with the versions of zlib and imagecodecs of the import.",
                )
            yield Block(int(entry["file"]), int(entry["at"]), block, layer, str(entry["name"]))
        if "trailing" in control:
            number, start, size = control["trailing"]
            yield Block(int(number), int(start), bytes(parts[at : at + size]), -1, "trailing bytes")
    except (ChangedError, FidelityError):
        raise
    except (WuStoreError, *_DAMAGE) as error:
        raise _damaged(where, error) from error
