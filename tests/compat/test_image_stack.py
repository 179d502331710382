"""ImageStack and LayeredImage: KBMOD's behaviour, NaN where masked, no needless copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from wustore.compat.image_stack import ImageStack, ImageStackPy, match_times
from wustore.compat.layered_image import LayeredImage, LayeredImagePy
from wustore.errors import FormatError


def planes(n: int = 3, shape: tuple[int, int] = (4, 5)) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(7)
    science = [rng.normal(0, 5, shape).astype(np.float32) for _ in range(n)]
    return science, [np.full(shape, 25.0 + k, np.float32) for k in range(n)]


def stack(n: int = 3) -> ImageStack:
    science, variance = planes(n)
    return ImageStack(60000.0 + np.arange(n), science, variance)


class Psf:
    def __init__(self) -> None:
        self.kernel = np.ones((3, 3)) / 9


def test_names() -> None:
    assert ImageStackPy is ImageStack
    assert LayeredImagePy is LayeredImage


def test_construction_takes_arrays_as_they_are() -> None:
    science, variance = planes()
    images = ImageStack([1, 2, 4], science, variance, psfs=[Psf(), np.ones((1, 1)), np.eye(3, dtype=np.int32)])
    assert all(a is b for a, b in zip(images.sci, science, strict=True))
    assert images.times.dtype == np.float64
    assert images.zeroed_times.tolist() == [0, 1, 3]
    assert (len(images), images.num_times, images.height, images.width) == (3, 3, 4, 5)
    assert (images.npixels, images.total_pixels, images.get_total_pixels()) == (20, 60, 60)
    assert images.psfs[0].shape == (3, 3)
    assert images.psfs[2].dtype == np.int32
    assert images.get_obstime(2) == 4.0
    assert not images.lazy


def test_masks_become_nan_in_both_layers_and_the_caller_keeps_his_arrays() -> None:
    science, variance = planes(2)
    mask = np.zeros((4, 5), np.int32)
    mask[1, 2], mask[0, 0] = 4096, -(2**31)
    images = ImageStack([1, 2], science, variance, mask=[mask, np.zeros((4, 5))])
    assert np.isnan(images.sci[0][1, 2])
    assert np.isnan(images.var[0][1, 2])
    assert not np.isnan(images.sci[0][0, 0])  # a negative flag does not mask
    assert images.get_mask(0).sum() == 1
    assert not np.isnan(science[0]).any()
    assert images.sci[1] is science[1]
    assert images.num_masked_pixels().tolist() == [1, 0]
    assert images.get_masked_fractions().tolist() == [0.05, 0]


def test_nan_in_one_layer_stays_in_one_layer() -> None:
    science, variance = planes(1)
    science[0][0, 0] = np.nan
    images = ImageStack([1], science, variance)
    assert np.isfinite(images.var[0][0, 0])
    assert images.get_mask(0)[0, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"sci": [np.ones((2, 2))]},
        {"times": [1], "var": [np.ones((2, 2))]},
        {"times": [1], "sci": [np.ones((2, 2))]},
        {"times": [1, 2], "sci": [np.ones((2, 2))], "var": [np.ones((2, 2))]},
        {"times": [1], "sci": [np.ones((2, 2))], "var": [np.ones((2, 3))]},
        {"times": [1], "sci": [np.ones(2)], "var": [np.ones(2)]},
        {"times": [1], "sci": [np.ones((2, 2))], "var": [np.ones((2, 2))], "mask": [np.ones((3, 2))]},
        {"times": [1], "sci": [np.ones((2, 2))], "var": [np.ones((2, 2))], "mask": []},
        {"times": [1], "sci": [np.ones((2, 2))], "var": [np.ones((2, 2))], "psfs": ["x"]},
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        ImageStack(**arguments)  # type: ignore[arg-type]


def test_empty_and_append() -> None:
    images = ImageStack()
    assert (len(images), images.height, images.width) == (0, -1, -1)
    assert images.zeroed_times.tolist() == []
    assert not images.validate()
    images.append_image(5.0, np.ones((2, 3)), np.ones((2, 3)))
    images.append_image(3.0, np.ones((4, 1)), np.ones((4, 1)), mask=np.array([[1], [0], [0], [0]]), psf=Psf())
    assert (images.height, images.width) == (4, 3)
    assert images.times.tolist() == [5.0, 3.0]
    assert images.sci[0].dtype == np.float32
    assert images.psfs[0].tolist() == [[1.0]]
    assert np.isnan(images.sci[1][0, 0])
    with pytest.raises(FormatError):
        images.append_image(1.0, np.ones((2, 2)), np.ones((2, 2)), mask=np.ones((3, 3)))
    assert len(images) == 2


def test_layered_images() -> None:
    images = stack()
    image = images.get_single_image(1)
    assert image.sci is images.sci[1]
    assert (image.height, image.width, image.time) == (4, 5, 60001.0)
    assert image.psf.dtype == np.float32
    image = LayeredImage(np.zeros((4, 5)), np.ones((4, 5)), mask=np.eye(4, 5), time=9.0)
    images.set_single_image(2, image)
    assert np.isnan(images.sci[2]).sum() == 4
    assert images.sci[2] is image.sci  # taken over, as in KBMOD
    assert images.zeroed_times[2] == 9.0 - 60000.0
    images.append_layered_image(image)
    assert len(images) == 4
    assert images.sci[3] is image.sci
    frozen = LayeredImage(np.zeros((4, 5), np.float32), np.ones((4, 5)), mask=np.eye(4, 5))
    frozen.sci.flags.writeable = False
    images.append_layered_image(frozen)
    assert np.isnan(images.sci[4]).sum() == 4
    assert not np.isnan(frozen.sci).any()
    with pytest.raises(FormatError):
        images.set_single_image(0, LayeredImage(np.zeros((2, 2)), np.zeros((2, 2))))
    for index in (-1, 5):
        with pytest.raises(IndexError):
            images.get_single_image(index)
    assert LayeredImage([[np.nan]], [[1.0]]).mask.tolist() == [[True]]


def test_equality_with_nan_and_ragged_images() -> None:
    a, b = stack(), stack()
    a.sci[0][0, 0] = b.sci[0][0, 0] = np.nan
    assert a == b
    assert a == a.copy()
    b.sci[0][0, 0] = 1.0
    assert a != b
    c = stack()
    c.append_image(1.0, np.ones((2, 2)), np.ones((2, 2)))
    d = stack()
    d.append_image(1.0, np.ones((2, 3)), np.ones((2, 3)))
    assert c != d
    copied = a.copy()
    copied.sci[1][...] = 0
    assert not np.all(a.sci[1] == 0)


def test_filter_and_sort() -> None:
    images = ImageStack([3.0, 1.0, 2.0], *planes())
    first = images.sci[0]
    order = images.sort_by_time()
    assert order.tolist() == [1, 2, 0]
    assert images.sci[2] is first
    assert images.times.tolist() == [1.0, 2.0, 3.0]
    images.filter_images([True, False, True])
    assert images.times.tolist() == [1.0, 3.0]
    assert images.sci[1] is first
    with pytest.raises(FormatError):
        images.filter_images([True])
    images.filter_images([False, False])
    assert len(images) == 0


def test_scaling_leaves_masked_pixels() -> None:
    images = stack(2)
    images.var[0][0, 0] = np.nan
    before = [plane.copy() for plane in images.sci]
    images.scale_images([2.5, 0.0])
    assert images.sci[0][0, 0] == before[0][0, 0]
    np.testing.assert_array_equal(images.sci[0][1:], (before[0][1:].astype(float) / 10).astype(np.float32))
    assert images.var[0][1, 1] == np.float32(0.25)
    np.testing.assert_array_equal(images.sci[1], before[1])
    images.scale_images(2.0, is_magnitude=False)
    np.testing.assert_array_equal(images.sci[1], before[1] / 2)
    plane = images.sci[1].copy()
    images.scale_images(np.float32(0.3))
    np.testing.assert_array_equal(images.sci[1], plane / 10 ** (np.float32(0.3) / 2.5))  # in float32, as in KBMOD
    with pytest.raises(FormatError):
        images.scale_images([1.0])


def test_bounds() -> None:
    images = stack(1)
    images.sci[0][0, 0], images.var[0][1, 1] = 1e21, 0.0
    images.mask_by_science_bounds()
    images.mask_by_variance_bounds()
    assert np.argwhere(np.isnan(images.sci[0])).tolist() == [[0, 0], [1, 1]]
    np.testing.assert_array_equal(np.isnan(images.sci[0]), np.isnan(images.var[0]))


def test_validation_and_stats(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    images = stack()
    assert images.validate()
    images.sci[0][...] = np.nan
    images.sci[1][0, 0] = 1e9
    images.var[2][0, 0] = -1.0
    assert not images.validate()
    for part in ("Image 0 has 100 percent", "Image 1 has invalid science", "Image 2 has invalid variance"):
        assert part in caplog.text
    images.print_stats()
    printed = capsys.readouterr().out
    assert "Image Count: 3" in printed
    heading = "|  idx |     Time   |  Flux Min  |  Flux Max  |  Flux Mean |  Var Min |  Var Max | Var Mean | Masked |"
    assert heading in printed  # KBMOD's, blank for blank


def test_times_match_in_any_order() -> None:
    times = [10.0, 3.0, 7.0, 3.0]
    assert match_times(times, [3.0, 6.9996, 10.001, 5.0, np.nan, -1e9, 1e9]).tolist() == [1, 2, -1, -1, -1, -1, -1]
    assert match_times(times, [5.0], threshold=5.0).tolist() == [3]
    assert ImageStack([1.0, 2.0], *planes(2)).get_matched_obstimes([2.0003]).tolist() == [1]
    assert match_times([], [1.0]).tolist() == [-1]


class Source:
    """Counts what is read."""

    def __init__(self) -> None:
        self.science, self.variance = planes()
        self.reads: list[tuple[str, int]] = []

    def plane(self, layer: str, i: int) -> np.ndarray:
        self.reads.append((layer, i))
        return {"science": self.science, "variance": self.variance, "psf": [np.ones((1, 1))] * 3}[layer][i].copy()

    def shape(self, layer: str, i: int) -> tuple[int, int]:
        return self.science[i].shape if layer != "psf" else (1, 1)

    def load(
        self, indices: Sequence[int], progress: object = None, out: object = None
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        self.reads.append(("all", len(indices)))
        return (
            [self.science[i].copy() for i in indices],
            [self.variance[i].copy() for i in indices],
            [np.ones((1, 1)) for _ in indices],
        )


def test_a_lazy_stack_reads_what_is_touched() -> None:
    source = Source()
    images = ImageStack.over(source, np.array([3.0, 1.0, 2.0]), (4, 5))
    assert images.lazy
    assert (len(images), images.height, images.width) == (3, 4, 5)
    images.sort_by_time()
    images.filter_images([True, False, True])
    assert source.reads == []
    np.testing.assert_array_equal(images.sci[1], source.science[0])
    assert source.reads == [("science", 0)]
    assert images.sci[0:1][0].shape == (4, 5)
    with pytest.raises(ValueError, match="read-only"):
        images.sci[0][0, 0] = 1.0
    source.reads.clear()
    images.scale_images(1.0)
    assert source.reads == [("all", 2)]
    assert not images.lazy
    images.sci[0][0, 0] = 1.0
    assert images.sci[0][0, 0] == 1.0
