"""Letters for pictures."""

from __future__ import annotations

import string

from wustore.stamps.letters import HEIGHT, STEP, drawn


def test_every_letter_has_a_shape_of_its_own():
    shapes = {letter: drawn(letter).tobytes() for letter in map(chr, range(32, 127))}
    assert len(set(shapes.values())) == 95
    assert not drawn(" ").any()
    assert all(drawn(letter).any() for letter in string.ascii_letters + string.digits)


def test_lines():
    assert drawn("12.5").shape == (HEIGHT, 4 * STEP)
    assert drawn("").shape == (HEIGHT, 0)
    assert drawn("é").tobytes() == drawn("?").tobytes()
    rows = ["".join(" #"[pixel] for pixel in row).rstrip() for row in drawn("L").tolist()]
    assert rows == ["#"] * 6 + ["#####"]
