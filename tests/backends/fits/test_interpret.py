"""What HDUs mean: refusals of what is no WorkUnit, and shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fits_samples as samples
import numpy as np
import pytest
from astropy.io import fits

from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.registry import open_reader
from wustore.errors import CorruptError, FormatError, StoreNotFoundError, UsageError


def refusal(path: Any) -> FormatError:
    with pytest.raises(FormatError) as caught:
        FitsBackend().open(str(path))
    assert caught.value.path is not None
    return caught.value


def hdus_of(n: int = 2, **cards: Any) -> list[Any]:
    hdus = [samples.primary_hdu(n, **cards)]
    for i in range(2):
        hdus += samples.image_hdus(i)
    return hdus


def test_not_a_workunit(tmp_path: Path) -> None:
    assert "NUMIMG" in str(refusal(samples.write(tmp_path / "x.fits", hdus_of(NUMIMG=...))))
    assert "NUMIMG" in str(refusal(samples.write(tmp_path / "x.fits", hdus_of(NUMIMG=0))))
    assert "NUMIMG" in str(refusal(samples.write(tmp_path / "x.fits", hdus_of(NUMIMG="two"))))
    legacy = [fits.PrimaryHDU(), *(fits.ImageHDU(np.ones((4, 4))) for _ in range(3))]
    assert "single image" in str(refusal(samples.write(tmp_path / "x.fits", legacy)))


def test_too_few_images(tmp_path: Path) -> None:
    error = refusal(samples.write(tmp_path / "x.fits", hdus_of(3)))
    assert "SCI_2" in str(error)
    assert "NUMIMG = 3" in str(error)
    assert error.hint
    assert "VAR_1" in str(refusal(samples.write(tmp_path / "x.fits", hdus_of()[:6])))


def test_wrong_table_length(tmp_path: Path) -> None:
    hdus = hdus_of()
    hdus.insert(1, samples.table_hdu("IMG_META", a=[1, 2, 3]))
    error = refusal(samples.write(tmp_path / "x.fits", hdus))
    assert (error.found, "IMG_META" in str(error.where)) == (3, True)


@pytest.mark.parametrize(
    "cards", [{"IND_0": 2}, {"IND_0": -1}, {"IND_0": "a"}, {"IND_0": None}, {"NIND": 5}, {"NIND": -1}, {"NIND": 2**60}]
)
def test_bad_links(tmp_path: Path, cards: dict[str, Any]) -> None:
    hdus = [samples.primary_hdu(2), *samples.image_hdus(0), *samples.image_hdus(1, **cards)]
    assert "SCI_1" in str(refusal(samples.write(tmp_path / "x.fits", hdus)))


@pytest.mark.parametrize(
    ("cells", "order", "message"),
    [
        ([0.0, np.nan], [0, 1], "holds no numbers"),
        ([0.0, np.inf], [0, 1], "holds no numbers"),
        ([0, 1j], [0, 1], "holds no numbers"),
        (["0", "1" * 5000], [0, 1], "holds no numbers"),
        ([0, 3], [0, 1], "not there"),
        ([0, 1], [[0, 1], [1, 0]], "_index"),
        ([0, 1], ["0", "1"], "_index"),
    ],
)
def test_bad_links_in_a_table(tmp_path: Path, cells: Any, order: Any, message: str) -> None:
    hdus = [samples.primary_hdu(2, NCON=3), samples.table_hdu("ORG_META", a=np.arange(3))]
    hdus.append(samples.table_hdu("IMG_META", per_image_indices=np.array(cells), _index=np.array(order)))
    for i in range(2):
        hdus += samples.image_hdus(i, NIND=None, IND_0=None)
    error = refusal(samples.write(tmp_path / "x.fits", hdus))
    assert message in str(error)
    assert "IMG_META" in str(error.where)


def test_no_links_with_another_number_of_constituents(tmp_path: Path) -> None:
    hdus = [samples.primary_hdu(1, NCON=2), *samples.image_hdus(0, NIND=None, IND_0=None)]
    assert "NIND" in str(refusal(samples.write(tmp_path / "x.fits", hdus)))


@pytest.mark.parametrize("count", [0, -3, 2**40, "many"])
def test_bad_constituent_count(tmp_path: Path, count: object) -> None:
    assert "NCON" in str(refusal(samples.write(tmp_path / "x.fits", hdus_of(NCON=count))))


def test_layers_that_do_not_fit(tmp_path: Path) -> None:
    hdus = hdus_of()
    hdus[2] = fits.ImageHDU(np.ones((5, 5), np.float32), name="VAR_0")
    assert "VAR_0" in str(refusal(samples.write(tmp_path / "x.fits", hdus)))
    hdus[2] = fits.ImageHDU(np.ones((2, 6, 8), np.float32), name="VAR_0")
    assert "two dimensions" in str(refusal(samples.write(tmp_path / "x.fits", hdus)))
    hdus[2] = samples.table_hdu("VAR_0", a=[1])
    assert "should hold an image" in str(refusal(samples.write(tmp_path / "x.fits", hdus)))
    hdus[2] = fits.ImageHDU(name="VAR_0")
    assert "two dimensions" in str(refusal(samples.write(tmp_path / "x.fits", hdus)))


def test_compressed_size_that_cannot_be(tmp_path: Path) -> None:
    path = Path(samples.small(tmp_path / "x.fits", compressed=True))
    data = path.read_bytes()
    for old, new in ((b"ZNAXIS1 =                    8", 2**31 - 1), (b"ZNAXIS2 =                    6", 2**30)):
        data = data.replace(old, old[:10] + b"%20d" % new)
    path.write_bytes(data)
    with pytest.raises(FormatError):
        FitsBackend().open(str(path)).image(0)


def test_missing_files_and_options(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        FitsBackend().open(str(tmp_path / "none.fits"))
    with pytest.raises(FormatError):
        FitsBackend().open(str(tmp_path))
    with pytest.raises(UsageError):
        FitsBackend().open(samples.small(tmp_path / "x.fits"), shards=3)


def sharded(folder: Path, n_images: int = 2, *, name: str = "wu.fits", as_primary: bool = False) -> Path:
    for i in range(n_images):
        hdus = samples.image_hdus(i)
        if as_primary:
            hdus[0] = fits.PrimaryHDU(hdus[0].data, hdus[0].header)
        else:
            hdus.insert(0, fits.PrimaryHDU())
        samples.write(folder / f"{i}_{name}", hdus)
    return Path(samples.write(folder / name, [samples.primary_hdu(n_images)]))


@pytest.mark.parametrize("as_primary", [False, True])
@pytest.mark.parametrize("name", ["wu.fits", "my_wu.fits.gz", "3_wu.fits"])
def test_sharded_set(tmp_path: Path, name: str, as_primary: bool) -> None:
    path = sharded(tmp_path, name=name, as_primary=as_primary)
    with open_reader(path) as reader:
        assert reader.format == "sharded-fits"
    reader = ShardedFitsBackend().open(str(path))
    assert reader.meta.n_images == 2
    np.testing.assert_array_equal(reader.image(1).science, samples.image_hdus(1)[0].data)
    assert reader.hdus_of(1)[0][0] == 2
    assert len(reader.places()) == 3


def test_missing_shard(tmp_path: Path) -> None:
    path = sharded(tmp_path, 3)
    (tmp_path / "1_wu.fits").unlink()
    with pytest.raises(CorruptError, match="shard is missing") as caught:
        ShardedFitsBackend().open(str(path))
    assert caught.value.path == str(tmp_path / "1_wu.fits")


def test_primary_and_shard_alone(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    assert "sharded" in str(refusal(path))
    assert "one shard" in str(refusal(tmp_path / "1_wu.fits"))
    for shard in tmp_path.glob("?_wu.fits"):
        shard.unlink()
    assert "SCI_0" in str(refusal(path))


def test_shard_of_another_image(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    (tmp_path / "1_wu.fits").write_bytes((tmp_path / "0_wu.fits").read_bytes())
    with pytest.raises(FormatError, match=r"another image.*1_wu\.fits.*expected SCI_1; found SCI_0"):
        ShardedFitsBackend().open(str(path))
