"""Views: some images, a window of the pixels, with everything that belongs to them and nothing else."""

from __future__ import annotations

import pickle
import uuid
from dataclasses import replace

import numpy as np
import pytest
from chunked import Chunked
from hypothesis import given, settings
from hypothesis import strategies as st

from wustore.backends.memory import MemoryBackend, MemoryReader
from wustore.compat.wcs import make_fake_wcs
from wustore.errors import FormatError, UsageError
from wustore.format.wcs import text_to_wcs, wcs_to_text
from wustore.model.compare import same_bits
from wustore.model.meta import LAYERS, Column, ConstituentTable
from wustore.ops.copy import copy
from wustore.stamps.layer import Layer
from wustore.stamps.trajectory_stamps import stamps
from wustore.stamps.view import View, cutout, select, shifted_wcs
from wustore.testing import WCS_TEXT, assert_same, sample, with_capsule

WHOLE = (slice(0, 3), slice(0, 600), slice(0, 530))


def with_meta(reader, **fields):
    images = [reader.image(i) for i in range(reader.meta.n_images)]
    return MemoryReader(replace(reader.meta, **fields), images)


def in_memory(view):
    path = f"ram:{uuid.uuid4().hex}"
    copy(view, MemoryBackend().create(path, view.meta))
    return MemoryBackend().open(path)


