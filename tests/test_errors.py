"""Errors say their place, whoever knows it."""

from __future__ import annotations

import pytest

from wustore.errors import CorruptError, located


def test_empty_fields_are_filled() -> None:
    with pytest.raises(CorruptError) as caught, located("outer", "there"), located(where="here"):
        raise CorruptError("damaged")
    assert (caught.value.path, caught.value.where) == ("outer", "here")


def test_what_is_said_stays() -> None:
    with pytest.raises(CorruptError) as caught, located("outer", "there"):
        raise CorruptError("damaged", path="inner", where="here")
    assert (caught.value.path, caught.value.where) == ("inner", "here")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), located("outer"):
        raise KeyError("x")
