"""A store to make pictures of, and what a page shows of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wustore.backends.memory import MemoryReader
from wustore.compat.wcs import make_fake_wcs
from wustore.format.wcs import wcs_to_text
from wustore.model.meta import Image
from wustore.testing import sample

WCS = make_fake_wcs(201.5, -9.9, 60, 40, 0.2 / 3600)


def night(n=3, shape=(40, 60)):
    """Images of noise with a source that moves, a masked corner and a pixel without a value."""
    rng = np.random.default_rng(3)
    images = []
    for k in range(n):
        science = rng.normal(10, 2, shape).astype(np.float32)
        science[20, 10 + k] = 500
        science[30, 31] = np.nan
        mask = np.zeros(shape, np.int32)
        mask[30:, :20] = 5
        images.append(Image(science, np.full(shape, 4 + k, np.float32), mask, None))
    return MemoryReader(meta_of(images), images, path="night")


def meta_of(images):
    n = len(images)
    planes = {"science": np.float32, "variance": np.float32, "mask": np.int32}
    return replace(
        sample("simple").meta,
        times=60000 + np.arange(n) / 10,
        image_shape=np.array([image.science.shape for image in images], np.int32),
        psf_shape=np.zeros((n, 2), np.int32),
        dtypes={
            layer: (np.dtype(planes[layer]) if layer in planes else None,) * n for layer in sample("simple").meta.dtypes
        },
        links=None,
        wcs=wcs_to_text(WCS),
    )


def shown(browser, image, layer):
    browser.wait(f"document.getElementById('canvas').dataset.shown === '{image} {layer}'")


def under_pointer(browser, x, y):
    """What the page says of a pixel of the image, with the pointer on its middle."""
    place = browser.value(
        f"(() => {{ const [sx, sy] = toScreen({x} + 0.5, {y} + 0.5), box = canvas.getBoundingClientRect();"
        " return [sx + box.x, sy + box.y]; })()"
    )
    browser.mouse("mouseMoved", *place)
    wanted = "JSON.parse(document.getElementById('readout').dataset.values || '{}')"
    browser.wait(f"(v => v.x === {x} && v.y === {y} && Object.keys(v.values).length === 3)({wanted})")
    return browser.value(wanted)
