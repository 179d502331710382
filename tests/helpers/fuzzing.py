"""Mutations of stores, and what may become of them: the one place that says which exceptions are allowed."""

from __future__ import annotations

import contextlib
import gzip
import json
import operator
import random
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wustore.backends.base import Reader
from wustore.backends.fits.indexing import make_index
from wustore.backends.fits.restored_files import StoreChangedWarning
from wustore.backends.registry import backend_for_writing, backend_named, open_reader
from wustore.backends.zarr.filters.decode import with_crc
from wustore.backends.zarr.metadata import document_checksum
from wustore.errors import WuStoreError
from wustore.model.checksum import crc32c
from wustore.ops.copy import copy
from wustore.ops.diff import differences
from wustore.ops.verify import problems
from wustore.testing import sample, with_capsule

ALLOWED = (WuStoreError, OSError, MemoryError)
"""What bad input may raise, whatever it is."""

GOLDEN = Path(__file__).parents[1] / "data"


def use(path: Path | str, work: Path) -> str:
    """Do with a store what its user does: open, look, read all, verify, convert, diff; return how it ended.

    FITS files are made again from what they were converted to.
    """
    try:
        with open_reader(path) as reader:
            reader.describe()
            assert reader.meta.n_images > 0
            for i in range(min(reader.meta.n_images, 50)):
                reader.image(i)
            for problem in problems(reader, workers=1):
                str(problem)
            target = work / "copy.zarr"
            with contextlib.suppress(*ALLOWED):
                capsule = reader.capsule() if "fits" in reader.format else None
                writer = backend_for_writing(str(target)).create(
                    str(target), reader.meta, capsule=capsule, overwrite=True
                )
                copy(reader, writer, workers=1)
                with open_reader(target) as copied:
                    different = [str(difference) for difference in differences(reader, copied, workers=1)]
                    assert not different, different
                    if capsule is not None:
                        _give_back(copied, reader.format, work / "back.fits")
    except ALLOWED as error:
        str(error)
        return type(error).__name__
    return "used"


def _give_back(store: Reader, form: str, target: Path) -> None:
    """Write the files again that a store was made of, which compares their sha256."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", StoreChangedWarning)
        try:
            writer = backend_named(form).create(str(target), store.meta, capsule=store.capsule(), overwrite=True)
            copy(store, writer, workers=1)
        except (WuStoreError, StoreChangedWarning) as error:
            raise AssertionError(f"not given back: {error}") from error


# --- mutations ----------------------------------------------------------------------------------------------


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, removed, doubled or set to what often matters."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if not changed:
            break
        at = rng.randrange(len(changed))
        length = min(rng.choice([1, 2, 4, 8, 80, 512]), len(changed) - at)
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + length] = rng.choice([b"\0", b"\xff", b"\x7f", b" "]) * length
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                del changed[at:]
            case 5:
                changed[at : at + length] = rng.randbytes(length)
    return bytes(changed)


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, 1e308, "", "x", "\0", "\ud800", "<f4", "(,)i4", "<M8[s]",
    "../x", [], [[]], [-1], [1, 2], {}, {"a": {}}, {"$tuple": [1]}, {"$what": 1}, {"$ndarray": ["<f4", [-1], "AAAA"]},
    {"$numpy": ["<U9", "AAAA"]}, {"$map": [[[], 1]]}, {"$float": "x"}, {"$date": "x"},
]  # fmt: skip


def of_json(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with something in it replaced, removed, doubled or nested deeply."""
    places = [(parent, key) for parent, key in _places(value)]
    if not places:
        return rng.choice(ODD)
    for _ in range(rng.choice([1, 1, 2])):
        parent, key = rng.choice(places)
        if (key not in parent) if isinstance(parent, dict) else (key >= len(parent)):
            continue
        match rng.randrange(4):
            case 0 | 1:
                parent[key] = rng.choice(ODD)
            case 2:
                del parent[key]
            case 3:
                nested: Any = parent[key]
                for _ in range(rng.choice([1, 60, 400])):
                    nested = [nested]
                parent[key] = nested
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


