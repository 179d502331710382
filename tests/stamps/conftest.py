"""How windows are cut: by numpy and by compiled loops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wustore.backends.compiling import Loops
from wustore.backends.zarr.filters import blocks
from wustore.stamps.cutting import gather, masking


@pytest.fixture(params=["numpy", "compiled"])
def cutting(request: pytest.FixtureRequest) -> Iterator[str]:
    """Cut windows in one of both ways, however few they are; return its name."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (gather, "stamps.cutting"),
            (masking, "stamps.cutting"),
            (blocks, "backends.zarr.filters"),
        ):
            loops = Loops(f"wustore.{name}.loops_numba", 0 if request.param == "compiled" else 1 << 60)
            if request.param == "compiled" and loops.get(1) is None:
                pytest.skip("there is no numba for this Python")
            patch.setattr(module, "_LOOPS", loops)
        yield request.param
