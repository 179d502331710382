"""FITS files at URLs that are read through an index: requests and bytes counted, other files refused."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import fuzzing
import numpy as np
import pytest
from astropy.wcs import WCS
from range_server import RangeServer, serving

import wustore
from wustore.backends.fits.indexing import write_index
from wustore.backends.fits.reader import FitsReader
from wustore.backends.registry import backend_for_writing
from wustore.cli import main
from wustore.errors import CorruptError, StoreNotFoundError, StoreReplacedError, UsageError
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample

pytest.importorskip("obstore", reason="reading URLs needs the extra cloud")

BLOCK = 1 << 16
KINDS = {
    "default": ("fits", {}),
    "rice": ("fits", {"compression_type": "RICE_1", "quantize_level": -0.01, "lossy": True}),
    "gzip": ("fits", {"compression_type": "GZIP_1"}),
    "plain": ("fits", {"compression_type": "NOCOMPRESS"}),
    "kbmod": ("fits", {"mode": "kbmod", "lossy": True}),
    "sharded": ("sharded-fits", {}),
    "sharded-kbmod": ("sharded-fits", {"mode": "kbmod", "lossy": True}),
}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[RangeServer]:
    with serving(tmp_path) as running:
        yield running


def stack(n: int = 5, side: int = 160) -> wustore.WorkUnit:
    rng = np.random.default_rng(5)
    planes = [np.round(rng.normal(0, 5, (side, side)), 2).astype(np.float32) for _ in range(2 * n)]
    images = wustore.ImageStack(
        times=60000 + np.arange(float(n)), sci=planes[:n], var=[abs(plane) + 1 for plane in planes[n:]]
    )
    return wustore.WorkUnit(images, wustore.SearchConfiguration(), wcs=WCS(naxis=2))


def indexed(path: Path) -> Path:
    with FitsReader(str(path), None, False) as reader:
        return Path(write_index(reader))


def saved(folder: Path, kind: str) -> Path:
    path = folder / "night.fits"
    form, options = KINDS[kind]
    wustore.save(stack(), path, format=form, **options)
    return path


@pytest.mark.filterwarnings("ignore::wustore.LossWarning")
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_it_gives_is_what_the_files_give(kind: str, web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, kind)
    index = indexed(path)
    url = f"{web.url}/night.fits"
    with wustore.open_reader(path) as expected, wustore.open_reader(url) as reader:
        opening = web.take()
        assert [(method, name) for method, name, _ in opening] == [("GET", index.name), ("GET", "night.fits")]
        assert reader.format == expected.format
        assert reader.describe()["index"] == f"{url}.wuindex"
        assert web.take() == []
        assert_same(expected, reader)
        assert reader.capsule().head == expected.capsule().head
        for i in range(5):
            assert reader.image_capsule(i) == expected.image_capsule(i)


@pytest.mark.parametrize(
    "era", sorted({path.parent.name for path in (Path(__file__).parents[3] / "data/fits").glob("*/*.fits.gz")})
)
def test_older_layouts(era: str, web: RangeServer, tmp_path: Path, data: Path) -> None:
    found = sorted((data / "fits" / era).glob("*.fits.gz"))
    assert found
    for packed in found:
        path = tmp_path / packed.name.removesuffix(".gz")
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        indexed(path)
        web.take()
        with wustore.open_reader(path) as expected, wustore.open_reader(f"{web.url}/{path.name}") as reader:
            assert len(web.take()) == 2
            assert reader.index is not None
            assert_same(expected, reader)


@pytest.mark.filterwarnings("ignore::wustore.LossWarning")
def test_conversion_keeps_every_byte(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "kbmod")
    indexed(path)
    wustore.convert(f"{web.url}/night.fits", tmp_path / "night.zarr")
    wustore.convert(tmp_path / "night.zarr", tmp_path / "again.fits")
    assert (tmp_path / "again.fits").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("known", [True, False])
def test_stamps_read_the_blocks_they_need(known: bool, web: RangeServer, tmp_path: Path) -> None:
    path = tmp_path / "night.fits"
    wustore.save(stack(3, 1000), path)
    web.versions["night.fits"] = '"one"'
    url = f"{web.url}/night.fits"
    if known:
        with FitsReader(url, None, False) as reader:
            write_index(reader, f"{path}.wuindex")
    else:
        indexed(path)
    web.take()
    with wustore.open_reader(url) as reader, wustore.open_reader(path) as expected:
        assert len(web.take()) == 2
        box = (slice(0, 3), slice(500, 521), slice(500, 521))
        assert np.array_equal(reader.read("science", box), expected.read("science", box))
        first = web.take()
        # Rows of noise of 4 bytes: 21 of them lie in three blocks at most.
        assert len(first) <= 3 * (1 if known else 3)
        assert sum(size for _, _, size in first) <= 3 * BLOCK * (3 if known else 5)
        box = (slice(0, 3), slice(700, 721), slice(500, 521))
        assert np.array_equal(reader.read("science", box), expected.read("science", box))
        again = web.take()
        assert len(again) <= 3
        assert sum(size for _, _, size in again) <= 3 * BLOCK * 3


def test_any_number_of_shards_opens_in_two_requests(web: RangeServer, tmp_path: Path) -> None:
    path = tmp_path / "night.fits"
    wustore.save(stack(200, 8), path, format="sharded-fits")
    indexed(path)
    with wustore.open_reader(f"{web.url}/night.fits") as reader:
        assert reader.meta.n_images == 200
        assert len(web.take()) == 2
        reader.image(150)
        assert {name for _, name, _ in web.take()} == {"150_night.fits"}


def test_without_an_index_nothing_changes(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "default")
    indexed(path)
    url = f"{web.url}/night.fits"
    with wustore.open_reader(url, index=False) as reader, wustore.open_reader(path) as expected:
        assert not [name for _, name, _ in web.take() if name.endswith(".wuindex")]
        assert_same(expected, reader)
    with wustore.open_reader(url, index=f"{path}.wuindex") as reader:
        assert not [name for _, name, _ in web.take() if name.endswith(".wuindex")]
        assert_same(wustore.open_reader(path), reader)
    with pytest.raises(StoreNotFoundError):
        wustore.open_reader(url, index=tmp_path / "other.wuindex")
    for wrong in (5, True):
        with pytest.raises(UsageError):
            wustore.open_reader(url, index=wrong)


def test_an_image_is_read_without_the_others(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "default")
    indexed(path)
    for index in (None, False):
        with wustore.open_reader(f"{web.url}/night.fits", index=index) as reader:
            assert (reader.index is None) == (index is False)
            web.take()
            reader.image(2)
            assert sum(size for _, _, size in web.take()) < 0.6 * path.stat().st_size


def test_a_page_instead_of_an_index_is_none(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "default")
    Path(f"{path}.wuindex").write_bytes(b"<html>no such page</html>")
    with wustore.open_reader(f"{web.url}/night.fits") as reader:
        assert reader.index is None
    Path(f"{path}.wuindex").write_bytes(b"")
    with wustore.open_reader(f"{web.url}/night.fits") as reader:
        assert reader.index is None


def use(url: str) -> None:
    with wustore.open_reader(url) as reader:
        for i in range(reader.meta.n_images):
            reader.image(i)


@pytest.mark.parametrize("kind", ["kbmod", "sharded-kbmod"])
@pytest.mark.filterwarnings("ignore::wustore.LossWarning")
def test_another_file_is_refused(kind: str, web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, kind)
    indexed(path)
    url = f"{web.url}/night.fits"
    use(url)
    files = [path] if kind == "kbmod" else [path, tmp_path / "0_night.fits", tmp_path / "4_night.fits"]
    for file in files:
        content = file.read_bytes()
        places = [content.index(b"NUMIMG" if file == path else b"MJD") + 15, len(content) // 2, len(content) - 1]
        for changed in (content[:-2880], content + bytes(2880), *(_flipped(content, at) for at in places)):
            file.write_bytes(changed)
            with pytest.raises(StoreReplacedError, match="index"):
                use(url)
        file.write_bytes(content)
        os.utime(file, (1, 1))
    use(url)


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_changed_header_is_noticed_with_the_first_pixels(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "default")
    indexed(path)
    content = path.read_bytes()
    with FitsReader(str(path), None, False) as reader:
        hdu = reader.layout.images[4].planes["science"].hdu
    card = content.index(b"MJD", hdu.header_start, hdu.data_start)
    path.write_bytes(content[:card] + content[card : card + 80].replace(b"6000", b"6001") + content[card + 80 :])
    assert path.read_bytes() != content
    with wustore.open_reader(f"{web.url}/night.fits") as reader:
        reader.image(1)
        with pytest.raises(StoreReplacedError, match="index"):
            reader.read("science", (slice(4, 5), slice(159, 160), slice(0, 3)))


def test_a_missing_shard_is_said_when_it_is_read(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "sharded")
    indexed(path)
    (tmp_path / "2_night.fits").unlink()
    with wustore.open_reader(f"{web.url}/night.fits") as reader:
        reader.image(1)
        with pytest.raises(StoreNotFoundError):
            reader.image(2)


def test_pickled_readers_go_on_through_the_index(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "default")
    indexed(path)
    with wustore.open_reader(f"{web.url}/night.fits") as reader:
        text = pickle.dumps(reader)
        reader.check_state()
    web.take()
    with pickle.loads(text) as again:
        assert len(web.take()) == 2
        assert again.index is not None
    saved_again = stack()
    saved_again.im_stack.sci[0][0, 0] = 7
    wustore.save(saved_again, path, overwrite=True)
    indexed_again = Path(f"{path}.wuindex")
    indexed_again.unlink()
    indexed(path)
    with pytest.raises(StoreReplacedError):
        pickle.loads(text)


def test_an_index_opens_the_files_beside_it(web: RangeServer, tmp_path: Path) -> None:
    path = saved(tmp_path, "sharded")
    index = indexed(path)
    for place in (index, f"{web.url}/night.fits.wuindex"):
        with wustore.open_reader(place) as reader:
            assert_same(wustore.open_reader(path), reader)
        assert wustore.verify(place) == []
    content = (tmp_path / "3_night.fits").read_bytes()
    (tmp_path / "3_night.fits").write_bytes(_flipped(content, len(content) // 2))
    assert [problem.kind for problem in wustore.verify(index)] == ["damaged"]
    with pytest.raises(StoreReplacedError):
        wustore.verify(f"{web.url}/night.fits.wuindex")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    index.rename(moved / index.name)
    with pytest.raises(StoreNotFoundError, match="index="):
        wustore.open_reader(moved / index.name)


def test_sample_kinds(web: RangeServer, tmp_path: Path) -> None:
    for kind in ("rich", "ragged", "missing", "dtypes", "chunked"):
        path = tmp_path / f"{kind}.fits"
        with sample(kind) as source:
            copy(source, backend_for_writing(str(path)).create(str(path), source.meta), workers=1)
        indexed(path)
        with wustore.open_reader(path) as expected, wustore.open_reader(f"{web.url}/{path.name}") as reader:
            assert reader.index is not None
            assert_same(expected, reader)


def test_a_lost_file_of_the_index(tmp_path: Path, web: RangeServer) -> None:
    path = saved(tmp_path, "sharded")
    indexed(path)
    wustore.save(stack(), tmp_path / "single.fits")
    with pytest.raises((CorruptError, StoreReplacedError)):
        wustore.open_reader(f"{web.url}/single.fits", index=f"{path}.wuindex")


def test_a_changed_index_gives_no_other_values(tmp_path: Path) -> None:
    # Whatever is changed in an index, with checksums that fit: what is read is what the file holds, or an error.
    opened = 0
    for seed in range(120):
        url = fuzzing.fits_index(tmp_path, tmp_path, random.Random(f"values {seed}"))
        try:
            with wustore.open_reader(url) as reader, wustore.open_reader(tmp_path / "night.fits") as expected:
                opened += reader.index is not None
                assert_same(expected, reader)
        except fuzzing.ALLOWED:
            continue
    assert opened > 0


def test_commands_take_an_index(web: RangeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, "default")
    index = indexed(path).rename(tmp_path / "elsewhere")
    url = f"{web.url}/night.fits"
    assert main(["convert", url, str(tmp_path / "night.zarr"), "--index", str(index)]) == 0
    assert {name for _, name, _ in web.take()} == {"night.fits"}
    assert wustore.diff(path, tmp_path / "night.zarr") == []
    capsys.readouterr()
    assert main(["info", url, "--json", "--index", str(index)]) == 0
    assert json.loads(capsys.readouterr().out)["index"] == str(index)
    assert len(web.take()) == 1
    assert main(["info", url, "--json"]) == 0
    assert "index" not in json.loads(capsys.readouterr().out)
    assert main(["info", url, "--index", str(tmp_path / "nothing")]) == 2
