"""CHECKSUM and DATASUM: written so that astropy and `verify` agree with them, and found wrong where a bit flips."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from in_memory import in_memory

import wustore
from wustore.backends.base import Reader
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.backends.fits.hdu.checksum import with_sums
from wustore.backends.fits.hdu.header_writer import HeaderText, padding
from wustore.errors import UsageError
from wustore.ops import plans, run_parts
from wustore.ops.copy import copy
from wustore.ops.verify import problems
from wustore.testing import assert_same, sample


def written(path: Path, source: Reader, **options: object) -> Path:
    backend = ShardedFitsBackend() if path.name.startswith("set") else FitsBackend()
    copy(source, backend.create(str(path), source.meta, **options))
    return path


@pytest.mark.parametrize("name", ["a.fits", "set.fits"])
@pytest.mark.parametrize("options", [{}, {"mode": "kbmod"}], ids=["archive", "kbmod"])
@pytest.mark.filterwarnings("ignore:the FITS file cannot hold")
def test_every_hdu_carries_sums_that_hold(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    source = sample("rich")
    path = written(tmp_path / name, source, checksum=True, **options)
    files = sorted(tmp_path.iterdir())
    assert len(files) == (1 if name == "a.fits" else 1 + source.meta.n_images)
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with fits.open(file, checksum=True, disable_image_compression=True) as hdus:
                assert all("CHECKSUM" in hdu.header and "DATASUM" in hdu.header for hdu in hdus)
                assert [hdu.data is not None for hdu in hdus].count(True) >= 2
    with wustore.open_reader(path) as reader:
        assert list(problems(reader)) == []
        assert reader.protection().startswith("CHECKSUM and DATASUM hold in all of")
        if not options:
            assert_same(source, reader)


def test_the_sums_are_all_that_is_added(tmp_path: Path) -> None:
    source = sample("chunked")
    with_them, without = written(tmp_path / "a.fits", source, checksum=True), written(tmp_path / "b.fits", source)
    with fits.open(with_them) as left, fits.open(without) as right:
        for a, b in zip(left, right, strict=True):
            cards = [str(card) for card in a.header.cards if card.keyword not in {"CHECKSUM", "DATASUM"}]
            assert cards == [str(card) for card in b.header.cards]
            np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_have_a_text(seed: int) -> None:
    """Every sum has a text without punctuation, and with it all bytes add up to minus zero."""
    rng = np.random.default_rng(seed)
    data = rng.bytes(int(rng.integers(1, 9000)))
    header = HeaderText([("XTENSION", "IMAGE"), ("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", len(data)), ("S", seed)])
    hdu = with_sums(header.block() + data + bytes(padding(len(data))))
    assert len(hdu) % 2880 == 0
    total = sum(np.frombuffer(hdu, ">u4").tolist())
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    assert total == 0xFFFFFFFF
    at = hdu.index(b"CHECKSUM= '") + 11
    assert hdu[at : at + 16].isalnum()
    assert hdu[at + 16 : at + 17] == b"'"


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "a.fits", sample("simple"), checksum=True)
    whole = path.read_bytes()
    with wustore.open_reader(path) as reader:
        plane = reader.layout.images[1].planes["variance"]  # type: ignore[attr-defined]
        at, name = plane.hdu.data_start + plane.hdu.data_length // 2, plane.hdu.place
    damaged = bytearray(whole)
    damaged[at] ^= 4
    path.write_bytes(damaged)
    with wustore.open_reader(path) as reader:
        found = [problem.where for problem in problems(reader)]
    assert any(where.startswith(name) for where in found)


def test_what_carries_no_sums_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wustore.__main__ import main

    path = written(tmp_path / "a.fits", sample("simple"))
    with wustore.open_reader(path) as reader:
        assert reader.protection() == ""
    assert main(["verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert "carries no checksums" in out
    assert "ok" not in out.replace(str(path), "")


def test_conversions_write_sums(tmp_path: Path) -> None:
    """By the option, in pieces too; identical files are not asked for then."""
    from wustore.__main__ import main

    source = written(tmp_path / "a.fits", sample("simple"))
    wustore.convert(source, tmp_path / "a.zarr", workers=1)
    wustore.convert(tmp_path / "a.zarr", tmp_path / "b.fits", checksum=True)
    plans.plan(str(tmp_path / "a.zarr"), str(tmp_path / "c.fits"), checksum=True)
    run_parts.part(str(tmp_path / "c.fits"), 0)
    run_parts.finish(str(tmp_path / "c.fits"))
    assert main(["convert", str(tmp_path / "a.zarr"), str(tmp_path / "d.fits"), "--checksum"]) == 0
    first = (tmp_path / "b.fits").read_bytes()
    assert first.count(b"CHECKSUM=") == first.count(b"XTENSION=") + 1
    assert (tmp_path / "c.fits").read_bytes() == first
    assert (tmp_path / "d.fits").read_bytes() == first
    with wustore.open_reader(tmp_path / "b.fits") as reader:
        assert_same(sample("simple"), in_memory(reader))


def test_not_a_choice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="checksum"):
        written(tmp_path / "a.fits", sample("simple"), checksum="yes")
