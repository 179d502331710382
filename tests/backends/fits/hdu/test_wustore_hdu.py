"""The HDU of exact metadata: there if it is needed, and refused if it is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from wustore.backends.base import Backend, Reader
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.fits.hdu.wustore_hdu import NAME, read_wustore_hdu
from wustore.errors import CorruptError
from wustore.ops.copy import copy
from wustore.testing import sample

SINGLE, SHARDED = FitsBackend(), ShardedFitsBackend()


def save(backend: Backend, source: Reader, path: Path, **options: object) -> Reader:
    copy(source, backend.create(str(path), source.meta, **options))
    return backend.open(str(path))


def test_plain_layout_where_it_is_enough(tmp_path: Path) -> None:
    save(SINGLE, sample("simple"), tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        assert NAME not in hdus


def test_edited_file_goes_by_its_plain_layout(tmp_path: Path) -> None:
    save(SINGLE, sample("flags"), tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        assert NAME in hdus
        hdus["SCI_1"].header["MJD"] = 7.5
        hdus.writeto(tmp_path / "b.fits")
    with SINGLE.open(str(tmp_path / "b.fits")) as reader:
        assert reader.meta.times[1] == 7.5
        assert not reader.meta.mask_flags


def test_damaged_hdu(tmp_path: Path) -> None:
    save(SINGLE, sample("rich"), tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        data = hdus[NAME].data.tobytes()
    meta, _ = read_wustore_hdu(data)
    assert meta.constituents.n_rows == 7
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptError):
            read_wustore_hdu(bytes(changed))
    with pytest.raises(CorruptError):
        read_wustore_hdu(data[:100])


def test_others_read_the_archive(tmp_path: Path) -> None:
    """What KBMOD reads is there under its names, with the same pixels masked."""
    source = sample("missing")
    save(SINGLE, source, tmp_path / "a.fits").close()
    with fits.open(tmp_path / "a.fits") as hdus:
        assert hdus[0].header["NUMIMG"] == 3
        for i in range(3):
            image = source.image(i)
            assert hdus[f"SCI_{i}"].data.tobytes() == image.science.astype(">f4").tobytes() or np.array_equal(
                hdus[f"SCI_{i}"].data, image.science, equal_nan=True
            )
            assert hdus[f"SCI_{i}"].header["NIND"] == 1
            assert (image.mask is None) == (f"MSK_{i}" not in hdus)
            assert hdus[f"PSF_{i}"].data.shape == ((1, 1) if image.psf is None else image.psf.shape)
