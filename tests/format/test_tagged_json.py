"""Strict JSON keeps every value with its type."""

from __future__ import annotations

import datetime
import enum
import json
import math
import struct

import numpy as np
import pytest
from astropy import units
from hypothesis import given
from hypothesis import strategies as st

from wustore.errors import CorruptError, FormatError, UsageError
from wustore.format import tagged_json
from wustore.model.compare import same_value

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.complex_numbers()
    | st.dates()
    | st.datetimes()
)
keys = st.text(st.characters(exclude_categories=["Cs"])) | st.integers()
values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(keys, v) | st.lists(v).map(tuple), max_leaves=12)


@given(values)
def test_round_trip(value):
    text = tagged_json.dumps(value)
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert same_value(tagged_json.loads(text), value)


def test_nan_payload():
    odd = struct.unpack(">d", bytes.fromhex("fff80000deadbeef"))[0]
    assert struct.pack(">d", tagged_json.loads(tagged_json.dumps(odd))).hex() == "fff80000deadbeef"


@pytest.mark.parametrize(
    "value",
    [
        np.float32(1.5),
        np.int64(-3),
        np.bool_(True),
        np.str_("é"),
        np.datetime64("2026-11-23"),
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.array(["a", "bc"]),
        {1, 2},
        tagged_json.RawYaml("!!python/object:os.system {}"),
    ],
)
def test_types(value):
    back = tagged_json.loads(tagged_json.dumps(value))
    assert type(back) is type(value)
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype.newbyteorder("=")
    assert np.all(np.asarray(back) == np.asarray(value))


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", '{"$what": 1}', '{"$tuple": 3}', '{"$bytes": "*"}'])
def test_damage(text):
    with pytest.raises(CorruptError):
        tagged_json.loads(text)


def test_no_json_form():
    with pytest.raises(FormatError):
        tagged_json.dumps(object())


class Band(str, enum.Enum):  # noqa: UP042 - a StrEnum has another __str__
    G = "g"


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([1, 2], mask=[0, 1]),
        np.ma.masked,
        np.zeros(2, [("a", "f4"), ("b", "i2")]),
        np.zeros(1, [("a", "f4")])[0],
        np.arange(4).view(np.matrix),
        5 * units.deg,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_means_more_than_its_numbers_is_refused(value):
    with pytest.raises(FormatError, match="has no JSON form"):
        tagged_json.encode([value])


def test_a_member_of_an_enum_of_texts_is_its_text():
    assert tagged_json.loads(tagged_json.dumps({"band": Band.G})) == {"band": "g"}


def test_errors_are_builtins():
    assert issubclass(UsageError, ValueError)
    assert math.isnan(tagged_json.loads('{"$float": "nan"}'))
    assert tagged_json.loads(tagged_json.dumps(datetime.date(2026, 1, 2))) == datetime.date(2026, 1, 2)
