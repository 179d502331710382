"""KBMOD's layout byte for byte: against HDUs made with astropy as KBMOD makes them, and against its own files."""

from __future__ import annotations

import io
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import astropy
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from wustore.backends.fits.fidelity import FitsLossWarning, image_losses, meta_losses, option_losses, warn_of
from wustore.backends.fits.hdu.header_writer import card, float_text
from wustore.backends.fits.kbmod_layout import FitsOptions, head_hdus, image_hdus
from wustore.compat.wcs import kbmod_header_cards, text_to_kbmod_json
from wustore.compat.yaml import dump_value, load_value
from wustore.errors import UsageError
from wustore.format.wcs import wcs_to_text
from wustore.model.meta import LAYERS, Column, ConstituentTable, Image, Meta, Observatory
from wustore.testing import WCS_TEXT

RNG = np.random.default_rng(11)
ASTROPY_8 = int(astropy.__version__.split(".")[0]) >= 8
needs_astropy_8 = pytest.mark.skipif(
    not ASTROPY_8, reason="the layout is that of astropy 8; others write it differently"
)


def clockless(raw: bytes) -> bytes:
    """Mask the clock of gzip streams."""
    return re.sub(rb"(?s)(\x1f\x8b\x08.)....", rb"\g<1>\0\0\0\0", raw)


def image(shape: tuple[int, int] = (20, 30), scale: float = 5) -> Image:
    science = RNG.normal(0, scale, shape).astype(np.float32)
    variance = RNG.normal(25 * scale, scale, shape).astype(np.float32)
    mask = (RNG.random(shape) < 0.05).astype(np.float32)
    science[mask > 0] = variance[mask > 0] = np.nan
    return Image(science, variance, mask, RNG.random((5, 3)).astype(np.float32))


def meta_of(images: list[Image], **fields: Any) -> Meta:
    n = len(images)
    base: dict[str, Any] = {
        "links": tuple((i,) for i in range(n)),
        "constituents": ConstituentTable(n),
        "configuration": {"num_obs": 7, "lh_level": 12.5, "name": None},
        "reprojected": False,
        "observatory": Observatory((-30.244633330000003, -70.74941667000002, 2662.749999997793)),
    }
    return Meta(
        times=60300.1 + np.arange(n) / 3,
        image_shape=np.array([im.science.shape for im in images], np.int32),
        psf_shape=np.array([im.psf.shape for im in images if im.psf is not None], np.int32),
        dtypes={name: tuple(im.layer(name).dtype for im in images) for name in LAYERS},  # type: ignore[union-attr]
        **(base | fields),
    )


def written(meta: Meta, images: list[Image], options: FitsOptions) -> bytes:
    parts = head_hdus(meta)
    for i, one in enumerate(images):
        parts += image_hdus(meta, i, one, options)
    return b"".join(parts)


def by_astropy(meta: Meta, images: list[Image], options: FitsOptions) -> bytes:
    """Write the same with astropy's objects, in the order of KBMOD's documentation."""
    primary = fits.PrimaryHDU()
    cards = [
        ("NUMIMG", meta.n_images),
        ("NCON", meta.n_constituents),
        ("REPRJCTD", meta.reprojected),
        ("REPFRAME", meta.reprojection_frame),
        ("BARY", meta.barycentric_distance),
    ]
    assert meta.observatory is not None
    cards += zip(("OBS_LAT", "OBS_LON", "OBS_ELEV"), meta.observatory.geodetic, strict=True)
    wcs = [] if meta.wcs is None else kbmod_header_cards(meta.wcs)
    for key, value in [*cards, *wcs]:
        primary.header[key] = value
    settings = {key: dump_value(value) for key, value in (meta.configuration or {}).items()}
    config = fits.table_to_hdu(Table(rows=[settings]))
    config.name = "kbmod_config"
    table = Table()
    if meta.wcs is not None:
        table["_WCSSTR_per_image_wcs"] = np.array([text_to_kbmod_json(meta.wcs)] * meta.n_constituents)
    for column in meta.constituents.columns:
        table[column.name] = column.values
    hdus = [primary, config, fits.BinTableHDU(table, name="IMG_META")]
    for i, one in enumerate(images):
        parts = [
            fits.CompImageHDU(
                plane, compression_type=options.compression_type, quantize_level=options.quantize_level, name=name
            )
            for plane, name in ((one.science, f"SCI_{i}"), (one.variance, f"VAR_{i}"))
        ]
        bad = (one.mask > 0) | ~np.isfinite(one.science) | ~np.isfinite(one.variance)  # type: ignore[operator]
        parts.append(fits.ImageHDU(bad.astype(np.int8), name=f"MSK_{i}"))
        for part in parts:
            part.header["MJD"] = meta.times[i]
            for key, value in wcs:
                part.header[key] = value
        assert meta.links is not None
        parts[0].header["NIND"] = len(meta.links[i])
        for j, index in enumerate(meta.links[i]):
            parts[0].header[f"IND_{j}"] = index
        hdus += [*parts, fits.ImageHDU(one.psf, name=f"PSF_{i}")]
    buffer = io.BytesIO()
    fits.HDUList(hdus).writeto(buffer)
    return buffer.getvalue()


