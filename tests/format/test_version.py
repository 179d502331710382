"""Which documents are refused for their version, and which are not."""

from __future__ import annotations

import pytest

from wustore.errors import CorruptError, FormatError, VersionError
from wustore.format.version import OLDER, check_version, is_newer, schema_version


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.27", *OLDER])
def test_versions_that_are_read(version):
    document = {"format": "wustore", "version": version}
    check_version(document)
    assert is_newer(document) == (version in {"1.1", "1.27"})
    assert schema_version(document) == (version if version in OLDER else "1.0")


@pytest.mark.parametrize(("version", "what"), [("2.0", "newer"), ("17.3", "newer"), ("0.2", "another")])
def test_versions_that_are_refused_with_both_named(version, what):
    with pytest.raises(VersionError, match=what) as caught:
        check_version({"format": "wustore", "version": version})
    assert "1.0" in str(caught.value)
    assert version in str(caught.value)


@pytest.mark.parametrize(
    "version", [None, 1, 1.0, True, "", "1", "1.", "01.0", "1.0.0", "0.2.0", "1.0 ", "\u0661.0", "9" * 20]
)
def test_what_is_no_version(version):
    with pytest.raises(CorruptError, match="names no version"):
        check_version({"format": "wustore", "version": version})


def test_other_documents():
    with pytest.raises(FormatError, match="not a wustore store"):
        check_version({"format": "other", "version": "1.0"})
    with pytest.raises(CorruptError, match="not an object"):
        check_version(["wustore"])