# --- targets ------------------------------------------------------------------------------------------------


def _saved(folder: Path, name: str, kind: str = "rich", form: str | None = None) -> Path:
    source = with_capsule(sample(kind)) if kind == "ragged" else sample(kind)
    path = folder / name
    if not path.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer = backend_for_writing(str(path), form).create(str(path), source.meta, capsule=source.capsule())
            copy(source, writer, workers=1)
    return path


def _of_directory(seeds: Path, work: Path) -> Path:
    path = work / "night.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(_saved(seeds, "night.zarr"), path)
    return path


def document(seeds: Path, work: Path, rng: random.Random) -> Path:
    """The root document of a Zarr store, with the checksum that fits."""
    path = _of_directory(seeds, work)
    root = json.loads((path / "zarr.json").read_text())
    changed = of_json(root["attributes"]["wustore"], rng)
    with contextlib.suppress(WuStoreError, RecursionError):
        changed["crc32c"] = document_checksum(changed)
    root["attributes"]["wustore"] = changed
    (path / "zarr.json").write_text(json.dumps(root))
    return path


def metadata(seeds: Path, work: Path, rng: random.Random) -> Path:
    """The metadata of an array of a Zarr store, in both copies."""
    path = _of_directory(seeds, work)
    root = json.loads((path / "zarr.json").read_text())
    nodes = root["consolidated_metadata"]["metadata"]
    name = rng.choice(sorted(nodes))
    nodes[name] = of_json(nodes[name], rng)
    (path / "zarr.json").write_text(json.dumps(root))
    (path / name / "zarr.json").write_text(json.dumps(nodes[name]))
    return path


def _of_chunk(path: Path, rng: random.Random) -> Path:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")
    file = rng.choice(files)
    data = file.read_bytes()
    file.write_bytes(of_bytes(data, rng) if rng.random() < 0.5 else with_crc(of_bytes(data[:-4], rng)))
    return path


def chunk(seeds: Path, work: Path, rng: random.Random) -> Path:
    """A shard or small chunk of a Zarr store; every other time with the checksum that fits."""
    return _of_chunk(_of_directory(seeds, work), rng)


_PACKERS = (
    ("BloscCodec", "ZstdCodec"),
    ("GzipCodec", "numcodecs.BZ2"),
    ("numcodecs.LZMA", "numcodecs.Zlib"),
    ("numcodecs.LZ4", "numcodecs.Zstd"),
    ("numcodecs.GZip", "numcodecs.PCodec"),
)
"""Codecs of zarr-python: of the layers science and variance in a store."""


def foreign_chunk(seeds: Path, work: Path, rng: random.Random) -> Path:
    """The same of a store that another program has packed again: layers by its codecs, texts without checksums."""
    import zarr

    packers = rng.choice(_PACKERS)
    path = seeds / f"foreign.{'.'.join(packers)}.zarr"
    if not path.exists():
        shutil.copytree(_saved(seeds, "night.zarr"), path)
        group = zarr.open_group(path, mode="r+", use_consolidated=False)
        for name, packer in zip(("science", "variance"), packers, strict=True):
            shards = None if name == "science" else group[name].shape
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of codecs that Zarr v3 does not have
                codec = operator.attrgetter(packer)(zarr.codecs)()
                packed = {"serializer": codec, "compressors": None} if "PCodec" in packer else {"compressors": [codec]}
                group.create_array(
                    name, data=group[name][:], chunks=(1, *group[name].shape[1:]), shards=shards, **packed,
                    overwrite=True, config={"write_empty_chunks": True}, attributes=dict(group[name].attrs),
                )  # fmt: skip
        for name, array in group["constituents"].arrays():
            if array.dtype.kind not in "biuf":
                group["constituents"].create_array(name, data=array[:], overwrite=True, attributes=dict(array.attrs))
        zarr.consolidate_metadata(path)
    return _of_chunk(Path(shutil.copytree(path, work / "foreign.zarr", dirs_exist_ok=True)), rng)