@needs_astropy_8
@pytest.mark.parametrize("compression", ["RICE_1", "GZIP_1", "GZIP_2", "NOCOMPRESS", "HCOMPRESS_1"])
@pytest.mark.parametrize("level", [-0.01, 0, 16.0])
def test_equals_astropy(compression: str, level: float) -> None:
    if level == 0 and compression in ("RICE_1", "HCOMPRESS_1"):
        return  # cut-off fractions, an unreadable file: tested below
    images = [image(), image((7, 64), 1e-3)]
    meta = meta_of(
        images,
        wcs=WCS_TEXT,
        reprojected=True,
        reprojection_frame="ebd",
        barycentric_distance=41.25,
        links=((0, 3), (2,)),
        constituents=ConstituentTable(
            4,
            (
                Column("visit", "plain", np.arange(4)),
                Column("filter", "plain", np.array(["g", "r", "", "y'"])),
                Column("good", "plain", np.array([True, False, True, True])),
                Column("corner", "plain", np.arange(8.0).reshape(4, 2)),
            ),
        ),
    )
    options = FitsOptions(compression, level)
    assert clockless(written(meta, images, options)) == clockless(by_astropy(meta, images, options))


def _written_by_kbmod(folder: Path) -> tuple[Meta, list[Image], list[dict[str, Any]]]:
    arrays, facts = np.load(folder / "input.npz"), json.loads((folder / "input.json").read_text())
    images = []
    for i in range(facts["n_images"]):
        mask = arrays[f"mask_{i}"]
        planes = [np.where(mask > 0, np.float32(np.nan), arrays[f"{name}_{i}"]) for name in ("sci", "var")]
        images.append(
            Image(*(plane.astype(np.float32) for plane in planes), mask, arrays[f"psf_{i}"].astype(np.float32))
        )
    columns = [
        Column(name, "plain", np.array(facts["columns"][name]["values"], dtype=facts["columns"][name]["dtype"]))
        for name in facts["columns_order"]
    ]
    texts = facts["per_image_wcs"]
    n = len(columns[0].values) if columns else len(texts or images)
    if texts:
        values = np.empty(n, object)
        values[:] = texts
        columns.append(Column("per_image_wcs", "wcs", values))
    with fits.open(folder / facts["outputs"][0]["single"]) as hdus:
        header, table = hdus[0].header, hdus["KBMOD_CONFIG"].data
        configuration = {name: load_value(table[name][0]) for name in table.names}
        place = Observatory((header["OBS_LAT"], header["OBS_LON"], header["OBS_ELEV"]))
    meta = meta_of(
        images,
        links=tuple(map(tuple, facts["per_image_indices"] or [[i] for i in range(n)])),
        constituents=ConstituentTable(n, tuple(columns)),
        configuration=configuration,
        observatory=place,
        wcs=facts["global_wcs"],
        **{key: facts[key] for key in ("reprojected", "reprojection_frame", "barycentric_distance")},
    )
    return replace(meta, times=arrays["times"].astype(float)), images, facts["outputs"]


@pytest.mark.parametrize("name", ["global", "mosaic", "per_image_sip"])
def test_equals_kbmod(name: str, corpus: Path) -> None:
    folder = corpus / "written" / name
    meta, images, outputs = _written_by_kbmod(folder)
    for output in outputs:
        options = FitsOptions(**output["options"])
        single = (folder / output["single"]).read_bytes()
        assert clockless(written(meta, images, options)) == clockless(single)
        primary = folder / output["shards"]
        assert b"".join(head_hdus(meta)) == primary.read_bytes()
        for i, one in enumerate(images):
            shard = (primary.parent / f"{i}_{primary.name}").read_bytes()
            assert clockless(b"".join(image_hdus(meta, i, one, options, sharded=True))) == clockless(shard)


def test_many_constituents() -> None:
    """IND_10000 has nine characters: HIERARCH."""
    one = image((2, 3))
    meta = meta_of([one], links=(tuple(range(10002)),), constituents=ConstituentTable(10002))
    raw = written(meta, [one], FitsOptions())
    with fits.open(io.BytesIO(raw)) as hdus:
        assert hdus["SCI_0"].header["IND_10001"] == 10001


