"""FITS -> (pixels, metadata, capsule) -> FITS gives the identical bytes, whatever is in the file."""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from fits_roundtrip import again, methods
from fits_samples import COMPRESSIONS, NOISE, compressed, image_hdus, primary_hdu, small, table_hdu, write
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import in_memory

from wustore.backends.fits import capsule as leftovers
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.fits.hdu.header import BLOCK
from wustore.backends.fits.restored_files import StoreChangedWarning
from wustore.backends.memory import MemoryReader
from wustore.errors import CorruptError, FidelityError, FormatError, StoreReplacedError, WuStoreError
from wustore.model.meta import Capsule

EXPECTED = {"rice", "rice-tiles", "gzip-1", "gzip-2", "none", "rice-relative", "rice-dither-1", "rice-dither-2"}


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_every_compression_comes_back(kind: str, tmp_path: Path) -> None:
    hdus = [primary_hdu(1)]
    plain = image_hdus(0, shape=NOISE.shape)
    science = compressed("SCI_0", **COMPRESSIONS[kind])
    for keyword in ("MJD", "NIND", "IND_0"):
        science.header[keyword] = plain[0].header[keyword]
    variance = compressed("VAR_0", np.abs(NOISE), **COMPRESSIONS[kind])
    store = again(Path(write(tmp_path / "a.fits", [*hdus, science, variance, *plain[2:]])), tmp_path)
    found = methods(store)
    assert found["MSK_0"] == "plain"
    if kind in EXPECTED:
        assert found["SCI_0"].startswith("tiles")


def test_masks_of_integers(tmp_path: Path) -> None:
    """PLIO and Rice masks, unsigned and scaled integers."""
    flags = np.random.default_rng(0).integers(0, 4096, (12, 20)).astype(np.int32)
    masks = [
        fits.CompImageHDU(flags, compression_type="PLIO_1"),
        fits.CompImageHDU(flags, compression_type="RICE_1"),
        fits.ImageHDU(flags.astype(np.uint16)),
        fits.CompImageHDU(flags.astype(np.int16), compression_type="GZIP_2"),
    ]
    hdus = [primary_hdu(len(masks))]
    for i, mask in enumerate(masks):
        mask.name = f"MSK_{i}"
        image = image_hdus(i, shape=flags.shape)
        hdus += [*image[:2], mask, image[3]]
    store = again(Path(write(tmp_path / "a.fits", hdus)), tmp_path)
    assert {methods(store)[f"MSK_{i}"].partition("+")[0] for i in (1, 2, 3)} == {"tiles", "plain"}


@pytest.mark.parametrize("blank", [None, -7])
@pytest.mark.parametrize("kind", ["int16", "int32", "uint8"])
def test_scaled_image(kind: str, blank: int | None, tmp_path: Path) -> None:
    hdus = [primary_hdu(1), *image_hdus(0)]
    hdus[2] = fits.ImageHDU(hdus[2].data, name="VAR_0")
    hdus[2].scale(kind, bscale=0.125, bzero=3)
    if blank is not None:
        hdus[2].header["BLANK"] = blank
    store = again(Path(write(tmp_path / "a.fits", hdus)), tmp_path)
    assert methods(store)["VAR_0"].startswith("plain")


def test_odd_cards(tmp_path: Path) -> None:
    """HISTORY, COMMENT, HIERARCH, CONTINUE, blank cards, odd spacing, wrong checksums."""
    path = Path(small(tmp_path / "a.fits"))
    with fits.open(path, mode="update") as hdus, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for hdu in hdus:
            hdu.header["HISTORY"] = "edited " * 20
            hdu.header["COMMENT"] = "by hand"
            hdu.header["HIERARCH a long keyword"] = 1.5
            hdu.header["LONGTEXT"] = "text " * 40
            hdu.header[""] = ""
            hdu.header["CHECKSUM"] = "0000000000000000"
    raw = path.read_bytes().replace(b"MJD     =              60000.0", b"MJD     =  60000.0D0          ")
    path.write_bytes(raw.replace(b"by hand", b"by h\xe4nd"))
    again(path, tmp_path)


