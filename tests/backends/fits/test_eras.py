from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import fits_samples as samples
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from wustore.backends.fits.backend import FitsBackend
from wustore.backends.fits.eras import wcs_text
from wustore.backends.fits.hdu.header import Header
from wustore.backends.kbmod_yaml import YamlDumpBackend
from wustore.backends.registry import open_reader
from wustore.errors import CorruptError, FormatError, UsageError
from wustore.format.wcs import text_to_wcs
from wustore.model.meta import Meta
from wustore.work_unit import WorkUnit

ERAS = {
    "2023-11/nowcs.fits": "kbmod-2023-10",
    "2023-11/nowcs.yaml": "kbmod-2023-11",
    "2024-02/perimage.fits": "kbmod-2023-12",
    "2024-05/mosaic.yaml": "kbmod-2024-05",
    "2024-07/shard_mosaic/wu.fits": "kbmod-2024-05",
    "2024-11/mosaic.fits": "kbmod-2024-11-14",
    "2025-04/global.fits": "kbmod-2025-04",
    "2026-01/mosaic.fits": "kbmod-2026-01",
    "2026-01/perimage.fits": "kbmod-2026-01",
    "2026-01/shard_perimage/wu.fits": "kbmod-2026-01",
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.unpack(tmp_path_factory.mktemp("golden"))


def meta_of(path: Any) -> Meta:
    with open_reader(path) as reader:
        return reader.meta


def refusal(path: Any) -> FormatError:
    with pytest.raises(FormatError) as caught:
        FitsBackend().open(str(path))
    assert caught.value.path is not None
    return caught.value


def values_of(meta: Meta, name: str) -> list[Any]:
    column = meta.constituents.get(name)
    assert column is not None
    return list(column.values.tolist())


def test_every_golden_file_is_of_a_named_era() -> None:
    assert sorted(ERAS) == sorted([*samples.SINGLES, *samples.SETS, *samples.DUMPS])


@pytest.mark.parametrize(("path", "era"), ERAS.items())
def test_eras_are_told_apart_and_come_back_whole(golden: Path, path: str, era: str) -> None:
    meta, truth = meta_of(golden / path), samples.truth_of(path)
    info = json.loads(str(truth["info"]))
    assert meta.source["layout"] == era
    assert meta.source.get("no_data") == (-9999.0 if path < "2024-03" else None)
    np.testing.assert_array_equal(meta.times, truth["times"])
    assert meta.wcs is not None or info.get("wcs") is None
    if meta.wcs is not None:
        wcs = text_to_wcs(meta.wcs)
        np.testing.assert_allclose(wcs.wcs.crval, [info["wcs"]["CRVAL1"], info["wcs"]["CRVAL2"]], rtol=1e-14)
        assert path.endswith("yaml") or wcs.pixel_shape == (20, 16)
    if "mosaic" in path:
        assert meta.links == ((0, 1), (2,), (3, 4, 5))
        assert meta.reprojected is True
        assert meta.barycentric_distance == info["distance"]
        assert values_of(meta, "data_loc") == [f"con{k}.fits" for k in range(6)]
        np.testing.assert_allclose(values_of(meta, "geocentric_distance"), 40 + 0.1 * np.arange(6))
        for column, key in (("per_image_wcs", "per_image_wcs"), ("ebd_wcs", "ebd_wcs")):
            texts = values_of(meta, column)
            for text, expected in zip(texts, info[key], strict=True):
                np.testing.assert_allclose(text_to_wcs(text).wcs.crval[0], expected["CRVAL1"], rtol=1e-14)
    else:
        assert meta.links == ((0,), (1,), (2,))
        assert meta.barycentric_distance is None
        assert meta.reprojected is (None if path < "2024-03" else False)
    if "perimage" in path:
        assert [text_to_wcs(text).wcs.ctype[0][:8] for text in values_of(meta, "per_image_wcs")] == ["RA---TAN"] * 3
    if path < "2024-03" and "perimage" not in path:
        assert meta.constituents.columns == ()
    assert meta.configuration is not None
    assert meta.configuration["num_obs"] == 3 or "num_obs" in meta.configuration


def test_sip_of_the_table_is_kept(golden: Path) -> None:
    texts = values_of(meta_of(golden / "2026-01/perimage.fits"), "per_image_wcs")
    assert text_to_wcs(texts[1]).sip is not None


def test_columns_of_nones_are_columns(golden: Path) -> None:
    meta = meta_of(golden / "2024-11/mosaic.fits")
    assert [column.name for column in meta.constituents.columns if column.name.startswith("_")] == []
    assert meta.constituents.get("original_wcs") is None


def test_today(tmp_path: Path) -> None:
    path = samples.small(tmp_path / "wu.fits")
    meta = meta_of(path)
    assert (meta.n_images, meta.n_constituents) == (2, 2)
    assert meta.configuration is None
    assert meta.observatory is None
    assert (meta.reprojected, meta.reprojection_frame) == (False, None)
    assert meta.dtypes["mask"] == (np.dtype("i1"),) * 2
    assert meta.dtypes["psf"] == (np.dtype("f8"),) * 2
    assert meta.psf_shape.tolist() == [[3, 3]] * 2
    assert values_of(meta, "visit") == [0, 1]


def test_primary_header_values(tmp_path: Path) -> None:
    cards = {"REPRJCTD": True, "REPFRAME": "ebd", "BARY": 41, "OBS_LAT": -30.5, "OBS_LON": 10, "OBS_ELEV": 7.25}
    hdus = [samples.primary_hdu(1, **cards), *samples.image_hdus(0)]
    meta = meta_of(samples.write(tmp_path / "wu.fits", hdus))
    assert (meta.reprojected, meta.reprojection_frame, meta.barycentric_distance) == (True, "ebd", 41)
    assert meta.observatory is not None
    assert meta.observatory.geodetic == (-30.5, 10.0, 7.25)


QUANTITIES = [(41, 41.0), (0, 0.0), (-7, -7.0), (10**25, 1e25), (2**53 + 1, 2.0**53), (41.5, 41.5)]


@pytest.mark.parametrize(("card", "value"), [*QUANTITIES, (True, None), ("41", None), (None, None)])
@pytest.mark.parametrize("keyword", ["BARY", "HELIO"])
def test_a_distance_is_a_float_however_its_card_is_written(
    keyword: str, card: object, value: float | None, tmp_path: Path
) -> None:
    hdus = [samples.primary_hdu(1, **{"BARY": ...} | {keyword: card}), *samples.image_hdus(0)]
    assert repr(meta_of(samples.write(tmp_path / "wu.fits", hdus)).barycentric_distance) == repr(value)


@pytest.mark.parametrize(
    ("cards", "kind", "values"),
    [
        ((40, 41), "plain", [40.0, 41.0]),
        ((40, 41.5), "plain", [40.0, 41.5]),
        ((10**25, 2**64), "plain", [1e25, 2.0**64]),
        ((None, 41), "json", [None, 41.0]),
        ((True, 41), "json", [True, 41.0]),
        (("far", 41), "json", ["far", 41.0]),
    ],
)
def test_distances_of_constituents_are_floats(
    cards: tuple[object, ...], kind: str, values: list[object], tmp_path: Path
) -> None:
    """The cards GEO_k of 2024, where there was no table yet; what is no number stays what it is."""
    primary = samples.primary_hdu(2, **{f"GEO_{k}": card for k, card in enumerate(cards)})
    meta = meta_of(samples.write(tmp_path / "wu.fits", [primary, *samples.image_hdus(0), *samples.image_hdus(1)]))
    column = meta.constituents.get("geocentric_distance")
    assert column is not None
    assert (column.kind, repr(column.values.tolist())) == (kind, repr(values))


@pytest.mark.parametrize("name", ["MSK_1", "PSF_1"])
def test_damage_that_hides_the_last_hdus(name: str, tmp_path: Path) -> None:
    """Where XTENSION is not readable the HDUs end; the image must not seem to have no mask for that."""
    path = Path(samples.small(tmp_path / "a.fits"))
    with FitsBackend().open(str(path)) as reader:
        hdu = reader.files[0].scan.get(name)
    assert hdu is not None
    raw = bytearray(path.read_bytes())
    raw[hdu.header_start] ^= 1
    path.write_bytes(raw)
    error = refusal(path)
    assert isinstance(error, CorruptError)
    assert name in str(error)


@pytest.mark.parametrize("card", [{"OBS_LAT": 1e23}, {"OBS_LAT": -90.5}])
def test_an_observatory_that_is_nowhere(card: dict[str, float], tmp_path: Path) -> None:
    place = {"OBS_LAT": -30.0, "OBS_LON": -70.7, "OBS_ELEV": 2700.0}
    path = samples.write(tmp_path / "a.fits", [samples.primary_hdu(1, **place | card), *samples.image_hdus(0)])
    assert meta_of(path).observatory is not None  # the numbers are kept, to be written again
    with pytest.raises(FormatError, match=r"a\.fits.*OBS_LAT.*latitude from -90 to 90"):
        WorkUnit.from_fits(path)


def test_what_was_not_stored_is_absent(tmp_path: Path) -> None:
    hdus = [samples.primary_hdu(1, REPRJCTD=..., REPFRAME=..., BARY=..., NCON=...), *samples.image_hdus(0)]
    meta = meta_of(samples.write(tmp_path / "wu.fits", hdus))
    assert (meta.reprojected, meta.reprojection_frame, meta.barycentric_distance) == (None, None, None)
    assert (meta.n_constituents, meta.constituents.columns) == (1, ())


def test_missing_mask_and_psf_are_absent(tmp_path: Path) -> None:
    hdus = [samples.primary_hdu(2), *samples.image_hdus(0), *samples.image_hdus(1)[:2]]
    path = samples.write(tmp_path / "wu.fits", hdus)
    meta = meta_of(path)
    assert meta.dtypes["mask"] == (np.dtype("i1"), None)
    assert meta.psf_shape.tolist() == [[3, 3], [0, 0]]
    image = FitsBackend().open(path).image(1)
    assert image.mask is None
    assert image.psf is None


@pytest.mark.parametrize(
    ("card", "time"), [(None, math.nan), ("60000.5", 60000.5), ("never", math.nan), (True, math.nan), (60001, 60001.0)]
)
def test_odd_times(tmp_path: Path, card: object, time: float) -> None:
    hdus = [samples.primary_hdu(1), *samples.image_hdus(0, MJD=card)]
    np.testing.assert_array_equal(meta_of(samples.write(tmp_path / "wu.fits", hdus)).times, [time])


def test_order_case_and_duplicates_do_not_matter(tmp_path: Path) -> None:
    hdus = [samples.primary_hdu(2), *reversed(samples.image_hdus(1)), *samples.image_hdus(0)]
    second = samples.image_hdus(5)
    for hdu, name in zip(second, ("SCI_1", "VAR_1", "MSK_1", "PSF_1"), strict=True):
        hdu.name = name
    path = samples.write(tmp_path / "wu.fits", [*hdus, *second, fits.ImageHDU(np.ones((2, 3, 4)), name="FOREIGN")])
    data = Path(path).read_bytes().replace(b"'SCI_1   '", b"'sci_1   '")
    Path(path).write_bytes(data)
    reader = FitsBackend().open(path)
    np.testing.assert_array_equal(reader.image(1).science, samples.image_hdus(1)[0].data)
    assert reader.role_of(0, 0) == "primary"
    assert reader.role_of(0, len(hdus) + len(second)) == "foreign"
    assert reader.hdus_of(1) == [(0, 1, "psf"), (0, 2, "mask"), (0, 3, "variance"), (0, 4, "science")]


# --- WCS ----------------------------------------------------------------------------------------------

WCS = {
    "CRVAL1": 150.0,
    "CRVAL2": 2.0,
    "CRPIX1": 4.0,
    "CRPIX2": 3.0,
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CDELT1": -1e-4,
    "CDELT2": 1e-4,
}


def test_image_headers_give_the_wcs_of_each_image(tmp_path: Path) -> None:
    hdus = [samples.primary_hdu(2)]
    for i in range(2):
        hdus += samples.image_hdus(i, compressed=True, **{**WCS, "CRVAL1": 150.0 + i})
    texts = values_of(meta_of(samples.write(tmp_path / "wu.fits", hdus)), "per_image_wcs")
    assert [text_to_wcs(text).wcs.crval[0] for text in texts] == [150.0, 151.0]
    assert text_to_wcs(texts[0]).pixel_shape == (8, 6)


def test_copies_of_the_global_wcs_are_no_wcs_of_the_image(tmp_path: Path) -> None:
    hdus = [samples.primary_hdu(1, **WCS, DIMM1=8, DIMM2=6), *samples.image_hdus(0, **WCS)]
    meta = meta_of(samples.write(tmp_path / "wu.fits", hdus))
    assert meta.constituents.get("per_image_wcs") is None
    assert meta.wcs is not None
    assert text_to_wcs(meta.wcs).pixel_shape == (8, 6)


def test_global_wcs_is_the_one_of_the_whole_header(tmp_path: Path) -> None:
    from astropy.wcs import WCS as AstropyWCS

    header = fits.Header(
        {
            **WCS,
            "A_ORDER": 2,
            "A_2_0": 1e-5,
            "B_ORDER": 2,
            "B_0_2": 2e-5,
            "PV1_1": 0.5,
            "RADESYS": "FK5",
            "EQUINOX": 2000.0,
        }
    )
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["EXPTIME"] = 5.0
    header["DATE-OBS"] = "2024-01-02T03:04:05"
    header.add_history("not a WCS card")
    text = wcs_text(Header(header.tostring(endcard=False, padding=False)), (6, 8))
    assert text is not None
    assert "EXPTIME" not in text
    assert "HISTORY" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = text_to_wcs(text), AstropyWCS(header)
    assert ours.to_header_string(relax=True) == theirs.to_header_string(relax=True)


@pytest.mark.parametrize(
    "change",
    [{"CRVAL2": None}, {"WCSAXES": 3}, {"CTYPE3": "FREQ"}, {"WCSAXES": 2, "CD3_3": 1.0}, {"WCSAXES": 2, "CUNIT3": ""}],
)
def test_no_wcs_of_two_axes_is_none(change: dict[str, Any]) -> None:
    cards = {key: value for key, value in {**WCS, **change}.items() if value is not None}
    assert wcs_text(Header(fits.Header(cards).tostring(endcard=False, padding=False))) is None


# --- the table ----------------------------------------------------------------------------------------


def test_table_values_equal_astropys(corpus: Path) -> None:
    compared = 0
    for path in sorted((corpus / "head" / "j_meta").glob("*.fits")):
        meta = meta_of(path)
        with fits.open(path) as hdus:
            table = Table(hdus["IMG_META"].data)
        names = [name.removeprefix("_WCSSTR_") for name in table.colnames]
        assert [column.name for column in meta.constituents.columns] == names
        for name, column in zip(table.colnames, meta.constituents.columns, strict=True):
            if column.kind == "plain":
                assert column.values.dtype == table[name].dtype.newbyteorder("=")
                np.testing.assert_array_equal(column.values, np.asarray(table[name]))
                compared += 1
    assert compared > 30


def test_rare_columns(tmp_path: Path) -> None:
    columns = fits.ColDefs(
        [
            fits.Column("bits", "11X", array=np.arange(22).reshape(2, 11) % 2 == 1),
            fits.Column("i8", "B", bzero=-128, array=np.array([-128, 5], np.int8)),
            fits.Column("u2", "I", bzero=32768, array=np.array([0, 65535], np.uint16)),
            fits.Column("scaled", "I", array=np.array([1, 2], np.int16)),
            fits.Column("ragged", "PJ()", array=np.array([[1, 2], [3]], dtype=object)),
            fits.Column("words", "8A", dim="(4,2)", array=np.array([["ab", "c"], ["d", "ef"]])),
            fits.Column("matrix", "6E", dim="(3,2)", array=np.arange(12, dtype="f4").reshape(2, 2, 3)),
        ]
    )
    table = fits.BinTableHDU.from_columns(columns, name="IMG_META")
    hdus = [samples.primary_hdu(2), table, *samples.image_hdus(0), *samples.image_hdus(1)]
    for wanted in (columns.names, [name for name in columns.names if name not in {"bits", "scaled", "ragged"}]):
        hdus[1] = fits.BinTableHDU.from_columns([columns[name] for name in wanted], name="IMG_META")
        if "scaled" in wanted:
            hdus[1].header["TSCAL4"], hdus[1].header["TZERO4"] = 0.5, 1.0
        path = samples.write(tmp_path / "wu.fits", hdus)
        meta = meta_of(path)
        with fits.open(path) as opened:
            expected = Table(opened["IMG_META"].data)
        for name in wanted:
            ours = meta.constituents.get(name)
            assert ours is not None
            if name == "ragged":
                assert [list(cell) for cell in ours.values] == [[1, 2], [3]]
            else:
                np.testing.assert_array_equal(ours.values, np.asarray(expected[name]))


def test_texts_that_only_look_like_a_wcs_stay_texts(tmp_path: Path) -> None:
    table = samples.table_hdu("IMG_META", _WCSSTR_x=["{not json", "either"], _WCSSTR_y=["", json.dumps(WCS)])
    hdus = [samples.primary_hdu(2), table, *samples.image_hdus(0), *samples.image_hdus(1)]
    meta = meta_of(samples.write(tmp_path / "wu.fits", hdus))
    assert values_of(meta, "_WCSSTR_x") == ["{not json", "either"]
    none, text = values_of(meta, "y")
    assert none is None
    assert text_to_wcs(text).wcs.crval[0] == 150.0


def test_one_row_per_image_beside_one_per_constituent(tmp_path: Path) -> None:
    """The layout of 14 November 2024 that was never released: links stand in IMG_META, not in SCI headers."""
    original = samples.table_hdu("ORG_META", data_loc=["a", "b", "c"], _EMPTY_ebd_wcs=["None"] * 3)
    images = samples.table_hdu("IMG_META", _index=[0, 1], per_image_indices=np.array([[0, 2], [1, -1]]))
    hdus = [samples.primary_hdu(2, NCON=3, HELIO=40.0, BARY=..., REPFRAME=...), images, original]
    for i in range(2):
        hdus += samples.image_hdus(i, NIND=None, IND_0=None)
    meta = meta_of(samples.write(tmp_path / "wu.fits", hdus))
    assert meta.source["layout"] == "kbmod-2024-11-14-original"
    assert meta.links == ((0, 2), (1,))
    assert values_of(meta, "data_loc") == ["a", "b", "c"]
    assert values_of(meta, "ebd_wcs") == [None] * 3
    assert meta.barycentric_distance == 40.0


def test_flags_of_masks_have_the_meanings_of_the_configuration(tmp_path: Path) -> None:
    table = samples.table_hdu("KBMOD_CONFIG", mask_bits_dict=["{BAD: 0, EDGE: 4, odd: x}\n"])
    hdus = [samples.primary_hdu(1), table, *samples.image_hdus(0)]
    assert meta_of(samples.write(tmp_path / "wu.fits", hdus)).mask_flags == {}  # int8 says only masked or not
    hdus[4] = fits.ImageHDU(np.full((6, 8), 17, np.int32), name="MSK_0")
    assert meta_of(samples.write(tmp_path / "wu.fits", hdus)).mask_flags == {"BAD": 1, "EDGE": 16}


def test_configuration_keeps_types(tmp_path: Path) -> None:
    table = samples.table_hdu(
        "KBMOD_CONFIG", a=["5\n...\n"], b=["[25, 75]\n"], c=["null\n...\n"], d=["!!python/tuple [1, 2]\n"]
    )
    hdus = [samples.primary_hdu(1), table, *samples.image_hdus(0)]
    assert meta_of(samples.write(tmp_path / "wu.fits", hdus)).configuration == {
        "a": 5,
        "b": [25, 75],
        "c": None,
        "d": (1, 2),
    }


# --- refusals -----------------------------------------------------------------------------------------


# --- shards -------------------------------------------------------------------------------------------


# --- YAML dumps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", samples.DUMPS)
def test_yaml_dumps_hold_the_truth(golden: Path, path: str) -> None:
    reader, truth = open_reader(golden / path), samples.truth_of(path)
    assert reader.format == "kbmod-yaml"
    for i in range(3):
        image = reader.image(i)
        for layer, key in (("science", "sci"), ("variance", "var"), ("psf", "psf"), ("mask", "mask")):
            plane, expected = image.layer(layer), truth[f"{key}_{i}"]
            assert plane is not None
            assert plane.dtype == np.float32
            # One image had its mask applied before it was written.
            whole = np.isfinite(plane) & (plane != -9999)
            assert whole.mean() > 0.9
            np.testing.assert_array_equal(plane[whole], expected[whole])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_images: 3", "num_images: 4"),
        ("num_images: 3", "num_images: many"),
        ("height: 16", "height: 17"),
        ("times:\n- 60000.125", "times:\n- noon"),
        ("times:", "hours:"),
        ("times:\n", "times: [1, 2\n"),
        ("per_image_indices:\n- - 0", "per_image_indices:\n- - 9"),
    ],
)
def test_damaged_yaml_dumps_are_refused(golden: Path, tmp_path: Path, old: str, new: str) -> None:
    text = (golden / "2024-05/mosaic.yaml").read_text()
    assert old in text
    path = tmp_path / "x.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(FormatError):
        YamlDumpBackend().open(str(path)).image(0)


def test_yaml_aliases_cannot_ask_for_memory(tmp_path: Path) -> None:
    levels = ["a0: &a0 [1.0, 1.0]"] + [f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}, *a{k - 1}]" for k in range(1, 40)]
    body = "\n".join(f"  {line}" for line in levels)
    path = tmp_path / "x.yaml"
    path.write_text(
        f"num_images: 1\nheight: 1\nwidth: 1\ntimes: [1.0]\nsci_imgs:\n- {{x: 1}}\nvar_imgs: []\npsfs:\n{body}\n"
    )
    with pytest.raises(FormatError):
        YamlDumpBackend().open(str(path)).image(0)


def test_yaml_dumps_are_not_written(golden: Path, tmp_path: Path) -> None:
    meta = meta_of(golden / "2024-05/mosaic.yaml")
    with pytest.raises(UsageError):
        YamlDumpBackend().create(str(tmp_path / "x.yaml"), meta)
    assert YamlDumpBackend().try_open(samples.small(tmp_path / "x.fits")) is None
