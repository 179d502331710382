"""Fixtures that several test modules share."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from kbmod_stand_in import kbmod_stand_in  # noqa: F401 - a fixture

from wustore.backends.compiling import Loops
from wustore.backends.fits.tiles.rice import coder as rice

ROOT = Path(__file__).resolve().parents[1]

# No test fails because its machine is slow; and where a fixture is shared by all examples, that is meant.
settings.register_profile(
    "random", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.register_profile("fixed", settings.get_profile("random"), derandomize=True)
settings.load_profile("fixed")  # what fails, fails again; --hypothesis-profile=random looks further

LIMIT = 300
"""Seconds after which a test is taken to hang; it has as many on a slow machine as most of all tests together."""

_ERRORS = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Remember where errors go, as pytest keeps what a test prints, and ask servers of this machine only."""
    config.stash[_ERRORS] = os.dup(2)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]  # whoever runs the tests may have an account, and a proxy
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the process of a test that hangs, with the stacks of its threads: xdist names the test and ends the run."""
    seconds = LIMIT if item.get_closest_marker("slow") is None else 4 * LIMIT
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[_ERRORS])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The corpus of files written by the real KBMOD, where it is beside the checkout."""
    path = Path(os.environ.get("WUSTORE_CORPUS", ROOT.parent / "shared" / "corpus"))
    if not (path / "INDEX.md").is_file():
        pytest.skip("the KBMOD corpus is not beside the checkout (set WUSTORE_CORPUS)")
    return path


@pytest.fixture(scope="session")
def data() -> Path:
    """The golden files in the repository."""
    return ROOT / "tests" / "data"


@pytest.fixture(scope="module", params=["cfitsio", "compiled"])
def coder(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which of the two coders works on Rice tiles, however few there are."""
    loops = Loops("wustore.backends.fits.tiles.rice.loops_numba", 0)
    loops.is_missing = request.param == "cfitsio"
    if request.param == "compiled" and loops.get() is None:
        pytest.skip("there is no numba for this Python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rice, "_loops", loops)
        yield request.param
