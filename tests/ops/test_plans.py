"""Plans of conversions in parts: what they store, and what they refuse to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import wustore
from wustore.backends.registry import backend_named
from wustore.errors import CorruptError, UsageError
from wustore.ops.copy import copy
from wustore.storage.zarr_store import DirectoryKeys
from wustore.testing import sample, with_capsule


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


def test_a_plan_is_on_disk_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure an empty file would keep the conversion from going on."""
    durable, written = [], DirectoryKeys._written

    def note(keys: DirectoryKeys, key: str, pieces: Any, **options: Any) -> str:
        if options["durable"]:
            durable.append(key.rpartition("/")[2])
        return written(keys, key, pieces, **options)

    monkeypatch.setattr(DirectoryKeys, "_written", note)
    source = with_capsule(sample("simple"))
    copy(source, backend_named("zarr").create(str(tmp_path / "a.zarr"), source.meta, capsule=source.capsule()))
    for target in ("x.zarr", "x.h5"):
        durable.clear()
        wustore.plan(tmp_path / "a.zarr", tmp_path / target)
        assert durable == ["plan.json", "capsule.bin", "job.json"]


@pytest.mark.parametrize("name", ["plan.json", "job.json", "capsule.bin"])
def test_a_damaged_plan_says_how_to_begin_again(tmp_path: Path, name: str) -> None:
    source = with_capsule(sample("simple"))
    copy(source, backend_named("zarr").create(str(tmp_path / "a.zarr"), source.meta, capsule=source.capsule()))
    wustore.plan(tmp_path / "a.zarr", tmp_path / "x.zarr")
    (tmp_path / ".x.zarr.wustore-partial" / ".wustore-journal" / name).write_bytes(b"")
    with pytest.raises((CorruptError, UsageError), match="clean --unfinished"):
        wustore.convert(tmp_path / "a.zarr", tmp_path / "x.zarr", resume=True)
    wustore.clean(tmp_path / "x.zarr", unfinished=True)
    wustore.convert(tmp_path / "a.zarr", tmp_path / "x.zarr", resume=True)
    assert not wustore.verify(tmp_path / "x.zarr")
