"""Many files of a set, and files that change while they are open."""

from __future__ import annotations

from pathlib import Path

import fits_samples as samples
import numpy as np
import pytest
from astropy.io import fits

from wustore.backends.fits.backend import FitsBackend, ShardedFitsBackend
from wustore.errors import StoreReplacedError


def test_more_shards_than_files_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wustore.backends.fits.reader._OPEN_FILES", 3)
    for i in range(9):
        samples.write(tmp_path / f"{i}_wu.fits", [fits.PrimaryHDU(), *samples.image_hdus(i)])
    path = samples.write(tmp_path / "wu.fits", [samples.primary_hdu(9)])
    reader = ShardedFitsBackend().open(path)
    for i in [*range(9), 0, 8, 4]:
        np.testing.assert_array_equal(reader.image(i).science, samples.image_hdus(i)[0].data)


def test_a_changed_file_is_not_read_as_the_old_one(tmp_path: Path) -> None:
    path = Path(samples.small(tmp_path / "x.fits"))
    reader = FitsBackend().open(str(path))
    data = path.read_bytes()
    path.write_bytes(data + bytes(2880))
    with pytest.raises(StoreReplacedError, match="changed"):
        reader.image(0)