@pytest.mark.parametrize(
    "value", [0.1, -30.165300000000002, 1e-300, -1.2345678901234567e-10, 1e20, 60300.348836837526, 1 / 3, -0.0, 5e-324]
)
def test_cards_of_numbers(value: float) -> None:
    assert card("KEY", value) == fits.Card("KEY", value).image
    assert len(float_text(value)) <= 20


@pytest.mark.parametrize(
    "value", ["", "a", "it's", "x" * 60, "y" * 68, "y" * 70, "'" * 40, True, -5, None, np.int64(3)]
)
def test_cards_of_others(value: Any) -> None:
    assert card("KEY", value) == fits.Card("KEY", value).image
    if value not in ("", None) and len(str(value)) < 40:
        assert card("KEY", value, "note") == fits.Card("KEY", value, "note").image


def test_numbers_without_form() -> None:
    assert card("MJD", float("nan")).rstrip() == "MJD     ="


# --- losses -------------------------------------------------------------------------------------------


def test_destroyed_planes_are_named_with_numbers() -> None:
    tiny = replace(image(), science=RNG.normal(0, 0.02, (20, 30)).astype(np.float32))
    tiny = replace(tiny, variance=np.full((20, 30), 4e-4, np.float32))
    found = list(image_losses(3, tiny, FitsOptions()))
    assert len(found) == 2
    assert re.search(r"SCI_3: the quantisation step 0\.01 is 0\.\d+ times its noise 0\.0", found[0])
    assert "VAR_3" in found[1]
    assert "25 times its median 0.0004" in found[1]
    assert list(image_losses(3, tiny, FitsOptions("GZIP_2", 0))) == []
    assert list(image_losses(3, image(), FitsOptions())) == []


def test_losses_of_pixels() -> None:
    odd = image()
    odd.science[0, 0] = np.inf
    odd = replace(odd, mask=np.full((20, 30), 4097, np.int32))
    text = " ".join(image_losses(0, odd, FitsOptions("RICE_1", 0)))
    assert "flag values of MSK_0" in text
    assert "fractions of SCI_0" in text
    assert "infinities of SCI_0" in " ".join(image_losses(0, odd, FitsOptions()))
    assert "NOCOMPRESS quantises too" in " ".join(option_losses(FitsOptions("NOCOMPRESS", -0.01)))
    assert not list(option_losses(FitsOptions("NOCOMPRESS", 0)))


def test_losses_of_metadata() -> None:
    mixed = np.empty(1, object)
    mixed[0] = 41.5
    columns = (
        Column("né", "plain", np.array(["é "])),
        Column("half", "plain", np.zeros(1, np.float16)),
        Column("mixed", "json", mixed),
        Column("seen", "plain", np.zeros(1), unit="s", mask=np.array([True])),
    )
    meta = meta_of(
        [image()],
        constituents=ConstituentTable(1, columns, {"survey": "x"}),
        wcs=WCS_TEXT + f"{'A_ORDER = 2':80}{'B_ORDER = 2':80}",
        configuration={"pair": (1, 2)},
    )
    meta = replace(meta, times=np.array([-3.3333333333333333e-06]))
    text = "; ".join(meta_losses(meta))
    named = ("SIP", "time of image 0", "pair", "non-ASCII text", "non-ASCII name", "trailing blanks", "float16")
    for part in (*named, "types in column 'mixed'", "unit of column 'seen'", "masked cells", "metadata of the table"):
        assert part in text, part
    with pytest.warns(FitsLossWarning, match="SIP"):
        warn_of(meta_losses(meta))


def test_rounded_wcs_is_named_where_positions_move() -> None:
    def told(longitude: float) -> str:
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [longitude, -5], [15, 10], [-5e-5, 5e-5]
        wcs.array_shape = (20, 30)
        text = wcs_to_text(wcs)
        table = ConstituentTable(1, (Column("per_image_wcs", "wcs", np.array([text], object)),), {})
        return "; ".join(meta_losses(meta_of([image()], constituents=table, wcs=text)))

    assert not told(351.3)
    assert not told(np.nextafter(351.3, 0))  # 2e-10 arcsec
    text = told(351.30000000000456)  # 11 decimals are written
    assert "the last digits of the global WCS (which moves a corner of the image by 1.6e-08 arcsec)" in text
    assert "last digits in column 'per_image_wcs'" in text


def test_nothing_lost_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of(meta_losses(meta_of([image()])))


def test_options_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError):
        FitsOptions("LZW")
    with pytest.raises(UsageError):
        FitsOptions("HCOMPRESS_1", 0)
