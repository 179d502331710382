"""Contact sheets and pages of a store."""

from __future__ import annotations

import json
import re

import imagecodecs
import numpy as np
import pytest
from browser import Browser
from pictures import WCS, meta_of, night, shown, under_pointer

from wustore.backends.memory import MemoryReader
from wustore.cli import main
from wustore.errors import UsageError
from wustore.model.meta import Image
from wustore.ops.preview import page, sheet
from wustore.stamps.picture import MASKED


def data_of(text):
    """The data in a page."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])


def test_a_sheet_shows_masked_pixels_in_colour():
    picture = sheet(night(), columns=3)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    is_masked = (picture == MASKED).all(axis=2)
    zoom = 128 // 60
    assert is_masked.sum() == 3 * 10 * 20 * zoom**2  # nothing lies over this corner
    coloured = (picture.max(axis=2).astype(int) - picture.min(axis=2)) > 0
    assert coloured.sum() > is_masked.sum()  # compass, and the pixel without a value


def test_a_sheet_of_many_images_is_a_page():
    images = [night(1).image(0)] * 1000
    picture = sheet(MemoryReader(meta_of(images), images))
    height, width = picture.shape[:2]
    assert 0.5 < height / width < 2
    assert height * width < 40e6


@pytest.mark.parametrize("stretch", ["zscale", "asinh"])
def test_cut_and_stretch(stretch):
    reader = night()
    assert not np.array_equal(sheet(reader, stretch=stretch, cut=(0, 500)), sheet(reader, stretch=stretch))
    with pytest.raises(UsageError, match="stretch"):
        sheet(reader, stretch="log")


def test_a_small_store_is_in_the_page_with_every_value():
    data = data_of(page(night()))
    assert data["note"] == "Every value as stored."
    assert {plane["type"] for image in data["images"] for plane in image["planes"].values()} == {"f4", "f8"}


def test_a_page_keeps_its_size_and_says_what_is_rounded():
    images = [night(1, (400, 300)).image(0)] * 50
    text = page(MemoryReader(meta_of(images), images), max_bytes=400_000)
    assert 200_000 < len(text) < 420_000
    data = data_of(text)
    step = data["images"][0]["factor"]
    assert f"means of {step} x {step} pixels" in data["note"]
    assert data["images"][0]["planes"]["science"]["width"] == -(-300 // step)


@pytest.mark.slow
def test_five_hundred_images_are_below_twenty_megabytes():
    """Of 512 x 512 pixels; 2048 x 2048 give the same, in 16 times the time."""
    rng = np.random.default_rng(1)
    image = Image(
        *(rng.normal(0, 5, (512, 512)).astype(np.float32) for _ in range(2)),
        (rng.random((512, 512)) < 0.02).astype(np.int32),
        None,
    )
    images = [image] * 500
    assert 5e6 < len(page(MemoryReader(meta_of(images), images, shared=True))) < 20e6


def test_text_of_a_store_is_only_text():
    reader = night(1)
    reader.path = "</script><script>alert(1)</script>"
    text = page(reader)
    assert text.count("</script>") == 2
    assert data_of(text)["title"].startswith(reader.path)


# --- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


def test_keys_clicks_and_the_value_under_the_pointer(browser, tmp_path):
    reader = night()
    (tmp_path / "night.html").write_text(page(reader))
    browser.open((tmp_path / "night.html").as_uri())
    shown(browser, 0, "science")
    first = imagecodecs.png_decode(browser.screenshot())
    browser.key("ArrowRight")
    shown(browser, 1, "science")
    second = imagecodecs.png_decode(browser.screenshot())
    assert not np.array_equal(first, second)
    assert (np.abs(second[:, :, :3].astype(int) - MASKED) < 6).all(axis=2).sum() > 1000
    for x, y in ((11, 20), (0, 0), (59, 39), (5, 5), (31, 30)):
        found = under_pointer(browser, x, y)
        image = reader.image(1)
        for layer, value in found["values"].items():
            stored = image.layer(layer)[y, x]
            assert value == ("nan" if np.isnan(stored) else stored)
        assert np.allclose(found["sky"], WCS.all_pix2world(x, y, 0), atol=1e-8)
    browser.key("3")
    shown(browser, 1, "mask")
    browser.click("#layers button:nth-child(2)")
    shown(browser, 1, "variance")
    zoom = browser.value("state.zoom")
    browser.key("+")
    assert browser.value("state.zoom") > zoom
    browser.value("(() => { const s = document.getElementById('slider'); s.value = 2; s.oninput({ target: s }); })()")
    shown(browser, 2, "variance")
    browser.click("#blink")
    browser.wait("state.k === 0")
    browser.key(" ")
    assert browser.value("state.blinking") is None


def test_rounded_values_are_near_the_means(browser, tmp_path):
    images = [night(1, (200, 300)).image(0)] * 4
    reader = MemoryReader(meta_of(images), images)
    text = page(reader, max_bytes=60_000)
    step = data_of(text)["images"][0]["factor"]
    assert step > 1
    (tmp_path / "small.html").write_text(text)
    browser.open((tmp_path / "small.html").as_uri())
    shown(browser, 0, "science")
    x, y = 25 * step // step * step, 12 * step
    mean = images[0].science[y : y + step, x : x + step].mean()
    found = under_pointer(browser, x, y)
    assert found["values"]["science"] == pytest.approx(mean, abs=0.3)
    assert "mean of" in browser.value("document.getElementById('readout').textContent")


# --- the command -------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    from wustore.backends.registry import backend_for_writing
    from wustore.ops.copy import copy

    path = str(tmp_path / "night.zarr")
    reader = night()
    copy(reader, backend_for_writing(path).create(path, reader.meta))
    assert main(["preview", path, "-o", str(tmp_path / "a.png"), "--columns", "1"]) == 0
    assert imagecodecs.png_decode((tmp_path / "a.png").read_bytes()).shape[2] == 3
    assert main(["preview", path, "-o", str(tmp_path / "a.html"), "--stretch", "asinh", "--cut", "-1", "50"]) == 0
    assert data_of((tmp_path / "a.html").read_text())["cut"] == [-1, 50]
    for wrong in (["-o", "a.jpg"], ["-o", str(tmp_path / "a.png")], ["-o", "b.png", "--cut", "5", "1"]):
        assert main(["preview", path, *wrong]) == 2
    assert "3 images" in capsys.readouterr().err
