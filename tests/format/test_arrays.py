"""Small arrays of a store."""

from __future__ import annotations

import numpy as np

from wustore.format.arrays import CHECKSUM_DIMS, checksum_array
from wustore.model.meta import LAYERS


def test_checksums_have_a_column_for_each_layer() -> None:
    spec = checksum_array(np.arange(8, dtype=np.uint32).reshape(2, 4))
    assert spec.attributes["layers"].split() == list(LAYERS)
    assert spec.data.shape == (2, len(LAYERS))
    assert spec.dims == CHECKSUM_DIMS
