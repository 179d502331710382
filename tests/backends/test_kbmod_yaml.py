"""YAML dumps of 2023 and 2024: what is no dump, and what would take more than its text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wustore.backends.kbmod_yaml import YamlDumpReader
from wustore.errors import CorruptError, FormatError, OtherFormatError

PARTS = {
    "num_images": "2",
    "height": "2",
    "width": "3",
    "times": "[60000.0, 60001.0]",
    "sci_imgs": "&p\n- [[1, 2, 3], [4, 5, 6]]\n- [[7, 8, 9], [1, 2, 3]]",
    "var_imgs": "[[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]]",
    "psfs": "&one\n- &same [[1.0]]\n- *same",
}


def dump(path: Path, **changes: str | None) -> str:
    parts = {name: text for name, text in (PARTS | changes).items() if text is not None}
    path.write_text("".join(f"{name}: {text}\n" for name, text in parts.items()))
    return str(path)


def test_values(tmp_path: Path) -> None:
    with YamlDumpReader(dump(tmp_path / "x.yaml")) as reader:
        assert reader.meta.times.tolist() == [60000.0, 60001.0]
        image = reader.image(1)
    assert image.science.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert image.psf is not None
    assert image.psf.tolist() == [[1.0]]
    assert image.science.dtype == np.float32


@pytest.mark.parametrize(("text", "value"), [("41", 41.0), ("41.5", 41.5), ("true", None), ("1" + "0" * 400, None)])
def test_a_distance_is_a_float_however_it_is_written(text: str, value: float | None, tmp_path: Path) -> None:
    path = dump(tmp_path / "x.yaml", heliocentric_distance=text, geocentric_distances=f"[{text}, 40]")
    with YamlDumpReader(path) as reader:
        assert repr(reader.meta.barycentric_distance) == repr(value)
        column = reader.meta.constituents.get("geocentric_distance")
    assert column is not None
    assert [type(item) for item in column.values.tolist()][value is None :] == [float] * (2 - (value is None))


CHANGES = {
    "no images": {"num_images": "0"},
    "a negative number of images": {"num_images": "-5"},
    "a number of images that is none": {"num_images": "[1, 2]"},
    "more images than listed": {"num_images": "3"},
    "a height below zero": {"height": "-2"},
    "a time larger than any": {"times": "[60000.0, 1" + "0" * 400 + "]"},
    "a time that is a list": {"times": "[60000.0, [1]]"},
    "images of different sizes": {"sci_imgs": "[[[1, 2, 3], [4, 5, 6]], [[1]]]"},
    "text in an image": {"sci_imgs": "[[[1, 2, 3], [4, x, 6]], [[7, 8, 9], [1, 2, 3]]]"},
    "an object": {"times": "!!python/object:os.system {}"},
    "an alias to itself": {"times": "&a [*a, *a]"},
    "no YAML": {"times": "[60000.0,"},
    "a kernel without values": {"psfs": "[[], []]"},
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_damage(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError), YamlDumpReader(dump(tmp_path / "x.yaml", **CHANGES[name])) as reader:
        reader.image(0)


def test_aliases_do_not_stand_for_more_than_memory_holds(tmp_path: Path) -> None:
    row, rows = "&r [" + "1, " * 9999 + "1]", ", *r" * 9999
    path = dump(tmp_path / "x.yaml", height="10000", width="10000", sci_imgs=f"[[{row}{rows}], [[1]]]")
    with YamlDumpReader(path) as reader, pytest.raises(CorruptError, match="size"):
        reader.image(0)


def test_what_is_no_dump(tmp_path: Path) -> None:
    with pytest.raises(OtherFormatError):
        YamlDumpReader(dump(tmp_path / "x.yaml", times=None))
