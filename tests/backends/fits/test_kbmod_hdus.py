"""KBMOD's layout byte for byte: against HDUs made with astropy as KBMOD makes them, and against its own files."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from fits_samples import image, meta_of
from tile_reference import needs_astropy_8

from wustore.backends.fits.kbmod_hdus import FitsOptions, head_hdus, image_hdus
from wustore.compat.wcs import kbmod_header_cards, text_to_kbmod_json
from wustore.compat.yaml import dump_value, load_value
from wustore.errors import UsageError
from wustore.model.meta import Column, ConstituentTable, Image, Meta, Observatory
from wustore.testing import WCS_TEXT


def clockless(raw: bytes) -> bytes:
    """Mask the clock of gzip streams."""
    return re.sub(rb"(?s)(\x1f\x8b\x08.)....", rb"\g<1>\0\0\0\0", raw)


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


# --- losses -------------------------------------------------------------------------------------------


def test_options_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError):
        FitsOptions("LZW")
    with pytest.raises(UsageError):
        FitsOptions("HCOMPRESS_1", 0)