@settings(max_examples=60)
@given(
    st.sampled_from(["simple", "ragged", "missing", "dtypes", "rich", "chunked"]),
    st.data(),
)
def test_a_view_shows_what_is_there(name, data):
    source = sample(name)
    n = source.meta.n_images
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    height, width = source.meta.image_shape[chosen].min(axis=0).tolist()
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    view = View(source, chosen, slice(top, bottom), slice(left, right))
    assert view.meta.layer_shape("science") == (len(chosen), bottom - top, right - left)
    with in_memory(view) as copied:
        assert_same(view, copied)
    for k, i in enumerate(chosen):
        mine, theirs = view.image(k), source.image(i)
        assert view.meta.times[k].tobytes() == source.meta.times[i].tobytes()
        for layer in LAYERS:
            plane, whole = mine.layer(layer), theirs.layer(layer)
            if whole is None:
                assert plane is None
                continue
            part = whole if layer == "psf" else whole[top:bottom, left:right]
            assert same_bits(plane, np.ascontiguousarray(part))
    for layer in LAYERS:
        if not view.meta.has_layer(layer):
            continue
        whole = Layer(view, layer)[...]
        _, y, x = whole.shape
        boxes = [(slice(0, len(chosen)), slice(0, y), slice(0, x)), (slice(0, 1), slice(0, y), slice(x // 2, x))]
        for box, array in zip(boxes, view.read_boxes(layer, boxes), strict=True):
            assert same_bits(array, np.ascontiguousarray(whole[box]))


def test_views_read_what_they_show():
    source = Chunked(sample("chunked"), (1, 64, 64))
    view = View(source, [2, 0], slice(100, 120), slice(60, 90))
    assert source.asked == []
    view.image(0, ("science",))
    assert source.asked == [("science", (slice(2, 3), slice(100, 120), slice(60, 90)))]
    source.asked.clear()
    # Stamps share the chunks of the source, not those that the window would have.
    stamps(view, [4, 5], [10, 12], 3, images=[1], layers=("variance",))
    assert source.touched("variance") == {(0, 1, 0): 1, (0, 1, 1): 1}
    deep = View(Chunked(sample("ragged"), (2, 3, 4)), [3, 2, 0], slice(2, 9), slice(1, 8))
    whole = stamps(View(sample("ragged"), [3, 2, 0], slice(2, 9), slice(1, 8)), [2, 5], [1, 6], 2)
    assert stamps(deep, [2, 5], [1, 6], 2).science.tobytes() == whole.science.tobytes()


def test_views_of_views_and_pickles():
    source = sample("chunked")
    path = f"ram:{uuid.uuid4().hex}"
    copy(source, MemoryBackend().create(path, source.meta))
    stored = MemoryBackend().open(path)
    view = View(View(stored, [2, 1], slice(10, 200)), [1], slice(5, 50), slice(7, 30))
    expected = source.image(1).science[15:60, 7:30]
    assert same_bits(view.image(0).science, np.ascontiguousarray(expected))
    text = pickle.dumps(view)
    assert len(text) < 2000
    assert_same(pickle.loads(text), view)
    other = View(View(stored, [2, 1], slice(11, 201)), [1], slice(5, 50), slice(7, 30))
    assert Layer(view, "science").token() != Layer(other, "science").token()
    assert Layer(view, "science").token() == Layer(pickle.loads(text), "science").token()


def test_no_two_selections_look_the_same_to_dask(tmp_path):
    import wustore

    path = tmp_path / "wu.h5"
    wustore.save(wustore.open(in_memory(sample("chunked")).path), path)
    tokens = set()
    for kept in ([True, True, False], [True, False, True]):
        with wustore.open(path) as work_unit:
            work_unit.filter_images(kept)
            layer = work_unit.layer("science")
            assert same_bits(layer[...], sample("chunked").read("science", WHOLE)[kept])
            tokens.add(layer.token())
    assert len(tokens) == 2


def test_a_file_written_anew_is_other_data(tmp_path):
    import wustore

    path = tmp_path / "wu.fits"
    tokens = set()
    for name in ("simple", "flags"):
        wustore.save(wustore.open(in_memory(sample(name)).path), path, overwrite=True)
        with wustore.open_reader(path) as reader:
            tokens.add(Layer(reader, "science").token())
            assert Layer(reader, "science").token() == Layer(reader, "science").token()
    assert len(tokens) == 2


def test_no_leftovers_in_a_view():
    view = View(with_capsule(sample("ragged")), [1, 3])
    assert view.capsule() is None
    assert not any(view.image_capsule(i) for i in range(2))


def test_checksums_of_chosen_images():
    class Summed(Chunked):
        def checksums(self):
            return np.arange(12, dtype=np.uint32).reshape(3, 4)

    source = Summed(sample("chunked"), (1, 64, 64))
    assert View(source, [2, 0]).checksums().tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert View(source, [2, 0], slice(0, 5)).checksums() is None


# --- the sky stays where it is --------------------------------------------------------------------------

SIP = make_fake_wcs(201.5, -9.9, 2048, 4096, 0.2 / 3600)


def sip_text():
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    header = Header.fromstring(wcs_to_text(SIP))
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    for key, value in (("A_ORDER", 2), ("B_ORDER", 2), ("A_2_0", 1e-5), ("B_1_1", -2e-5), ("A_0_2", 3e-6)):
        header[key] = value
    return wcs_to_text(WCS(header))


def tables_text():
    from astropy.wcs import DistortionLookupTable

    wcs = make_fake_wcs(201.5, -9.9, 512, 512, 0.2 / 3600)
    data = np.linspace(-0.5, 0.5, 64, dtype=np.float32).reshape(8, 8)
    wcs.cpdis1 = DistortionLookupTable(data, (1.0, 1.0), (1.0, 1.0), (64.0, 64.0))
    wcs.cpdis2 = DistortionLookupTable(data.T.copy(), (1.0, 1.0), (1.0, 1.0), (64.0, 64.0))
    return wcs_to_text(wcs)


def tpv_text():
    cards = {
        "CTYPE1": "'RA---TPV'",
        "CTYPE2": "'DEC--TPV'",
        "CRVAL1": "33.25",
        "CRVAL2": "-4.5",
        "CRPIX1": "-1.03450000000000E+03",
        "CRPIX2": "  512.25000000000001 / a comment",
        "CD1_1": "7.3E-05",
        "CD2_2": "7.3D-05",
        "PV1_0": "0.001",
        "PV1_1": "1.01",
        "PV2_1": "0.99",
        "PV2_4": "0.002",
    }
    return "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items())


def no_crpix_text():
    cards = {"CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--TAN'", "CRVAL1": "3.5", "CDELT1": "1E-4", "CDELT2": "1E-4"}
    return "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items())


@pytest.mark.parametrize("make", [lambda: WCS_TEXT, sip_text, tables_text, tpv_text, no_crpix_text])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 5), (131, 17), (0, 200)])
def test_same_sky_at_shifted_pixels(make, x, y):
    text = make()
    shifted = shifted_wcs(text, x, y, 77, 55)
    assert len(shifted) % 80 == 0
    before, after = text_to_wcs(text), text_to_wcs(shifted)
    px, py = np.meshgrid(np.linspace(0, 76, 9), np.linspace(0, 54, 9))
    old = np.array(before.all_pix2world(px + x, py + y, 0))
    new = np.array(after.all_pix2world(px, py, 0))
    assert np.abs(old - new).max() < 2e-13  # degrees: 3e-9 of these pixels
    found, there = np.array(after.wcs_world2pix(*old, 0)), np.array(before.wcs_world2pix(*old, 0))
    assert np.abs(found - there + np.reshape([x, y], (2, 1, 1))).max() < 1e-9
    kept = {card for card in (text[k : k + 80] for k in range(0, len(text), 80)) if card[:5] not in ("CRPIX", "NAXIS")}
    if "WUCPDIS" not in text:
        assert kept <= {shifted[k : k + 80] for k in range(0, len(shifted), 80)} | {
            card for card in kept if card.startswith("DIMM")
        }