def journal(seeds: Path, work: Path, rng: random.Random) -> Path:
    """A file of the journal of an unfinished conversion, and of the plan; the conversion is then resumed."""
    from wustore.ops import plans, run_parts

    source, target = _saved(seeds, "night.zarr"), work / "night.h5"
    for left in work.glob(".night.h5*"):
        shutil.rmtree(left)
    target.unlink(missing_ok=True)
    plans.plan(str(source), str(target), parts=2)
    run_parts.part(str(target), 0)
    [folder] = work.glob(".night.h5*")
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    text = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.5:
        file.write_text(json.dumps(of_json(json.loads(text), rng)))
    else:
        file.write_bytes(of_bytes(text, rng))
    with contextlib.suppress(*ALLOWED):
        run_parts.part(str(target), 1)
        run_parts.finish(str(target))
    return target


def _raw(name: str, kind: str = "rich") -> Callable[[Path, Path, random.Random], Path]:
    def mutated(seeds: Path, work: Path, rng: random.Random) -> Path:
        path = work / name
        path.write_bytes(of_bytes(_saved(seeds, name, kind).read_bytes(), rng))
        return path

    mutated.__doc__ = f"The bytes of {name}."
    return mutated


def exact_hdu(seeds: Path, work: Path, rng: random.Random) -> Path:
    """The JSON in the HDU of exact metadata of a FITS file."""
    from astropy.io import fits

    path = work / "night.fits"
    with fits.open(_saved(seeds, "night.fits")) as file:
        hdu = file["WUSTORE"]
        content = of_json(json.loads(zlib.decompress(hdu.data.tobytes())), rng)
        data = zlib.compress(json.dumps(content).encode())
        header = hdu.header
        file[file.index_of("WUSTORE")] = fits.ImageHDU(np.frombuffer(data, np.uint8), header)
        file.writeto(path, overwrite=True)
    return path


def fits_index(seeds: Path, work: Path, rng: random.Random) -> str:
    """An index of a FITS file at a URL: its bytes, its document or one of its parts, with the checksums that fit."""
    import fsspec

    place = _saved(seeds, "night.fits")
    index = Path(f"{place}.wuindex")
    if not index.exists():
        make_index(str(place))
    data = index.read_bytes()
    if rng.randrange(4) == 0:
        changed = of_bytes(data, rng)
    else:
        length = int.from_bytes(data[8:12], "little")
        document, parts = json.loads(zlib.decompress(data[16 : 16 + length])), data[16 + length :]
        if rng.randrange(2):
            document = of_json(document, rng)
        else:
            file = document["files"][0]
            part = rng.choice([document["metadata"], *(table["section"] for table in file["tables"])])
            content = of_bytes(zlib.decompress(parts[part["at"] : part["at"] + part["length"]]), rng)
            packed = zlib.compress(content)
            part.update(at=len(parts), length=len(packed), crc32c=crc32c(content))
            parts += packed
        head = zlib.compress(json.dumps(document).encode(errors="surrogatepass"))
        changed = data[:8] + len(head).to_bytes(4, "little") + crc32c(head).to_bytes(4, "little") + head + parts
    system = fsspec.filesystem("memory")
    system.pipe_file("/fuzz/night.fits", place.read_bytes())
    system.pipe_file("/fuzz/night.fits.wuindex", changed)
    return "memory://fuzz/night.fits"


def yaml_dump(seeds: Path, work: Path, rng: random.Random) -> Path:
    """The text of a YAML dump of 2023."""
    path = work / "night.yaml"
    text = gzip.decompress((GOLDEN / "fits/2023-11/nowcs.yaml.gz").read_bytes())
    lines = text.split(b"\n")
    if rng.random() < 0.5:
        k = rng.randrange(len(lines))
        lines[k] = rng.choice(
            [b"", b"a: &a [*a]", b"- " * 300, b"num_images: -5", b"9" * 5000, b"x: !!python/object:os.x {}"]
        )
        path.write_bytes(b"\n".join(lines))
    else:
        path.write_bytes(of_bytes(text, rng))
    return path


