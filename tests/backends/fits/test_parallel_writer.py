"""Images in any order, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from wustore.backends.base import Backend, Reader
from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.errors import UsageError
from wustore.ops.copy import copy
from wustore.testing import sample

SINGLE, SHARDED = FitsBackend(), ShardedFitsBackend()


def save(backend: Backend, source: Reader, path: Path, **options: object) -> Reader:
    copy(source, backend.create(str(path), source.meta, **options))
    return backend.open(str(path))


def test_images_out_of_order_need_no_memory(tmp_path: Path) -> None:
    """Images that come early wait in a file, and end up in order."""
    source = sample("chunked")
    writer = SINGLE.create(str(tmp_path / "a.fits"), source.meta, workers=1)
    for i in (2, 1, 0):
        writer.write(i, source.image(i))
    writer.commit()
    save(SINGLE, source, tmp_path / "b.fits").close()
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_an_image_twice(tmp_path: Path) -> None:
    source = sample("simple")
    with SINGLE.create(str(tmp_path / "a.fits"), source.meta) as writer:
        writer.write(0, source.image(0))
        with pytest.raises(UsageError):
            writer.write(0, source.image(0))
        writer.abort()
    assert list(tmp_path.iterdir()) == []