def test_cards_are_kept_but_for_those_that_move():
    shifted = shifted_wcs(WCS_TEXT, 2, 1, 5, 4)
    changed = [
        (a.rstrip(), b.rstrip())
        for a, b in zip(
            *([text[k : k + 80] for k in range(0, len(text), 80)] for text in (WCS_TEXT, shifted)), strict=True
        )
        if a != b
    ]
    assert changed == [
        ("NAXIS1  =                   13", "NAXIS1  =                    5"),
        ("NAXIS2  =                   11", "NAXIS2  =                    4"),
        ("CRPIX1  =                  6.5", "CRPIX1  =                  4.5"),
        ("CRPIX2  =                  5.5", "CRPIX2  =                  4.5"),
    ]
    assert "/ a comment" in shifted_wcs(tpv_text(), 1, 1, 5, 5)


@pytest.mark.parametrize("card", ["CRPIX1  = 'text'", "CPDIS1  = 'LOOKUP'", "DQ1     = 'NAXES: 2'", "CRPIX2  = T"])
def test_text_that_cannot_be_moved(card):
    with pytest.raises(FormatError):
        shifted_wcs(WCS_TEXT.replace("CRPIX1  =                  6.5", card.ljust(30)), 1, 1, 5, 5)


@pytest.mark.parametrize("reprojected", [False, True, None])
def test_which_wcs_moves(reprojected):
    texts = np.empty(3, object)
    texts[:] = [WCS_TEXT, None, WCS_TEXT]
    table = ConstituentTable(3, (Column("per_image_wcs", "wcs", texts), Column("visit", "plain", np.arange(3))))
    source = with_meta(sample("simple"), constituents=table, reprojected=reprojected, wcs=WCS_TEXT)
    view = View(source, rows=slice(1, 5), columns=slice(2, 7))
    moved = shifted_wcs(WCS_TEXT, 2, 1, 5, 4)
    assert view.meta.wcs == moved
    # The original images behind a reprojected stack have pixels of their own.
    of_constituent = WCS_TEXT if reprojected else moved
    assert view.meta.constituents.get("per_image_wcs").values.tolist() == [of_constituent, None, of_constituent]
    assert texts.tolist() == [WCS_TEXT, None, WCS_TEXT]
    assert view.meta.constituents.get("visit").values.tolist() == [0, 1, 2]


# --- cutout ---------------------------------------------------------------------------------------------


def test_cutout_around_a_pixel():
    source = sample("simple")  # 11 rows, 13 columns
    whole = source.image(1).science
    for (x, y, width, height), (rows, columns) in {
        (6, 5, 3, None): (slice(4, 7), slice(5, 8)),
        (6.4, 4.6, 3, 1): (slice(5, 6), slice(5, 8)),
        (6, 5, 4, 2): (slice(4, 6), slice(4, 8)),
        (0, 10, 5, 5): (slice(8, 11), slice(0, 3)),
        (6, 5, 1000, 1000): (slice(0, 11), slice(0, 13)),
    }.items():
        view = cutout(source, x, y, width, height)
        assert same_bits(view.image(1).science, np.ascontiguousarray(whole[rows, columns]))
        assert np.array_equal(view.image(1).psf, source.image(1).psf)


def test_cutout_on_the_sky():
    source = with_meta(sample("chunked"), wcs=wcs_to_text(make_fake_wcs(201.5, -9.9, 600, 530, 0.5 / 3600)))
    ra, dec = text_to_wcs(source.meta.wcs).all_pix2world(123.2, 321.7, 0)
    view = cutout(source, ra=float(ra), dec=float(dec), size=20)
    assert view.meta.layer_shape("science")[1:] == (40, 40)
    assert same_bits(view.image(0).science, np.ascontiguousarray(source.image(0).science[302:342, 103:143]))
    assert cutout(source, ra=float(ra), dec=float(dec), width=10, height=6).meta.layer_shape("science") == (3, 6, 10)
    x, y = text_to_wcs(view.meta.wcs).all_world2pix(ra, dec, 0)
    assert (float(x), float(y)) == pytest.approx((123.2 - 103, 321.7 - 302), abs=1e-6)