def test_foreign_duplicate_and_unordered_hdus(tmp_path: Path) -> None:
    a, b = image_hdus(0), image_hdus(1)
    foreign = table_hdu("FOREIGN", x=np.arange(5))
    order = [primary_hdu(2), b[3], foreign, a[1], fits.ImageHDU(a[0].data + 1, name="SCI_7"), a[0], b[0], a[2], b[2]]
    order += [b[1], a[3], a[0].copy(), fits.ImageHDU(name="EMPTY")]
    again(Path(write(tmp_path / "a.fits", order)), tmp_path)


@pytest.mark.parametrize("tail", [b"\0" * 2880, b"rubbish", b"\0" * 100, b" " * 5760])
def test_trailing_bytes(tail: bytes, tmp_path: Path) -> None:
    path = Path(small(tmp_path / "a.fits"))
    path.write_bytes(path.read_bytes() + tail)
    again(path, tmp_path)


def test_odd_padding_and_nan_payloads(tmp_path: Path) -> None:
    hdus = image_hdus(0)
    hdus[0].data.view(np.uint32)[0, :4] = [0x7FC0BEEF, 0xFFC00001, 0x7F800001, 0x80000000]
    path = Path(write(tmp_path / "a.fits", [primary_hdu(1), *hdus]))
    raw = bytearray(path.read_bytes())
    with FitsBackend().open(str(path)) as reader:
        hdu = reader.files[0].scan.get("VAR_0")
    assert hdu is not None
    raw[hdu.data_start + hdu.data_length] = 77
    path.write_bytes(raw)
    store = again(path, tmp_path)
    assert methods(store)["SCI_0"] == "plain"


@pytest.mark.parametrize("compressed_too", [False, True])
@pytest.mark.parametrize(
    "rubbish", [b"\0", b"the END of it ", b"END".ljust(80), b"NAXIS1  =                    3".ljust(80)]
)
def test_rubbish_behind_the_end_card(rubbish: bytes, compressed_too: bool, tmp_path: Path) -> None:
    """FITS wants blanks there; whatever else stands there is no card, and comes back."""
    path = Path(small(tmp_path / "a.fits", compressed=compressed_too))
    raw = bytearray(path.read_bytes())
    with FitsBackend().open(str(path)) as reader:
        hdus = reader.files[0].scan.hdus
    for hdu in hdus:
        behind = hdu.header_start + len(hdu.header.text) + 80
        raw[behind : hdu.data_start] = (rubbish * BLOCK)[: hdu.data_start - behind]
    path.write_bytes(raw)
    found = methods(again(path, tmp_path))
    assert found["SCI_0"] == ("tiles" if compressed_too else "plain")


def test_truncated_last_block(tmp_path: Path) -> None:
    """Some writers do not pad the last block."""
    path = Path(small(tmp_path / "a.fits"))
    with FitsBackend().open(str(path)) as reader:
        last = reader.files[0].scan.hdus[-1]
    path.write_bytes(path.read_bytes()[: last.data_start + last.data_length])
    again(path, tmp_path)


def test_shards_with_extras(tmp_path: Path) -> None:
    write(tmp_path / "wu.fits", [primary_hdu(2), table_hdu("NOTES", x=np.arange(3))])
    for i in range(2):
        extra = fits.ImageHDU(np.arange(6).reshape(2, 3), name="FOREIGN")
        write(tmp_path / f"{i}_wu.fits", [fits.PrimaryHDU(), *image_hdus(i), extra])
    with (tmp_path / "1_wu.fits").open("ab") as file:
        file.write(b"behind")
    again(tmp_path / "wu.fits", tmp_path, sharded=True)


