"""The FITS backends as archive formats, and how files appear."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from wustore.backends.base import Backend, Reader
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.fits.writer import FitsLossWarning
from wustore.backends.memory import MemoryReader
from wustore.errors import UsageError
from wustore.ops.copy import copy
from wustore.testing import assert_same, sample

SINGLE, SHARDED = FitsBackend(), ShardedFitsBackend()


def save(backend: Backend, source: Reader, path: Path, **options: object) -> Reader:
    copy(source, backend.create(str(path), source.meta, **options))
    return backend.open(str(path))


# --- the HDU of our own -------------------------------------------------------------------------------


# --- options ------------------------------------------------------------------------------------------


def test_kbmod_mode_warns_and_lossless_does_not(tmp_path: Path) -> None:
    images = [replace(im, variance=np.full((11, 13), 1e-4, np.float32)) for im in map(sample("simple").image, range(3))]
    source = MemoryReader(sample("simple").meta, images)
    with pytest.warns(FitsLossWarning, match=r"VAR_0: the quantisation step 0\.01 is 100 times its median"):
        save(SINGLE, source, tmp_path / "a.fits", mode="kbmod").close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with save(SINGLE, source, tmp_path / "b.fits", lossless=True) as reader:
            assert_same(source, reader)
    with fits.open(tmp_path / "b.fits", disable_image_compression=True) as hdus:
        assert hdus["SCI_0"].header["ZCMPTYPE"] == "GZIP_2"


def test_wrong_options(tmp_path: Path) -> None:
    meta = sample("simple").meta
    for wrong in ({"mode": "x"}, {"compression_type": "LZW"}, {"lossless": True, "quantize_level": 4}):
        with pytest.raises(UsageError):
            SINGLE.create(str(tmp_path / "a.fits"), meta, **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_same_input_same_bytes(tmp_path: Path) -> None:
    source = sample("simple")
    for name, workers in (("a.fits", 1), ("b.fits", 4)):
        save(SINGLE, source, tmp_path / name, workers=workers).close()
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


# --- one form into the other --------------------------------------------------------------------------


# --- a store changed since its import -------------------------------------------------------------------


# --- how files appear ---------------------------------------------------------------------------------
