"""What the tests of the command line share: stores in memory, and commands run in this process."""

from __future__ import annotations

import uuid

import pytest

from wustore.backends.memory import MemoryBackend
from wustore.cli import main
from wustore.ops.copy import copy


@pytest.fixture
def store():
    """Function that puts a sample into memory and returns its name."""
    names = []

    def put(reader):
        name = f"ram:{uuid.uuid4().hex}"
        copy(reader, MemoryBackend().create(name, reader.meta))
        names.append(name)
        return name

    yield put
    for name in names:
        MemoryBackend().remove(name)


@pytest.fixture
def run(capsys):
    """Function that runs a command in this process and returns (exit code, standard output, standard error)."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