@settings(max_examples=15)
@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=60),
    width=st.integers(2, 12),
    kind=st.sampled_from(sorted(set(COMPRESSIONS) - {"hcompress"})),
)
def test_any_pixels(bits: list[int], width: int, kind: str, tmp_path: Path) -> None:
    values = np.resize(np.array(bits, np.uint32), (max(1, len(bits) // width), width)).view(np.float32)
    image = image_hdus(0, shape=values.shape)
    options = {key: value for key, value in COMPRESSIONS[kind].items() if key != "tile_shape"}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        variance = compressed("VAR_0", values, **options)
        path = Path(write(tmp_path / "a.fits", [primary_hdu(1), image[0], variance, *image[2:]]))
    again(path, tmp_path)


def test_corpus(corpus: Path, tmp_path: Path) -> None:
    """A cross-section of the corpus; the whole of it is `test_whole_corpus`."""
    _identical(sorted(corpus.glob("head/d_compress/*.fits"))[::3] + sorted(corpus.glob("real/**/*.fits"))[:3], tmp_path)


@pytest.mark.slow
def test_whole_corpus(corpus: Path, tmp_path: Path) -> None:
    _identical(sorted(corpus.rglob("*.fits")), tmp_path)


def _identical(paths: list[Path], tmp_path: Path) -> None:
    count = 0
    for path in paths:
        sharded = (path.parent / f"0_{path.name}").exists()
        try:
            (ShardedFitsBackend() if sharded else FitsBackend()).open(str(path)).close()
        except WuStoreError:
            continue  # not a WorkUnit; which of these must open is the readers' test
        out = tmp_path / str(count)
        out.mkdir()
        again(path, out, sharded=sharded)
        count += 1
    assert count


# --- size ---------------------------------------------------------------------------------------------


def test_capsule_is_small(tmp_path: Path) -> None:
    plane = np.random.default_rng(1).normal(0, 5, (256, 1024)).astype(np.float32)
    image = image_hdus(0, shape=plane.shape)
    science = compressed("SCI_0", plane, **COMPRESSIONS["rice"])
    path = Path(write(tmp_path / "a.fits", [primary_hdu(1), science, compressed("VAR_0", plane + 50), *image[2:]]))
    store = again(path, tmp_path)
    capsule = store.capsule()
    assert capsule is not None
    assert len(capsule.head) + len(store.image_capsule(0) or b"") < 0.01 * path.stat().st_size


# --- when the files are hashed ------------------------------------------------------------------------


@pytest.fixture
def night(tmp_path: Path) -> Path:
    hdus = [primary_hdu(4)]
    for i in range(4):
        hdus += image_hdus(i, shape=NOISE.shape)
    return Path(write(tmp_path / "a.fits", hdus))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was hashed after each step, in files; a step is a twentieth of a file."""
    found: list[float] = []
    real = leftovers._Document._step

    def step(document: leftovers._Document) -> None:
        real(document)
        found.append(document._hashed)

    monkeypatch.setattr(leftovers._Document, "_step", step)
    return found


def _expected(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"name": path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_files_are_hashed_along_with_their_images(
    night: Path, steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_HASHED", night.stat().st_size // 20)
    with FitsBackend().open(str(night)) as reader:
        capsule = reader.capsule()
        assert capsule is not None
        assert steps == []
        reached = []
        for i in (2, 0, 2, 3, 1):
            reader.image_capsule(i)
            reached.append(steps[-1])
        assert [0.25 <= reached[0] < 0.35, 0.5 <= reached[1] < 0.6, 0.75 <= reached[3] < 0.85] == [True] * 3
        assert reached[2] == reached[1]  # an image counts once
        assert reached[4] == float("inf")
        taken = len(steps)
        assert capsule.document["files"] == [_expected(night)]
        assert len(steps) == taken
        assert list(capsule.document) == ["encoding", "form", "meta", "files"]
        assert len(capsule.document) == 4
        assert capsule.document == dict(capsule.document)


def test_who_looks_at_the_document_hashes_the_rest(night: Path) -> None:
    with FitsBackend().open(str(night)) as reader:
        capsule = reader.capsule()
        assert capsule is not None
        reader.image_capsule(0)
        assert capsule.document["files"] == [_expected(night)]
        copied = pickle.loads(pickle.dumps(capsule))
    assert (copied.document, copied.head) == (capsule.document, capsule.head)
    assert type(copied.document) is dict


def test_threads_hash_everything_once(night: Path, steps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_HASHED", night.stat().st_size // 20)
    with FitsBackend().open(str(night)) as reader:
        capsule = reader.capsule()
        assert capsule is not None
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(reader.image_capsule, range(4)))
        assert steps[-1] == float("inf")
        assert steps == sorted(set(steps))
        assert capsule.document["files"] == [_expected(night)]


def test_a_file_that_is_changed_before_it_is_hashed_is_refused(night: Path) -> None:
    with FitsBackend().open(str(night)) as reader:
        capsule = reader.capsule()
        assert capsule is not None
        content = night.read_bytes()
        night.unlink()
        night.write_bytes(content + bytes(BLOCK))
        for _ in range(2):
            with pytest.raises(StoreReplacedError):
                dict(capsule.document)


def test_a_file_that_is_changed_while_it_is_hashed_is_refused(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_HASHED", night.stat().st_size // 20)
    with FitsBackend().open(str(night)) as reader:
        capsule = reader.capsule()
        assert capsule is not None
        reader.image_capsule(0)
        content = night.read_bytes()
        night.unlink()
        night.write_bytes(content + bytes(BLOCK))
        for _ in range(2):
            with pytest.raises(StoreReplacedError):
                dict(capsule.document)


# --- outer compression --------------------------------------------------------------------------------


# --- damage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MemoryReader:
    path = tmp_path_factory.mktemp("store") / "a.fits"
    hdus = [primary_hdu(1)]
    image = image_hdus(0, shape=NOISE.shape)
    science = compressed("SCI_0", **COMPRESSIONS["rice"])
    write(path, [*hdus, science, compressed("VAR_0", **COMPRESSIONS["gzip-1"]), *image[2:]])
    with FitsBackend().open(str(path)) as reader:
        return in_memory(reader)


def _export(store: MemoryReader, piece: bytes | None, capsule: Capsule, target: Path) -> bytes:
    writer = FitsBackend().create(str(target), store.meta, capsule=capsule, overwrite=True)
    try:
        writer.write(0, store.image(0), piece)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    return target.read_bytes()


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_capsule(store: MemoryReader, data: st.DataObject, tmp_path: Path) -> None:
    """A flipped bit gives a typed error or the right file, never another file."""
    capsule = store.capsule()
    assert capsule is not None
    piece = store.image_capsule(0)
    assert piece is not None
    inside = data.draw(st.booleans())
    if data.draw(st.booleans()):
        piece = _damaged(piece, data, inside=inside, capsule=capsule)
    else:
        capsule = replace(capsule, head=_damaged(capsule.head, data, inside=False, capsule=capsule))
    target = tmp_path / "out.fits"
    try:
        raw = _export(store, piece, capsule, target)
    except (CorruptError, FidelityError, StoreChangedWarning):
        return
    assert hashlib.sha256(raw).hexdigest() == capsule.document["files"][0]["sha256"]


def _damaged(raw: bytes, data: st.DataObject, *, inside: bool, capsule: Capsule) -> bytes:
    """Flip a bit, of the stream itself or of what it holds (as if a hostile writer had made it)."""
    template = leftovers.Head.decode(capsule.head).template
    plain = zlib.decompressobj(zdict=template).decompress(raw[4:]) if inside else raw
    place = data.draw(st.integers(0, 8 * min(len(plain), 4000) - 1))
    changed = bytearray(plain)
    changed[place // 8] ^= 1 << place % 8
    if not inside:
        return bytes(changed)
    engine = zlib.compressobj(1, zdict=template)
    return raw[:4] + engine.compress(bytes(changed)) + engine.flush()


def test_missing_piece(store: MemoryReader, tmp_path: Path) -> None:
    capsule = store.capsule()
    assert capsule is not None
    with pytest.raises(CorruptError):
        _export(store, None, capsule, tmp_path / "o.fits")
    assert list(tmp_path.iterdir()) == []


def test_wrong_document(store: MemoryReader, tmp_path: Path) -> None:
    capsule = store.capsule()
    assert capsule is not None
    document = dict(capsule.document)
    for wrong in ({"form": 1}, {"files": []}, {"files": [{}]}, {"encoding": None, "files": 3}):
        with pytest.raises(FormatError):
            FitsBackend().create(
                str(tmp_path / "o.fits"), store.meta, capsule=replace(capsule, document=document | wrong)
            )
    sums = [entry | {"sha256": "0" * 64} for entry in document["files"]]
    with pytest.raises(FidelityError, match=r"a\.fits"):
        _export(
            store,
            store.image_capsule(0),
            replace(capsule, document=document | {"files": sums}),
            tmp_path / "o.fits",
        )
    assert list(tmp_path.iterdir()) == []