_FITS_VALUES = (
    *(0, -1, 1, 2, 3, 255, 2**31, 2**40, 2**62, -(2**63), 10**25, 1e300, "NaN", "T", "''", "'1PB(3)'", "'A'", ""),
    *("(1,2)", "'RICE_1'", "'GZIP_2'", "'HCOMPRESS_1'", "'PLIO_1'", "'BINTABLE'", "'SUBTRACTIVE_DITHER_1'"),
)
_FITS_STRUCTURE = (b"Z", b"T", b"NAXIS", b"PCOUNT", b"GCOUNT", b"BITPIX", b"N", b"IND", b"B", b"XTENSION", b"EXTNAME")
_FITS_MEANING = (b"MJD", b"GEO_", b"HELIO", b"REP", b"OBS_", b"ILOC", b"WCSAXES", b"CR", b"CTYPE", b"DIMM")


def _of_cards(data: bytes, rng: random.Random) -> bytes:
    """Return a FITS file with a few cards of its structure or meaning set to odd values, repeated or left out."""
    wanted = rng.choice([_FITS_STRUCTURE, _FITS_STRUCTURE, _FITS_MEANING])
    cards = [at for at in range(0, len(data), 80) if data[at : at + 80].startswith(wanted)]
    if not cards:
        return data
    changed = bytearray(data)
    for at in rng.sample(cards, min(len(cards), rng.choice([1, 1, 2, 4]))):
        card = bytes(changed[at : at + 80])
        match rng.randrange(6):
            case 0:
                changed[at : at + 80] = bytes(changed[rng.choice(cards) :][:80])
            case 1:
                changed[at : at + 80] = b" " * 80
            case _:
                changed[at : at + 80] = (card[:8] + f"= {rng.choice(_FITS_VALUES)!s:>20}".encode()).ljust(80)[:80]
    return bytes(changed)


def fits_cards(seeds: Path, work: Path, rng: random.Random) -> Path:
    """Cards of KBMOD's files of all years."""
    path = work / "night.fits"
    whole = gzip.decompress(rng.choice(sorted(GOLDEN.glob("fits/*/*.fits.gz"))).read_bytes())
    path.write_bytes(_of_cards(whole, rng))
    return path


def fits_years(seeds: Path, work: Path, rng: random.Random) -> Path:
    """The bytes of KBMOD's files of all years, and of compressed files around them."""
    packed = rng.choice(sorted(GOLDEN.glob("fits/*/*.fits.gz"))).read_bytes()
    path = work / rng.choice(["night.fits", "night.fits.gz"])
    path.write_bytes(of_bytes(packed if path.suffix == ".gz" else gzip.decompress(packed), rng))
    return path


def fits_set(seeds: Path, work: Path, rng: random.Random) -> Path:
    """One file of a sharded set."""
    folder = work / "set"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _saved(seeds, "set.fits", "simple", "sharded-fits")
    for file in seeds.glob("*set.fits"):
        shutil.copy(file, folder / file.name)
    file = rng.choice(sorted(folder.iterdir()))
    file.write_bytes(rng.choice([of_bytes, _of_cards])(file.read_bytes(), rng))
    return folder / "set.fits"


TARGETS: dict[str, Callable[[Path, Path, random.Random], Path | str]] = {
    "document": document,
    "metadata": metadata,
    "chunk": chunk,
    "foreign chunk": foreign_chunk,
    "zip": _raw("night.zarr.zip", "simple"),
    "hdf5": _raw("night.h5"),
    "fits": _raw("night.fits"),
    "fits cards": fits_cards,
    "fits of all years": fits_years,
    "fits set": fits_set,
    "fits index": fits_index,
    "exact hdu": exact_hdu,
    "yaml": yaml_dump,
    "journal": journal,
}
"""What is mutated: functions of the folder of whole seeds, a folder to work in, and the random numbers."""
