"""The memory backend conforms."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from wustore.backends.memory import MemoryBackend
from wustore.testing import BackendConformance


class TestMemory(BackendConformance):
    backend = MemoryBackend()
    persistent = False

    @pytest.fixture
    def path(self) -> Iterator[str]:
        name = f"ram:{uuid.uuid4().hex}"
        yield name
        self.backend.remove(name)