def test_cutout_refused():
    source = sample("simple")
    for arguments in (
        {"x": 5, "width": 3},
        {"x": 5, "y": 5},
        {"x": 5, "y": 5, "width": 0},
        {"x": 5, "y": 5, "width": 3, "height": -1},
        {"x": 5, "y": 5, "ra": 1, "dec": 1, "width": 3},
        {"x": 50, "y": 5, "width": 3},
        {"x": -50, "y": 5, "width": 3},
        {"x": float("nan"), "y": 5, "width": 3},
        {"ra": 1, "dec": 1, "width": 3},
        {"x": 5, "y": 5, "width": 3, "size": 3.0},
        {"x": 5, "y": 5, "size": 3.0},
    ):
        with pytest.raises(UsageError):
            cutout(source, **arguments)
    with pytest.raises(UsageError, match="image 1"):
        cutout(sample("ragged"), 4, 4, 2)
    far = with_meta(source, wcs=WCS_TEXT)
    with pytest.raises(UsageError):
        cutout(far, ra=333.1, dec=10.2, width=3)
    with pytest.raises(UsageError):
        View(source, rows=slice(0, 4, 2))


# --- select ---------------------------------------------------------------------------------------------


def test_select_by_time_and_index():
    source = sample("ragged")  # times 3, 1, 2, 2
    assert select(source, times=(2, 3)).meta.times.tolist() == [3, 2, 2]
    assert select(source, times=(None, 1)).meta.times.tolist() == [1]
    assert select(source, images=[-1, 0]).meta.times.tolist() == [2, 3]
    assert select(source, images=np.array([False, True, True, False])).meta.times.tolist() == [1, 2]
    assert select(source, times=(2, None), images=[3, 1, 0]).meta.times.tolist() == [2, 3]
    assert select(sample("missing"), times=(None, None)).meta.times.tolist() == [0, 2]  # one has no time
    for arguments in (
        {"times": (5, 6)},
        {"images": []},
        {"images": [4]},
        {"images": [0, 0]},
        {"images": [0, -4]},
        {"images": [0.5]},
        {"images": [True]},
        {"times": 3},
        {"times": ("a", "b")},
        {"filters": ["g"]},
    ):
        with pytest.raises(UsageError):
            select(source, **arguments)


def test_constituents_go_along():
    source = sample("rich")  # links (0, 1), (2,), (5, 3), ()
    view = select(source, images=[2, 0])
    assert view.meta.links == ((3, 2), (0, 1))
    assert view.meta.n_constituents == 4
    for name in ("visit", "flag", "corner", "geocentric_distance"):
        mine, theirs = view.meta.constituents.get(name), source.meta.constituents.get(name)
        assert same_bits(mine.values, theirs.values[[0, 1, 3, 5]])
        assert (mine.mask is None) == (theirs.mask is None)
        assert mine.mask is None or np.array_equal(mine.mask, theirs.mask[[0, 1, 3, 5]])
    assert view.meta.wcs == source.meta.wcs
    assert view.meta.configuration == source.meta.configuration
    only = select(source, images=[3])
    assert only.meta.links == ((),)
    assert only.meta.n_constituents == 0
    unlinked = select(sample("missing"), images=[1])
    assert unlinked.meta.links is None
    assert unlinked.meta.n_constituents == 1


def test_select_by_filter():
    for name, values in (("filter", np.array(["g", "r ", "g", "i"])), ("band", np.array([b"g", b"r", b"g", b"i"]))):
        table = ConstituentTable(4, (Column("FILTER", "plain", np.array(["x"] * 4)), Column(name, "plain", values)))
        linked = with_meta(sample("ragged"), constituents=table, links=((0, 2), (1,), (2, 3), ()))
        assert select(linked, filters=["g"]).meta.times.tolist() == [3]
        if name == "filter":
            assert select(linked, filters="r").meta.times.tolist() == [1]
            assert select(linked, filters=["g", "i"]).meta.times.tolist() == [3, 2]
            with pytest.raises(UsageError):
                select(linked, filters=["z"])
