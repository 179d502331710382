from __future__ import annotations

import warnings
from pathlib import Path

import fits_samples as samples
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.backends.fits.files import input as source
from wustore.backends.fits.hdu.scan import scan
from wustore.errors import CorruptError, FormatError, WuStoreError


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.unpack(tmp_path_factory.mktemp("golden"))


def block(*cards: str) -> bytes:
    text = "".join(card.ljust(80) for card in (*cards, "END"))
    return text.ljust(-(-len(text) // 2880) * 2880).encode("latin-1")


PRIMARY = block("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    0")


def astropy_cards(header: fits.Header) -> list[tuple[str, object, str]]:
    return [
        (card.keyword.upper(), None if isinstance(card.value, fits.card.Undefined) else card.value, card.comment)
        for card in header.cards
    ]


def check_like_astropy(path: Path) -> int:
    """Compare spans, names and every card with what astropy finds."""
    scanned = scan(source.load(str(path)).data, str(path))
    with warnings.catch_warnings(), fits.open(path, disable_image_compression=True) as hdus:
        warnings.simplefilter("ignore")
        assert len(hdus) == len(scanned.hdus)
        for theirs, ours in zip(hdus, scanned.hdus, strict=True):
            info = theirs.fileinfo()
            if info is not None:
                assert (info["hdrLoc"], info["datLoc"]) == (ours.header_start, ours.data_start)
                assert info["datSpan"] == ours.end - ours.data_start
            assert theirs.name == ours.name
            assert repr(astropy_cards(theirs.header)) == repr([tuple(card) for card in ours.header.cards()])
            for keyword in ours.header:
                if keyword not in {"", "COMMENT", "HISTORY", "CONTINUE"}:
                    value = theirs.header[keyword]
                    value = None if isinstance(value, fits.card.Undefined) else value
                    assert repr(ours.header[keyword]) == repr(value)
    return len(scanned.hdus)


def test_golden_files_are_walked_like_astropy(golden: Path) -> None:
    assert sum(check_like_astropy(golden / path) for path in [*samples.SINGLES, *samples.SETS]) > 50


def test_corpus_is_walked_like_astropy(corpus: Path) -> None:
    paths = [p for p in corpus.rglob("*.fits") if p.stem not in {"truncated"}]
    assert sum(check_like_astropy(path) for path in paths) > 1000


# --- cards --------------------------------------------------------------------------------------------


# --- spans --------------------------------------------------------------------------------------------

IMAGE = ("XTENSION= 'IMAGE   '", "BITPIX  =                    8")

BOMBS = {
    "an axis of 2^40": (*IMAGE, "NAXIS   = 1", f"NAXIS1  = {2**40}"),
    "a product beyond any file": (*IMAGE, "NAXIS   = 2", "NAXIS1  = 4294967296", "NAXIS2  = 4294967296"),
    "a negative axis": (*IMAGE, "NAXIS   = 1", "NAXIS1  = -1"),
    "too many axes": (*IMAGE, "NAXIS   = 1000"),
    "999 axes without sizes": (*IMAGE, "NAXIS   = 999"),
    "an enormous heap": (
        "XTENSION= 'BINTABLE'",
        "BITPIX  = 8",
        "NAXIS   = 2",
        "NAXIS1  = 0",
        "NAXIS2  = 0",
        f"PCOUNT  = {10**30}",
    ),
    "negative groups": (*IMAGE, "NAXIS   = 1", "NAXIS1  = 1", "GCOUNT  = -5"),
    "a BITPIX that is none": ("XTENSION= 'IMAGE   '", "BITPIX  = 7", "NAXIS   = 0"),
    "no NAXIS": IMAGE,
    "NAXIS as text": (*IMAGE, "NAXIS   = '2'"),
    "NAXIS as a real number": (*IMAGE, "NAXIS   = 2.0"),
    "NAXIS undefined": (*IMAGE, "NAXIS   ="),
}


@pytest.mark.parametrize("cards", BOMBS.values(), ids=BOMBS.keys())
def test_header_bombs_are_refused(cards: tuple[str, ...]) -> None:
    with pytest.raises(CorruptError) as caught:
        scan(PRIMARY + block(*cards) + bytes(2880), "bomb.fits")
    assert "HDU 1" in str(caught.value)
    assert caught.value.path == "bomb.fits"


@pytest.mark.parametrize("keyword", ["BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT"])
def test_values_with_more_behind_them_are_refused(keyword: str) -> None:
    """Also in headers of the usual form, of which not every card is parsed."""
    cards = {
        "XTENSION": "'IMAGE   '",
        "BITPIX": "8",
        "NAXIS": "2",
        "NAXIS1": "3",
        "NAXIS2": "3",
        "PCOUNT": "0",
        "GCOUNT": "1",
    }
    for behind in ("", " / a comment", "/", " " * 49 + "/"):
        text = block(*(f"{key:8}= {value:>20}{behind}" for key, value in cards.items()))
        assert scan(PRIMARY + text + bytes(2880), "a.fits").hdus[1].data_length == 9
    cards[keyword] = f"{cards[keyword]:>20} \xa6 8"
    with pytest.raises(CorruptError, match=f"{keyword} does not hold an integer"):
        scan(PRIMARY + block(*(f"{key:8}= {value:>20}" for key, value in cards.items())) + bytes(2880), "a.fits")


def test_what_is_no_fits_is_refused() -> None:
    for data in (b"", b"SIMPLE", b"\x89HDF\r\n", bytes(2880)):
        with pytest.raises(FormatError) as caught:
            scan(data, "x.fits")
        assert not isinstance(caught.value, CorruptError)


def test_a_header_without_end_is_refused() -> None:
    with pytest.raises(CorruptError, match="END"):
        scan(PRIMARY.replace(b"END", b"   "), "x.fits")
    with pytest.raises(CorruptError, match="HDU 1"):
        scan(PRIMARY + b"XTENSION= 'IMAGE   '".ljust(2880), "x.fits")


def test_a_header_that_runs_into_the_next_one_is_refused(tmp_path: Path) -> None:
    """astropy takes both for one HDU: the mask would be gone and the PSF be 6 x 8 pixels."""
    path = Path(samples.small(tmp_path / "a.fits"))
    raw = path.read_bytes()
    hdu = scan(raw, "a.fits").get("MSK_1")
    assert hdu is not None
    end = hdu.header_start + len(hdu.header.text)
    with pytest.raises(
        CorruptError, match=rf"HDU {hdu.index} at byte {hdu.header_start}.*next header at byte {hdu.end}"
    ):
        scan(raw[:end] + b"ENF" + raw[end + 3 :], "a.fits")


def test_end_inside_a_string_does_not_end_the_header() -> None:
    data = block("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "TEXT    = 'the END     of it'", "AFTER   = 1")
    (hdu,) = scan(data, "x.fits").hdus
    assert hdu.header["AFTER"] == 1


def test_trailing_bytes_are_reported() -> None:
    scanned = scan(PRIMARY + b"not an HDU", "x.fits")
    assert (len(scanned.hdus), scanned.trailing_start, scanned.size) == (1, 2880, 2890)


def test_the_last_block_may_lack_its_padding() -> None:
    data = block("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 1", "NAXIS1  = 5") + b"12345"
    scanned = scan(data, "x.fits")
    assert (scanned.hdus[0].end, scanned.trailing_start) == (2885, 2885)
    with pytest.raises(CorruptError, match=r"HDU 0 \(PRIMARY\)"):
        scan(data[:-1], "x.fits")


def test_random_groups_are_measured() -> None:
    data = block(
        "SIMPLE  = T",
        "BITPIX  = -32",
        "NAXIS   = 2",
        "NAXIS1  = 0",
        "NAXIS2  = 5",
        "GROUPS  = T",
        "PCOUNT  = 3",
        "GCOUNT  = 100",
    )
    scanned = scan(data + bytes(5760), "x.fits")
    assert scanned.hdus[0].data_length == 4 * 100 * (3 + 5)


def test_truncation_is_found_or_leaves_whole_hdus(golden: Path) -> None:
    data = (golden / "2026-01/perimage.fits").read_bytes()
    whole = scan(data, "x.fits").hdus
    edges = {edge for hdu in whole for edge in (hdu.header_start, hdu.data_start, hdu.data_start + hdu.data_length)}
    cuts = {edge + step for edge in edges for step in (-1, 0, 1, 80, 1000)} | set(range(0, len(data), 1717))
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(data)):
        try:
            found = scan(data[:cut], "x.fits").hdus
        except WuStoreError:
            continue
        # Only padding may be missing: everything that is reported lies inside the file.
        assert all(hdu.data_start + hdu.data_length <= cut or hdu.data_length == 0 for hdu in found)
        assert [hdu.name for hdu in found] == [hdu.name for hdu in whole[: len(found)]]


@settings(max_examples=150)
@given(st.data())
def test_random_cards_never_break_the_scan(data: st.DataObject) -> None:
    cards = data.draw(st.lists(st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=80), max_size=12))
    axes = data.draw(st.lists(st.integers(-2, 2**62), max_size=4))
    header = block(
        *IMAGE[:1],
        f"BITPIX  = {data.draw(st.sampled_from([8, 16, -32, 0, 12]))}",
        f"NAXIS   = {len(axes)}",
        *(f"NAXIS{k + 1}  = {size}" for k, size in enumerate(axes)),
        *cards,
    )
    try:
        scanned = scan(PRIMARY + header + bytes(2880), "x.fits")
    except WuStoreError:
        return
    for hdu in scanned.hdus:
        list(hdu.header.cards())


def test_the_first_of_hdus_of_the_same_name_counts(tmp_path: Path) -> None:
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(np.full(3, k), name="sci_1") for k in range(2))]
    path = samples.write(tmp_path / "x.fits", hdus)
    scanned = scan(source.load(path).data, path)
    found = scanned.get("SCI_1")
    assert found is not None
    assert found.index == 1
    assert scanned.get("SCI_2") is None
