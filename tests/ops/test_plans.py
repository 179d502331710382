"""Plans of conversions in parts: what they store, and what they refuse to."""

from __future__ import annotations

from pathlib import Path

import pytest

import wustore
from wustore.errors import UsageError


@pytest.mark.parametrize(
    "url",
    [
        "https://someone:very-secret@example.org/night.zarr",
        "https://example.org/night.zarr?signature=very-secret",
    ],
)
def test_no_plan_stores_a_secret(url: str, tmp_path: Path) -> None:
    """Refused before anything is asked of the server, and nothing is left at the target."""
    for begin in (
        lambda: wustore.plan(url, tmp_path / "x.zarr", parts=2),
        lambda: wustore.convert(url, tmp_path / "x.zarr", resume=True),
    ):
        with pytest.raises(UsageError, match="credentials") as caught:
            begin()
        assert "very-secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
